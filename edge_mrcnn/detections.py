"""`Detections`: the result for one frame, a struct of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

_SHAPES = {"xyxy": (4,), "score": (), "class_id": (), "mask": (None, None), "keypoints": (None, 3), "track_id": ()}
_DTYPES = {"class_id": np.int32, "track_id": np.int32}

KEYPOINT_SCORE = 0.05
"""Keypoints with a lower score are neither drawn nor sent, unless told otherwise. Source: detectron2's visualiser."""


@dataclass(frozen=True)
class Detections:
    """N detections of one frame, best first as they come out of a network.

    Masks stay small patches, each in the frame of its box: 100 boolean masks at 1080p are 207 MB, 100 patches are
    0.3 MB. `instance_map`, `masks`, `rle` and `polygons` make full-size ones on request.

    Attributes:
        xyxy: `(N, 4)` float32, pixels of the original image.
        score: `(N,)` float32, 0 to 1.
        class_id: `(N,)` int32, the network's labels; `ModelSpec.class_names[label]` is the name.
        image_hw: Height and width of the original image in pixels.
        mask: `(N, M, M)` float32 probabilities stretched over each box, or None.
        keypoints: `(N, K, 3)` float32, or None: x, y in pixels of the original image, and a score from 0 to 1, which is
            0 where the thing's class has no such keypoint; `ModelSpec.keypoint_names` are the names.
        track_id: `(N,)` int32, the thing's number as `Tracker` gives it: 1 and up, 0 where it has none (yet); or None.
    """

    xyxy: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32]
    class_id: npt.NDArray[np.int32]
    image_hw: tuple[int, int]
    mask: npt.NDArray[np.float32] | None = None
    keypoints: npt.NDArray[np.float32] | None = None
    track_id: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        """Convert to the documented types and check that all fields describe the same N detections.

        Raises:
            ValueError: A field's shape does not fit; the message names it.
        """
        count = len(np.asarray(self.score))
        for name, tail in _SHAPES.items():
            value = getattr(self, name)
            if value is None:
                continue
            array = np.ascontiguousarray(value, dtype=_DTYPES.get(name, np.float32))
            expected = (count, *tail)
            fits = array.ndim == len(expected) and all(
                want is None or want == got for want, got in zip(expected, array.shape, strict=True)
            )
            if not fits:
                raise ValueError(f"Detections.{name} must have shape {expected}, got {array.shape}")
            object.__setattr__(self, name, array)

    @classmethod
    def empty(
        cls, image_hw: tuple[int, int], mask_size: int | None = None, keypoint_count: int | None = None
    ) -> Detections:
        """No detections, for an image of height and width `image_hw`.

        Args:
            image_hw: Height and width of the image in pixels.
            mask_size: Side of the patches in the field `mask`, which is None without.
            keypoint_count: Keypoints of each thing in the field `keypoints`, which is None without.
        """
        mask = None if mask_size is None else np.zeros((0, mask_size, mask_size), np.float32)
        points = None if keypoint_count is None else np.zeros((0, keypoint_count, 3), np.float32)
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), image_hw, mask, points)

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: int | slice | Sequence[int] | npt.NDArray[Any]) -> Detections:
        """Select detections as NumPy selects rows; every field is filtered.

        Example:
            >>> confident = detections[detections.score > 0.5]  # doctest: +SKIP
        """
        rows = [index] if isinstance(index, (int, np.integer)) else index
        chosen: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                chosen[item.name] = value[rows]
        return replace(self, **chosen)

    def instance_map(self, threshold: float = 0.5) -> npt.NDArray[np.uint16]:
        """All masks in one picture.

        Args:
            threshold: A pixel belongs to a detection where its mask is at least this.

        Returns:
            `(H, W)` uint16: row number + 1 of the detection each pixel belongs to, 0 for none. Where masks overlap,
            the better (earlier) detection is on top.

        Raises:
            ValueError: There are no masks.
        """
        from edge_mrcnn.runtime.paste import paste_instance_map  # OpenCV only when pixels are asked for

        return paste_instance_map(self._patches(), self.xyxy, self.image_hw, threshold)

    def masks(self, threshold: float = 0.5) -> npt.NDArray[np.bool_]:
        """Full-size masks, `(N, H, W)` bool; memory is N * H * W bytes.

        Raises:
            ValueError: There are no masks.
        """
        from edge_mrcnn.runtime.paste import paste_masks

        return paste_masks(self._patches(), self.xyxy, self.image_hw, threshold)

    def rle(self, threshold: float = 0.5) -> list[dict[str, Any]]:
        """Each mask as COCO's compressed RLE: `{"size": [H, W], "counts": str}`.

        Raises:
            ValueError: There are no masks.
        """
        from edge_mrcnn.runtime.paste import encode_rle

        return encode_rle(self._patches(), self.xyxy, self.image_hw, threshold)

    def polygons(self, threshold: float = 0.5) -> list[list[npt.NDArray[np.float32]]]:
        """Outlines of each mask: a list per detection of `(V, 2)` float32 x, y in pixels of the original image.

        Raises:
            ValueError: There are no masks.
        """
        from edge_mrcnn.runtime.paste import outline_polygons

        return outline_polygons(self._patches(), self.xyxy, self.image_hw, threshold)

    def _patches(self) -> npt.NDArray[np.float32]:
        if self.mask is None:
            raise ValueError("these detections have no masks: the model gives none, or they were left out")
        return self.mask
