"""The tracker: the same number for the same thing, whatever comes between."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edge_mrcnn import Detections, Tracker, TrackerOptions

HW = (480, 640)
SECOND = 1_000_000_000


def seen(
    centers: Sequence[tuple[float, float]],
    side: float = 40,
    *,
    score: float | Sequence[float] = 0.9,
    class_id: int | Sequence[int] = 1,
) -> Detections:
    """Square boxes around points."""
    middle = np.array(centers, np.float32).reshape(-1, 2)
    boxes = np.concatenate([middle - side / 2, middle + side / 2], axis=1)
    count = len(middle)
    return Detections(boxes, np.broadcast_to(score, count), np.broadcast_to(class_id, count), HW)


def numbers(found: Detections) -> list[int]:
    assert found.track_id is not None
    return found.track_id.tolist()


def run(frames: Sequence[Detections], fps: float = 15, options: TrackerOptions | None = None) -> list[list[int]]:
    tracker = Tracker(options)
    return [numbers(tracker.update(found, round(index / fps * SECOND))) for index, found in enumerate(frames)]


def test_a_number_comes_with_the_second_frame_and_stays() -> None:
    assert run([seen([(100 + 5 * step, 100)]) for step in range(10)]) == [[0]] + [[1]] * 9
