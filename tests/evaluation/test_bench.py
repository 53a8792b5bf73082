"""The bench's arithmetic on subjects whose times are written by hand, and one real detector."""

import json
import subprocess
import sys

import numpy as np
import pytest

from edge_mrcnn.evaluation import bench as bench_module
from edge_mrcnn.evaluation.bench import BenchOptions, DetectorSubject, StageTimes, bench, compare, sample_pictures
from edge_mrcnn.evaluation.machine import describe_machine
from edge_mrcnn.runtime.detector import Detector
from tests.evaluation.scripted import CANVAS, ScriptedRunner


class Stopwatch:
    """A subject that takes the times it is given, in milliseconds of `infer`, and tells when it was called."""

    backend, threads, includes = "hand", 2, "nothing"

    def __init__(self, name: str, times: list[float], log: list[str], pastes_inside: bool = False) -> None:
        self.name, self.times, self.log, self.pastes_inside = name, iter(times), log, pastes_inside

    def run(self, image) -> StageTimes:
        self.log.append(f"{self.name}{image[0, 0, 0]}")
        return StageTimes(1.0, next(self.times), 2.0, 5)


def pictures(count: int = 2) -> list[np.ndarray]:
    return [np.full((32, 64, 3), value, np.uint8) for value in range(count)]


def test_rounds_are_interleaved_on_the_same_pictures_and_ratios_are_by_pair() -> None:
    log: list[str] = []
    # The machine slows down by ten halfway: medians of each side alone would mislead, ratios of pairs do not.
    a = Stopwatch("a", [99, 1, 1, 10, 10, 10], log)
    b = Stopwatch("b", [99, 2, 2, 20, 20, 20], log)
    found = compare(a, b, pictures=pictures(), options=BenchOptions(runs=5, warmup=1))
    assert log[:6] == ["a0", "b0", "a1", "b1", "a0", "b0"]
    assert found.ratios[0].network == pytest.approx(0.5)
    assert found.ratios[0].total == pytest.approx(13 / 23, abs=1e-4)
    subject = found.results[0]
    assert subject.runs == 5
    assert subject.stages["infer"].p50_ms == 10  # the 99 of the warm-up is not counted
    assert subject.stages["infer"].mean_ms == pytest.approx(6.4)
    assert subject.stages["total"].p95_ms == pytest.approx(13.0)
    assert subject.fps == pytest.approx(1000 / 9.4, abs=0.01)
    assert subject.detections == 5


def test_a_rival_that_pastes_inside_is_compared_in_total_only() -> None:
    subject, rival = Stopwatch("a", [1.0] * 2, []), Stopwatch("b", [2.0] * 2, [], pastes_inside=True)
    found = compare(subject, rival, pictures=pictures(), options=BenchOptions(runs=2, warmup=0))
    assert found.ratios[0].network is None
    assert found.ratios[0].total == pytest.approx(4 / 5)
    assert "network       -" in "\n".join(found.lines())
    assert json.loads(found.to_json())["ratios"] == [{"rival": "b", "total": 0.8, "network": None}]


def test_unlike_subjects_are_refused() -> None:
    one, two = Stopwatch("a", [], []), Stopwatch("a", [], [])
    with pytest.raises(ValueError, match="different names"):
        compare(one, two, pictures=pictures())
    two.name, two.threads = "b", 1
    with pytest.raises(ValueError, match="same number of threads"):
        compare(one, two, pictures=pictures())
    with pytest.raises(ValueError, match="all of one size"):
        bench(one, [])
    with pytest.raises(ValueError, match="all of one size"):
        bench(one, [np.zeros((32, 32, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)])
    with pytest.raises(ValueError, match="runs must be at least 1"):
        BenchOptions(runs=0)


def test_a_detector_is_timed_by_stage_with_full_size_masks(monkeypatch) -> None:
    pasted = []
    paste = bench_module.Detector.detect_timed

    def spy(self, frames):
        found, times = paste(self, frames)
        pasted.append(found[0])
        return found, times

    monkeypatch.setattr(bench_module.Detector, "detect_timed", spy)
    runner = ScriptedRunner([[(1, 0.9, (8, 8, 48, 48)), (1, 0.1, (0, 0, 9, 9))]], ("__background__", "mug"))
    subject = DetectorSubject(Detector(runner, threshold=None), threads=2)
    found = bench(subject, sample_pictures(CANVAS, 2), BenchOptions(runs=3, warmup=1))
    assert (found.name, found.backend, found.threads, found.detections) == ("scripted_model", "scripted", 2, 2)
    assert len(pasted) == 4
    assert all(stats.p50_ms > 0 for stats in found.stages.values())
    assert any(line.startswith("total") for line in found.lines())


def test_sample_pictures_repeat_and_differ() -> None:
    first, again, other = (
        sample_pictures((64, 96), 2),
        sample_pictures((64, 96), 2),
        sample_pictures((64, 96), 2, seed=1),
    )
    assert first[0].shape == (64, 96, 3)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], other[0])


def test_the_machine_is_named() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert machine.cpu
    assert machine.packages["numpy"] in machine.line()


def test_evaluation_runs_where_torch_is_not_installed() -> None:
    modules = ", ".join(f"edge_mrcnn.evaluation.{name}" for name in ("bench", "coco", "dataset", "machine", "profile"))
    script = f"import sys; sys.modules['torch'] = sys.modules['onnx'] = None; import {modules}; "
    script += "assert not [name for name in sys.modules if name.startswith('edge_mrcnn.training')]"
    subprocess.run([sys.executable, "-c", script], check=True)
