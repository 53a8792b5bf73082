"""Second views of one thing: a network may call a thing by two classes, or a part of it a thing of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.runtime.tracker_assignment import Array, Rows, pairwise_iou

_COVERED = 0.5
"""A detection is a duplicate where this share of its mask lies inside a better one's: masks show what is visible, and
what is visible belongs to one thing. Without masks, the IoU of the boxes."""

_MIN_SHARE_OF_BOX = 0.3
"""Boxes that share less than this of the one's area are not looked at more closely."""

_SAMPLES = 14
"""Points of a mask looked at, along each side."""


def find_duplicates(detections: Detections, loose: Rows, firm: Rows) -> Rows:
    """Find detections that show again what another shows.

    Args:
        detections: With sound boxes at least in the rows given.
        loose: Rows that may be duplicates, best first.
        firm: Rows that are none.

    Returns:
        Those of `loose` that repeat one of `firm`, or a better one of `loose` that is itself no duplicate.
    """
    rows = np.concatenate([firm, loose])
    boxes = detections.xyxy[rows].astype(np.float64)
    if detections.mask is None:
        near = pairwise_iou(boxes, boxes) >= _COVERED
    else:
        near = _share_of_box(boxes) >= _MIN_SHARE_OF_BOX
        masks = detections.mask[rows] >= 0.5
    kept = np.ones(len(rows), bool)
    for row in range(len(firm), len(rows)):
        others = np.flatnonzero(near[row, :row] & kept[:row])
        if not len(others):
            continue
        kept[row] = detections.mask is not None and not _is_covered(row, others, boxes, masks)
    return rows[~kept]


def _share_of_box(boxes: Array) -> Array:
    """`(N, N)`: which share of box i lies in box j."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.maximum(high - low, 0.0).prod(axis=2)
    return np.asarray(shared / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None])


def _is_covered(row: int, others: Rows, boxes: Array, masks: npt.NDArray[np.bool_]) -> bool:
    """Whether one of `others` covers enough of the mask of `row`, by its nearest pixels at a grid of points."""
    size = masks.shape[1]
    index = (np.arange(_SAMPLES) * size + size // 2) // _SAMPLES
    inside = masks[row][np.ix_(index, index)]
    spread = ((index + 0.5) / size)[:, None] * (boxes[row, 2:] - boxes[row, :2]) + boxes[row, :2]  # (S, 2): x, y
    low, sides = boxes[others, :2], boxes[others, 2:] - boxes[others, :2]
    pixel = np.floor((spread - low[:, None]) / sides[:, None] * size).clip(-1, size).astype(np.intp)  # (K, S, 2)
    there = (pixel >= 0) & (pixel < size)
    pixel = pixel.clip(0, size - 1)
    covers = masks[others[:, None, None], pixel[:, :, None, 1], pixel[:, None, :, 0]]
    covers = covers & there[:, :, None, 1] & there[:, None, :, 0] & inside
    return bool(covers.sum(axis=(1, 2)).max() >= _COVERED * max(int(inside.sum()), 1))
