"""One try to pick something up: look, choose, approach, close, lift, hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_mrcnn.detections import Detections
from edge_mrcnn.runtime.grasp import Grasp, plan_grasps, transform_points
from edge_mrcnn.training.tabletop.gl import load_mujoco

from .gripper import HAND, Gripper
from .world import Cell

BACK_M, LIFT_M, LIFTED_M = 0.15, 0.15, 0.10
_BUMP_N = 5.0
_BELOW_TABLE_M = -0.01
_BORDER, _WORTH_IF_CUT = 3, 0.3  # Of what the picture cuts off nobody knows the middle.
_CERTAINTY_POWER = 16  # Tuned on seeds from 41000 to 42059.
_CHECK_EVERY = 4  # Steps of physics between two looks at the contacts.

OnStep = Callable[[float], None]
"""Called with the simulated time, for a video."""


@dataclass(frozen=True)
class Choice:
    """What the robot goes for: row of the detection, and its grasp."""

    row: int
    grasp: Grasp


def plan(cell: Cell, detections: Detections) -> list[Grasp]:
    """The best grasp for each detection: along the line of sight, straight down, or halfway between."""
    depth_m, lens = cell.frame.depth_m, cell.frame.intrinsics
    assert depth_m is not None
    assert lens is not None
    sight = np.array([0.0, 0.0, 1.0])
    down = cell.camera.axes() @ -sight
    ways = [None, down, down + sight]
    found = [plan_grasps(detections, depth_m, lens, HAND, way) for way in ways]
    return [max(grasps, key=lambda grasp: grasp.quality) for grasps in zip(*found, strict=True)]


def choose(
    cell: Cell, detections: Detections, grasps: list[Grasp], rng: np.random.Generator | None = None
) -> Choice | None:
    """The surest one that lies on the table, or with `rng` any of them; None where nothing can be taken."""
    world = cell.world_from_camera()
    choices = [
        Choice(row, grasp)
        for row, grasp in enumerate(grasps)
        if grasp.refusal is None and transform_points(world, grasp.point_m)[2] > _BELOW_TABLE_M
    ]
    if rng is not None and choices:
        return choices[int(rng.integers(len(choices)))]
    return max(choices, key=lambda choice: _worth(detections, choice), default=None)


def _worth(detections: Detections, choice: Choice) -> float:
    """How sure a choice is.

    What counts beside the grasp's quality is how sure the network is of the mask: a mask with few doubtful pixels has
    its centroid in the right place far more often.
    """
    assert detections.mask is not None
    (left, top, right, bottom), (height, width) = detections.xyxy[choice.row], detections.image_hw
    cut = min(left, top, width - right, height - bottom) < _BORDER
    patch = detections.mask[choice.row]
    certainty = float(patch[patch >= 0.5].mean()) ** _CERTAINTY_POWER
    return float(detections.score[choice.row]) * choice.grasp.quality * certainty * (_WORTH_IF_CUT if cut else 1.0)


class _Motion:
    """Plays set points through physics, and notes what the gripper bumps into before it closes."""

    def __init__(self, cell: Cell, on_step: OnStep | None) -> None:
        self._mujoco = load_mujoco()
        self.model, self.data = cell.scene.model, cell.scene.data
        self.gripper = Gripper(self.model, self.data)
        self.bumped: set[int] = set()
        self._on_step = on_step

    def go(self, start: np.ndarray, stop: np.ndarray, seconds: float, watch: bool = False) -> None:
        """Moves the servos' aims evenly from `start` to `stop`, (4,): offset x, y, z and opening, metres."""
        count = round(seconds / self.model.opt.timestep)
        for number in range(count):
            share = (number + 1) / count
            # Slow start and slow stop: an arm does not jump.
            aim = start + (stop - start) * share * share * (3 - 2 * share)
            self.gripper.command(aim[:3], aim[3])
            self._mujoco.mj_step(self.model, self.data)
            if watch and number % _CHECK_EVERY == 0:
                self.bumped |= set().union(*self.gripper.touching(_BUMP_N).values())
            if self._on_step is not None:
                self._on_step(float(self.data.time))


def pick(cell: Cell, grasp: Grasp, body: int, on_step: OnStep | None = None) -> str:
    """Tries a grasp in simulation.

    Args:
        cell: the world; it is changed.
        grasp: one that is not refused.
        body: MuJoCo id of the body that ought to be lifted.
        on_step: called after each step of physics.

    Returns:
        "lifted", or why it failed: "collision on approach", "knocked away", "missed", "slipped" or "not lifted".
    """
    motion = _Motion(cell, on_step)
    data, gripper = motion.data, motion.gripper
    pose = grasp.pose(cell.world_from_camera())
    gripper.aim(pose, grasp.opening_m, BACK_M)
    before = data.xipos[body].copy()
    back, there = np.array([0, 0, -BACK_M, grasp.opening_m]), np.array([0, 0, 0, grasp.opening_m])
    motion.go(back, there, 1.2, watch=True)
    moved = float(np.linalg.norm(data.xipos[body] - before))
    closed = there * [1, 1, 1, 0]
    motion.go(there, closed, 0.8)
    motion.go(closed, closed, 0.3)
    caught = body in gripper.held()
    up = np.append(pose[:3, :3].T @ [0, 0, LIFT_M], 0.0)
    motion.go(closed, up, 1.2)
    motion.go(up, up, 1.0)
    if body in gripper.held() and data.xipos[body, 2] - before[2] >= LIFTED_M:
        return "lifted"
    if motion.bumped:
        return "collision on approach"
    if not caught:
        return "knocked away" if moved > 0.02 else "missed"
    return "not lifted" if body in gripper.held() else "slipped"
