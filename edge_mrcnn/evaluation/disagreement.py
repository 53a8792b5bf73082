"""The pictures on which networks disagree most, kept while they pass and drawn at the end."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.evaluation.agreement import PictureAgreement
from edge_mrcnn.evaluation.comparison import DisagreementPicture
from edge_mrcnn.runtime.annotate import annotate

WIDTH = 480
"""Of a drawn picture at most, in pixels: several stand side by side on a page."""

JPEG_QUALITY = 85

Picture = npt.NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB."""


@dataclass(frozen=True, order=True)
class _Kept:
    """A picture in the heap: the one to give up first is the smallest."""

    disagreement: float
    place: int  # negative: of equal ones the earlier is kept
    name: str = dataclasses.field(compare=False)
    image: Picture = dataclasses.field(compare=False)
    found: Mapping[str, Detections] = dataclasses.field(compare=False)
    what: str = dataclasses.field(compare=False)


class DisagreementGallery:
    """Keeps the pictures on which candidates differ most from the reference; memory is that of those few."""

    def __init__(self, size: int, class_names: Sequence[str], threshold: float) -> None:
        """Begin empty.

        Args:
            size: Pictures kept; 0 keeps none.
            class_names: Name of each label.
            threshold: Score from which detections are drawn.
        """
        self._size, self._names, self._threshold = size, class_names, threshold
        self._heap: list[_Kept] = []
        self._seen = 0

    def add(self, name: str, image: Picture, reference: str, agreements: Mapping[str, PictureAgreement]) -> None:
        """Take a picture, unless it disagrees less than those that are kept.

        Args:
            name: The picture's.
            image: `(H, W, 3)` uint8 RGB.
            reference: Label of the reference.
            agreements: Of each candidate with the reference, by label.
        """
        self._seen += 1
        disagreement = max((one.disagreement for one in agreements.values()), default=0.0)
        full = len(self._heap) >= self._size
        if disagreement == 0 or not self._size or (full and disagreement <= self._heap[0].disagreement):
            return
        found = {label: one.candidate for label, one in agreements.items()}
        first = next(iter(agreements.values())).reference
        kept = _Kept(
            disagreement, -self._seen, name, image, {reference: first, **found}, describe(agreements, self._names)
        )
        (heapq.heapreplace if full else heapq.heappush)(self._heap, kept)

    def draw(self) -> tuple[DisagreementPicture, ...]:
        """The pictures, those that disagree most first, with each candidate's detections drawn into a copy."""
        return tuple(
            DisagreementPicture(
                kept.name,
                kept.disagreement,
                kept.what,
                {label: self._draw_one(kept.image, found) for label, found in kept.found.items()},
            )
            for kept in sorted(self._heap, reverse=True)
        )

    def _draw_one(self, image: Picture, found: Detections) -> bytes:
        small, shown = _shrink(image, found[found.score >= self._threshold])
        drawn = cv2.cvtColor(annotate(small, shown, self._names), cv2.COLOR_RGB2BGR)
        _, jpeg = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        return jpeg.tobytes()


def describe(agreements: Mapping[str, PictureAgreement], class_names: Sequence[str]) -> str:
    """What candidates make differently of a picture, in words.

    Args:
        agreements: Of each candidate with the reference, by label.
        class_names: Name of each label.

    Returns:
        Such as `fp16 agrees; int8 misses a cup (0.71) and adds a fork (0.54)`.
    """
    return "; ".join(f"{label} {one.describe(class_names)}" for label, one in agreements.items())


def _shrink(image: Picture, found: Detections) -> tuple[Picture, Detections]:
    """A picture no wider than `WIDTH`, before anything is drawn, so that lines and letters keep their size."""
    height, width = image.shape[:2]
    if width <= WIDTH:
        return image, found
    size = (WIDTH, max(1, round(height * WIDTH / width)))
    small: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    scale = np.array([size[0] / width, size[1] / height] * 2, np.float32)
    return small, dataclasses.replace(found, xyxy=found.xyxy * scale, image_hw=(size[1], size[0]), keypoints=None)
