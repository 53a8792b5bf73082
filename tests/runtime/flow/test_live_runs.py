"""Runs of cameras, with real sources, threads and the tiny detector."""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn import Detector, StreamError
from edge_mrcnn.runtime import pipeline
from edge_mrcnn.runtime.flow import monitor, outlet
from edge_mrcnn.runtime.pipeline import RunOptions, RunSummary, run_pipeline
from edge_mrcnn.runtime.sinks import SinkOptions, register_sink
from edge_mrcnn.runtime.sources.pattern import PatternSource
from tests.runtime.flow.cameras import Camera, wait_for
from tests.runtime.flow.sinks import SinkOfTest

QUIET = RunOptions(status="off")


class Background:
    """A run in a thread of its own, as a robot's program has it."""

    def __init__(self, *arguments, **named) -> None:
        self.stop = threading.Event()
        self.summary: RunSummary | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=arguments, kwargs=named)
        self._thread.start()

    def _run(self, *arguments, **named) -> None:
        try:
            self.summary = run_pipeline(*arguments, **named, stop=self.stop)
        except Exception as error:
            self.error = error

    def end(self) -> RunSummary:
        """Stop it, if it has not ended, and give its summary."""
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the run does not end"
        if self.error is not None:
            raise self.error
        assert self.summary is not None
        return self.summary


@pytest.fixture
def camera() -> Iterator[Callable[..., Camera]]:
    """Makes cameras, and closes them afterwards."""
    made: list[Camera] = []

    def make(*arguments, **named) -> Camera:
        made.append(Camera(*arguments, **named))
        return made[-1]

    yield make
    for one in made:
        one.stalled.clear()
        one.source.close()


def balanced(summary: RunSummary) -> bool:
    """Whether every frame that came is accounted for."""
    return all(one.frames_in == one.frames_out + one.dropped for one in summary.cameras)


@pytest.mark.parametrize("batch", [1, 4])
def test_eight_cameras_at_once(model: Path, camera, batch: int) -> None:
    cameras = [camera(f"cam{number}", fps=25) for number in range(8)]
    record, view = SinkOfTest(), SinkOfTest("view")
    sources = [one.source for one in cameras]
    run = Background(model, sources, [record, view], RunOptions(status="off", batch=batch, threads=1))
    wait_for(lambda: all(len(record.of(f"cam{number}")) >= 10 for number in range(8)))
    cameras[3].stalled.set()
    before = len(record.of("cam5"))
    wait_for(lambda: len(record.of("cam5")) >= before + 20)  # the others go on
    summary = run.end()
    assert summary.interrupted
    assert [one.name for one in summary.cameras] == [f"cam{number}" for number in range(8)]
    assert balanced(summary)
    for number in range(8):
        indices = record.of(f"cam{number}")
        assert indices == sorted(set(indices))
        assert view.of(f"cam{number}")
    assert sum(one.frames_out for one in summary.cameras) == summary.frames == len(record.seen)
    assert json.loads(summary.to_json())["cameras"][3]["frames_out"] == len(record.of("cam3"))


def test_a_record_that_blocks_holds_few_frames_and_drops_are_counted(model: Path, camera) -> None:
    one, record, view = camera("front", fps=200), SinkOfTest(), SinkOfTest("view")
    record.go.clear()
    run = Background(model, [one.source], [record, view], QUIET)
    wait_for(lambda: one.source.health.frames > 60)
    assert record.seen == []
    assert len(view.seen) <= 8  # one in the sink, four waiting, one in the network's hands, and a little
    record.go.set()
    wait_for(lambda: len(record.seen) > 20)
    summary = run.end()
    assert balanced(summary)
    front = summary.cameras[0]
    assert front.dropped > 40
    row = next(line.split() for line in summary.lines() if line.startswith("front"))
    assert row == ["front", str(front.frames_in), str(front.frames_out), str(front.dropped), "0", "0"]
    assert len(record.seen) == summary.frames  # nothing that was accepted is lost
    assert record.of("front")[:4] == sorted(record.of("front")[:4])


def test_a_slow_view_sees_the_newest_of_every_camera_and_delays_nobody(model: Path, camera) -> None:
    cameras = [camera(name, fps=30) for name in ("left", "right")]
    record, view = SinkOfTest(), SinkOfTest("view", pause_s=0.2)
    run = Background(model, [one.source for one in cameras], [view, record], QUIET)
    wait_for(lambda: len(view.seen) >= 6)
    seen = len(record.seen)
    summary = run.end()
    assert seen >= 12  # 60 a second come, the view takes 5
    assert view.of("left")
    assert view.of("right")
    for name in ("left", "right"):
        assert view.of(name) == sorted(set(view.of(name)))
    shown = next(sink for sink in summary.sinks if sink.kind == "view")
    assert shown.dropped > 0
    assert shown.written + shown.dropped == len(record.seen) == summary.frames
    assert balanced(summary)


def test_a_lost_camera_never_ends_a_run(model: Path, camera, caplog: pytest.LogCaptureFixture) -> None:
    one, record = camera("front", fps=100), SinkOfTest()
    run = Background(model, [one.source], [record], QUIET)
    wait_for(lambda: record.seen)
    one.unplugged.set()
    wait_for(lambda: one.source.health.state == "lost")
    one.unplugged.clear()
    wait_for(lambda: one.source.health.reconnects == 1 and one.source.health.state == "live")
    seen = len(record.seen)
    wait_for(lambda: len(record.seen) > seen)
    assert run.end().cameras[0].reconnects == 1


def test_stop_while_every_camera_is_lost(model: Path, camera) -> None:
    one = camera("front")
    run = Background(model, [one.source], [], QUIET)
    one.unplugged.set()
    wait_for(lambda: one.source.health.state == "lost")
    begin = time.monotonic()
    assert run.end().interrupted
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("kind", ["record", "view"])
def test_a_sink_that_fails(model: Path, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A record ends the run unless told otherwise; a view does not. The other sinks get everything that was read."""
    source, sink = PatternSource((8, 8), frames=None if kind == "record" else 20), SinkOfTest(kind, fails_at=3)
    if kind == "record":
        with pytest.raises(StreamError, match="the disk is full"):
            run_pipeline(model, [source], [sink, tmp_path / "out.jsonl"])
    else:
        with caplog.at_level(logging.WARNING):
            summary = run_pipeline(model, [source], [sink, tmp_path / "out.jsonl"])
        assert (summary.frames, summary.sinks[0].error) == (20, "the disk is full")
        assert [text for text in caplog.messages if "the disk is full" in text] == [
            "going on without view://test: the disk is full"
        ]
    lines = [json.loads(line)["index"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == list(range(len(lines)))
    assert len(lines) >= 3
    assert len(sink.seen) == 2


def test_a_run_goes_on_without_a_record_when_told(model: Path, tmp_path: Path) -> None:
    sink = SinkOfTest(fails_at=3)
    options = RunOptions(on_sink_error="go-on")
    summary = run_pipeline(model, [PatternSource((8, 8), frames=20)], [sink, tmp_path / "out.jsonl"], options)
    assert (summary.frames, summary.sinks[0].error, summary.sinks[0].written) == (20, "the disk is full", 2)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 20
    assert 13 <= summary.cameras[0].frames_out <= 19  # those that the sink took with it did not reach every record
    assert "until it failed: the disk is full" in "\n".join(summary.lines())


@pytest.mark.parametrize("on_sink_error", ["stop", "go-on"])
@pytest.mark.parametrize("kind", ["record", "view"])
def test_a_run_ends_with_its_last_sink(model: Path, kind: str, on_sink_error: str) -> None:
    with pytest.raises(StreamError, match="the disk is full"):
        run_pipeline(
            model, [PatternSource((8, 8))], [SinkOfTest(kind, fails_at=2)], RunOptions(on_sink_error=on_sink_error)
        )


def test_a_view_that_hangs_is_left_behind(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    view = SinkOfTest("view")
    view.go.clear()
    begin = time.monotonic()
    summary = run_pipeline(model, [PatternSource((8, 8), frames=5)], [view, tmp_path / "out.jsonl"])
    assert time.monotonic() - begin < 10
    assert summary.frames == 5
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5
    view.go.set()
    wait_for(lambda: not any(thread.name == "edge-mrcnn-sink-view://test" for thread in threading.enumerate()))


def test_a_window_works_in_the_main_thread_and_others_do_not(model: Path) -> None:
    window, record = SinkOfTest("view"), SinkOfTest()
    window.main_thread = True
    run_pipeline(model, [PatternSource((8, 8), frames=5)], [window, record])
    assert window.threads == {"MainThread"}
    assert record.threads == {"edge-mrcnn-sink-record://test"}
    assert window.of("test")[-1] == 4


@pytest.mark.parametrize("kind", ["view", "record"])
def test_a_slow_window_does_not_keep_the_main_thread(model: Path, kind: str) -> None:
    """There is always a next frame for it, and all the same the end of the run is noticed."""
    window = SinkOfTest(kind, pause_s=0.02)
    window.main_thread = True
    run = Background(model, [PatternSource((8, 8))], [window], QUIET)
    wait_for(lambda: len(window.seen) > 5)
    assert run.end().interrupted


def test_reading_network_and_sinks_overlap(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause_s = 0.03
    draw, submit = PatternSource.draw, Detector.submit
    monkeypatch.setattr(PatternSource, "draw", lambda self, index: time.sleep(pause_s) or draw(self, index))
    monkeypatch.setattr(Detector, "submit", lambda self, frames: time.sleep(pause_s) or submit(self, frames))
    sinks = [SinkOfTest(pause_s=pause_s), SinkOfTest(pause_s=pause_s)]
    summary = run_pipeline(model, [PatternSource((8, 8), frames=25)], sinks)
    assert summary.frames == 25
    assert summary.seconds < 0.6 * 4 * 25 * pause_s  # one after the other it takes four pauses a frame


def test_a_picture_is_drawn_once_however_many_ask_at_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def annotate(frame, *_) -> np.ndarray:
        time.sleep(0.01)
        drawn.append(frame.index)
        return frame.image

    monkeypatch.setattr(pipeline, "annotate", annotate)
    sinks = [SinkOfTest() for _ in range(4)]
    for sink in sinks:
        sink.wants_picture = True
    run_pipeline(model, [PatternSource((8, 8), frames=10)], sinks)
    assert drawn == list(range(10))


def test_names_are_made_unique(model: Path) -> None:
    record = SinkOfTest()
    summary = run_pipeline(model, ["test://8x8?frames=2&name=Front", "test://8x8?frames=1&name=front"], [record])
    assert record.seen == [("front", 0), ("front", 1), ("front_2", 0)]
    assert [(one.name, one.frames_in, one.frames_out) for one in summary.cameras] == [
        ("front", 2, 2),
        ("front_2", 1, 1),
    ]


@pytest.mark.parametrize(("track", "numbered"), [(None, True), (False, False), (True, True)])
def test_tracks_of_videos_and_cameras(model: Path, camera, track: bool | None, numbered: bool) -> None:
    record = SinkOfTest()
    one = camera("front", fps=100)
    run_pipeline(model, [one.source], [record], RunOptions(max_frames=6, track=track, threshold=0.2, status="off"))
    run_pipeline(model, ["test://8x8?frames=6"], [record], RunOptions(track=track, threshold=0.2))
    for found in record.detections:
        assert (found.track_id is not None) is numbered
    if numbered:
        assert [found.track_id[0] for found in record.detections[4:6]] == [1, 1]


def test_pictures_are_not_tracked(model: Path, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    record = SinkOfTest()
    run_pipeline(model, [tmp_path / "a.png"], [record])
    assert record.detections[0].track_id is None


def test_status_while_it_runs(model: Path, camera) -> None:
    """What pages and metrics get: told by the run that they are part of."""
    told = []
    view = SinkOfTest("view")

    def opener(uri: str, options) -> SinkOfTest:
        told.append(options.status)
        view.opened_with = options.status().cameras
        return view

    register_sink("told", opener)
    one, two = camera("front", fps=50), camera("rear", fps=50, hw=(16, 24))
    run = Background(model, [one.source, two.source], ["told://"], RunOptions(status="off", threshold=0.2))
    wait_for(lambda: len(view.of("rear")) > 10 and len(view.of("front")) > 10)
    two.unplugged.set()
    wait_for(lambda: two.source.health.state == "lost")
    wait_for(lambda: not told[0]().healthy)
    status = told[0]()
    run.end()
    front, rear = status.cameras
    assert [found.name for found in view.opened_with] == ["front", "rear"]
    assert (front.name, front.state, rear.state, rear.error) == ("front", "live", "lost", "the cable is out")
    assert (front.image_hw, rear.image_hw) == ((8, 12), (16, 24))
    assert front.counts == {"mug": 1, "bottle": 1}
    assert front.frames_in >= front.frames_out > 10
    assert front.latency_ms.p95 >= front.latency_ms.p50 > 0
    assert status.fps > front.fps > 0
    assert set(status.stages_ms) == {"wait", "pre", "infer", "post", "track", "sinks", "total"}
    assert (status.model, status.sinks[0].kind, status.sinks[0].uri) == ("tiny_detector", "view", "view://test")
    assert view.closed
    assert json.loads(status.to_json())["cameras"][1]["state"] == "lost"


def test_threads_and_descriptors_are_gone_after_a_run(model: Path, camera, tmp_path: Path) -> None:
    def counts() -> tuple[list[str], int]:
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("edge-mrcnn")]
        return threads, len(os.listdir("/proc/self/fd"))

    def once() -> None:
        sources = [camera(f"cam{number}", fps=100).source for number in range(3)]
        sinks = [tmp_path / "out.jsonl", SinkOfTest(), SinkOfTest("view")]
        run_pipeline(model, [*sources, "test://8x8?frames=5"], sinks, RunOptions(max_frames=20, status="off"))
        with pytest.raises(StreamError):
            run_pipeline(model, ["test://8x8?frames=5"], [SinkOfTest(fails_at=2)])

    once()  # libraries open what they keep
    before = counts()
    for _ in range(3):
        once()
    assert counts() == before
    assert before[0] == []


def test_files_that_wait_for_their_turn_are_well(model: Path) -> None:
    told = []

    class Teller(SinkOfTest):
        def write(self, *arguments) -> None:
            told.append(self.status())

    def opener(uri: str, options: SinkOptions) -> Teller:
        sink = Teller()
        sink.status = options.status
        return sink

    register_sink("teller", opener)
    run_pipeline(model, ["test://8x8?frames=2&name=a", "test://8x8?frames=2&name=b"], ["teller://"])
    assert [camera.name for camera in told[0].cameras] == ["a", "b"]
    assert told[0].healthy


def test_a_sink_that_hangs_is_told(
    model: Path, camera, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outlet, "_HANGS_S", 0.2)
    monkeypatch.setattr(monitor, "_STILL_S", 0.5)
    record, told = SinkOfTest(), []
    record.go.clear()

    def opener(uri: str, options: SinkOptions) -> SinkOfTest:
        told.append(options.status)
        return SinkOfTest("view")

    register_sink("told", opener)
    run = Background(model, [camera("front").source], [record, "told://"], QUIET)
    wait_for(lambda: record.entered.is_set() and told[0]().sinks[0].error)
    assert re.fullmatch(r"has been writing one frame for \d+ s", told[0]().sinks[0].error)
    assert not told[0]().healthy
    wait_for(lambda: any(text.startswith("record://test has been writing") for text in caplog.messages))
    record.go.set()
    wait_for(lambda: told[0]().healthy)
    run.end()


def test_a_network_that_stands_still_is_not_well(model: Path, camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_STILL_S", 0.3)
    submit, go, told = Detector.submit, threading.Event(), []
    monkeypatch.setattr(Detector, "submit", lambda self, frames: go.wait(30) and submit(self, frames))

    def opener(uri: str, options: SinkOptions) -> SinkOfTest:
        told.append(options.status)
        return SinkOfTest("view")

    register_sink("told", opener)
    run = Background(model, [camera("front").source], ["told://"], QUIET)
    wait_for(lambda: told and told[0]().cameras[0].state == "live" and not told[0]().healthy)
    go.set()
    wait_for(lambda: told[0]().healthy)
    run.end()


def test_what_breaks_through_the_main_thread_leaves_no_threads(model: Path, tmp_path: Path) -> None:
    """As an exit called in somebody's window: nothing more is written, but everything is closed."""

    class Exit(SinkOfTest):
        main_thread = True

        def write(self, *arguments) -> None:
            super().write(*arguments)
            if len(self.seen) == 3:
                raise SystemExit(5)

    record = SinkOfTest()
    with pytest.raises(SystemExit):
        run_pipeline(model, [PatternSource((8, 8))], [Exit("view"), record, tmp_path / "out.jsonl"])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("edge-mrcnn")]
    assert (tmp_path / "out.jsonl").read_text().endswith("}\n")


def test_a_stop_that_was_wished_for_before(model: Path) -> None:
    stop = threading.Event()
    stop.set()
    summary = run_pipeline(model, [PatternSource((8, 8))], stop=stop)
    assert summary.interrupted
    assert summary.frames <= 5


def test_a_limit_holds_for_cameras(model: Path, camera) -> None:
    record = SinkOfTest()
    options = RunOptions(max_frames=7, batch=2, status="off")
    summary = run_pipeline(model, [camera("a").source, camera("b").source], [record], options)
    assert (summary.frames, len(record.seen), summary.interrupted) == (7, 7, False)
    assert balanced(summary)


def test_a_network_that_fails_ends_the_run_with_what_was_found_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, calls = Detector.submit, []

    def broken(self, frames):
        calls.append(frames)
        if len(calls) == 4:
            raise RuntimeError("the GPU fell off the bus")
        return submit(self, frames)

    monkeypatch.setattr(Detector, "submit", broken)
    with pytest.raises(RuntimeError, match="the GPU fell off the bus"):
        run_pipeline(model, [PatternSource((8, 8))], [tmp_path / "out.jsonl"])
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
