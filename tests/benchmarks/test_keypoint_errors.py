"""Distances of found keypoints: which thing they count with, and which points count."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.keypoint_errors import add_errors, lines, match
from edge_mrcnn import Detections

CATEGORIES = {1: 7, 2: 9}  # category by label
NAMES = ("top", "base")


def found(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(
        xyxy=np.array(boxes, np.float32),
        score=np.array(scores, np.float32),
        class_id=np.array(labels, np.int32),
        mask=None,
        image_hw=(100, 100),
    )


def thing(category: int, x: float) -> dict:
    return {"category_id": category, "bbox": [x, 0, 20, 20]}


def test_a_thing_counts_once_with_its_surest_detection_of_its_class() -> None:
    truth = [thing(7, 0), thing(9, 40)]
    detections = found(
        ([0, 0, 20, 18], 0.6, 1),
        ([0, 0, 20, 20], 0.9, 1),  # surer: it has the thing
        ([40, 0, 60, 20], 0.8, 1),  # of the other class
        ([45, 0, 65, 20], 0.5, 2),  # IoU 0.6
        ([70, 0, 90, 20], 0.7, 2),  # on nothing
    )
    assert match(detections, truth, CATEGORIES) == [(1, 0), (3, 1)]


def test_nothing_to_match() -> None:
    assert match(found(([0, 0, 20, 20], 0.9, 1)), [], CATEGORIES) == []


def test_unlabelled_points_do_not_count() -> None:
    errors: dict = {}
    points = np.array([[3, 4, 0.9], [50, 50, 0.9]], np.float32)
    add_errors(errors, points, [0, 0, 2, 0, 0, 0], NAMES)
    add_errors(errors, points, [3, 4, 2, 50, 53, 1], NAMES)
    assert errors == {("top", "seen"): pytest.approx([5, 0]), ("base", "hidden"): pytest.approx([3])}
    table = [line.split() for line in lines(errors, NAMES)[1:]]
    assert table == [
        ["top", "seen", "2", "2.5", "4.5"],
        ["base", "hidden", "1", "3.0", "3.0"],
        ["all", "seen", "2", "2.5", "4.5"],
        ["all", "hidden", "1", "3.0", "3.0"],
    ]
