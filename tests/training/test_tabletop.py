"""The tabletop generator: meshes, pictures, data sets, clips and its command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.training.tabletop import CLASS_NAMES, gl, meshes, render_picture, writer
from edge_mrcnn.training.tabletop.__main__ import main, parse_size
from edge_mrcnn.training.tabletop.clip import clip_scene, render_clip
from edge_mrcnn.training.tabletop.clip_writer import write_clip
from edge_mrcnn.training.tabletop.objects import MAKERS, distractor
from edge_mrcnn.training.tabletop.render import MIN_PIXELS, Eye, random_scene
from edge_mrcnn.training.tabletop.scene import rotation
from edge_mrcnn.training.tabletop.writer import OutputExistsError, new_folder, write_image, write_pictures

SMALL = (120, 160)
needs_renderer = pytest.mark.skipif(gl.backend() is None, reason="neither OSMesa nor EGL can be loaded")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- meshes and specimens: no renderer ---


@pytest.mark.parametrize(
    ("mesh", "volume"),
    [
        (meshes.box((1, 2, 3)), 48.0),
        (meshes.sphere(1.0, 64), 4 / 3 * np.pi),
        (meshes.lathe([(0, 0), (1, 0), (1, 2), (0, 2)], 64), 2 * np.pi),
        (meshes.tube([(0, 0, 0), (0, 0, 1), (0, 0, 2)], [1, 1, 1], 64), 2 * np.pi),
        (meshes.torus(2.0, 1.0, 64), 2 * np.pi * 2.0 * np.pi * 0.25),
        (meshes.extrude([(1, -1), (1, 1), (-1, 1), (-1, -1)], 0.5), 2.0),
    ],
    ids=["box", "sphere", "cylinder", "tube", "torus", "prism"],
)
def test_meshes_are_closed_and_face_outwards(mesh: meshes.Mesh, volume: float) -> None:
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    assert np.einsum("ij,ij->", a, cross) / 6 == pytest.approx(volume, rel=0.06)
    facing = np.einsum("ij,ij->i", cross, mesh.normals[mesh.faces].mean(1))
    assert (facing[np.linalg.norm(cross, axis=1) > 1e-6] > 0).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_specimens_have_household_sizes_and_fit_their_colliders(name: str) -> None:
    for seed in range(8):
        thing = MAKERS[name](np.random.default_rng(seed))
        extent = np.ptp(thing.vertices(), axis=0)
        assert thing.class_name == name
        assert 0.05 < extent.max() < 0.31  # metres
        assert extent.min() > 0.01
        assert thing.colliders
        assert 0.05 < thing.mass < 1.0


def test_distractors_belong_to_no_class() -> None:
    rng = np.random.default_rng(0)
    assert {distractor(rng).class_name for _ in range(40)} == {None}


@pytest.mark.parametrize("text", ["", "480", "480,640", "0x640", "480x99999", "480x640x3", "axb", "-480x640"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--size"):
        parse_size(text)


def test_size_is_height_then_width() -> None:
    assert parse_size("480x640") == (480, 640)


def test_no_renderer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "_loads", lambda names: False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(EdgeMrcnnError, match="apt-get install -y libosmesa6"):
        gl.load_mujoco()


def test_colours_are_stored_as_rgb(tmp_path: Path) -> None:
    write_image(tmp_path / "red.png", np.full((8, 8, 3), (255, 0, 0), np.uint8))
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]  # OpenCV reads BGR


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="not empty"), new_folder(tmp_path):
        pytest.fail("the folder was opened")
    assert tree(tmp_path) == {"precious.txt": b"mine"}


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise EdgeMrcnnError("no light")

    monkeypatch.setattr(writer, "render_picture", fail)
    with pytest.raises(EdgeMrcnnError, match="no light"):
        write_pictures(tmp_path / "set", seed=0, count=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed", "1", "--images", "1"],  # the folder is not empty
        ["--seed", "1", "--images", "1", "--size", "big"],
        ["--seed", "1"],  # neither pictures nor a clip
        ["--seed", "1", "--images", "2", "--clip", "3"],  # both
        ["--images", "0"],
    ],
)
def test_wrong_usage_exits_with_2_and_no_traceback(
    arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    try:
        code = main([*arguments, "--out", str(tmp_path)])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert "Traceback" not in capfd.readouterr().err
    assert tree(tmp_path) == {"precious.txt": b"mine"}


# --- pictures ---


@needs_renderer
@pytest.mark.render
def test_the_same_seed_gives_the_same_data_set_whatever_the_workers(tmp_path: Path) -> None:
    options = ["--seed", "11", "--images", "4", "--size", "120x160"]
    assert main([*options, "--out", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "edge_mrcnn.training.tabletop", *options, "--workers", "2"]
    subprocess.run([*command, "--out", str(tmp_path / "two")], check=True, capture_output=True)
    write_pictures(tmp_path / "fewer", seed=11, count=2, size=SMALL)
    one, two, fewer = (tree(tmp_path / name) for name in ("one", "two", "fewer"))
    assert len(one) == 5
    assert one == two
    assert all(one[name] == fewer[name] for name in fewer if name.endswith(".jpg"))


@needs_renderer
@pytest.mark.render
def test_seeds_and_indices_differ() -> None:
    pictures = [render_picture(*key, size=SMALL).image for key in ((0, 0), (0, 1), (1, 0))]
    differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(pictures, pictures[1:] + pictures[:1], strict=True)]
    assert min(differences) > 5


@needs_renderer
@pytest.mark.render
def test_the_data_set_is_valid_coco(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    write_pictures(tmp_path / "set", seed=3, count=5, size=(240, 320))
    coco = COCO(str(tmp_path / "set" / "annotations.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(CLASS_NAMES)
    assert coco.getCatIds() == list(range(1, len(CLASS_NAMES) + 1))
    assert coco.dataset["info"]["seed"] == 3
    assert len(coco.anns) >= 10
    for image in coco.loadImgs(coco.getImgIds()):
        pixels = cv2.imread(str(tmp_path / "set" / "images" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        total = np.zeros((240, 320), int)
        for entry in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(entry)
            y, x = np.nonzero(mask)
            assert entry["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert entry["area"] == mask.sum() >= MIN_PIXELS
            assert entry["iscrowd"] == 0
            total += mask
        assert total.max() <= 1  # each pixel shows one object


@needs_renderer
@pytest.mark.render
def test_masks_are_the_visible_part_of_objects_that_hide_each_other() -> None:
    hidden = []
    for index in range(3):
        scene, camera = random_scene(np.random.default_rng([21, index]), SMALL)
        with Eye(scene, SMALL) as eye:
            eye.aim(camera)
            together = eye.bodies()
            start = scene.data.qpos.copy()
            for k, body in enumerate(scene.bodies):
                scene.data.qpos[:] = start
                others = [7 * j + 2 for j in range(len(scene.bodies)) if j != k]
                scene.data.qpos[others] = -50.0
                eye.aim(camera)
                alone = eye.bodies() == body
                assert not ((together == body) & ~alone).any()
                hidden.append(1 - (together == body).sum() / max(alone.sum(), 1))
    assert np.mean(np.array(hidden) > 0.1) > 0.1  # at least a tenth of the objects are noticeably occluded


@needs_renderer
@pytest.mark.render
def test_all_classes_occur_at_a_learnable_size() -> None:
    pictures = [render_picture(31, index, (240, 320)) for index in range(16)]
    instances = [instance for picture in pictures for instance in picture.instances]
    assert {instance.class_id for instance in instances} == set(range(1, len(CLASS_NAMES) + 1))
    assert 4 <= len(instances) / len(pictures) <= 12
    sides = [max(np.ptp(axis) + 1 for axis in np.nonzero(instance.mask)) for instance in instances]
    assert 50 <= 2 * np.median(sides) <= 220  # pixels in a 480x640 picture


@needs_renderer
@pytest.mark.render
def test_depth_comes_on_request_and_fits_the_table() -> None:
    picture = render_picture(3, 0, SMALL, with_depth=True)
    assert picture.depth_m is not None
    assert render_picture(3, 0, SMALL).depth_m is None
    points = back_project(picture.depth_m, picture.intrinsics, picture.camera_from_world)
    heights = points[..., 2]
    assert (np.abs(heights) < 0.002).mean() > 0.2  # the table's top is z = 0
    assert heights[picture.instances[0].mask].max() > 0.003


# --- clips ---


def back_project(depth: np.ndarray, intrinsics: np.ndarray, camera_from_world: np.ndarray) -> np.ndarray:
    """World points (H, W, 3) of a depth map; pixel centres are at half-integers."""
    y, x = np.mgrid[: depth.shape[0], : depth.shape[1]] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T
    world_from_camera = np.linalg.inv(camera_from_world)
    return (rays * depth[..., None]) @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]


def project(points: np.ndarray, intrinsics: np.ndarray, camera_from_world: np.ndarray) -> np.ndarray:
    seen = (points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]) @ intrinsics.T
    return seen[:, :2] / seen[:, 2:]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip") / "clip"
    write_clip(out, seed=7, duration_s=3.0, fps=5.0, size=(240, 320))
    return out


@needs_renderer
@pytest.mark.render
def test_track_ids_follow_objects(clip_folder: Path) -> None:
    coco = json.loads((clip_folder / "annotations.json").read_text())
    classes: dict[int, set[int]] = {}
    for entry in coco["annotations"]:
        classes.setdefault(entry["track_id"], set()).add(entry["category_id"])
    assert len(classes) >= 6
    assert all(len(ids) == 1 for ids in classes.values())
    for image in coco["images"]:
        tracks = [entry["track_id"] for entry in coco["annotations"] if entry["image_id"] == image["id"]]
        assert len(tracks) == len(set(tracks))


@needs_renderer
@pytest.mark.render
def test_the_clip_plays_and_its_depth_agrees_between_frames(clip_folder: Path) -> None:
    cameras = json.loads((clip_folder / "cameras.json").read_text())["frames"]
    assert len(cameras) == len(list((clip_folder / "images").iterdir())) == 15
    video = cv2.VideoCapture(str(clip_folder / "clip.mp4"))
    assert sum(1 for _ in iter(lambda: video.read()[0], False)) == 15
    first, last = cameras[0], cameras[-1]
    depths = [
        cv2.imread(str(clip_folder / "depth" / entry["file_name"].replace(".jpg", ".png")), cv2.IMREAD_UNCHANGED)
        / 1000.0
        for entry in (first, last)
    ]
    assert not np.allclose(first["camera_from_world"], last["camera_from_world"], atol=0.02)  # the camera moves
    matrices = [tuple(np.array(entry[key]) for key in ("intrinsics", "camera_from_world")) for entry in (first, last)]
    points = back_project(depths[0], *matrices[0]).reshape(-1, 3)
    table = points[np.abs(points[:, 2]) < 0.002]
    pixels = np.floor(project(table, *matrices[1])).astype(int)
    inside = (pixels >= 0).all(1) & (pixels < (320, 240)).all(1)
    there = back_project(depths[1], *matrices[1])[pixels[inside][:, 1], pixels[inside][:, 0]]
    distance = np.linalg.norm(there - table[inside], axis=1)
    assert inside.sum() > 5000
    assert np.median(distance) < 0.004  # metres; a pixel covers about 2 mm of the table


@needs_renderer
@pytest.mark.render
def test_poses_and_cameras_put_objects_where_their_masks_are() -> None:
    things = [item.thing for item in clip_scene(np.random.default_rng([7, 0, 1]), (240, 320))[0].placed]
    compared = 0
    for frame in render_clip(7, 0.4, 5.0, (240, 320)):
        for instance in frame.picture.instances:
            pose = frame.poses[instance.track_id]
            world = things[instance.track_id - 1].vertices() @ rotation(pose[3:]).T + pose[:3]
            points = project(world, frame.picture.intrinsics, frame.picture.camera_from_world)
            y, x = np.nonzero(instance.mask)
            seen = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            whole = np.concatenate([points.min(0), points.max(0)])
            assert (seen[:2] >= whole[:2] - 1).all()
            assert (seen[2:] <= whole[2:] + 1).all()
            compared += bool(np.abs(seen - whole).max() < 1.5)
    assert compared >= 4  # the outlines of unhidden objects agree


@needs_renderer
@pytest.mark.render
def test_things_fall_stay_on_the_table_and_come_to_rest() -> None:
    frames = list(render_clip(7, 8.0, 5.0, (64, 96)))
    poses = np.array([list(frame.poses.values()) for frame in frames])
    assert poses[..., 2].max() < 0.6  # metres: nothing is thrown up
    assert (poses[0, :, 2] < -1).sum() == 4  # four things wait out of sight
    assert (poses[-1, :, 2] > -0.05).all()
    assert np.linalg.norm(poses[-1, :, :3] - poses[-2, :, :3], axis=1).max() < 0.003
    assert np.linalg.norm(poses[-1, :, :2] - poses[0, :, :2], axis=1).max() > 0.05
