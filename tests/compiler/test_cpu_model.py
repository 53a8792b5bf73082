"""int8 for ONNX Runtime: the file runs as it is, and what ONNX Runtime makes of it is read from what it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_mrcnn import device
from edge_mrcnn.compiler import cpu_model
from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.compiler.cpu_model import METADATA_KEY, read_runtime_graph
from edge_mrcnn.compiler.inspector import NO_SIDECAR, inspect
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.runners import EXACT, OrtRunner
from edge_mrcnn.runtime.sources.pictures import read_picture
from edge_mrcnn.sidecar import EngineSidecar, RecipeRecord, hash_file, sidecar_path
from tests.compiler.ranges import BUNDLED, TABLETOP, bundled_inputs, measured_ranges
from tests.compiler.tiny_model import SPEC, feeds

Options = Callable[..., BuildOptions]

QUANTISED = {"n11", "n14", "n17", "n31", "n37"}


@pytest.fixture
def cpu(options: Options, tiny_ranges: Path) -> Options:
    """Makes options of int8 builds for a CPU."""
    return lambda **fields: options(**{"precision": "int8", "target": "cpu", "ranges": tiny_ranges, **fields})


def test_a_model_with_its_sidecar(tiny_path: Path, tiny_ranges: Path, cpu: Options, tmp_path: Path) -> None:
    result = build_engine(tiny_path, cpu(), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tiny.cpu.int8.json", "tiny.cpu.int8.onnx"]
    sidecar = EngineSidecar.load_for(result.engine)
    assert (sidecar.flavour, sidecar.tensorrt) == ("cpu", onnxruntime.__version__)
    assert (sidecar.precision, sidecar.target, sidecar.spec) == ("int8", "cpu", SPEC)
    assert sidecar.onnx_sha256 == hash_file(tiny_path)
    assert sidecar.recipe == RecipeRecord(hash_file(tiny_ranges), "max", 0, (), ())
    assert {layer.name for layer in sidecar.layers if layer.realised == "int8"} == QUANTISED
    assert all(layer.realised == layer.requested for layer in sidecar.layers)
    assert [(row.precision, row.layers) for row in sidecar.requested] == [("int8", 5), ("float32", 7)]
    assert sidecar.realised == sidecar.requested
    assert (result.realised, result.peak_memory_bytes) == (sidecar.realised, None)
    assert len(result.kept) == 7


def test_it_runs_and_computes_nearly_the_same(tiny_path: Path, cpu: Options, tmp_path: Path) -> None:
    result = build_engine(tiny_path, cpu(), tmp_path)
    with OrtRunner(tiny_path) as exact, OrtRunner(result.engine) as rounded:
        expected, found = exact.infer(feeds()), rounded.infer(feeds())
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}
    assert 0 < np.abs(found["scores"] - expected["scores"]).max() < 0.1


def test_the_same_ranges_give_the_same_file(tiny_path: Path, cpu: Options, tmp_path: Path) -> None:
    first, second = (build_engine(tiny_path, cpu(), tmp_path / name).engine for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    other = build_engine(tiny_path, cpu(keep_fp16=("n11",)), tmp_path / "c").engine
    assert other.read_bytes() != first.read_bytes()


def test_layers_that_are_to_be_kept_are_float32(tiny_path: Path, cpu: Options, tmp_path: Path) -> None:
    result = build_engine(tiny_path, cpu(keep_fp16=("^n11$",), keep_fp32=("^n31$",)), tmp_path)
    assert {"n11", "n31"} < set(result.kept)
    precisions = read_runtime_graph(result.engine)
    assert {name for name, precision in precisions.items() if precision == "int8"} == {"n14", "n17", "n37"}
    assert precisions["n11"] == precisions["n31"] == "float32"


def test_the_graph_that_runs_is_read_whatever_is_fused(tiny_path: Path) -> None:
    """Relu is fused into n17 and, under another name, into n31."""
    precisions = read_runtime_graph(tiny_path)
    assert set(precisions.values()) == {"float32"}
    assert {*QUANTISED, "n39"} < set(precisions)


def test_the_bundled_model_finds_things(options: Options, tmp_path: Path) -> None:
    ranges = tmp_path / "ranges.json"
    measured_ranges(onnx.load(BUNDLED), bundled_inputs(4), hash_file(BUNDLED)).save(ranges)
    result = build_engine(BUNDLED, options(precision="int8", target="cpu", ranges=ranges), tmp_path)
    assert result.size_bytes < 0.30 * BUNDLED.stat().st_size
    picture = read_picture(sorted((TABLETOP / "val" / "images").iterdir())[0])
    with Detector(BUNDLED) as exact, Detector(result.engine) as rounded:
        expected, found = exact(picture), rounded(picture)
        assert rounded.class_names == exact.class_names
    sure = expected[expected.score > 0.8]
    assert len(sure) >= 2
    for box, label in zip(sure.xyxy, sure.class_id, strict=True):
        assert overlap(box, found.xyxy[found.class_id == label]).max() > 0.8, "each is found again"


@pytest.mark.skipif(device.integer_dot_products() is None, reason="only where fast sums of products do not overflow")
@pytest.mark.slow
def test_kernels_for_cpus_without_vnni_compute_the_same(options: Options, tmp_path: Path) -> None:
    """Its head is shared by all levels, and ONNX Runtime cannot load models with shared codes that way."""
    ranges, feed = tmp_path / "ranges.json", bundled_inputs(1)
    measured_ranges(onnx.load(BUNDLED), feed, hash_file(BUNDLED)).save(ranges)
    model = build_engine(BUNDLED, options(precision="int8", target="cpu", ranges=ranges), tmp_path).engine
    with OrtRunner(model) as fast, OrtRunner(model, config=EXACT) as exact:
        found, expected = fast.infer(feed[0]), exact.infer(feed[0])
    assert expected["num_detections"].sum() > 0
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box with others."""
    corner, end = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.clip(end - corner, 0, None), axis=1)
    return common / (np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2]) - common)


def break_kernels(monkeypatch: pytest.MonkeyPatch, *lost: str) -> None:
    """As if ONNX Runtime lacked integer kernels for these layers."""
    read = cpu_model.read_runtime_graph
    monkeypatch.setattr(cpu_model, "read_runtime_graph", lambda path: {**read(path), **dict.fromkeys(lost, "float32")})


def test_a_model_that_is_computed_in_float32_is_refused(
    tiny_path: Path, cpu: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_kernels(monkeypatch, *QUANTISED)
    with pytest.raises(EngineError, match=r"ONNX Runtime computes none of the 5 int8 layers in integers on this CPU"):
        build_engine(tiny_path, cpu(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_one_that_is_so_for_the_larger_part_too(
    tiny_path: Path, cpu: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_kernels(monkeypatch, "n14")
    with pytest.raises(
        EngineError,
        match=r"ONNX Runtime computes 29% of that work .* n14; .*: run model.onnx as it is, or .*--keep-fp16",
    ):
        build_engine(tiny_path, cpu(), tmp_path / "out")


def test_a_small_layer_in_float32_is_said(
    tiny_path: Path, cpu: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_kernels(monkeypatch, "n31")
    result = build_engine(tiny_path, cpu(), tmp_path)
    assert "ONNX Runtime computes 1 layers in float32 though int8 was asked for: n31" in caplog.text
    assert result.requested != result.realised


def test_without_onnx_runtime_it_says_what_to_install(tiny_path: Path, tiny_ranges: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from edge_mrcnn.cli import main\n"
        f"raise SystemExit(main(['build', {str(tiny_path)!r}, '--precision', 'int8', '--target', 'cpu', '--ranges',"
        f" {str(tiny_ranges)!r}, '-o', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'edge-mrcnn[cpu]'" in done.stderr


def test_it_is_inspected_with_its_sidecar_and_without(tiny_path: Path, cpu: Options, tmp_path: Path) -> None:
    path = build_engine(tiny_path, cpu(keep_fp16=("n11",)), tmp_path).engine
    found = inspect(path)
    assert (found.facts["precision"], found.facts["target"]) == ("int8", "cpu")
    assert found.facts["ONNX SHA-256"] == hash_file(tiny_path)
    assert found.facts["ranges"].startswith("max, of 0 pictures, SHA-256 ")
    assert found.facts["kept in float16"] == "n11"
    assert found.realised == found.requested
    assert [row.precision for row in found.requested] == ["float32", "int8"]
    (layer,) = (layer for layer in found.layers if layer.name == "n14")
    assert (layer.requested, layer.realised) == ("int8", "int8")
    assert any(line.startswith("  realised   int8") for line in found.lines())
    sidecar_path(path).unlink()
    alone = inspect(path)
    assert (alone.requested, alone.realised) == (found.requested, None)
    assert alone.notes == (NO_SIDECAR,)
    assert alone.facts == found.facts


def spoil(path: Path, value: Any) -> None:
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = value if isinstance(value, str) else json.dumps(value)
    onnx.save(model, path)


@pytest.mark.parametrize("value", ["", "[]", "{}", {"edge_mrcnn": "0", "recipe": 5}])
def test_damaged_metadata_are_said(tiny_path: Path, cpu: Options, tmp_path: Path, value: Any) -> None:
    path = build_engine(tiny_path, cpu(), tmp_path).engine
    spoil(path, value)
    with pytest.raises(ExportError, match=r"metadata of .* are damaged .*--target cpu --precision int8"):
        inspect(path)
