"""`run_pipeline`: everything together on the tiny detector and real files."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn import Detector, Frame, StreamError
from edge_mrcnn.runtime import pipeline
from edge_mrcnn.runtime.pipeline import RunOptions, run_pipeline
from edge_mrcnn.runtime.sinks.json_lines import JsonLinesSink
from edge_mrcnn.runtime.sources.files import VideoSource
from edge_mrcnn.runtime.sources.pattern import PatternSource
from tests.runtime.sources.test_pictures import save

PATTERN = "test://64x48?frames=7&fps=20"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("batch", [1, 3])
def test_pattern_to_everything(model: Path, tmp_path: Path, batch: int) -> None:
    sinks = [tmp_path / "out.mp4", tmp_path / "out.jsonl", f"{tmp_path}/pictures/"]
    summary = run_pipeline(model, [PATTERN], sinks, RunOptions(threshold=0.2, batch=batch, rle=True))
    assert (summary.frames, summary.skipped, summary.interrupted) == (7, 0, False)
    assert summary.detections == {"mug": 7, "bottle": 7}
    assert (summary.model, summary.backend) == ("tiny_detector", "onnxruntime-cpu")
    assert set(summary.latency_ms) == {"pre", "infer", "post", "detect", "sinks"}
    assert summary.latency_ms["sinks"].count == 7
    assert summary.fps == pytest.approx(7 / summary.seconds)
    assert summary.outputs == tuple(str(sink).rstrip("/") for sink in sinks)
    assert [line["index"] for line in lines(tmp_path / "out.jsonl")] == list(range(7))
    assert "mask" in lines(tmp_path / "out.jsonl")[0]["detections"][0]
    with VideoSource(tmp_path / "out.mp4") as video:
        assert video.fps == 20  # the source's
        assert len(list(video)) == 7
    assert len(list((tmp_path / "pictures").iterdir())) == 7
    assert json.loads(summary.to_json())["frames"] == 7
    assert any("7 mug, 7 bottle" in line for line in summary.lines())


def test_sources_one_after_the_other(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "a.png")
    (folder / "b.png").write_bytes(b"")
    save(folder / "c.png")
    with caplog.at_level(logging.WARNING):
        summary = run_pipeline(model, [folder, PATTERN], [tmp_path / "out.jsonl"])
    assert (summary.frames, summary.skipped) == (9, 1)
    sources = [Path(line["source"]).name for line in lines(tmp_path / "out.jsonl")]
    assert sources[:3] == ["a.png", "c.png", "64x48?seed=0"]


def test_max_frames(model: Path, tmp_path: Path) -> None:
    summary = run_pipeline(model, ["test://64x48"], [tmp_path / "out.jsonl"], RunOptions(max_frames=5, batch=2))
    assert summary.frames == 5
    assert len(lines(tmp_path / "out.jsonl")) == 5


def test_without_masks(model: Path, tmp_path: Path) -> None:
    options = RunOptions(masks=False, rle=True, threshold=0.2)
    run_pipeline(model, [PATTERN], [tmp_path / "out.jsonl"], options)
    assert all("mask" not in entry for line in lines(tmp_path / "out.jsonl") for entry in line["detections"])


def test_an_open_detector_and_sink_stay_open(model: Path, tmp_path: Path) -> None:
    with Detector(model, threshold=0.99) as detector, JsonLinesSink(tmp_path / "out.jsonl") as sink:
        for _ in range(2):
            assert run_pipeline(detector, [PatternSource((64, 48), frames=2)], [sink]).detections == {}
    assert len(lines(tmp_path / "out.jsonl")) == 4


def test_no_sinks_draws_nothing(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.setattr(pipeline, "annotate", lambda *arguments: calls.append(1) or np.zeros((48, 64, 3), np.uint8))
    run_pipeline(model, [PATTERN])
    run_pipeline(model, [PATTERN], [tmp_path / "out.jsonl"])
    assert calls == []
    run_pipeline(model, [PATTERN], [tmp_path / "a.avi", tmp_path / "b.avi"])
    assert len(calls) == 7  # once for both


class FailingSource(PatternSource):
    """Breaks off after three frames."""

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            if frame.index == 3:
                raise StreamError("the cable is out")
            yield frame


class FailingCamera(FailingSource):
    """The same as a camera."""

    live = True


@pytest.mark.parametrize("batch", [1, 2])
def test_a_source_that_breaks_leaves_no_files(model: Path, tmp_path: Path, batch: int) -> None:
    sinks = [tmp_path / "out.jsonl", tmp_path / "out.mp4"]
    with pytest.raises(StreamError, match="the cable is out"):
        run_pipeline(model, [FailingSource((64, 48))], sinks, RunOptions(batch=batch))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [1, 2])
def test_a_camera_that_breaks_leaves_what_it_saw(model: Path, tmp_path: Path, batch: int) -> None:
    sinks = [tmp_path / "out.jsonl", tmp_path / "out.mp4"]
    with pytest.raises(StreamError, match="the cable is out"):
        run_pipeline(model, [FailingCamera((64, 48))], sinks, RunOptions(batch=batch))
    assert len(lines(tmp_path / "out.jsonl")) == 3
    with VideoSource(tmp_path / "out.mp4") as video:
        assert len(list(video)) == 3


class Onlooker:
    """A sink whose person has had enough after two frames."""

    uri, wants_picture, wants_stop, seen = "window://", False, False, 0

    def write(self, frame, detections, annotated=None) -> None:
        self.seen += 1
        self.wants_stop = self.seen == 2

    def close(self) -> None: ...


def test_a_person_ends_the_run(model: Path) -> None:
    summary = run_pipeline(model, ["test://64x48"], [Onlooker()])
    assert (summary.frames, summary.interrupted) == (2, False)


INTERRUPTED = """
import json, sys
from edge_mrcnn.runtime.pipeline import run_pipeline
print("ready", flush=True)
print(run_pipeline(sys.argv[1], ["test://64x48"], sys.argv[2:]).to_json())
"""


def test_ctrl_c_finishes_the_files(model: Path, tmp_path: Path) -> None:
    sinks = [str(tmp_path / name) for name in ("out.mp4", "out.jsonl")]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(model), *sinks],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not any(path.stat().st_size > 2000 for path in tmp_path.glob(".out*.jsonl")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    summary = json.loads(output.partition("ready\n")[2])
    assert summary["interrupted"] is True
    assert summary["frames"] > 0
    assert abs(len(lines(tmp_path / "out.jsonl")) - summary["frames"]) <= 1
    with VideoSource(tmp_path / "out.mp4") as video:
        assert abs(len(list(video)) - summary["frames"]) <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.mp4"]


def test_no_sources(model: Path) -> None:
    with pytest.raises(ValueError, match="at least one source"):
        run_pipeline(model, [])


@pytest.mark.parametrize(
    "wrong", [{"threshold": 2}, {"mask_threshold": -1}, {"max_frames": 0}, {"batch": 0}, {"threads": -1}, {"fps": 0}]
)
def test_wrong_options(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"RunOptions.{next(iter(wrong))} must be"):
        RunOptions(**wrong)


def test_progress_bar_on_a_terminal_only(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    run_pipeline(model, [PATTERN])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_pipeline(model, [PATTERN])
    assert "7/7" in capsys.readouterr().err
