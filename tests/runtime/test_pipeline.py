"""`run_pipeline`: everything together on the tiny detector and real files."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn import Detector, Frame, StreamError
from edge_mrcnn.runtime import pipeline
from edge_mrcnn.runtime.metrics import STAGES
from edge_mrcnn.runtime.pipeline import RunOptions, run_pipeline
from edge_mrcnn.runtime.sinks.json_lines import JsonLinesSink
from edge_mrcnn.runtime.sources.files import VideoSource
from edge_mrcnn.runtime.sources.pattern import PatternSource
from tests.runtime.flow.sinks import SinkOfTest
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
    assert tuple(summary.latency_ms) == STAGES
    assert summary.latency_ms["sinks"].count == 7
    assert summary.latency_ms["total"].p50 >= summary.latency_ms["sinks"].p50 > 0
    assert summary.fps == pytest.approx(7 / summary.seconds)
    assert [Path(uri) for uri in summary.outputs] == [Path(sink) for sink in sinks]
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
    run_pipeline(model, [PATTERN], [tmp_path / "a.mkv", tmp_path / "b.mkv"])
    assert len(calls) == 7  # once for both


class FailingSource(PatternSource):
    """Breaks off after three frames."""

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            if frame.index == 3:
                raise StreamError("the cable is out")
            yield frame


class FailingCamera(FailingSource):
    """The same as a camera of somebody who does not use `LiveSource`."""

    live = True
    drop = "never"


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", [FailingSource, FailingCamera])
def test_a_source_that_breaks_leaves_what_it_gave(
    model: Path, tmp_path: Path, kind: type[FailingSource], batch: int
) -> None:
    sinks = [tmp_path / "out.jsonl", tmp_path / "out.mp4"]
    with pytest.raises(StreamError, match="the cable is out"):
        run_pipeline(model, [kind((64, 48))], sinks, RunOptions(batch=batch, status="off"))
    assert len(lines(tmp_path / "out.jsonl")) == 3
    with VideoSource(tmp_path / "out.mp4") as video:
        assert len(list(video)) == 3


@pytest.mark.parametrize("main_thread", [True, False])
def test_a_person_ends_the_run(model: Path, tmp_path: Path, main_thread: bool) -> None:
    onlooker = SinkOfTest("view", stops_at=2)
    onlooker.main_thread = main_thread
    summary = run_pipeline(model, ["test://64x48"], [onlooker, tmp_path / "out.jsonl"], RunOptions(status="off"))
    assert len(onlooker.seen) == 2  # a closed window is not shown anything more
    assert not summary.interrupted
    assert len(lines(tmp_path / "out.jsonl")) == summary.frames >= 2


def test_a_sink_given_twice(model: Path, tmp_path: Path) -> None:
    sinks = [tmp_path / "out.jsonl", str(tmp_path / "out.jsonl")]
    with pytest.raises(ValueError, match=r"each sink once, please: .*out.jsonl was given twice"):
        run_pipeline(model, [PATTERN], sinks)


def test_no_sources(model: Path) -> None:
    with pytest.raises(ValueError, match="at least one source"):
        run_pipeline(model, [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 2},
        {"mask_threshold": -1},
        {"max_frames": 0},
        {"batch": 0},
        {"threads": -1},
        {"fps": 0},
        {"on_sink_error": "ignore"},
        {"status": "verbose"},
    ],
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
