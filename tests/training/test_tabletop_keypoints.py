"""Keypoints of the tabletop: where they are on the things and in the pictures, and when they count as hidden."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn.training.tabletop import CLASS_NAMES, KEYPOINT_NAMES, gl
from edge_mrcnn.training.tabletop.keypoints import ABSENT, HIDDEN, SKELETON, VISIBLE, locate_keypoints
from edge_mrcnn.training.tabletop.objects import MAKERS, distractor
from edge_mrcnn.training.tabletop.render import Camera, Eye, Instance, random_scene, visible_instances
from edge_mrcnn.training.tabletop.scene import Scene, rotation
from edge_mrcnn.training.tabletop.things import Keypoint, Thing
from edge_mrcnn.training.tabletop.writer import write_pictures

SIZE = (240, 320)
needs_renderer = pytest.mark.skipif(gl.backend() is None, reason="neither OSMesa nor EGL can be loaded")

EXPECTED = {
    "mug": {"top", "base", "handle"},
    "bottle": {"top", "base"},
    "bowl": {"top", "base"},
    "plate": {"top"},
    "can": set(),
    "box": set(),
    "ball": set(),
    "banana": {"stalk"},
    "book": {"spine"},
    "hammer": {"handle", "head"},
}
"""A can, a box and a ball have no point that a viewer can tell from its mirror image."""


def specimens(name: str) -> list[Thing]:
    return [MAKERS[name](np.random.default_rng(seed)) for seed in range(8)]


def points_of(thing: Thing) -> dict[str, Keypoint]:
    return {point.name: point for point in thing.keypoints}


# --- on the things: no renderer ---


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_each_specimen_has_the_points_of_its_class_once(name: str) -> None:
    for thing in specimens(name):
        assert len(points_of(thing)) == len(thing.keypoints)
        assert set(points_of(thing)) == EXPECTED[name]


def test_every_keypoint_belongs_to_a_class_and_distractors_have_none() -> None:
    assert set().union(*EXPECTED.values()) == set(KEYPOINT_NAMES)
    rng = np.random.default_rng(0)
    assert not any(distractor(rng).keypoints for _ in range(40))
    assert all(0 <= end < len(KEYPOINT_NAMES) for line in SKELETON for end in line)


@pytest.mark.parametrize("name", ["mug", "bottle", "bowl", "plate"])
def test_top_and_base_are_the_ends_of_the_axis(name: str) -> None:
    for thing in specimens(name):
        heights = thing.vertices()[:, 2]
        for point, end in (("top", heights.max()), ("base", heights.min())):
            if point in EXPECTED[name]:
                assert points_of(thing)[point].pos == pytest.approx((0, 0, end), abs=0.0011)  # metres


def test_a_mugs_handle_is_where_it_reaches_out_farthest() -> None:
    for thing in specimens("mug"):
        handle, vertices = points_of(thing)["handle"], thing.vertices()
        outermost = vertices[vertices[:, 0].argmax()]
        assert handle.pos[0] + handle.inset == pytest.approx(outermost[0], abs=0.001)
        assert abs(handle.pos[2] - outermost[2]) < 0.004


def test_a_hammers_points_are_at_both_ends_of_its_handle() -> None:
    for thing in specimens("hammer"):
        head, handle, vertices = points_of(thing)["head"], points_of(thing)["handle"], thing.vertices()
        assert handle.pos[0] == pytest.approx(vertices[:, 0].min(), abs=0.0001)
        steel = np.concatenate([part.mesh.vertices for part in thing.parts if part.look.specular == 0.9])
        assert (steel.min(0) < head.pos).all()
        assert (head.pos < steel.max(0)).all()


def test_stalk_and_spine_lie_on_the_surface() -> None:
    for thing in specimens("banana"):
        stalk = np.asarray(points_of(thing)["stalk"].pos)
        assert np.linalg.norm(thing.vertices() - stalk, axis=1).min() < 0.0001
        assert stalk[0] == pytest.approx(thing.vertices()[:, 0].min(), abs=0.005)
    for thing in specimens("book"):
        spine, vertices = points_of(thing)["spine"], thing.vertices()
        middle = (vertices.min(0) + vertices.max(0)) / 2
        assert spine.pos == pytest.approx((vertices[:, 0].min(), middle[1], middle[2]), abs=0.001)


# --- in a picture: a plane in front of a camera, no renderer ---

LENS = np.array([[100.0, 0, 40], [0, 100, 30], [0, 0, 1]])


def lone(pos: tuple[float, float, float], inset: float = 0.0) -> Thing:
    return Thing("mug", [], [], 0.1, keypoints=[Keypoint("base", pos, inset)])


def located(thing: Thing, depth: float) -> list[float]:
    found = locate_keypoints(thing, np.eye(4), np.eye(4), LENS, np.full((60, 80), depth, np.float32))
    assert not found[[k for k, name in enumerate(KEYPOINT_NAMES) if name != "base"]].any()
    return found[KEYPOINT_NAMES.index("base")].tolist()


@pytest.mark.parametrize(
    ("surface", "inset", "expected"),
    [
        (1.0, 0.0, VISIBLE),
        (9.0, 0.0, VISIBLE),  # in the open, as in a mug's mouth
        (0.975, 0.0, VISIBLE),  # 2.5 of a pixel's widths nearer: a steep surface
        (0.96, 0.0, HIDDEN),
        (0.96, 0.02, VISIBLE),  # so deep behind the surface of its own thing
        (0.94, 0.02, HIDDEN),
    ],
)
def test_what_is_nearer_hides(surface: float, inset: float, expected: int) -> None:
    assert located(lone((0.1, 0.2, 1.0), inset), surface) == [50.0, 50.0, expected]


@pytest.mark.parametrize("pos", [(0.41, 0, 1), (-0.41, 0, 1), (0, 0.31, 1), (0, -0.31, 1), (0.1, 0.1, -1), (0, 0, 0)])
def test_outside_the_picture_and_behind_the_camera_is_absent(pos: tuple[float, float, float]) -> None:
    assert located(lone(pos), 9.0) == [0, 0, ABSENT]


# --- in rendered scenes ---


def rendered(seed: int, index: int) -> tuple[Scene, Camera, list[Instance]]:
    scene, camera = random_scene(np.random.default_rng([seed, index]), SIZE)
    with Eye(scene, SIZE) as eye:
        eye.aim(camera)
        return scene, camera, visible_instances(scene, eye.bodies(), eye.depth(), camera)


@needs_renderer
@pytest.mark.render
def test_places_and_visibility_agree_with_mujocos_camera_and_rays() -> None:
    """MuJoCo's own camera pose projects, and its ray casting, which knows no depth map, decides what is hidden."""
    mujoco = gl.load_mujoco()
    agree, states = [], set()
    for index in range(6):
        scene, _, instances = rendered(41, index)
        model, data = scene.model, scene.data
        eye, axes = data.cam_xpos[0], data.cam_xmat[0].reshape(3, 3)  # x right, y up, z backwards
        focal = SIZE[0] / 2 / np.tan(np.radians(model.cam_fovy[0]) / 2)
        for instance in instances:
            body = scene.bodies[instance.track_id - 1]
            for point in scene.placed[instance.track_id - 1].thing.keypoints:
                world = rotation(data.xquat[body]) @ point.pos + data.xpos[body]
                seen = axes.T @ (world - eye)
                x = SIZE[1] / 2 - focal * seen[0] / seen[2]
                y = SIZE[0] / 2 + focal * seen[1] / seen[2]
                found = instance.keypoints[KEYPOINT_NAMES.index(point.name)]
                states.add(int(found[2]))
                if not (0 <= x < SIZE[1] and 0 <= y < SIZE[0]):
                    assert found.tolist() == [0, 0, ABSENT]
                    continue
                assert found[:2] == pytest.approx((x, y), abs=1e-4)
                ray, hit = world - eye, np.zeros(1, np.int32)
                groups = np.array([0, 1, 0, 0, 0, 0], np.uint8)  # what is seen, not what collides
                share = mujoco.mj_ray(model, data, eye, ray, groups, 1, -1, hit)
                gap = (1 - share) * np.linalg.norm(ray) if share >= 0 else -1.0
                if abs(gap - point.inset) > 0.015:  # metres: neither flush with the surface nor just behind it
                    agree.append((gap > point.inset) == (found[2] == HIDDEN))
    assert {HIDDEN, VISIBLE} <= states
    assert len(agree) >= 20
    assert np.mean(agree) > 0.95  # the ray meets the point, the map its pixel's centre: they differ at outlines


@needs_renderer
@pytest.mark.render
def test_a_point_that_is_seen_stays_seen_when_all_else_is_taken_away() -> None:
    uncovered = 0
    scene, camera, together = rendered(3, 1)  # a mug stands before a banana's stalk
    start = scene.data.qpos.copy()
    with Eye(scene, SIZE) as eye:
        for instance in together:
            scene.data.qpos[:] = start
            others = [7 * k + 2 for k in range(len(scene.bodies)) if k != instance.track_id - 1]
            scene.data.qpos[others] = -50.0
            eye.aim(camera)
            alone = visible_instances(scene, eye.bodies(), eye.depth(), camera)
            (same,) = [other for other in alone if other.track_id == instance.track_id]
            np.testing.assert_allclose(same.keypoints[:, :2], instance.keypoints[:, :2], atol=1e-6)
            assert (same.keypoints[:, 2] >= instance.keypoints[:, 2]).all()
            uncovered += int((same.keypoints[:, 2] > instance.keypoints[:, 2]).sum())
    assert uncovered > 0


@needs_renderer
@pytest.mark.render
def test_the_data_set_holds_keypoints_as_coco_does(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", seed=3, count=3, size=SIZE)
    content = json.loads((tmp_path / "set" / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for category in content["categories"]:
        assert category["keypoints"] == list(KEYPOINT_NAMES)
        assert category["skeleton"] == [[1, 2], [3, 4]]  # COCO counts from 1
    for entry in content["annotations"]:
        points = np.array(entry["keypoints"]).reshape(-1, 3)
        assert len(points) == len(KEYPOINT_NAMES)
        assert entry["num_keypoints"] == (points[:, 2] > 0).sum()
        labelled = {name for name, point in zip(KEYPOINT_NAMES, points, strict=True) if point[2]}
        assert labelled <= EXPECTED[names[entry["category_id"]]]
        assert not points[points[:, 2] == ABSENT].any()
        assert (points[:, :2] <= (SIZE[1], SIZE[0])).all()
    assert sum(entry["num_keypoints"] for entry in content["annotations"]) >= 6
