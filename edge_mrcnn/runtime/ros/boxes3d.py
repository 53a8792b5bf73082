"""Where detections are in space, from the depth under their masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.runtime.depth import unproject
from edge_mrcnn.runtime.paste import iter_masks

_SCALE = 1.4826
"""Times the median absolute deviation gives the standard deviation of a normal distribution."""

_SPREAD = 3.0
_NOISE = 0.01
"""A point belongs to an object within `_SPREAD` deviations of its median depth, or within this share of the depth: a
flat object seen head-on has no deviation, but cameras have noise."""

_MIN_POINTS = 10
_MAX_POINTS = 2048
"""Enough for a size within a few percent; a mask of half a 1080p picture has a million."""


class Box3D(NamedTuple):
    """The visible part of one detection, as a box along the camera's axes.

    Attributes:
        row: Which detection.
        center: `(3,)` float64, metres, x right, y down, z forward.
        size: `(3,)` float64, metres.
    """

    row: int
    center: npt.NDArray[np.float64]
    size: npt.NDArray[np.float64]


def boxes_3d(
    detections: Detections,
    depth_m: npt.NDArray[np.float32],
    intrinsics: npt.NDArray[np.float64],
    threshold: float = 0.5,
) -> list[Box3D]:
    """Boxes around what a depth camera sees of each object; never more than the side that faces the camera.

    Points whose depth is far from the median are left out: at an object's edge masks reach onto what is behind it, and
    depth cameras mix the two.

    Args:
        detections: With masks.
        depth_m: `(H, W)` metres along the optical axis; 0, NaN and infinity mean unknown.
        intrinsics: `(3, 3)` pinhole matrix, pixels.
        threshold: A pixel belongs to a mask where its probability is at least this.

    Returns:
        Boxes in the order of the rows; rows without enough known depth are left out.

    Raises:
        ValueError: There are no masks, or the sizes do not fit.
    """
    if detections.mask is None:
        raise ValueError("these detections have no masks: boxes in space are made of the points under masks")
    if depth_m.shape != detections.image_hw:
        raise ValueError(f"depth must have the picture's size {detections.image_hw}, got {depth_m.shape}")
    found = []
    focal = np.array([intrinsics[0, 0], intrinsics[1, 1], np.inf])
    for row, x, y, mask in iter_masks(detections.mask, detections.xyxy, detections.image_hw, threshold):
        step = max(1, int(np.sqrt(mask.size / _MAX_POINTS)))
        middle = step // 2
        window = depth_m[y + middle : y + mask.shape[0] : step, x + middle : x + mask.shape[1] : step]
        # The matrix of a picture of every `step`-th pixel that begins at (x + middle, y + middle).
        matrix = intrinsics.copy()
        matrix[:2, 2] -= (x + middle, y + middle)
        matrix[:2] /= step
        points = unproject(window, matrix, mask[middle::step, middle::step])
        if len(points) >= _MIN_POINTS:
            low, high, distance = _extent(points)
            side = distance * step / focal  # of what a point stands for: `step` pixels, seen from its distance
            found.append(Box3D(row, (low + high) / 2, high - low + side))
    return found


def _extent(points: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Least and greatest coordinates of the points whose depth is near the median, and that."""
    depth = points[:, 2]
    median = float(np.median(depth))
    away = np.abs(depth - median)
    kept = points[away <= max(_SPREAD * _SCALE * float(np.median(away)), _NOISE * median)]
    return kept.min(axis=0), kept.max(axis=0), median
