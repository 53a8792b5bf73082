"""What a thing on the table is made of: visible parts, and simple solids that physics sees in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .meshes import Array, Mesh

UPRIGHT = (1.0, 0.0, 0.0, 0.0)
"""Quaternion (w, x, y, z) that turns nothing."""


@dataclass(frozen=True)
class Look:
    """Surface of a part.

    Attributes:
        rgb: colour, each channel 0 to 1; multiplies the texture.
        texture: (H, W, 3) uint8 or None.
        specular: strength of highlights, 0 to 1.
        shininess: sharpness of highlights, 0 to 1.
    """

    rgb: Sequence[float] = (1.0, 1.0, 1.0)
    texture: NDArray[np.uint8] | None = None
    specular: float = 0.3
    shininess: float = 0.4


@dataclass(frozen=True)
class Part:
    """A visible piece of a thing, in the thing's frame."""

    mesh: Mesh
    look: Look


@dataclass(frozen=True)
class Collider:
    """A solid that physics sees: `kind` box, cylinder, capsule or sphere with MuJoCo's `size`, metres.

    `fromto` (6,), when given, places a capsule or cylinder between two points and leaves only the radius in `size`.
    """

    kind: str
    size: Sequence[float]
    pos: Sequence[float] = (0.0, 0.0, 0.0)
    quat: Sequence[float] = UPRIGHT
    fromto: Sequence[float] | None = None


@dataclass(frozen=True)
class Keypoint:
    """A named point of a thing.

    Attributes:
        name: one of `KEYPOINT_NAMES`.
        pos: (3,) metres, in the thing's frame.
        inset: how far behind the thing's own surface it may lie and still be seen, metres: the radius of what it is in
            the middle, or at the end, of; 0 on a face, or in the open as in a mug's mouth.
    """

    name: str
    pos: Sequence[float]
    inset: float = 0.0


@dataclass(frozen=True)
class Thing:
    """One rigid object.

    Attributes:
        class_name: one of `CLASS_NAMES`, or None for a distractor that is never annotated.
        parts: what is seen.
        colliders: what collides.
        mass: kilograms.
        upright: how likely the thing stands on its base (the frame's z axis up) rather than lying in a random pose.
        reclined: quaternions of the natural poses on the side; with none, any rotation is drawn.
        keypoints: the named points that this thing has.
    """

    class_name: str | None
    parts: list[Part]
    colliders: list[Collider]
    mass: float
    upright: float = 0.7
    reclined: Sequence[Sequence[float]] = ()
    keypoints: Sequence[Keypoint] = ()

    def vertices(self) -> Array:
        """All visible vertices (V, 3), metres, in the thing's frame."""
        return np.concatenate([part.mesh.vertices for part in self.parts])


def ring_of_boxes(
    low: tuple[float, float], high: tuple[float, float], thickness: float, count: int = 8
) -> list[Collider]:
    """Boxes that stand in for the slanted wall of a bowl or plate.

    Args:
        low: (radius, height) of the wall's foot, metres.
        high: (radius, height) of the wall's rim, metres.
        thickness: of the wall, metres.
        count: how many boxes go around.
    """
    radius, height = (low[0] + high[0]) / 2, (low[1] + high[1]) / 2
    length = float(np.hypot(high[0] - low[0], high[1] - low[1]))
    lean = np.arctan2(high[0] - low[0], high[1] - low[1]) / 2
    width = high[0] * np.tan(np.pi / count)
    colliders = []
    for angle in np.arange(count) * 2 * np.pi / count:
        # Lean outwards about the box's own y axis first, then turn into place about z.
        (cz, sz), (cy, sy) = (np.cos(angle / 2), np.sin(angle / 2)), (np.cos(lean), np.sin(lean))
        quat = (cz * cy, -sz * sy, cz * sy, sz * cy)
        pos = (radius * np.cos(angle), radius * np.sin(angle), height)
        colliders.append(Collider("box", (thickness / 2, width, length / 2), pos, quat))
    return colliders
