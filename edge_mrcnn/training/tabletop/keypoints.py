"""Points of things that a robot reaches for: where they are in a picture, and whether they can be seen there.

A point lies on a thing's axis or surface where every specimen of the class has exactly one such place that a viewer
can tell from all others. A ball and a can have none: the ends of a lying can look alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .meshes import Array
from .things import Thing

KEYPOINT_NAMES = ("top", "base", "handle", "head", "stalk", "spine")
"""Names of the keypoints, in the order of the annotations, for all classes alike.

top: the middle of the opening's rim (mug, bowl, plate), or of the cap (bottle);
base: the middle of the underside (mug, bottle, bowl);
handle: of a mug, the middle of the handle where it reaches out farthest; of a hammer, the end that is held;
head: where a hammer's handle meets the middle of its head;
stalk: the cut end of a banana's stalk;
spine: the middle of a book's spine.
"""

SKELETON = ((0, 1), (2, 3))
"""Pairs of keypoints to draw a line between, by their places in `KEYPOINT_NAMES`."""

ABSENT, HIDDEN, VISIBLE = 0, 1, 2
"""The third number of a keypoint, as in COCO."""

STEEP_PIXELS = 3.0
"""How much nearer the surface at a pixel may be than a point that lies on it, in widths of a pixel there.

The depth is taken at the pixel's centre, up to 0.71 widths from the point; on a surface inclined by 75 degrees the
depth changes by 0.71 * tan(75 deg) = 2.6 widths over that distance, and a flatter one hides nothing by mistake.
"""

FACET_M = 0.0005
"""How far a mesh of flat facets may lie from the round shape that a point belongs to, metres: 36 facets around a plate
of 0.115 m fall short of it by 0.4 mm."""


def locate_keypoints(
    thing: Thing, world_from_thing: Array, camera_from_world: Array, intrinsics: Array, depth_m: NDArray[np.float32]
) -> Array:
    """The keypoints of one thing in a picture.

    Args:
        thing: whose keypoints.
        world_from_thing: (4, 4) rigid transform, metres.
        camera_from_world: (4, 4) rigid transform, x right, y down, z forward, metres.
        intrinsics: (3, 3), pixels.
        depth_m: (H, W), distance along the optical axis of what is seen at each pixel, metres.

    Returns:
        (K, 3) float64 in the order of `KEYPOINT_NAMES`: x, y in pixels, where the first pixel's centre is (0.5, 0.5);
        then `VISIBLE`, `HIDDEN` behind something (which may be the thing itself), or `ABSENT`, with x = y = 0, where
        the class has no such point or it lies outside the picture.
    """
    found = np.zeros((len(KEYPOINT_NAMES), 3))
    for keypoint in thing.keypoints:
        seen = camera_from_world @ world_from_thing @ np.append(np.asarray(keypoint.pos, float), 1.0)
        if seen[2] <= 0:
            continue
        x, y = (intrinsics @ seen[:3])[:2] / seen[2]
        if not (0 <= x < depth_m.shape[1] and 0 <= y < depth_m.shape[0]):
            continue
        tolerance = keypoint.inset + FACET_M + STEEP_PIXELS * seen[2] / intrinsics[0, 0]
        in_sight = seen[2] <= depth_m[int(y), int(x)] + tolerance
        found[KEYPOINT_NAMES.index(keypoint.name)] = x, y, VISIBLE if in_sight else HIDDEN
    return found
