"""Clips of the tabletop: a moving camera, things that fall and things that are pushed, with ground truth per frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .gl import load_mujoco
from .meshes import Array
from .objects import distractor, labelled
from .render import DEFAULT_SIZE, Camera, Eye, Picture, visible_instances
from .scene import Placed, Scene, build, place, random_pose
from .sensor import apply, random_sensor
from .things import Thing

# Everything happens in the first part of a clip, so that things lie still at its end.
_ACTION = 0.72
_PUSH_S = 0.12
_PARKED_Z = -2.5
_TIMESTEP_S = 0.002


@dataclass(frozen=True)
class ClipFrame:
    """One frame of a clip.

    Attributes:
        picture: image, instances and camera; `track_id` of an instance is constant through the clip.
        depth_m: (H, W) float32, distance along the optical axis in metres.
        time_s: since the start of the clip.
        poses: world_from_object of every object by track id: x, y, z in metres, then the quaternion w, x, y, z.
    """

    picture: Picture
    depth_m: NDArray[np.float32]
    time_s: float
    poses: dict[int, Array]


@dataclass(frozen=True)
class _Event:
    """From `start_s` on, the thing number `index` falls from `pos`, or is pushed towards `velocity`."""

    start_s: float
    index: int
    pos: Array | None = None
    velocity: Array | None = None


class _Director:
    """Steps physics: holds back what is still to fall, lets it go, and pushes."""

    def __init__(self, scene: Scene, events: list[_Event]) -> None:
        self._mujoco = load_mujoco()
        self._scene = scene
        self._events = events
        joints = [int(scene.model.body_jntadr[body]) for body in scene.bodies]
        self._qpos = [int(scene.model.jnt_qposadr[joint]) for joint in joints]
        self._dof = [int(scene.model.jnt_dofadr[joint]) for joint in joints]
        self._start_s = float(scene.data.time)

    def _hold(self, index: int) -> None:
        item, data = self._scene.placed[index], self._scene.data
        data.qpos[self._qpos[index] : self._qpos[index] + 7] = [*item.pos, *item.quat]
        data.qvel[self._dof[index] : self._dof[index] + 6] = 0.0

    def _act(self, now_s: float) -> None:
        data = self._scene.data
        for event in self._events:
            if event.pos is not None:
                if now_s < event.start_s:
                    self._hold(event.index)
                elif now_s < event.start_s + _TIMESTEP_S:
                    data.qpos[self._qpos[event.index] : self._qpos[event.index] + 3] = event.pos
            elif event.velocity is not None and 0 <= now_s - event.start_s < _PUSH_S:
                dof = self._dof[event.index]
                # A hand speeds the thing up evenly; a sudden jump in velocity would look like an explosion.
                data.qvel[dof : dof + 2] = event.velocity * ((now_s - event.start_s) / _PUSH_S)

    def advance(self, time_s: float) -> None:
        """Runs physics up to `time_s` since the start of the clip."""
        model, data = self._scene.model, self._scene.data
        while (now_s := float(data.time) - self._start_s) < time_s - 1e-9:
            self._act(now_s)
            self._mujoco.mj_step(model, data)


def _cast(rng: np.random.Generator) -> tuple[list[Thing], list[Thing]]:
    """The things on the table at the start, and those that fall later; classes repeat as little as possible."""
    things: list[Thing] = []
    seen: set[str | None] = set()
    while len(things) < 10:
        thing = labelled(rng)
        if thing.class_name not in seen or len(seen) == 10:
            things.append(thing)
            seen.add(thing.class_name)
    falling = [thing for thing in things if thing.class_name not in ("plate", "bowl", "book")][-4:]
    still = [thing for thing in things if all(thing is not other for other in falling)]
    return [*still, distractor(rng), distractor(rng)], falling


def _script(rng: np.random.Generator, scene: Scene, still: int, duration_s: float) -> list[_Event]:
    """Spreads the falls and three pushes over the first part of the clip."""
    count = len(scene.placed) - still
    times = np.linspace(0.06, _ACTION, count + 3) * duration_s
    falls = [
        _Event(float(times[k]), still + j, pos=np.array([*rng.normal(0, 0.06, 2), rng.uniform(0.4, 0.5)]))
        for j, k in enumerate(rng.permutation(count + 3)[:count])
    ]
    taken = {event.start_s for event in falls}
    known = [k for k in range(still) if scene.placed[k].thing.class_name not in (None, "plate")]
    pushes = []
    for start_s in (float(t) for t in times if float(t) not in taken):
        index = int(rng.choice(known))
        inwards = -scene.data.xpos[scene.bodies[index]][:2] + rng.normal(0, 0.05, 2)
        velocity = inwards / max(float(np.linalg.norm(inwards)), 1e-6) * rng.uniform(0.45, 0.8)
        pushes.append(_Event(start_s, index, velocity=velocity))
    return falls + pushes


def _path(rng: np.random.Generator, target: Array, duration_s: float) -> list[Array]:
    """Draws a smooth camera path: parameters for `_camera_at`."""
    start = np.array([rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(30, 36)), rng.uniform(0.72, 0.82)])
    swing = np.array([np.radians(rng.uniform(30, 45)), np.radians(5.0), 0.06])
    pace = 2 * np.pi / max(duration_s, 4.0) * np.array([0.75, 1.0, 1.3])
    return [start, swing, pace, rng.uniform(0, 2 * np.pi, 3), target]


def _camera_at(path: Sequence[Array], time_s: float, fovy_deg: float) -> Camera:
    start, swing, pace, phase, target = path
    azimuth, elevation, distance = start + swing * np.sin(pace * time_s + phase)
    offset = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    return Camera(target + distance * np.array(offset), target, 2.0 * np.sin(pace[0] * time_s + phase[1]), fovy_deg)


def clip_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Scene, int]:
    """The world of a clip at its start, and how many of its things stand on the table; the others wait out of sight."""
    still, falling = _cast(rng)
    placed = place(rng, still, spread=0.1)
    parked = [
        Placed(thing, np.array([0.6 * k - 0.9, 0.0, _PARKED_Z]), random_pose(rng, thing))
        for k, thing in enumerate(falling)
    ]
    scene = build(rng, size, placed + parked, 45.0, _TIMESTEP_S)
    holder = _Director(scene, [_Event(np.inf, len(placed) + k, pos=np.zeros(3)) for k in range(len(parked))])
    holder.advance(1.2)
    return scene, len(placed)


def render_clip(
    seed: int, duration_s: float, fps: float = 15.0, size: Sequence[int] = DEFAULT_SIZE
) -> Iterator[ClipFrame]:
    """Renders a clip frame by frame; the same arguments always give the same frames.

    Args:
        seed: names the clip.
        duration_s: length, seconds.
        fps: frames per second.
        size: height and width, pixels.

    Yields:
        The frames in order.

    Raises:
        EdgeMrcnnError: this machine cannot render.
    """
    height, width = size
    rng = np.random.default_rng([seed, 0, 1])
    scene, still = clip_scene(rng, (height, width))
    director = _Director(scene, _script(rng, scene, still, duration_s))
    target = np.append(np.median(scene.data.xpos[scene.bodies[:still]], 0)[:2], 0.03)
    path, sensor = _path(rng, target, duration_s), random_sensor(rng)
    with Eye(scene, (height, width)) as eye:
        for number in range(max(1, round(duration_s * fps))):
            director.advance(number / fps)
            camera = _camera_at(path, number / fps, 45.0)
            eye.aim(camera)
            image = apply(sensor, np.random.default_rng([seed, number, 2]), eye.colour())
            bodies, depth = eye.bodies(), eye.depth()
            instances = visible_instances(scene, bodies, depth, camera)
            matrices = camera.intrinsics((height, width)), camera.camera_from_world()
            picture = Picture(image, instances, depth, *matrices, seed, number)
            poses = {k + 1: np.array([*scene.data.xpos[b], *scene.data.xquat[b]]) for k, b in enumerate(scene.bodies)}
            yield ClipFrame(picture, depth, number / fps, poses)
