"""From a mask with depth to a grasp: where a parallel-jaw hand takes hold, from where, and how far it must open.

The hand comes along the line of sight by default: nothing stands before what the camera sees. Its jaws close across
the object's main axis, or at a turn of it where that is narrower or has more room. What is hidden under a finger is
taken to be as near as the nearest that is seen beside it; where nothing is seen there either, there is no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.runtime.depth import unproject

Array = npt.NDArray[np.float64]

Refusal = Literal["too few pixels", "no depth", "too wide", "no room"]
"""Why an object cannot be taken: its mask is too small, its depth is unknown, the jaws do not open so far, or something
stands where the fingers or the palm would go."""

_LEAST_PIXELS = 40
_EDGE_M = 0.015  # A pixel this much behind its neighbours is seen past the object's edge, not on it.
_FAR_M = 1e6
_SPACING_M = 0.003  # Between points of the surroundings; a finger is several times as wide.
_PATCH_M = 0.004  # The depth of the grasp point is the median within this radius.
_TURNS_DEG = (0, 15, -15, 30, -30, 45, -45, 60, -60, 75, -75, 90)
_LEAST_SAMPLES = 4  # Fewer pixels with depth than this, and a place counts as not seen.
_BESIDE_M = 0.05


@dataclass(frozen=True)
class Hand:
    """A gripper with two parallel jaws, metres.

    Attributes:
        opening_m: Between the jaws when they are wide open.
        finger_length_m: From the palm to the tips.
        finger_width_m: Of a finger, across the closing direction.
        finger_thickness_m: Of a finger, along the closing direction.
        palm_width_m: Of the palm, across the closing direction.
        reach_m: How far the tips go past the object's sides, where there is room.
        least_reach_m: With less than this the hand is sure to slip off.
        margin_m: Between each jaw and the object before the jaws close.
        clearance_m: Between the hand and whatever is behind or below it.
    """

    opening_m: float
    finger_length_m: float = 0.06
    finger_width_m: float = 0.02
    finger_thickness_m: float = 0.01
    palm_width_m: float = 0.05
    reach_m: float = 0.03
    least_reach_m: float = 0.006
    margin_m: float = 0.01
    clearance_m: float = 0.004

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A length is not positive, or `least_reach_m` is more than `reach_m`.
        """
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Hand.{name} must be positive, got {value}")
        if self.least_reach_m > self.reach_m:
            raise ValueError(f"Hand.least_reach_m must be at most reach_m {self.reach_m}, got {self.least_reach_m}")


@dataclass(frozen=True)
class Grasp:
    """How to take hold of one object; points and directions in the camera's frame (x right, y down, z forward, metres).

    Attributes:
        centroid_px: `(2,)` x, y: mean of the mask's pixels, whose centres are at whole numbers.
        point_px: `(2,)` x, y: the pixel on the object nearest to the centroid.
        point_m: `(3,)` the visible surface there; NaN without depth.
        approach: `(3,)` unit vector, the way the hand comes.
        main_axis: `(3,)` unit vector, the object's main axis as seen along `approach`; NaN without depth.
        main_axis_px: `(2,)` unit vector, the same in the picture.
        closing: `(3,)` unit vector across `approach`, from one jaw to the other; NaN where no jaws fit.
        tip_m: `(3,)` midway between the finger tips when the jaws close; NaN where no jaws fit.
        width_m: Of the object between the jaws; of what was too wide, the narrowest found.
        opening_m: How far apart the jaws are before they close.
        quality: 0 to 1: how deep, straight and narrow the hold is.
        refusal: Why the object cannot be taken; None where it can.
    """

    centroid_px: Array
    point_px: Array
    point_m: Array
    approach: Array
    main_axis: Array
    main_axis_px: Array
    closing: Array
    tip_m: Array
    width_m: float
    opening_m: float
    quality: float
    refusal: Refusal | None

    def pose(self, base_from_camera: npt.ArrayLike | None = None) -> Array:
        """Where the hand goes.

        Args:
            base_from_camera: `(4, 4)` rigid transform from the camera's to the robot's frame, as hand-eye calibration
                gives it; the camera's frame when None.

        Returns:
            `(4, 4)` transform from the hand's frame (origin midway between the finger tips, x closing, z approach).

        Raises:
            ValueError: The object cannot be taken, or the matrix is not a rigid transform.
        """
        if self.refusal is not None:
            raise ValueError(f"an object that is refused ({self.refusal}) has no pose; look at Grasp.refusal first")
        hand = np.eye(4)
        hand[:3, 0], hand[:3, 2], hand[:3, 3] = self.closing, self.approach, self.tip_m
        hand[:3, 1] = np.cross(self.approach, self.closing)
        return hand if base_from_camera is None else rigid(base_from_camera) @ hand


def rigid(matrix: npt.ArrayLike) -> Array:
    """Check a `(4, 4)` rigid transform.

    Raises:
        ValueError: It has another shape, another last row or a part that does not just turn.
    """
    checked = np.asarray(matrix, np.float64)
    if checked.shape != (4, 4):
        raise ValueError(f"a rigid transform must be (4, 4), got {checked.shape}")
    turn = checked[:3, :3]
    turns = np.allclose(turn @ turn.T, np.eye(3), atol=1e-4) and np.linalg.det(turn) > 0
    if not turns or not np.allclose(checked[3], [0, 0, 0, 1]):
        raise ValueError(f"not a rigid transform (a rotation, a shift and a last row of 0 0 0 1): {checked.tolist()}")
    return checked


def transform_points(matrix: npt.ArrayLike, points_m: npt.ArrayLike) -> Array:
    """Points of one frame in another.

    Args:
        matrix: `(4, 4)` rigid transform, such as base_from_camera.
        points_m: `(..., 3)` metres.

    Returns:
        `(..., 3)` float64 metres.

    Raises:
        ValueError: The matrix is not a rigid transform.
    """
    checked = rigid(matrix)
    return np.asarray(np.asarray(points_m, np.float64) @ checked[:3, :3].T + checked[:3, 3])


def plan_grasps(
    detections: Detections,
    depth_m: npt.NDArray[np.float32],
    intrinsics: npt.NDArray[np.float64],
    hand: Hand,
    approach: Sequence[float] | None = None,
) -> list[Grasp]:
    """A grasp for each detection, in their order; arguments as `plan_grasp`.

    Raises:
        ValueError: There are no masks, or an argument does not fit the picture.
    """
    masks = detections.masks()
    return [plan_grasp(mask, depth_m, intrinsics, hand, approach) for mask in masks]


def plan_grasp(
    mask: npt.NDArray[np.bool_],
    depth_m: npt.NDArray[np.float32],
    intrinsics: npt.NDArray[np.float64],
    hand: Hand,
    approach: Sequence[float] | None = None,
) -> Grasp:
    """Where and how to take hold of the object under a mask.

    Args:
        mask: `(H, W)` bool, the object's visible pixels.
        depth_m: `(H, W)` metres along the optical axis, of everything in view; 0, NaN and infinity mean unknown.
        intrinsics: `(3, 3)` pinhole matrix, pixels, with pixel centres at whole numbers as in ROS and OpenCV (see
            `unproject`).
        hand: The gripper.
        approach: The way the hand comes, in the camera's frame, of any length; the line of sight to the grasp point
            when None. Along other ways more is hidden.

    Returns:
        The grasp; its `refusal` says whether it can be made.

    Raises:
        ValueError: The sizes of mask and depth differ, the matrix is not `(3, 3)` or `approach` is not a direction.
    """
    if mask.shape != depth_m.shape or mask.ndim != 2:
        raise ValueError(f"mask must have the depth's size {depth_m.shape} (H, W), got {mask.shape}")
    if intrinsics.shape != (3, 3):
        raise ValueError(f"intrinsics must be (3, 3), got {intrinsics.shape}")
    rows, columns = np.nonzero(mask)
    if len(rows) < _LEAST_PIXELS:
        where = np.array([columns.mean(), rows.mean()]) if len(rows) else np.full(2, np.nan)
        return _refused(where, "too few pixels")
    centroid = np.array([columns.mean(), rows.mean()])
    inner = _surface(mask, depth_m, float(intrinsics[0, 0]))
    if np.count_nonzero(inner) < _LEAST_PIXELS:
        return _refused(centroid, "no depth")
    pixel = _nearest(inner, centroid)
    point = _point_at(pixel, inner, depth_m, intrinsics)
    way = _direction(point if approach is None else np.asarray(approach, np.float64))
    solid = unproject(depth_m, intrinsics, inner)
    main = _main_axis(solid - solid.mean(axis=0), way)
    ahead = intrinsics[:2, :2] @ (main[:2] - main[2] * point[:2] / point[2])
    ahead /= max(float(np.linalg.norm(ahead)), 1e-12)
    blank = _refused(centroid, "too wide")
    seen = replace(blank, point_px=pixel, point_m=point, approach=way, main_axis=main, main_axis_px=ahead)
    pixel_m = float(point[2] / intrinsics[0, 0])
    around = _around(pixel, depth_m, intrinsics, round((hand.opening_m + hand.palm_width_m) / pixel_m), pixel_m)
    return _best_hold(seen, solid - point, around - point, hand, pixel_m)


def _refused(centroid: Array, why: Refusal) -> Grasp:
    """A grasp of which nothing but the centroid is known."""
    pair, triple = np.full(2, np.nan), np.full(3, np.nan)
    return Grasp(centroid, pair, triple, triple, triple, pair, triple, triple, np.inf, np.inf, 0.0, why)


def _direction(vector: Array) -> Array:
    length = float(np.linalg.norm(vector))
    if vector.shape != (3,) or not 0 < length < np.inf:
        raise ValueError(f"approach must be three numbers that are not all zero, got {vector.tolist()}")
    return np.asarray(vector / length)


def _surface(mask: npt.NDArray[np.bool_], depth_m: npt.NDArray[np.float32], focal: float) -> npt.NDArray[np.bool_]:
    """The mask without its rim, without pixels of unknown depth, and without those that look past the object."""
    known = mask & np.isfinite(depth_m) & (depth_m > 0)
    depth = np.where(known, depth_m, np.float32(_FAR_M))
    behind = depth - cv2.erode(depth, np.ones((5, 5), np.uint8))
    # A slanting surface, too, recedes by a few pixels' size within the window.
    on_it = known & (behind < np.maximum(_EDGE_M, 6 * depth / focal))
    rimless = cv2.erode(on_it.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).astype(bool)
    return rimless if np.count_nonzero(rimless) >= _LEAST_PIXELS else on_it


def _nearest(inner: npt.NDArray[np.bool_], centroid: Array) -> Array:
    """x, y of the pixel of `inner` nearest to the centroid: of a bent or hollow outline that may lie off the object."""
    rows, columns = np.nonzero(inner)
    index = int(np.argmin((columns - centroid[0]) ** 2 + (rows - centroid[1]) ** 2))
    return np.array([columns[index], rows[index]], np.float64)


def _point_at(pixel: Array, inner: npt.NDArray[np.bool_], depth_m: npt.NDArray[np.float32], intrinsics: Array) -> Array:
    """The surface at a pixel, at the median depth of what is close by: one bad pixel of a camera moves nothing."""
    x, y = int(pixel[0]), int(pixel[1])
    radius = max(2, round(_PATCH_M * float(intrinsics[0, 0]) / float(depth_m[y, x])))
    window = np.s_[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
    depth = float(np.median(depth_m[window][inner[window]]))
    return np.asarray(np.linalg.solve(intrinsics, [x, y, 1.0]) * depth)


def _main_axis(centred: Array, way: Array) -> Array:
    """Unit vector across `way` along which the points spread most."""
    flat = centred - np.outer(centred @ way, way)
    values, vectors = np.linalg.eigh(flat.T @ flat)
    axis = vectors[:, int(np.argmax(values))]
    axis = axis - (axis @ way) * way
    return np.asarray(axis / np.linalg.norm(axis))


def _around(pixel: Array, depth_m: npt.NDArray[np.float32], intrinsics: Array, radius: int, pixel_m: float) -> Array:
    """`(N, 3)` points of all that is seen within `radius` pixels, as dense as it matters."""
    step = max(1, round(_SPACING_M / pixel_m))
    left, top = max(int(pixel[0]) - radius, 0), max(int(pixel[1]) - radius, 0)
    window = depth_m[top : int(pixel[1]) + radius + 1 : step, left : int(pixel[0]) + radius + 1 : step]
    lens = intrinsics.copy()
    lens[:2, 2] -= left, top
    lens[:2] /= step
    return unproject(window, lens)


def _best_hold(seen: Grasp, solid: Array, around: Array, hand: Hand, pixel_m: float) -> Grasp:
    """The best of all turns of the jaws; points are relative to the grasp point."""
    side = np.cross(seen.approach, seen.main_axis)
    holds = []
    for turn in np.radians(_TURNS_DEG):
        closing = np.cos(turn) * side + np.sin(turn) * seen.main_axis
        frame = np.stack([closing, np.cross(seen.approach, closing), seen.approach], axis=1)
        straight = 1 - abs(turn) / np.pi
        holds.append(_hold(seen, solid @ frame, around @ frame, frame, hand, pixel_m, straight))
    fitting = [hold for hold in holds if hold.refusal is None]
    if fitting:
        return max(fitting, key=lambda hold: hold.quality)
    blocked = [hold for hold in holds if hold.refusal == "no room"]
    return min(blocked or holds, key=lambda hold: hold.width_m)


def _hold(seen: Grasp, solid: Array, around: Array, frame: Array, hand: Hand, pixel_m: float, straight: float) -> Grasp:
    """The hold of jaws in one turn.

    Args:
        seen: What is known of the object.
        solid: `(N, 3)` its points: across the jaws, along them, along the approach; from the grasp point.
        around: `(M, 3)` all points, likewise.
        frame: `(3, 3)` those three directions as columns.
        hand: The gripper.
        pixel_m: Size of a pixel at the object.
        straight: 1 where the jaws close across the main axis, 0.5 along it.
    """
    section = solid[np.abs(solid[:, 1]) <= hand.finger_width_m / 2]
    if len(section) < _LEAST_SAMPLES:
        return seen
    # Half a pixel at each side, and the rim that was left out.
    low, high = section[:, 0].min() - 1.5 * pixel_m, section[:, 0].max() + 1.5 * pixel_m
    width, middle = float(high - low), float(high + low) / 2
    opening = width + 2 * hand.margin_m
    turned = replace(seen, width_m=width, opening_m=opening)
    if opening > hand.opening_m:
        return turned
    sides = [section[section[:, 0] < low + 3.5 * pixel_m, 2], section[section[:, 0] > high - 3.5 * pixel_m, 2]]
    # Where a side goes straight down, the jaws hold it from its upper end on.
    edge = max(float(np.quantile(side, 0.1)) for side in sides)
    limit = _free_depth(around - [middle, 0, 0], opening, hand)
    tip = min(max(edge, 0.0) + hand.reach_m, limit - hand.clearance_m)
    if tip - edge < hand.least_reach_m:
        return replace(turned, refusal="no room")
    depth = min(1.0, (tip - edge) / hand.reach_m)
    quality = depth * straight * (1 - 0.5 * opening / hand.opening_m) * (1 - _slant(section, pixel_m))
    at = seen.point_m + frame @ np.array([middle, 0, tip])
    return replace(turned, closing=frame[:, 0], tip_m=at, quality=float(quality), refusal=None)


def _slant(section: Array, pixel_m: float) -> float:
    """How askew the sides under the jaws are, 0 for parallel ones to 0.9: what is askew turns or slides away."""
    halves = [half for half in (section[section[:, 1] < 0], section[section[:, 1] >= 0]) if len(half)]
    if len(halves) < 2:
        return 0.9
    step = abs(halves[0][:, 1].mean() - halves[1][:, 1].mean()) + pixel_m
    ends = [(half[:, 0].min(), half[:, 0].max()) for half in halves]
    return min(0.9, float(np.abs(np.subtract(ends[0], ends[1])).max() / step))


def _free_depth(around: Array, opening: float, hand: Hand) -> float:
    """How far along the approach the tips may go, until a finger or the palm meets what is seen there.

    Args:
        around: `(M, 3)` points: across the jaws from midway between them, along them, along the approach.
        opening: Between the jaws.
        hand: The gripper.
    """
    across, along, depth = np.abs(around[:, 0]), np.abs(around[:, 1]), around[:, 2]
    inner, outer = (opening - hand.margin_m) / 2, opening / 2 + hand.finger_thickness_m
    limits: list[Any] = []
    for side in (around[:, 0] < 0, around[:, 0] > 0):
        under = side & (across >= inner) & (across <= outer) & (along <= hand.finger_width_m / 2)
        beside = side & (across >= inner) & (across <= outer + _BESIDE_M) & (along <= hand.finger_width_m)
        seen = depth[under] if np.count_nonzero(under) >= _LEAST_SAMPLES else depth[beside]
        limits.append(np.partition(seen, 2)[2] if len(seen) >= _LEAST_SAMPLES else -np.inf)
    palm = depth[(across <= hand.opening_m / 2 + hand.finger_thickness_m) & (along <= hand.palm_width_m / 2)]
    limits.append(np.partition(palm, 2)[2] + hand.finger_length_m)
    return float(min(limits))
