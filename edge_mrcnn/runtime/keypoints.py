"""Keypoints out of heatmaps, without torch: each where its map, stretched over its box, is highest.

Source: `heatmaps_to_keypoints` of torchvision/models/detection/roi_heads.py for the place (bicubic to the box's size,
rounded up, then the centre of the highest pixel); the function of that name in detectron2/structures/keypoints.py for
the score, which torchvision leaves as a logit. Bicubic is PyTorch's: a = -0.75, borders repeated, as OpenCV has it.

A map for a large box is stretched only where its highest pixel can be. Of four neighbours in a row, bicubic weighs the
outer two by 0 to -0.1875 together and the inner two by the rest, up to 1.1875. So between four pixels no value exceeds
the least of the 4 x 4 around them by more than 1.42 times what the highest of the four exceeds it by, plus 0.04 times
what the highest of the 16 does. What stays below a value known to be there needs no look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Rows = npt.NDArray[np.intp]

_A = -0.75
_OUTER = 0.1875
"""Most that the outer two of four weights take away, half way between the inner two."""

_INNER_GAIN = np.float32((1 + _OUTER) ** 2)
_OUTER_GAIN = np.float32(_OUTER**2)

_SLACK = np.float32(1e-5)
"""Share of a map's largest magnitude that float32 may be off by; what is that close to the highest is looked at."""

_PADDING = 2
"""Pixels around a map that bicubic reads beyond its border."""

_WHOLE_PIXELS = 20_000
"""Maps of boxes up to this area are stretched as a whole: finding out what can be left out takes longer."""

_MOST_SIDE = 4096
"""No box of a real canvas is larger; a damaged one is decoded in steps of more than a pixel, in bounded memory."""


def decode_keypoints(heatmaps: npt.NDArray[Any], boxes: npt.NDArray[Any]) -> Array:
    """Find each keypoint of each box.

    Args:
        heatmaps: `(N, K, S, S)` logits, each stretched over its box.
        boxes: `(N, 4)` xyxy in pixels, of any sizes, also outside of the picture.

    Returns:
        `(N, K, 3)` float32: x, y in pixels as those of the boxes, and a score from 0 to 1: the softmax of the stretched
        map at the keypoint, normalised over the S x S, so that large and small boxes compare. It is 0 where a map has
        a value that is not a number or infinite; x and y are then a corner of the box.

    Raises:
        ValueError: A shape does not fit, or a box is not finite.

    Example:
        >>> maps = np.zeros((1, 1, 56, 56), np.float32)
        >>> maps[0, 0, 14, 42] = 9
        >>> decode_keypoints(maps, np.array([[100, 100, 156, 156]], np.float32))[0, 0, :2].tolist()
        [142.5, 114.5]
    """
    maps = np.asarray(heatmaps, np.float32)
    xyxy = np.asarray(boxes, np.float32)
    _check(maps, xyxy)
    found = np.zeros((*maps.shape[:2], 3), np.float32)
    if maps.size:
        for row, box in enumerate(xyxy):
            found[row] = _decode_box(np.ascontiguousarray(maps[row]), box)
    return found


def restrict_keypoints(keypoints: Array, labels: npt.NDArray[Any], keypoint_labels: Sequence[Sequence[int]]) -> Array:
    """Give those keypoints the score 0 that their class does not have.

    Args:
        keypoints: `(N, K, 3)`.
        labels: `(N,)` the network's labels.
        keypoint_labels: For each keypoint the labels that have it; all have all where it is empty.

    Returns:
        `(N, K, 3)`, a copy where anything changes.
    """
    if not len(keypoint_labels):
        return keypoints
    has = np.stack([np.isin(labels, np.asarray(allowed, int)) for allowed in keypoint_labels], axis=-1)
    restricted = keypoints.copy()
    restricted[..., 2] *= has
    return np.asarray(restricted)


def _check(maps: Array, boxes: Array) -> None:
    if maps.ndim != 4 or maps.shape[2] != maps.shape[3]:
        raise ValueError(f"heatmaps must have shape (N, K, S, S), got {maps.shape}")
    if boxes.shape != (len(maps), 4):
        raise ValueError(f"boxes must have shape ({len(maps)}, 4), got {boxes.shape}")
    if not np.isfinite(boxes).all():
        raise ValueError(f"boxes must be finite, got {boxes[~np.isfinite(boxes).all(axis=1)][0].tolist()}")


def _decode_box(maps: Array, box: Array) -> Array:
    """`(K, 3)` keypoints of one box, of its maps `(K, S, S)`."""
    flat = maps.reshape(len(maps), -1)
    top = flat.argmax(axis=1)
    highest, lowest = np.take_along_axis(flat, top[:, None], 1)[:, 0], flat.min(axis=1)
    sound = np.isfinite(highest) & np.isfinite(lowest)
    if not sound.all():
        maps = np.where(sound[:, None, None], maps, np.float32(0))
        flat = maps.reshape(len(maps), -1)
        top, highest, lowest = (np.where(sound, values, 0) for values in (top, highest, lowest))
    sides = np.maximum(box[2:] - box[:2], np.float32(1))
    x_axis, y_axis = (_axis(min(int(np.ceil(side)), _MOST_SIDE), maps.shape[-1]) for side in sides)
    x, y, peak = _find_peaks(maps, top, np.maximum(np.abs(highest), np.abs(lowest)), x_axis, y_axis)
    total = np.exp(flat - highest[:, None]).sum(axis=1)
    score = np.minimum(np.exp(np.minimum(peak - highest, np.float32(20))) / total, np.float32(1)) * sound
    steps = sides / np.array([x_axis.length, y_axis.length], np.float32)
    half = np.float32(0.5)
    return np.stack([(x + half) * steps[0] + box[0], (y + half) * steps[1] + box[1], score], axis=1).astype(np.float32)


def _find_peaks(maps: Array, top: Rows, size: Array, x_axis: _Axis, y_axis: _Axis) -> tuple[Array, Array, Array]:
    """Column, row and value of the highest pixel of each stretched map.

    Args:
        maps: `(K, S, S)`, finite.
        top: `(K,)` place of each map's own highest pixel, row by row.
        size: `(K,)` largest magnitude in each map.
        x_axis: How columns are stretched.
        y_axis: How rows are.
    """
    if x_axis.length * y_axis.length <= _WHOLE_PIXELS:
        whole = (y_axis.weights @ (maps @ x_axis.weights.T)).reshape(len(maps), -1)
        place = whole.argmax(axis=1)
        row, column = np.divmod(place, x_axis.length)
        peak = np.take_along_axis(whole, place[:, None], 1)[:, 0]
        return column.astype(np.float32), row.astype(np.float32), peak
    side = maps.shape[-1]
    known = _values_at(maps, x_axis, y_axis, x_axis.nearest(top % side), y_axis.nearest(top // side))
    possible = _limits(maps) >= (known - _SLACK * size)[:, None, None]
    columns, rows = x_axis.spans(possible.any(axis=1)), y_axis.spans(possible.any(axis=2))
    found = np.empty((3, len(maps)), np.float32)
    for number, (plane, (left, right), (upper, lower)) in enumerate(zip(maps, columns, rows, strict=True)):
        first, last = y_axis.taps[upper, 0], y_axis.taps[lower - 1, -1] + 1
        stretched = y_axis.weights[upper:lower, first:last] @ (plane[first:last] @ x_axis.weights[left:right].T)
        y, x = divmod(int(stretched.argmax()), right - left)
        found[:, number] = left + x, upper + y, stretched[y, x]
    return found[0], found[1], found[2]


def _values_at(maps: Array, x_axis: _Axis, y_axis: _Axis, x: Rows, y: Rows) -> Array:
    """`(K,)` the stretched maps at one pixel each."""
    rows, columns = y_axis.taps[y], x_axis.taps[x]
    patches = maps[np.arange(len(maps))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return np.asarray((y_axis.factors[y][:, None] @ patches @ x_axis.factors[x][:, :, None])[:, 0, 0], np.float32)


def _limits(maps: Array) -> Array:
    """`(K, S + 1, S + 1)`: what the stretched maps do not exceed between four pixels each, the border's included."""
    count, side, _ = maps.shape
    wide = side + 2 * _PADDING
    padded = np.pad(maps, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING)), mode="edge").reshape(-1, wide)
    four, two = np.ones((4, 4), np.uint8), np.ones((2, 2), np.uint8)
    # A window is named after its upper left corner; those that reach into the next map are cut off below.
    most, least = cv2.dilate(padded, four, anchor=(0, 0)), cv2.erode(padded, four, anchor=(0, 0))
    inner = cv2.dilate(padded, two, anchor=(0, 0)).reshape(count, wide, wide)[:, 1 : side + 2, 1 : side + 2]
    most, least = (np.asarray(one).reshape(count, wide, wide)[:, : side + 1, : side + 1] for one in (most, least))
    return np.asarray(least + _INNER_GAIN * (inner - least) + _OUTER_GAIN * (most - least), np.float32)


@dataclass(frozen=True)
class _Axis:
    """How one side of a map is stretched, in float32 as PyTorch does it.

    Attributes:
        length: Pixels afterwards.
        side: Pixels before (S).
    """

    length: int
    side: int

    @cached_property
    def places(self) -> Array:
        """`(L,)` where the centre of each new pixel lies, in pixels of the map."""
        scale = np.float32(self.side) / np.float32(self.length)
        return np.asarray(scale * (np.arange(self.length, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5))

    @cached_property
    def cells(self) -> Rows:
        """`(L,)` the pixel of the map before each new one, from -1."""
        return np.floor(self.places).astype(np.intp)

    @cached_property
    def taps(self) -> Rows:
        """`(L, 4)` pixels of the map that each new one is made of."""
        return np.asarray(np.clip(self.cells[:, None] + np.arange(-1, 3), 0, self.side - 1))

    @cached_property
    def factors(self) -> Array:
        """`(L, 4)` their weights."""
        t = self.places - self.cells.astype(np.float32)
        near = [((_A + 2) * x - (_A + 3)) * x * x + 1 for x in (t, 1 - t)]
        far = [((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A for x in (t + 1, 2 - t)]
        return np.stack([far[0], near[0], near[1], far[1]], axis=1).astype(np.float32)

    @cached_property
    def weights(self) -> Array:
        """`(L, S)` the same as a matrix."""
        matrix = np.zeros((self.length, self.side), np.float32)
        for tap in range(4):
            matrix[np.arange(self.length), self.taps[:, tap]] += self.factors[:, tap]
        return matrix

    def nearest(self, pixels: Rows) -> Rows:
        """The new pixels nearest to pixels of the map."""
        place = (pixels + 0.5) * self.length / self.side - 0.5
        return np.clip(np.rint(place), 0, self.length - 1).astype(np.intp)

    def spans(self, possible: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
        """First and last new pixel (exclusive) that lie in cells that are possible.

        Args:
            possible: `(K, S + 1)` by cell, from -1; at least one in each row holds a new pixel.
        """
        first = possible.argmax(axis=1) - 1
        last = possible.shape[1] - 2 - possible[:, ::-1].argmax(axis=1)
        begin = np.searchsorted(self.cells, first, "left")
        end = np.searchsorted(self.cells, last, "right")
        return list(zip(begin.tolist(), end.tolist(), strict=True))


@lru_cache(maxsize=64)
def _axis(length: int, side: int) -> _Axis:
    """Sides of boxes recur: on things that hardly move, and on those of one kind."""
    return _Axis(length, side)
