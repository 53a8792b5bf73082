"""How far the keypoints of two networks are apart, on pictures without labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import KEYPOINT_SCORE, Detections
from edge_mrcnn.runtime.skeletons import shown_keypoints

CLOSE_PX = 0.5
"""Keypoints that are no further apart agree."""


def keypoint_distances(
    reference: Detections, candidate: Detections, pairs: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64] | None:
    """Distances of keypoints of partners in pixels.

    Args:
        reference: The reference's detections.
        candidate: The other network's.
        pairs: `(P, 2)` rows of partners, the reference's first.

    Returns:
        `(P, K)`, not a number where the reference shows no such keypoint; None where one side has no keypoints.
    """
    if reference.keypoints is None or candidate.keypoints is None:
        return None
    ours, theirs = reference.keypoints[pairs[:, 0]], candidate.keypoints[pairs[:, 1]]
    away = np.hypot(*(ours[..., axis].astype(np.float64) - theirs[..., axis] for axis in (0, 1)))
    return np.asarray(np.where(shown_keypoints(ours, KEYPOINT_SCORE), away, np.nan))


def box_sizes(detections: Detections, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    """Square roots of the areas of boxes, `(P,)` pixels, 1 at least."""
    boxes = detections.xyxy[rows].astype(np.float64)
    return np.asarray(np.sqrt(np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1.0)))


def mean_shift(distances: npt.NDArray[np.float64] | None, sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`(P,)` mean distance of each pair's keypoints by the size of its box, 1 at most; 0 where there are none."""
    if distances is None or not distances.size:
        return np.zeros(len(sizes))
    there = ~np.isnan(distances)
    total = np.where(there, distances, 0.0).sum(axis=1)
    return np.asarray(np.minimum(total / np.maximum(there.sum(axis=1), 1) / sizes, 1.0))
