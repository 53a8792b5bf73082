"""The cost of the pipeline itself: a real run with prepared frames and detections."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn import Detector, ModelSpec
from edge_mrcnn.cli import main
from edge_mrcnn.evaluation import overhead
from edge_mrcnn.evaluation.overhead import OBJECTS, PreparedRunner, measure_overhead
from edge_mrcnn.runtime.metrics import STAGES
from edge_mrcnn.runtime.tracker import Tracker

SPEC = ModelSpec("net", (64, 96), ("__background__", "mug", "bottle"), detections=100, mask_size=28)


def test_prepared_detections_are_whole_things_on_their_way() -> None:
    detector = Detector(PreparedRunner(SPEC))
    pictures = overhead.sample_pictures((96, 144))
    tracker = Tracker()
    before = None
    for index in range(250):
        found = tracker.update(detector(pictures[index % 4]), index * 16_666_667)
        assert len(found) == OBJECTS
        assert found.mask is not None
        assert (found.xyxy[:, 2:] > found.xyxy[:, :2]).all()
        if before is not None:
            assert abs(found.xyxy - before).max() < 1.0  # no jumps, which would make tracking dearer
        before = found.xyxy


@pytest.mark.parametrize("mask_size", [0, 28])
def test_prepared_detections_have_the_heads_of_the_network(mask_size: int) -> None:
    spec = dataclasses.replace(SPEC, mask_size=mask_size, keypoint_names=("rim", "handle"), keypoint_size=56)
    found = Detector(PreparedRunner(spec))(overhead.sample_pictures((96, 144))[0])
    assert (found.mask is None) == (mask_size == 0)
    middle = (found.xyxy[:, None, :2] + found.xyxy[:, None, 2:]) / 2
    np.testing.assert_allclose(found.keypoints[..., :2], np.repeat(middle, 2, axis=1), atol=1.1)
    assert measure_overhead(spec, frames=5).frames > 0


def test_what_is_measured() -> None:
    cores = os.sched_getaffinity(0)
    result = measure_overhead(SPEC, frames=20)
    assert os.sched_getaffinity(0) == cores
    assert result.frames + result.dropped == 20
    assert (result.image_hw, result.input_hw, result.objects) == ((1080, 1920), (64, 96), 20)
    assert tuple(result.stages_ms) == STAGES
    assert 0 < result.letterbox_ms < result.cpu_ms < result.rle_cpu_ms
    assert result.cpu_ms < 50  # on any machine, however busy
    assert result.stages_ms["track"].p50 > 0


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx", reason="onnx makes the tiny detector")
    from tests.runtime.tiny_detector import save_detector

    monkeypatch.setattr(overhead, "FRAMES", 10)
    target = tmp_path / "overhead.json"
    assert main(["bench", str(save_detector(tmp_path / "model.onnx")), "--overhead", "--json", str(target)]) == 0
    found = json.loads(target.read_text())
    assert f"{found['cpu_ms']:.2f} ms of processor time a frame" in capsys.readouterr().out
