"""What the tracker is made of: the assignment, the motion of boxes, and duplicates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edge_mrcnn import Detections
from edge_mrcnn.runtime import tracker_motion as motion
from edge_mrcnn.runtime.tracker_assignment import Array, assign, pairwise_iou
from edge_mrcnn.runtime.tracker_duplicates import find_duplicates


def least_cost(cost: Array, limit: float) -> float:
    """By trying every pairing."""
    rows, columns = cost.shape
    best = np.inf
    for chosen in itertools.product(range(-1, columns), repeat=rows):
        taken = [column for column in chosen if column >= 0]
        if len(set(taken)) == len(taken):
            parts = [limit if column < 0 else cost[row, column] for row, column in enumerate(chosen)]
            best = min(best, sum(parts))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_assignment_is_the_cheapest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.uniform(0, 1, rng.integers(0, 5, 2))
    cost[rng.uniform(size=cost.shape) < 0.3] = np.inf
    if seed % 2:  # ties
        cost = np.round(cost * 3) / 3
    limit = float(rng.uniform(0.2, 1))
    rows, columns = assign(cost, limit)
    assert len(set(columns.tolist())) == len(columns)
    assert (np.diff(rows) > 0).all()
    assert (cost[rows, columns] <= limit).all()
    assert cost[rows, columns].sum() + limit * (len(cost) - len(rows)) == pytest.approx(least_cost(cost, limit))


@pytest.mark.parametrize(("rows", "columns"), [(40, 60), (80, 50), (200, 200)])
def test_large_assignments_are_those_of_scipy(rows: int, columns: int) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy, the reference, is not installed")
    cost = np.random.default_rng(rows).uniform(0, 1, (rows, columns))
    ours = cost[assign(cost, 1.0)].sum()
    assert ours == pytest.approx(cost[optimize.linear_sum_assignment(cost)].sum())


def test_iou() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 20, 20]], np.float64)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [20, 20, 20, 20]], np.float64)
    np.testing.assert_allclose(pairwise_iou(boxes, others), [[1, 1 / 3, 0, 0], [0, 0, 0, 0]])


def test_motion_is_that_of_a_textbook_kalman_filter() -> None:
    """One coordinate of one box, against matrices."""
    track = np.zeros(1, motion.MOTION)
    motion.start(track, np.array([[100.0, 50, 40, 40]]))
    state, spread = np.array([100.0, 0.0]), np.diag(track["variance"][0, [0, 2], 0])
    for seconds, measured in ((0.1, 104.0), (0.05, 107.0), (0.4, 120.0)):
        noise = (2.0 * motion.sizes(track["place"])[0, 0]) ** 2
        step = np.array([[1, seconds], [0, 1]])
        drift = noise * np.array([[seconds**3 / 3, seconds**2 / 2], [seconds**2 / 2, seconds]])
        state, spread = step @ state, step @ spread @ step.T + drift
        motion.predict(track, seconds)
        np.testing.assert_allclose(track["place"][0, 0], state[0])
        gain = spread[:, 0] / (spread[0, 0] + (0.05 * 40) ** 2)
        state = state + gain * (measured - state[0])
        spread = spread - np.outer(gain, spread[0])
        motion.correct(track, np.array([[measured, 50, 40, 40]]))
        np.testing.assert_allclose([track["place"][0, 0], track["speed"][0, 0]], state)
        np.testing.assert_allclose(track["variance"][0, :, 0], [spread[0, 0], spread[0, 1], spread[1, 1]])


def views(boxes: list[list[float]], masks: Array | None) -> Detections:
    count = len(boxes)
    found = np.array(boxes, np.float32), np.full(count, 0.9, np.float32), np.arange(1, count + 1, dtype=np.int32)
    return Detections(*found, (480, 640), None if masks is None else masks.astype(np.float32))


@pytest.mark.parametrize("size", [14, 28])
@pytest.mark.parametrize(("shift", "duplicate"), [(0, True), (45, True), (55, False)])
def test_a_mask_half_inside_a_better_one_is_a_duplicate(size: int, shift: float, duplicate: bool) -> None:
    found = views([[0, 0, 100, 100], [shift, 0, 100 + shift, 100]], np.ones((2, size, size)))
    assert find_duplicates(found, np.array([1]), np.array([0])).tolist() == ([1] if duplicate else [])


def test_what_repeats_a_duplicate_only_is_none() -> None:
    """Each is shifted by 40 of 100 pixels; the third overlaps the second enough, but not the first."""
    found = views([[shift, 0, 100 + shift, 100] for shift in (0, 40, 80)], np.ones((3, 28, 28)))
    assert find_duplicates(found, np.array([0, 1, 2]), np.array([], int)).tolist() == [1]


def test_without_masks_the_boxes_decide() -> None:
    found = views([[0, 0, 100, 100], [20, 0, 120, 100], [50, 0, 150, 100]], None)
    assert find_duplicates(found, np.array([1, 2]), np.array([0])).tolist() == [1]


def test_an_empty_mask_is_no_duplicate() -> None:
    masks = np.ones((2, 28, 28))
    masks[1] = 0
    assert not len(find_duplicates(views([[0, 0, 9, 9]] * 2, masks), np.array([1]), np.array([0])))
