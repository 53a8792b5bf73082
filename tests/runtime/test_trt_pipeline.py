"""A whole run on a stand-in GPU: the same records as on the CPU, and the GPU at work while frames are written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import EngineError, StreamError
from edge_mrcnn.runtime.detector import Detector, PendingDetections
from edge_mrcnn.runtime.pipeline import RunOptions, run_pipeline
from edge_mrcnn.runtime.sources import pattern
from tests.gpu.fake_gpu import FakeGpu

SEEDS = range(4)


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is submitted (s) and waited for (r), in order."""
    calls: list[str] = []

    def spy(owner: type, name: str, letter: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            calls.append(letter)
            return original(*arguments)

        monkeypatch.setattr(owner, name, call)

    spy(Detector, "submit", "s")
    spy(PendingDetections, "result", "r")
    return calls


@pytest.mark.parametrize("seed", SEEDS)
def test_records_are_those_of_the_cpu(seed: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch, seed)
    records = []
    for source in (gpu.engine(model, tmp_path), model):
        options = RunOptions(threshold=0.2, batch=1 + seed % 3)
        summary = run_pipeline(
            source, ["test://96x64?frames=7", "test://50x70?frames=2"], [tmp_path / "a.jsonl"], options
        )
        assert summary.frames == 9
        lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert all(line["detections"] for line in lines)
        records.append([(line["index"], line["detections"]) for line in lines])
    assert records[0] == records[1]
    gpu.check()


def test_the_gpu_works_while_frames_are_written(engine: Path, gpu: FakeGpu, order: list[str]) -> None:
    run_pipeline(engine, ["test://96x64?frames=5"])
    assert "".join(order) == "ssrsrsrsrr"
    gpu.check()


def test_a_camera_is_not_kept_waiting(
    engine: Path, gpu: FakeGpu, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pattern.PatternSource, "live", True)
    monkeypatch.setattr(pattern.PatternSource, "drop", "never")
    run_pipeline(engine, ["test://96x64?frames=3"])
    assert "".join(order) == "srsrsr"
    gpu.check()


def test_the_cpu_takes_one_after_the_other(model: Path, order: list[str]) -> None:
    run_pipeline(model, ["test://96x64?frames=3"])
    assert "".join(order) == "srsrsr"


def test_a_limit_holds(engine: Path, gpu: FakeGpu, order: list[str]) -> None:
    assert run_pipeline(engine, ["test://96x64?frames=9"], options=RunOptions(max_frames=3)).frames == 3
    assert "".join(order) == "ssrsrr"
    gpu.check()


def test_frames_before_an_error_are_written(engine: Path, gpu: FakeGpu, tmp_path: Path, order: list[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(2):
        cv2.imwrite(str(folder / f"{index}.png"), np.zeros((20, 30, 3), np.uint8))
    (folder / "2.png").write_bytes(b"no picture")
    with pytest.raises(StreamError, match=r"2\.png"):
        run_pipeline(engine, [folder], options=RunOptions(strict=True))
    assert "".join(order) == "ssrr"
    gpu.check()


def test_frames_of_a_batch_at_most(model: Path) -> None:
    with Detector(model, batch=2) as detector:
        for frames in ([], [np.zeros((5, 5, 3), np.uint8)] * 3):
            with pytest.raises(ValueError, match="frames must be 1 to 2, the detector's batch, got"):
                detector.submit(frames)
        assert not detector.overlaps


def test_timings_add_up(engine: Path, gpu: FakeGpu) -> None:
    with Detector(engine, batch=2) as detector:
        assert detector.overlaps
        _, timings = detector.detect_timed([np.zeros((5, 5, 3), np.uint8)] * 5)
        assert timings.frames == 5
        assert min(dataclasses.astuple(timings)) > 0
        assert detector.detect_timed([])[0] == []
    with pytest.raises(EngineError, match="is closed"):
        detector([np.zeros((5, 5, 3), np.uint8)])
    gpu.check()
