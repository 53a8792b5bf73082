"""The engines of `make gpu-check`: comparing, timing and inspecting, with ONNX Runtime in the place of the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_check import engines, precisions
from edge_mrcnn import device
from edge_mrcnn.detections import Detections
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.runtime.sources.pictures import read_picture


def detections(rows: list[tuple[float, float, int]]) -> Detections:
    """Boxes of 10 px at (x, 0), by x, score and class."""
    xyxy = np.array([(x, 0, x + 10, 10) for x, *_ in rows], np.float32).reshape(-1, 4)
    scores, labels = (np.array([row[i] for row in rows]) for i in (1, 2))
    return Detections(xyxy, scores, labels, (100, 100))


def test_engines_are_compared_detection_by_detection() -> None:
    expected = detections([(0, 0.9, 1), (50, 0.8, 1), (50, 0.7, 2), (80, 0.06, 3)])
    found = detections([(50, 0.75, 2), (0.2, 0.88, 1), (30, 0.6, 1), (70, 0.15, 1)])
    matches = engines.match_detections(found, expected)
    assert (matches.matched, matches.expected, matches.extra) == (2, 3, 1)
    assert max(matches.score_differences) == pytest.approx(0.05)
    assert engines.match_detections(detections([]), expected).matched == 0


def test_reformats_are_counted() -> None:
    layers = [
        {"Name": "conv1", "LayerType": "CaskConvolution"},
        {"Name": "Reformatting CopyNode for Input Tensor 1", "LayerType": "Reformat"},
        {
            "Name": "roi_align",
            "LayerType": "PluginV3",
            "Inputs": [{"Format/Datatype": "Float"}, *[{"Format/Datatype": "Half NHWC8"}] * 4],
            "Outputs": [{"Format/Datatype": "Half NHWC8"}],
        },
    ]
    assert engines.summarise_layers(layers) == (
        "3 layers, 1 reformats; of: Reformatting CopyNode for Input Tensor 1; "
        "roi_align: inputs Float + Half NHWC8, outputs Half NHWC8"
    )


def test_a_tensorrt_that_refuses_is_quoted(rtx: None, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    if device.find_gpus():
        pytest.skip("this machine has a GPU")
    rows: list[dict[str, Any]] = []
    assert engines.check_engine(engines.SAMPLES / "model.onnx", "rtx", "fp32", [], tmp_path, rows.append) is None
    assert [(row["engine"], row["what"]) for row in rows] == [("model rtx:current fp32", "refused")]
    assert "needs an NVIDIA GPU" in rows[0]["detail"]


class RunsElsewhere(OrtRunner):
    """In the place of `TrtRunner`."""

    opened: list[str]

    def __init__(self, path: str | Path, graphs: str = "auto") -> None:
        assert Path(path).suffix == ".engine"
        assert Path(path).exists()
        self.opened.append(graphs)
        super().__init__(engines.SAMPLES / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "asked"), [("fp16", "float16 100.0%"), ("int8", "int8 98.1%")])
def test_an_engine_is_built_compared_timed_and_inspected(
    precision: str, asked: str, rtx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")
    RunsElsewhere.opened = []
    monkeypatch.setattr("edge_mrcnn.runtime.trt_runner.TrtRunner", RunsElsewhere)
    monkeypatch.setattr(engines, "TARGETS", {"rtx": "rtx"})
    monkeypatch.setattr(engines, "_layers", lambda flavour, path: [{"Name": "conv1"}])
    monkeypatch.setattr(precisions, "FRAMES", 3)
    monkeypatch.setattr(precisions, "WARM_UP", 1)
    pictures = [read_picture(path) for path in sorted((engines.SAMPLES / "val" / "images").glob("*.jpg"))[:2]]
    rows: list[dict[str, Any]] = []
    built = engines.check_engine(engines.SAMPLES / "model.onnx", "rtx", precision, pictures, tmp_path, rows.append)
    assert built is not None
    assert built.parent == tmp_path
    assert RunsElsewhere.opened == ["auto", "auto", "frame", "off"]
    assert [row["what"] for row in rows if not row["ok"]] == ["work"], "without a GPU no engine was looked into"
    details = {row["what"]: row["detail"] for row in rows}
    assert details["built"].startswith(f"{built.stat().st_size / 1e6:.1f} MB in ")
    assert details["work"].startswith(f"asked for {asked}")
    assert " extra, mean IoU 1.0000, score off by 0.0000 at most" in details["against ONNX Runtime"]
    assert details["layers"] == "1 layers, 0 reformats"
    assert details["frames, graphs off"].endswith("pictures of 480x640")
