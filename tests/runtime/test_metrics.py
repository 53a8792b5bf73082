"""Percentiles of latencies."""

import numpy as np
import pytest

from edge_mrcnn.runtime.metrics import LatencyRecorder, Percentiles, Timings


def test_percentiles_are_numpys_in_milliseconds() -> None:
    samples = np.random.default_rng(0).uniform(1e6, 9e6, 200)
    recorder = LatencyRecorder()
    for sample in samples:
        recorder.add("infer", sample)
    found = recorder.percentiles("infer")
    assert found.count == 200
    assert (found.p50, found.p95, found.mean) == pytest.approx(
        (*np.percentile(samples / 1e6, (50, 95)), samples.mean() / 1e6)
    )


def test_timings_count_per_frame() -> None:
    recorder = LatencyRecorder()
    recorder.add_timings(Timings(2_000_000, 20_000_000, 4_000_000, frames=2))
    summary = recorder.summary()
    assert {stage: item.p50 for stage, item in summary.items()} == {"pre": 1, "infer": 10, "post": 2, "detect": 13}
    assert recorder.stages == ("pre", "infer", "post", "detect")


def test_nothing_recorded() -> None:
    assert LatencyRecorder().percentiles("infer") == Percentiles(0, 0, 0, 0)
    assert LatencyRecorder().summary() == {}


def test_memory_is_bounded() -> None:
    recorder = LatencyRecorder(window=10)
    for sample in range(1000):
        recorder.add("x", sample * 1e6)
    assert recorder.percentiles("x").count == 10
    assert recorder.percentiles("x").p50 == pytest.approx(994.5)
