"""From pixels with depth to points in the camera's coordinate frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def unproject(
    depth_m: npt.NDArray[np.float32],
    intrinsics: npt.NDArray[np.float64],
    mask: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float64]:
    """Points of a depth picture.

    Args:
        depth_m: `(H, W)` metres along the optical axis; 0, NaN and infinity mean unknown.
        intrinsics: `(3, 3)` pinhole matrix, pixels. Pixel centres are at whole numbers, as in ROS and OpenCV; for a
            matrix whose first pixel's centre is (0.5, 0.5), subtract 0.5 from its principal point.
        mask: `(H, W)` bool, the pixels wanted; all when None.

    Returns:
        `(N, 3)` float64 metres, x right, y down, z forward, row by row; pixels of unknown depth are left out.

    Raises:
        ValueError: The sizes differ or the matrix is not `(3, 3)`.
    """
    if intrinsics.shape != (3, 3):
        raise ValueError(f"intrinsics must be (3, 3), got {intrinsics.shape}")
    if mask is not None and mask.shape != depth_m.shape:
        raise ValueError(f"mask must have the depth's size {depth_m.shape}, got {mask.shape}")
    known: npt.NDArray[np.bool_] = np.isfinite(depth_m) & (depth_m > 0)
    rows, columns = np.nonzero(known if mask is None else known & mask)
    z: npt.NDArray[Any] = depth_m[rows, columns].astype(np.float64)
    x = (columns - intrinsics[0, 2]) / intrinsics[0, 0] * z
    y = (rows - intrinsics[1, 2]) / intrinsics[1, 1] * z
    return np.stack([x, y, z], axis=1)
