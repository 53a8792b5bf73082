"""Pictures of the tabletop world with the exact mask of each object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .gl import load_mujoco
from .keypoints import locate_keypoints
from .meshes import Array
from .scene import Scene, build, place, random_things, rotation, settle
from .sensor import expose

DEFAULT_SIZE = (480, 640)
MIN_PIXELS = 80
MIN_VISIBLE = 0.08


@dataclass(frozen=True)
class Instance:
    """One annotated object in a picture.

    Attributes:
        class_id: COCO category id, 1 for the first of `CLASS_NAMES`.
        mask: (H, W) bool, the visible pixels.
        track_id: which object of the scene it is, counted from 1; constant through a clip.
        keypoints: (K, 3) float64 by `KEYPOINT_NAMES`: x, y in pixels and visibility; see `locate_keypoints`.
    """

    class_id: int
    mask: NDArray[np.bool_]
    track_id: int
    keypoints: Array


@dataclass(frozen=True)
class Picture:
    """A rendered picture.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        instances: the annotated objects; masks do not overlap.
        depth_m: (H, W) float32, distance along the optical axis in metres; None unless it was asked for.
        intrinsics: (3, 3) float64, pixels; the top left corner of the picture is (0, 0), its first pixel's centre
            (0.5, 0.5).
        camera_from_world: (4, 4) float64, x right, y down, z forward, metres.
        seed: the seed that the picture was drawn from.
        index: the picture's number under that seed.
    """

    image: NDArray[np.uint8]
    instances: list[Instance]
    depth_m: NDArray[np.float32] | None
    intrinsics: Array
    camera_from_world: Array
    seed: int
    index: int


@dataclass(frozen=True)
class Camera:
    """Where the camera is and what it looks at, metres and degrees; the world's z axis points up."""

    eye: Array
    target: Array
    roll_deg: float
    fovy_deg: float

    def axes(self) -> Array:
        """(3, 3): the camera's right, down and forward directions in the world, as rows."""
        forward = np.asarray(self.target - self.eye, float)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        cosine, sine = np.cos(np.radians(self.roll_deg)), np.sin(np.radians(self.roll_deg))
        return np.stack([cosine * right + sine * down, cosine * down - sine * right, forward])

    def camera_from_world(self) -> Array:
        """(4, 4) float64 rigid transform, x right, y down, z forward, metres."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes()
        matrix[:3, 3] = -matrix[:3, :3] @ self.eye
        return matrix

    def intrinsics(self, size: tuple[int, int]) -> Array:
        """(3, 3) float64 pinhole matrix for a picture of `size` (height, width), pixels."""
        height, width = size
        focal = height / 2 / np.tan(np.radians(self.fovy_deg) / 2)
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])


def random_camera(rng: np.random.Generator, fovy_deg: float, target: Array) -> Camera:
    """A view of the table from a random height, side and distance, with a slight roll."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.triangular(16, 32, 70))
    # The distance goes with the lens, so that objects have about the same size in all pictures.
    distance = rng.uniform(0.58, 0.95) * np.tan(np.radians(22.5)) / np.tan(np.radians(fovy_deg / 2))
    offset = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    aim = target + rng.normal(0, 0.035, 3) * (1, 1, 0.3)
    return Camera(aim + distance * np.array(offset), aim, float(np.clip(rng.normal(0, 3.5), -9, 9)), fovy_deg)


class Eye:
    """Renders a scene: colour, which body is seen at each pixel, and depth. Use it in a `with` statement."""

    def __init__(self, scene: Scene, size: tuple[int, int]) -> None:
        self._mujoco = load_mujoco()
        self._scene = scene
        self._renderer = self._mujoco.Renderer(scene.model, *size, max_geom=1000)

    def __enter__(self) -> Eye:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the renderer."""
        self._renderer.close()

    def aim(self, camera: Camera) -> None:
        """Moves the scene's camera, and takes over the bodies' current poses."""
        model, data = self._scene.model, self._scene.data
        right, down, forward = camera.axes()
        model.cam_pos[0] = camera.eye
        model.cam_fovy[0] = camera.fovy_deg
        quat = np.zeros(4)
        # MuJoCo's cameras look along -z with y up.
        self._mujoco.mju_mat2Quat(quat, np.stack([right, -down, -forward], 1).ravel())
        model.cam_quat[0] = quat
        self._mujoco.mj_forward(model, data)
        self._renderer.update_scene(data, 0)

    def colour(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        return np.asarray(self._renderer.render(), np.uint8)

    def bodies(self) -> NDArray[np.int32]:
        """(H, W) int32: MuJoCo's id of the body seen at each pixel, 0 for the room."""
        self._renderer.enable_segmentation_rendering()
        seen = self._renderer.render()
        self._renderer.disable_segmentation_rendering()
        is_geom = seen[..., 1] == int(self._mujoco.mjtObj.mjOBJ_GEOM)
        owner = np.append(self._scene.model.geom_bodyid, 0).astype(np.int32)
        return owner[np.where(is_geom, seen[..., 0], -1)]

    def depth(self) -> NDArray[np.float32]:
        """(H, W) float32: distance along the optical axis, metres."""
        self._renderer.enable_depth_rendering()
        depth = np.array(self._renderer.render(), np.float32)
        self._renderer.disable_depth_rendering()
        return depth


def _outline_area(points: Array) -> float:
    """Area in pixels of the convex hull of (N, 2) image points."""
    return float(cv2.contourArea(cv2.convexHull(points.astype(np.float32))))


def visible_instances(
    scene: Scene, bodies: NDArray[np.int32], depth_m: NDArray[np.float32], camera: Camera
) -> list[Instance]:
    """The objects that are worth an annotation.

    An object is dropped when fewer than `MIN_PIXELS` of its pixels are visible, or less than `MIN_VISIBLE` of the area
    of the convex hull that its outline would have if nothing hid it and the picture did not end.

    Args:
        scene: the world.
        bodies: (H, W) int32, from `Eye.bodies`.
        depth_m: (H, W) float32, from `Eye.depth`.
        camera: the view.
    """
    matrix, lens = camera.camera_from_world(), camera.intrinsics(bodies.shape)
    instances = []
    for track, (item, body, class_id) in enumerate(zip(scene.placed, scene.bodies, scene.class_ids(), strict=True)):
        mask = bodies == body
        pixels = int(mask.sum())
        if not class_id or pixels < MIN_PIXELS:
            continue
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation(scene.data.xquat[body]), scene.data.xpos[body]
        world = item.thing.vertices() @ pose[:3, :3].T + pose[:3, 3]
        seen = world @ matrix[:3, :3].T + matrix[:3, 3]
        projected = seen @ lens.T
        whole = _outline_area(projected[:, :2] / np.maximum(projected[:, 2:], 1e-3))
        if pixels >= MIN_VISIBLE * whole:
            points = locate_keypoints(item.thing, pose, matrix, lens, depth_m)
            instances.append(Instance(class_id, mask, track + 1, points))
    return instances


def random_scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Scene, Camera]:
    """A table with things at rest, and a camera that looks at them."""
    fovy = rng.uniform(38, 56)
    placed = place(rng, random_things(rng), spread=rng.uniform(0.075, 0.135))
    scene = build(rng, size, placed, fovy)
    settle(scene)
    resting = scene.data.xpos[scene.bodies]
    on_table = resting[resting[:, 2] > -0.05]
    target = np.median(on_table, 0) if len(on_table) else np.zeros(3)
    return scene, random_camera(rng, fovy, target)


def render_picture(seed: int, index: int, size: Sequence[int] = DEFAULT_SIZE, with_depth: bool = False) -> Picture:
    """Renders one picture of a random tabletop; the same arguments always give the same picture.

    Args:
        seed: names a series of pictures.
        index: number of the picture in the series.
        size: height and width, pixels.
        with_depth: whether to give `depth_m` too.

    Returns:
        The picture with its instances.

    Raises:
        EdgeMrcnnError: this machine cannot render.
    """
    height, width = size
    rng = np.random.default_rng([seed, index])
    scene, camera = random_scene(rng, (height, width))
    with Eye(scene, (height, width)) as eye:
        eye.aim(camera)
        image, bodies, depth = eye.colour(), eye.bodies(), eye.depth()
    instances = visible_instances(scene, bodies, depth, camera)
    lens, matrix = camera.intrinsics((height, width)), camera.camera_from_world()
    return Picture(expose(rng, image), instances, depth if with_depth else None, lens, matrix, seed, index)
