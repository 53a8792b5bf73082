"""The parts of a soak: the plan of faults, cameras that misbehave, what is measured and judged."""

import itertools
import mmap
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from edge_mrcnn import StreamError, open_sink, open_source
from edge_mrcnn.evaluation.machine import describe_machine
from edge_mrcnn.evaluation.soak import SoakOptions, SoakReport
from edge_mrcnn.evaluation.soak.awkward import BlockingSink, find_free_port
from edge_mrcnn.evaluation.soak.farm import CameraFarm, has_rtsp_server
from edge_mrcnn.evaluation.soak.faults import (
    CLIENT_FAULTS,
    HTTP_FAULTS,
    RTSP_FAULTS,
    SINK_FAULTS,
    Fault,
    plan_faults,
    quiet_s,
)
from edge_mrcnn.evaluation.soak.soak import ask_health, find_problems
from edge_mrcnn.evaluation.soak.vitals import Growth, Vitals, VitalSigns, measure_growth, read_vitals
from edge_mrcnn.runtime.metrics import CameraStatus, CameraSummary, Percentiles, RunStatus, SinkStatus
from edge_mrcnn.runtime.pipeline import RunSummary

LIMIT_S = 30.0
ALL = {*HTTP_FAULTS, *RTSP_FAULTS, *CLIENT_FAULTS, *SINK_FAULTS}


def plan(seed: int = 1, soak_s: float = 1200.0, rtsp: bool = True) -> list[Fault]:
    return plan_faults(seed, soak_s, 3, timeout_s=2.0, rtsp=rtsp)


@pytest.mark.parametrize("soak_s", [15.0, 120.0, 1200.0])
def test_the_plan_has_every_kind_and_ends_quietly(soak_s: float) -> None:
    faults = plan(soak_s=soak_s)
    assert {fault.kind for fault in faults} == ALL
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert faults[-1].at_s <= soak_s - quiet_s(soak_s)
    assert all(fault.at_s + fault.seconds <= soak_s for fault in faults)
    assert {fault.camera for fault in faults} == {0, 1, 2}


def test_the_plan_follows_from_the_seed() -> None:
    assert plan(seed=1) == plan(seed=1) != plan(seed=2)
    assert {fault.kind for fault in plan(rtsp=False)} == ALL - set(RTSP_FAULTS)
    assert 200 < len(plan()) < 400


def test_stalls_are_long_enough_and_hiccups_are_not() -> None:
    for fault in plan():
        if fault.kind in ("stall", "rtsp-stall"):
            assert fault.seconds > 2.0
        if fault.kind == "hiccup":
            assert fault.seconds < 2.0


@pytest.fixture(scope="module")
def farm() -> Iterator[CameraFarm]:
    with CameraFarm(1, 25.0, "test://64x48?frames=8", 0.6) as farm:
        yield farm


def until(condition, tick=lambda: None) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        tick()
        time.sleep(0.02)


@pytest.mark.parametrize("kind", list(HTTP_FAULTS))
def test_a_camera_misbehaves_and_comes_back(farm: CameraFarm, kind: str) -> None:
    with open_source(farm.uris[0]) as source:
        stop = threading.Event()
        sizes = []
        arrivals = []

        def read() -> None:
            for frame in source.read_on(stop):
                sizes.append(frame.image_hw)
                arrivals.append(time.monotonic())

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        until(lambda: len(sizes) > 3)
        before, size = len(sizes), sizes[-1]
        farm.misbehave(Fault(0.0, kind, 0, 0.4 if kind == "hiccup" else 1.2))
        farm.tend()
        if kind in ("die", "refuse", "stall"):
            until(lambda: source.health.reconnects >= 1)
        elif kind == "resize":
            until(lambda: sizes[-1] != size)
        elif kind in ("cut", "garbage"):
            until(lambda: source.health.damaged or source.health.reconnects)
        elif kind == "hiccup":
            until(lambda: np.diff(arrivals[before - 1 :]).max(initial=0) > 0.3)
            assert source.health.reconnects == 0
        back = len(sizes)
        until(lambda: len(sizes) > back + 3)
        assert source.health.state == "live"
        stop.set()
        thread.join(LIMIT_S)


@pytest.mark.skipif(not has_rtsp_server(), reason="GStreamer's RTSP server is not installed")
@pytest.mark.parametrize("kind", list(RTSP_FAULTS))
def test_the_rtsp_camera_misbehaves_and_comes_back(kind: str) -> None:
    with CameraFarm(1, 25.0, "test://64x48?frames=8", 1.0) as farm, open_source(farm.uris[1]) as source:
        frames = iter(source)
        next(frames)
        farm.misbehave(Fault(0.0, kind, 0, 1.5))
        until(lambda: source.health.reconnects == 1 and next(frames) is not None, farm.tend)


def test_cameras_that_cannot_start(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StreamError, match="cameras could not start"):
        CameraFarm(1, 25.0, "no/such/clip.mp4", 1.0)
    assert "no/such/clip.mp4" in capfd.readouterr().err


def test_growth() -> None:
    times = np.arange(0, 3600, 1.0)
    steady = measure_growth(times, 500 + np.random.default_rng(0).normal(0, 3, len(times)))
    assert abs(steady.percent) < 0.2
    leak = measure_growth(times, 500 + times / 3600 * 18)  # 18 MB an hour
    assert leak.percent == pytest.approx(2.4, abs=0.1)
    assert leak.per_hour == pytest.approx(18)
    one_peak = np.full(len(times), 500.0)
    one_peak[3000] = 5000
    assert measure_growth(times, one_peak).percent == 0


def test_vitals_see_what_this_process_holds() -> None:
    memory, threads, descriptors = read_vitals()
    ballast = mmap.mmap(-1, 50_000_000)  # of the system itself: the heap may have as much to spare
    np.frombuffer(ballast, np.uint8)[:] = 1
    stop = threading.Event()
    extra = [threading.Thread(target=stop.wait) for _ in range(3)]
    for thread in extra:
        thread.start()
    with socket.socket(), socket.socket():
        grown = read_vitals()
    stop.set()
    assert 45 < grown[0] - memory < 80
    assert (grown[1] - threads, grown[2] - descriptors) == (3, 2)
    ballast.close()


def test_vitals_of_a_run_that_was_too_short() -> None:
    with Vitals() as vitals:
        pass
    with pytest.raises(StreamError, match="too early"):
        vitals.measure()


def test_a_sink_that_blocks() -> None:
    sink = BlockingSink("record")
    sink.block(0.3)
    begin = time.monotonic()
    with open_source("test://8x8?frames=2") as source, sink:
        for frame in source:
            sink.write(frame, None)  # type: ignore[arg-type]
    assert time.monotonic() - begin >= 0.3
    assert sum(sink.frames.values()) == 2


STEADY = Growth(100.0, 100.0, 0.0, 0.0)
VITALS = VitalSigns(1000, 120.0, STEADY, STEADY, STEADY, (300.0, 300.0))
CAMERA = CameraSummary("http0", "http://127.0.0.1:1/", 10, 6, 4, 0, 0)
SUMMARY = RunSummary("net", "cpu", frames=6, cameras=(CAMERA,), sinks=(SinkStatus("out.mkv", "record", 6, 0, ""),))
RECORDED = {"mkv": {"http0": 6}}


@pytest.mark.parametrize(
    ("summary", "vitals", "recorded", "expected"),
    [
        (SUMMARY, VITALS, RECORDED, []),
        (replace(SUMMARY, cameras=(replace(CAMERA, dropped=3),)), VITALS, RECORDED, ["http0: 1 frames were lost"]),
        (SUMMARY, VITALS, {"mkv": {"http0": 5}}, ["http0: mkv holds 5 of 6 frames"]),
        (SUMMARY, VITALS, {"mkv": {}}, ["http0: mkv holds 0 of 6 frames"]),
        (
            replace(SUMMARY, cameras=(replace(CAMERA, frames_in=0, frames_out=0, dropped=0),)),
            VITALS,
            {},
            ["http0: no frame came out"],
        ),
        (
            replace(SUMMARY, sinks=(SinkStatus("out.mkv", "record", 6, 0, "disk full"),)),
            VITALS,
            RECORDED,
            ["out.mkv failed: disk full"],
        ),
        (
            SUMMARY,
            replace(VITALS, memory_mb=Growth(100, 101, 1.0, 3.0), threads=Growth(9, 14, 55.6, 6.0)),
            RECORDED,
            ["memory grew by 1.0 %, +3.0 MB an hour", "threads grew from 9 to 14"],
        ),
    ],
)
def test_what_counts_as_a_problem(
    summary: RunSummary, vitals: VitalSigns, recorded: dict[str, dict[str, int]], expected: list[str]
) -> None:
    assert list(find_problems(summary, vitals, recorded, SoakOptions())) == expected


def test_the_report_in_words() -> None:
    report = SoakReport(
        model="net",
        backend="cpu",
        seconds=1200.0,
        cameras=(CAMERA, CAMERA),
        sinks=SUMMARY.sinks,
        lost=0,
        recorded=RECORDED,
        faults={"stall": 2, "die": 3},
        latency_ms=Percentiles(10, 40.0, 41.0, 90.0),
        vitals=VITALS,
        machine=describe_machine(),
        problems=(),
    )
    text = "\n".join(report.lines())
    assert "net, cpu: 20.0 minutes, 2 cameras, 5 faults" in text
    assert "frames: 20 in, 12 out, 8 dropped by policy, 0 lost otherwise" in text
    assert "faults: 3 die, 2 stall" in text
    assert "latency: 41 ms p50, 90 ms p95" in text
    assert text.endswith("no limit was broken")
    assert replace(report, problems=("memory grew",)).lines()[-1] == "PROBLEM: memory grew"


@pytest.mark.parametrize("field", ["minutes", "cameras", "fps", "timeout_s", "threads"])
def test_options_out_of_range(field: str) -> None:
    with pytest.raises(ValueError, match=rf"SoakOptions\.{field} must be at least"):
        SoakOptions(**{field: -1})


def test_the_page_is_asked_how_all_is() -> None:
    port = find_free_port()
    assert "the page did not answer" in ask_health(port)
    live = CameraStatus("http0", "", "live", 9, 9, 0, 0, 0, 9.0, Percentiles(9, 1.0, 1.0, 1.0), {}, (48, 64), "")
    run = RunStatus("net", "cpu", 9.0, 9.0, (live,), (), {}, True)
    with open_sink(f"mjpeg://127.0.0.1:{port}", status=lambda: run):
        until(lambda: ask_health(port) == "")
        run = replace(run, cameras=(replace(live, state="lost", error="no route"),), healthy=False)
        until(lambda: "http0" in ask_health(port))


def test_kinds_do_not_overlap() -> None:
    tables = (HTTP_FAULTS, RTSP_FAULTS, CLIENT_FAULTS, SINK_FAULTS)
    assert all(not a.keys() & b.keys() for a, b in itertools.combinations(tables, 2))
