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
from edge_mrcnn.evaluation.agreement import PictureAgreement, class_name
from edge_mrcnn.evaluation.comparison import DisagreementPicture
from edge_mrcnn.runtime.annotate import AnnotateOptions, annotate
from edge_mrcnn.runtime.labels import Label, draw_labels
from edge_mrcnn.runtime.palette import Color

WIDTH = 480
"""Of a drawn picture at most, in pixels: several stand side by side on a page."""

JPEG_QUALITY = 85

RED: Color = (214, 40, 40)
"""Of the boxes around what is missed or added."""

TEXT_PX = 7.5
"""Height of a capital letter in their names, that of the detections' own."""

Picture = npt.NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB."""


@dataclass(frozen=True, order=True)
class _Kept:
    """A picture in the heap: the one to give up first is the smallest."""

    disagreement: float
    place: int  # negative: of equal ones the earlier is kept
    name: str = dataclasses.field(compare=False)
    image: Picture = dataclasses.field(compare=False)
    agreements: Mapping[str, PictureAgreement] = dataclasses.field(compare=False)


class DisagreementGallery:
    """Keeps the pictures on which candidates differ most from the reference; memory is that of those few.

    In a candidate's picture, a red box marks what it adds, and one with a name what it misses.
    """

    def __init__(
        self,
        size: int,
        reference: str,
        class_names: Sequence[str],
        threshold: float,
        look: AnnotateOptions | None = None,
    ) -> None:
        """Begin empty.

        Args:
            size: Pictures kept; 0 keeps none.
            reference: Label of the reference.
            class_names: Name of each label.
            threshold: Score from which detections are drawn.
            look: How they are drawn.
        """
        self._look = look or AnnotateOptions()
        self._size, self._reference, self._names, self._threshold = size, reference, class_names, threshold
        self._heap: list[_Kept] = []
        self._seen = 0

    def add(self, name: str, image: Picture, agreements: Mapping[str, PictureAgreement]) -> None:
        """Take a picture, unless it disagrees less than those that are kept.

        Args:
            name: The picture's.
            image: `(H, W, 3)` uint8 RGB.
            agreements: Of each candidate with the reference, by label.
        """
        self._seen += 1
        disagreement = max((one.disagreement for one in agreements.values()), default=0.0)
        full = len(self._heap) >= self._size
        if disagreement == 0 or not self._size or (full and disagreement <= self._heap[0].disagreement):
            return
        kept = _Kept(disagreement, -self._seen, name, image, dict(agreements))
        (heapq.heapreplace if full else heapq.heappush)(self._heap, kept)

    def draw(self) -> tuple[DisagreementPicture, ...]:
        """The pictures, those that disagree most first, with each candidate's detections drawn into a copy."""
        return tuple(
            DisagreementPicture(kept.name, kept.disagreement, describe(kept.agreements, self._names), self._draw(kept))
            for kept in sorted(self._heap, reverse=True)
        )

    def _draw(self, kept: _Kept) -> dict[str, bytes]:
        first = next(iter(kept.agreements.values()))
        drawn = {self._reference: self._draw_detections(kept.image, first.reference)}
        for label, one in kept.agreements.items():
            picture = self._draw_detections(kept.image, one.candidate)
            self._mark(picture, one, picture.shape[1] / kept.image.shape[1])
            drawn[label] = picture
        return {label: _encode(picture) for label, picture in drawn.items()}

    def _draw_detections(self, image: Picture, found: Detections) -> Picture:
        small, shown = _shrink(image, found[found.score >= self._threshold])
        return annotate(small, shown, self._names, self._look)

    def _mark(self, picture: Picture, one: PictureAgreement, scale: float) -> None:
        """Boxes around what is added and, with names, around what is missed; drawn into the picture."""
        missed, extra = one.reference[one.missed], one.candidate[one.extra]
        for box in (*missed.xyxy, *extra.xyxy):
            x0, y0, x1, y1 = (round(side) for side in _scale(box, scale))
            cv2.rectangle(picture, (x0, y0), (x1, y1), RED, 2, cv2.LINE_AA)
        labels = [
            Label(f"misses {class_name(self._names, int(label))}", _scale(box, scale), RED)
            for label, box in zip(missed.class_id, missed.xyxy, strict=True)
        ]
        draw_labels(picture, labels, TEXT_PX)


def describe(agreements: Mapping[str, PictureAgreement], class_names: Sequence[str]) -> str:
    """What candidates make differently of a picture, in words.

    Args:
        agreements: Of each candidate with the reference, by label.
        class_names: Name of each label.

    Returns:
        Such as `fp16 agrees; int8 misses a cup (0.71) and adds a fork (0.54)`.
    """
    return "; ".join(f"{label} {one.describe(class_names)}" for label, one in agreements.items())


def _scale(box: npt.NDArray[np.float32], scale: float) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (box * scale).tolist()
    return x0, y0, x1, y1


def _encode(picture: Picture) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)[1])


def _shrink(image: Picture, found: Detections) -> tuple[Picture, Detections]:
    """A picture no wider than `WIDTH`, before anything is drawn, so that lines and letters keep their size."""
    height, width = image.shape[:2]
    if width <= WIDTH:
        return image, found
    size = (WIDTH, max(1, round(height * WIDTH / width)))
    small: Any = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    scale = np.array([size[0] / width, size[1] / height] * 2, np.float32)
    points = None if found.keypoints is None else found.keypoints * np.array([*scale[:2], 1], np.float32)
    return small, dataclasses.replace(found, xyxy=found.xyxy * scale, image_hw=(size[1], size[0]), keypoints=points)
