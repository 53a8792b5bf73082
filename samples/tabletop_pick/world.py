"""A table with things, a gripper and a fixed camera that looks down on it, as a robot's cell has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_mrcnn.frame import Frame
from edge_mrcnn.training.tabletop.gl import load_mujoco
from edge_mrcnn.training.tabletop.render import Camera, Eye
from edge_mrcnn.training.tabletop.scene import Scene, build, place, random_things, settle
from edge_mrcnn.training.tabletop.sensor import expose

from .gripper import add_gripper

SIZE = (480, 640)
_FOVY_DEG = 45.0
_DEPTH_NOISE_M = 0.001
_AT_REST = 0.02  # Metres or radians a second.
_WAIT_S, _MOST_WAITS = 0.5, 12


@dataclass(frozen=True)
class Cell:
    """What there is before a pick.

    Attributes:
        scene: the world at rest.
        camera: the robot's.
        frame: what the camera sees: picture, noisy depth, intrinsics (pixel centres at whole numbers).
        bodies: (H, W) int32, the truth: body seen at each pixel, 0 for the room.
        depth_m: (H, W) float32, the truth.
    """

    scene: Scene
    camera: Camera
    frame: Frame
    bodies: NDArray[np.int32]
    depth_m: NDArray[np.float32]

    def world_from_camera(self) -> NDArray[np.float64]:
        """(4, 4): what hand-eye calibration would give; the robot's base is the world."""
        return np.linalg.inv(self.camera.camera_from_world())


def _camera(rng: np.random.Generator, target: NDArray[np.float64]) -> Camera:
    azimuth, elevation, distance = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(50, 60)), rng.uniform(0.65, 0.8)
    flat = np.cos(elevation)
    offset = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    return Camera(target + distance * offset, target, 0.0, _FOVY_DEG)


def make_cell(seed: int) -> Cell:
    """A random world of the kind that the detector was trained on, from a seed of its own."""
    rng = np.random.default_rng([seed, 0])
    placed = place(rng, random_things(rng), spread=rng.uniform(0.075, 0.135))
    scene = build(rng, SIZE, placed, _FOVY_DEG, furnish=add_gripper)
    _sharpen_physics(scene)
    _rest(scene)
    resting = scene.data.xpos[scene.bodies]
    on_table = resting[resting[:, 2] > -0.05]
    camera = _camera(rng, np.median(on_table, 0) if len(on_table) else np.zeros(3))
    with Eye(scene, SIZE) as eye:
        eye.aim(camera)
        picture, bodies, depth = expose(rng, eye.colour()), eye.bodies(), eye.depth()
    noisy = depth + rng.normal(0, _DEPTH_NOISE_M, SIZE)
    lens = camera.intrinsics(SIZE)
    lens[:2, 2] -= 0.5  # The renderer's first pixel has its centre at 0.5, 0.5.
    frame = Frame(picture, source=f"mujoco:{seed}", depth_m=np.float32(np.rint(noisy * 1000) / 1000), intrinsics=lens)
    return Cell(scene, camera, frame, bodies, depth)


def _sharpen_physics(scene: Scene) -> None:
    """Smaller steps and friction that does not creep: what is enough to drop things is not enough to hold them."""
    mujoco, option = load_mujoco(), scene.model.opt
    option.timestep = 0.002
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 10


def _rest(scene: Scene) -> None:
    """Waits until nothing rolls any more, as a robot would before it looks."""
    settle(scene)
    for _ in range(_MOST_WAITS):
        if np.abs(scene.data.qvel).max() < _AT_REST:
            return
        settle(scene, _WAIT_S)
