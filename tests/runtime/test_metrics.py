"""Percentiles of latencies."""

import json
import sys
import threading

import numpy as np
import pytest

from edge_mrcnn.runtime.metrics import STAGES, LatencyLog, Percentiles, RunStatus, Timings, percentiles


def test_percentiles_are_numpys_in_milliseconds() -> None:
    samples = np.random.default_rng(0).uniform(1e6, 9e6, 200).astype(np.int64)
    log = LatencyLog()
    for sample in samples:
        log.add(0, 1, [0, 0, sample, 0, 0, 0, 2 * sample])
    found = log.percentiles()
    assert tuple(found) == STAGES
    assert found["infer"].count == 200
    assert (found["infer"].p50, found["infer"].p95, found["infer"].mean) == pytest.approx(
        (*np.percentile(samples / 1e6, (50, 95)), samples.mean() / 1e6)
    )
    assert found["total"].p50 == pytest.approx(2 * found["infer"].p50)


def test_timings_add_up() -> None:
    assert Timings(1, 2, 3) + Timings(10, 20, 30, frames=2) == Timings(11, 22, 33, frames=3)
    assert Timings(1, 2, 3).total_ns == 6


def test_nothing_recorded() -> None:
    assert percentiles([]) == Percentiles(0, 0, 0, 0)
    assert LatencyLog().percentiles() == {}


def test_only_what_is_new_counts() -> None:
    log = LatencyLog()
    for done_ns in (10, 20, 30):
        log.add(done_ns, done_ns, [0] * 7)
    assert log.since(20)[:, 0].tolist() == [20, 30]
    assert log.percentiles(20)["wait"].count == 2
    assert log.percentiles(31) == {}


def test_memory_is_the_same_from_the_first_frame_on() -> None:
    log = LatencyLog(window=10)
    size = log._rows.nbytes
    for sample in range(1000):
        log.add(0, sample, [sample * 1_000_000] * 7)
    assert log.percentiles()["wait"].count == 10
    assert log.percentiles()["wait"].p50 == pytest.approx(994.5)
    assert log._rows.nbytes == size


def test_rows_are_whole_while_others_write() -> None:
    log = LatencyLog(window=50)
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            log.add(number, number, [number] * 7)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writers = [threading.Thread(target=write) for _ in range(2)]
    try:
        for writer in writers:
            writer.start()
        for _ in range(300):
            rows = log.since(1)
            assert (rows == rows[:, :1]).all()
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for writer in writers:
            writer.join()


def test_status_is_one_line_of_json() -> None:
    status = RunStatus("net", "cpu", 1.5, 30.0, (), (), {"wait": Percentiles(1, 2.0, 3.0, 4.0)}, True)
    line = status.to_json()
    assert "\n" not in line
    assert json.loads(line)["stages_ms"]["wait"] == {"count": 1, "mean": 2.0, "p50": 3.0, "p95": 4.0}
