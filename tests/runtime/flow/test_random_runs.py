"""Random runs: cameras that stall and are unplugged, sinks that are slow, fail or stop, and a stop at any moment."""

import random
import threading
from pathlib import Path

import pytest

from edge_mrcnn import StreamError
from edge_mrcnn.runtime.pipeline import RunOptions, RunSummary, run_pipeline
from edge_mrcnn.runtime.sources.pattern import PatternSource
from tests.runtime.flow.cameras import Camera
from tests.runtime.flow.sinks import SinkOfTest


def make_sink(rng: random.Random, number: int) -> SinkOfTest:
    sink = SinkOfTest(
        rng.choice(["record", "view"]),
        pause_s=rng.choice([0, 0, 0.002, 0.02]),
        fails_at=rng.choice([0, 0, 0, 0, 5]),
        stops_at=rng.choice([0, 0, 0, 20]),
    )
    sink.uri += f"/{number}"
    sink.main_thread = rng.random() < 0.2
    return sink


def make_options(rng: random.Random) -> RunOptions:
    return RunOptions(
        batch=rng.randint(1, 5),
        max_frames=rng.choice([None, 1, 7, 50]),
        threads=1,
        status="off",
        on_sink_error=rng.choice(["stop", "go-on"]),
        track=rng.choice([None, False]),
    )


def check(summary: RunSummary, cameras: list[Camera], sinks: list[SinkOfTest]) -> None:
    failed = any(sink.error for sink in summary.sinks)
    for camera in summary.cameras[: len(cameras)]:
        assert failed or camera.frames_in == camera.frames_out + camera.dropped
    for sink, status in zip(sinks, summary.sinks, strict=True):
        if sink.kind == "record" and not status.error:
            assert len(sink.seen) == summary.frames
        if sink.kind == "view" and not status.error and not sink.stops_at:
            assert status.written + status.dropped == summary.frames
        for camera in cameras:
            indices = sink.of(camera.source.name)
            assert indices == sorted(set(indices))


@pytest.mark.parametrize("seed", range(24))
def test_every_run_ends_and_accounts_for_every_frame(model: Path, seed: int) -> None:
    rng = random.Random(seed)
    cameras = [
        Camera(f"camera{number}", rng.choice([20, 100, 500]), timeout_s=0.3, drop=rng.choice(["auto", "never"]))
        for number in range(rng.randint(0, 4))
    ]
    files = [PatternSource((8, 8), frames=rng.randint(1, 30)) for _ in range(rng.randint(not cameras, 3))]
    sinks = [make_sink(rng, number) for number in range(rng.randint(0, 4))]
    options, stop = make_options(rng), threading.Event()
    faults = [camera.unplugged for camera in cameras if rng.random() < 0.3]
    faults += [camera.stalled for camera in cameras if rng.random() < 0.3]
    timers = [threading.Timer(rng.uniform(0, 0.6), stop.set)]
    timers += [threading.Timer(rng.uniform(0, 0.3), fault.set) for fault in faults]
    for timer in timers:
        timer.start()
    try:
        check(
            run_pipeline(model, [*(one.source for one in cameras), *files], sinks, options, stop=stop), cameras, sinks
        )
    except StreamError as error:
        if str(error) != "the disk is full":  # the only thing that may end a run
            raise
    for timer in timers:
        timer.cancel()
        timer.join()
    for camera in cameras:
        camera.stalled.clear()
        camera.source.close()
