"""What is no raw file of torchvision's is refused in words: other networks, other files, our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mrcnn.cli import main
from tests.compiler.raw.seeded_weights import load

FIXTURES = Path(__file__).parent / "fixtures"
OURS = Path(__file__).parents[3] / "samples" / "tabletop" / "model.onnx"


def refuse(path: Path, capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    before = sorted(each.name for each in path.parent.iterdir())
    output = path.parent / "out.onnx"
    assert main(["import", str(path), "-o", str(output)]) == 1
    said = capsys.readouterr().err
    assert said.count("edge-mrcnn: ") == 1
    assert "unexpected" not in said, said
    for part in (path.name, *parts):
        assert part in said, said
    assert sorted(each.name for each in path.parent.iterdir()) == before


def network(outputs: list[tuple[str, int]], nodes: list[onnx.NodeProto], channels: int) -> onnx.ModelProto:
    """A convolution over a picture and what follows it."""
    weight = np.random.default_rng(0).normal(size=(channels, 3, 3, 3)).astype(np.float32)
    first = helper.make_node("Conv", ["images", "weight"], ["features"], pads=[1, 1, 1, 1], strides=[8, 8])
    graph = helper.make_graph(
        [first, *nodes],
        "main_graph",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"] * rank) for name, rank in outputs],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([1, 84, -1]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="pytorch")
    onnx.checker.check_model(model, full_check=True)
    return model


def yolo() -> onnx.ModelProto:
    """One stage: all boxes and class probabilities of all cells in one tensor."""
    parts = ["boxes", "classes"]
    nodes = [
        helper.make_node("Reshape", ["features", "shape"], ["flat"]),
        helper.make_node("Split", ["flat"], parts, axis=1),
        helper.make_node("Sigmoid", ["classes"], ["probabilities"]),
        helper.make_node("Concat", ["boxes", "probabilities"], ["output0"], axis=1),
    ]
    return network([("output0", 3)], nodes, 84)


def classifier() -> onnx.ModelProto:
    nodes = [
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["probabilities"]),
    ]
    return network([("probabilities", 2)], nodes, 10)


@pytest.mark.parametrize("make", [yolo, classifier])
def test_another_network(make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(make(), tmp_path / "net.onnx")
    refuse(tmp_path / "net.onnx", capsys, "expected", "found", "RoiAlign")


def test_a_file_of_two_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchvision's own example exports with a list of two pictures; each then has a graph of its own."""
    (fixture,) = FIXTURES.glob("torch2.15_two_pictures_17.onnx.xz")
    onnx.save(load(fixture), tmp_path / "two.onnx")
    refuse(tmp_path / "two.onnx", capsys, "expected", "found", "2 ")


@pytest.mark.parametrize("opset", [9, 20])
def test_an_opset_that_is_not_taken(opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "net.onnx")
    refuse(tmp_path / "net.onnx", capsys, f"opset {opset}", "opset_version=17")


def test_one_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(OURS.read_bytes())
    refuse(tmp_path / "model.onnx", capsys, "was made by edge_mrcnn already (maskrcnn_edge, 320x416)", "build")


FILES = {
    "empty.onnx": (b"", "is empty (0 bytes)"),
    "text.onnx": (b"hello\nworld", "text and begins with 'hello'"),
    "page.pth": (b"<!DOCTYPE html><html>", "web page"),
    "lfs.onnx": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "weights.safetensors": (b'\x40\0\0\0\0\0\0\0{"backbone.weight":', "safetensors"),
    "model.h5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "noise.onnx": (b"\xff\xfe\xfd\xfc", "of no known kind"),
    "damaged.onnx": (b"\x08\x08\x12\x07pytorch:\xff\xff\xff\x7f", "cannot be read as ONNX"),
    "nothing.onnx": (b"\x08\x08", "holds no graph"),
}


@pytest.mark.parametrize("name", FILES)
def test_another_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, capsys, said)


def test_a_file_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.onnx").write_bytes(OURS.read_bytes()[:100_000])
    refuse(tmp_path / "cut.onnx", capsys, "cannot be read as ONNX", "truncated")


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuse(tmp_path / "gone.onnx", capsys, "does not exist")
    (tmp_path / "folder.onnx").mkdir()
    refuse(tmp_path / "folder.onnx", capsys, "is a folder")


def test_external_data_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(yolo(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    (tmp_path / "net.data").unlink()
    refuse(tmp_path / "net.onnx", capsys, "external data are not beside it")
