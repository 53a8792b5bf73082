"""Grasps on shapes whose size and place are known, seen by a camera that looks along straight rays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from edge_mrcnn.detections import Detections
from edge_mrcnn.runtime.grasp import Hand, plan_grasp, plan_grasps, rigid, transform_points

HW = (300, 360)
LENS = np.array([[600.0, 0, 179.5], [0, 600.0, 149.5], [0, 0, 1]])
HAND = Hand(opening_m=0.12, finger_length_m=0.09)
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """On the table: half sizes, centre x, y, turned about the vertical; `lift` is the height of its bottom."""

    half: Sequence[float]
    at: Sequence[float] = (0.0, 0.0)
    turn_deg: float = 0.0
    lift: float = 0.0

    def hit(self, origin: Array, rays: Array) -> Array:
        angle = np.radians(self.turn_deg)
        back = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        start = back @ (origin - [*self.at, self.half[2] + self.lift])
        with np.errstate(divide="ignore", invalid="ignore"):
            near, far = (np.array([sign * np.array(self.half)]) for sign in (-1, 1))
            one, two = ((side - start) / (rays @ back.T) for side in (near, far))
        enter, leave = np.nanmax(np.minimum(one, two), axis=1), np.nanmin(np.maximum(one, two), axis=1)
        return np.where((enter <= leave) & (enter > 0), enter, np.inf)


@dataclass(frozen=True)
class Cylinder:
    """Standing on the table."""

    radius: float
    height: float
    at: Sequence[float] = (0.0, 0.0)

    def hit(self, origin: Array, rays: Array) -> Array:
        start = origin - [*self.at, 0]
        a, b = (rays[:, :2] ** 2).sum(1), rays[:, :2] @ start[:2]
        inside = b * b - a * (start[:2] @ start[:2] - self.radius**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            wall = (-b - np.sqrt(np.where(inside >= 0, inside, np.nan))) / a
            top = (self.height - start[2]) / rays[:, 2]
        high = start[2] + wall * rays[:, 2]
        on_top = np.linalg.norm(start[:2] + top[:, None] * rays[:, :2], axis=1) <= self.radius
        return np.where((high >= 0) & (high <= self.height), wall, np.where(on_top, top, np.inf))


Shape = Box | Cylinder


@dataclass(frozen=True)
class View:
    """What a camera sees of shapes on a table at z = 0."""

    depth_m: npt.NDArray[np.float32]
    shape: npt.NDArray[np.int64]
    world_from_camera: Array

    def mask(self, *numbers: int) -> npt.NDArray[np.bool_]:
        return np.isin(self.shape, numbers)


def look(shapes: Sequence[Shape], elevation_deg: float = 90.0, distance: float = 0.6) -> View:
    """From the side of negative y, at the world's origin; the picture's right is the world's x."""
    rows, columns = np.mgrid[: HW[0], : HW[1]]
    rays = np.stack([(columns - LENS[0, 2]) / LENS[0, 0], (rows - LENS[1, 2]) / LENS[1, 1], np.ones(HW)], -1).reshape(
        -1, 3
    )
    angle = np.radians(elevation_deg)
    forward = np.array([0, np.cos(angle), -np.sin(angle)])
    turn = np.stack([[1, 0, 0], np.cross(forward, [1, 0, 0]), forward], axis=1)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, -distance * forward
    world = rays @ turn.T
    with np.errstate(divide="ignore"):
        table = -pose[2, 3] / world[:, 2]
    hits = np.stack([np.where(table > 0, table, np.inf), *(one.hit(pose[:3, 3], world) for one in shapes)])
    return View(hits.min(0).reshape(HW).astype(np.float32), hits.argmin(0).reshape(HW) - 1, pose)


def angle_deg(one: Array, other: Sequence[float]) -> float:
    """Between two axes, whichever way they point."""
    return float(np.degrees(np.arccos(min(1.0, abs(float(one @ np.asarray(other)))))))


@pytest.mark.parametrize("turn_deg", [0, 30, 70, -45])
def test_a_box_from_above(turn_deg: float) -> None:
    view = look([Box((0.06, 0.02, 0.03), (0.02, -0.01), turn_deg)])
    grasp = plan_grasp(view.mask(0), view.depth_m, LENS, HAND)
    assert grasp.refusal is None
    assert np.allclose(transform_points(view.world_from_camera, grasp.point_m), [0.02, -0.01, 0.06], atol=0.003)
    pose = grasp.pose(view.world_from_camera)
    radians = np.radians(turn_deg)
    assert angle_deg(pose[:3, 0], [-np.sin(radians), np.cos(radians), 0]) < 4
    assert angle_deg(view.world_from_camera[:3, :3] @ grasp.main_axis, [np.cos(radians), np.sin(radians), 0]) < 4
    assert angle_deg(grasp.main_axis_px, [np.cos(radians), -np.sin(radians)]) < 4
    assert grasp.width_m == pytest.approx(0.04, abs=0.006)
    assert grasp.opening_m == pytest.approx(grasp.width_m + 0.02)
    # The tips go as far past the upper edge as the hand reaches, and stay above the table.
    assert pose[2, 3] == pytest.approx(0.06 - HAND.reach_m, abs=0.003)


def test_the_tips_stay_above_the_table() -> None:
    view = look([Box((0.06, 0.02, 0.008))])
    grasp = plan_grasp(view.mask(0), view.depth_m, LENS, HAND)
    assert grasp.refusal is None
    assert grasp.pose(view.world_from_camera)[2, 3] == pytest.approx(HAND.clearance_m, abs=0.001)


@pytest.mark.parametrize("elevation_deg", [35, 55])
def test_a_standing_cylinder_from_the_side(elevation_deg: float) -> None:
    view = look([Cylinder(0.03, 0.15)], elevation_deg)
    grasp = plan_grasp(view.mask(0), view.depth_m, LENS, HAND)
    assert grasp.refusal is None
    assert grasp.width_m == pytest.approx(0.06, abs=0.006)
    pose = grasp.pose(view.world_from_camera)
    assert angle_deg(pose[:3, 0], [1, 0, 0]) < 4
    assert abs(pose[0, 3]) < 0.003
    assert grasp.approach @ grasp.point_m == pytest.approx(np.linalg.norm(grasp.point_m))
    # The jaws meet the cylinder where it is widest: the tips are past its axis.
    assert pose[1, 3] > 0


def test_a_mug_is_not_taken_by_its_handle() -> None:
    view = look([Cylinder(0.04, 0.1), Box((0.014, 0.006, 0.03), (0.054, 0), 0, 0.02)], 60)
    mug, down = view.mask(0, 1), view.world_from_camera[:3, :3].T @ [0, 0, -1]
    grasp = plan_grasp(mug, view.depth_m, LENS, HAND, down)
    assert grasp.refusal is None
    column, row = grasp.point_px.astype(int)
    assert view.shape[row, column] == 0
    assert 0.07 < grasp.width_m < 0.1
    rows, columns = np.nonzero(mug)
    assert np.allclose(grasp.centroid_px, [columns.mean(), rows.mean()])


def test_the_point_of_a_bent_outline_is_on_the_object() -> None:
    shapes = [Box((0.05, 0.012, 0.02)), Box((0.012, 0.05, 0.02), (-0.06, 0.04)), Box((0.012, 0.05, 0.02), (0.06, 0.04))]
    view = look(shapes)
    mask = view.mask(0, 1, 2)
    grasp = plan_grasp(mask, view.depth_m, LENS, HAND)
    column, row = np.rint(grasp.centroid_px).astype(int)
    assert not mask[row, column]
    column, row = grasp.point_px.astype(int)
    assert mask[row, column]
    assert transform_points(view.world_from_camera, grasp.point_m)[2] == pytest.approx(0.04, abs=0.002)


def test_bad_pixels_move_nothing() -> None:
    view = look([Box((0.06, 0.02, 0.03))])
    clean = plan_grasp(view.mask(0), view.depth_m, LENS, HAND)
    depth = view.depth_m.copy()
    rng = np.random.default_rng(0)
    depth[rng.uniform(size=HW) < 0.05] = 0
    depth[rng.uniform(size=HW) < 0.01] = np.nan
    column, row = clean.point_px.astype(int)
    depth[row, column] = 0.9
    # A mask that is two pixels too large shows the table around the object.
    wide = np.zeros(HW, bool)
    rows, columns = np.nonzero(view.mask(0))
    wide[rows.min() - 2 : rows.max() + 3, columns.min() - 2 : columns.max() + 3] = True
    spoilt = plan_grasp(wide, depth, LENS, HAND)
    assert spoilt.refusal is None
    assert np.allclose(spoilt.point_m, clean.point_m, atol=0.004)
    assert spoilt.width_m == pytest.approx(clean.width_m, abs=0.008)


def test_another_way_down() -> None:
    view = look([Box((0.06, 0.02, 0.03))], 55)
    down = view.world_from_camera[:3, :3].T @ [0, 0, -2]
    grasp = plan_grasp(view.mask(0), view.depth_m, LENS, HAND, down)
    assert grasp.refusal is None
    pose = grasp.pose(view.world_from_camera)
    assert np.allclose(pose[:3, 2], [0, 0, -1], atol=1e-9)
    assert np.allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-9)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    assert angle_deg(pose[:3, 0], [0, 1, 0]) < 4


def test_refusals() -> None:
    broad = look([Box((0.09, 0.08, 0.03))])
    grasp = plan_grasp(broad.mask(0), broad.depth_m, LENS, HAND)
    assert grasp.refusal == "too wide"
    assert grasp.width_m == pytest.approx(0.16, abs=0.01)
    assert np.allclose(transform_points(broad.world_from_camera, grasp.point_m)[:2], 0, atol=0.003)
    with pytest.raises(ValueError, match="too wide"):
        grasp.pose()
    nothing = plan_grasp(np.zeros(HW, bool), broad.depth_m, LENS, HAND)
    assert nothing.refusal == "too few pixels"
    blind = plan_grasp(broad.mask(0), np.full(HW, np.nan, np.float32), LENS, HAND)
    assert blind.refusal == "no depth"
    assert np.isfinite(blind.centroid_px).all()
    assert np.isnan(blind.point_m).all()


def test_no_room_between_neighbours() -> None:
    walls = [Box((0.1, 0.02, 0.05), (0, y)) for y in (-0.045, 0.045)] + [
        Box((0.02, 0.02, 0.05), (x, 0)) for x in (-0.085, 0.085)
    ]
    free, hemmed = look([Box((0.06, 0.02, 0.03))]), look([Box((0.06, 0.02, 0.03)), *walls])
    assert plan_grasp(free.mask(0), free.depth_m, LENS, HAND).refusal is None
    assert plan_grasp(hemmed.mask(0), hemmed.depth_m, LENS, HAND).refusal == "no room"


def test_a_neighbour_turns_the_jaws() -> None:
    cube = Box((0.025, 0.025, 0.03))
    view = look([cube, Box((0.02, 0.06, 0.05), (0.05, 0))])
    grasp = plan_grasp(view.mask(0), view.depth_m, LENS, HAND)
    assert grasp.refusal is None
    assert angle_deg(grasp.pose(view.world_from_camera)[:3, 0], [0, 1, 0]) < 20


def test_each_detection_gets_a_grasp() -> None:
    view = look([Box((0.03, 0.02, 0.03), (-0.08, 0)), Box((0.02, 0.03, 0.03), (0.08, 0))])
    boxes = []
    for number in (0, 1):
        rows, columns = np.nonzero(view.mask(number))
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    found = Detections(np.array(boxes), np.ones(2), np.ones(2), HW, np.ones((2, 28, 28)))
    grasps = plan_grasps(found, view.depth_m, LENS, HAND)
    x = [transform_points(view.world_from_camera, grasp.point_m)[0] for grasp in grasps]
    assert np.allclose(x, [-0.08, 0.08], atol=0.005)
    with pytest.raises(ValueError, match="no masks"):
        plan_grasps(Detections(np.array(boxes), np.ones(2), np.ones(2), HW), view.depth_m, LENS, HAND)


def test_wrong_arguments() -> None:
    view = look([Box((0.06, 0.02, 0.03))])
    with pytest.raises(ValueError, match="depth's size"):
        plan_grasp(view.mask(0)[:-1], view.depth_m, LENS, HAND)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        plan_grasp(view.mask(0), view.depth_m, LENS[:2], HAND)
    with pytest.raises(ValueError, match="approach"):
        plan_grasp(view.mask(0), view.depth_m, LENS, HAND, (0, 0, 0))
    with pytest.raises(ValueError, match="opening_m"):
        Hand(opening_m=0)
    with pytest.raises(ValueError, match="least_reach_m"):
        Hand(opening_m=0.1, reach_m=0.004)
    with pytest.raises(ValueError, match="rotation"):
        rigid(np.diag([1.0, 1, 2, 1]))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        transform_points(np.eye(3), [0, 0, 0])
