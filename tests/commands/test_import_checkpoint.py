"""`edge-mrcnn import` on checkpoints; what is in them is compared in tests/training/foreign."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from edge_mrcnn.cli import main  # noqa: E402
from tests.training.foreign.states import detectron2_shapes  # noqa: E402

pytestmark = pytest.mark.torch


def detectron2_file(path: Path) -> None:
    """A file of detectron2's model zoo: arrays under `model`, pickled."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in detectron2_shapes(classes=3).items():
        # each norm divides by one and each layer keeps the size of what it gets
        kept = name.endswith(("norm.weight", "running_var"))
        std = 1 / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        state[name] = (torch.ones(shape) if kept else torch.randn(shape, generator=generator) * std * 0.5).numpy()
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}, protocol=2))


@pytest.mark.slow
def test_a_file_of_detectron2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "model_final.pkl", tmp_path / "model.onnx"
    detectron2_file(source)
    options = ["--size", "96x128", "--class-names", "a,b,c", "--proposals", "50", "--score-threshold", "0.2"]
    assert main(["import", str(source), "-o", str(output), "--json", "-", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kind"] == "checkpoint"
    assert result["bytes"] == output.stat().st_size
    spec = result["spec"]
    assert (spec["input_hw"], spec["class_names"]) == ([96, 128], ["__background__", "a", "b", "c"])
    assert (spec["proposals"], spec["score_threshold"]) == (50, 0.2)
    assert spec["ops"]["box_roi_align"]["aligned"] == 1
    assert spec["ops"]["rpn_proposals"]["stride_rule"] == "fixed"


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", ["pickle", "torch"])
def test_a_malicious_file_runs_nothing(save: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, trace = tmp_path / "model.pth", tmp_path / "ran"
    content = {"model": {"weight": Malicious(trace)}}
    source.write_bytes(pickle.dumps(content, protocol=2)) if save == "pickle" else torch.save(content, source)
    assert main(["import", str(source), "-o", str(tmp_path / "model.onnx")]) == 1
    assert not trace.exists()
    assert str(source) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pth"]


@pytest.mark.parametrize("keep", [40, 5000])
def test_a_file_cut_short(keep: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "model.pkl"
    source.write_bytes(pickle.dumps({"model": {"weight": torch.zeros(4000).numpy()}}, protocol=2)[:keep])
    assert main(["import", str(source), "-o", str(tmp_path / "model.onnx")]) == 1
    said = capsys.readouterr().err
    assert "model.pkl" in said
    assert "unexpected" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["model.pkl"]
