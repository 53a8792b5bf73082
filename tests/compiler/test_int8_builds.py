"""INT8 engines, for real by TensorRT-RTX: what is asked for is in the network, and what is not is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_mrcnn.compiler import worker_process
from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import CalibrationError, EngineError
from edge_mrcnn.sidecar import EngineSidecar, LayerInfo, RecipeRecord, hash_file, int8_share
from tests.compiler.tiny_model import build_tiny_model

Options = Callable[..., BuildOptions]

SENSITIVE = ("n25", "n27", "n24", "n26", "n33", "n34", "n39")
"""Objectness and deltas of two levels, class logits and box deltas, mask logits: never quantised."""

QUANTISED = ("n11", "n14", "n17", "n31", "n37")


@pytest.fixture
def int8(options: Options, tiny_ranges: Path) -> Options:
    """Makes options of int8 builds."""
    return lambda **fields: options(**{"precision": "int8", "ranges": tiny_ranges, **fields})


def weighted(sidecar: EngineSidecar) -> dict[str, LayerInfo]:
    return {layer.name: layer for layer in sidecar.layers if layer.macs is not None}


def test_the_network_that_tensorrt_parsed_is_int8(
    rtx: None, tiny_path: Path, tiny_ranges: Path, int8: Options, tmp_path: Path
) -> None:
    result = build_engine(tiny_path, int8(), tmp_path)
    assert result.engine.name == "tiny.rtx-sm_86.int8.engine"
    sidecar = EngineSidecar.load_for(result.engine)
    found = weighted(sidecar)
    assert {name: layer.requested for name, layer in found.items()} == {
        **dict.fromkeys(QUANTISED, "int8"),
        **dict.fromkeys(SENSITIVE, "float16"),
    }
    assert [(row.precision, row.layers, row.macs) for row in sidecar.requested] == [
        ("int8", 5, sum(found[name].macs or 0 for name in QUANTISED)),
        ("float16", 7, sum(found[name].macs or 0 for name in SENSITIVE)),
    ]
    assert sidecar.realised is None, "only a GPU can tell"
    assert sidecar.recipe == RecipeRecord(hash_file(tiny_ranges), "max", 0, (), ())
    assert (result.requested, result.realised) == (sidecar.requested, None)
    assert set(result.kept) == set(SENSITIVE)
    assert int8_share(result.requested) > 0.95


def test_layers_that_are_to_be_kept_are(rtx: None, tiny_path: Path, int8: Options, tmp_path: Path) -> None:
    result = build_engine(tiny_path, int8(keep_fp16=("n1[14]",), keep_fp32=("^n37$",)), tmp_path)
    sidecar = EngineSidecar.load_for(result.engine)
    kept = {name: layer.requested for name, layer in weighted(sidecar).items() if name in QUANTISED}
    assert kept == {"n11": "float16", "n14": "float16", "n17": "int8", "n31": "int8", "n37": "float32"}
    assert (sidecar.recipe.keep_fp16, sidecar.recipe.keep_fp32) == (("n1[14]",), ("^n37$",))
    assert set(result.kept) == {*SENSITIVE, "n11", "n14", "n37"}
    assert {row.precision for row in result.requested} == {"int8", "float16", "float32"}


def test_a_layer_kept_in_float32_in_a_float16_build(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path
) -> None:
    result = build_engine(tiny_path, options(keep_fp32=("^n37$",)), tmp_path)
    layers = weighted(EngineSidecar.load_for(result.engine))
    assert {name for name, layer in layers.items() if layer.requested == "float32"} == {"n37"}
    assert result.kept == ()


@pytest.mark.parametrize("keep", ["keep_fp16", "keep_fp32"])
def test_an_int8_build_without_an_int8_layer_fails(tiny_path: Path, int8: Options, rtx: None, keep: str) -> None:
    with pytest.raises(EngineError, match="none of the 12 weighted layers is int8: --keep-fp16 and --keep-fp32 name"):
        build_engine(tiny_path, int8(**{keep: (".*",)}))


def test_a_layer_to_keep_that_is_not_there(tiny_path: Path, int8: Options, rtx: None) -> None:
    with pytest.raises(ValueError, match="no_such_layer"):
        build_engine(tiny_path, int8(keep_fp16=("no_such_layer",)))


def test_int8_needs_ranges(tiny_path: Path, int8: Options, rtx: None, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="edge-mrcnn calibrate"):
        build_engine(tiny_path, int8(ranges=None))
    with pytest.raises(CalibrationError, match=r"there is no ranges file .*edge-mrcnn calibrate"):
        build_engine(tiny_path, int8(ranges=tmp_path / "none.json"))


@pytest.mark.parametrize("target", ["rtx:sm_86", "cpu"])
def test_ranges_of_another_model_are_refused(tmp_path: Path, int8: Options, rtx: None, target: str) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(build_tiny_model(batch=1), other)
    with pytest.raises(CalibrationError, match=rf"measured on an ONNX .*, but {other} has {hash_file(other)[:12]}"):
        build_engine(other, int8(target=target, batch="1"))


def test_other_ranges_and_other_layers_to_keep_make_another_engine(
    rtx: None, tiny_path: Path, tiny_ranges: Path, int8: Options, tmp_path: Path
) -> None:
    ranges = Ranges.load(tiny_ranges)
    wider = {
        name: dataclasses.replace(item, symmetric={method: 2 * size for method, size in item.symmetric.items()})
        for name, item in ranges.tensors.items()
    }
    changed = tmp_path / "changed.json"
    dataclasses.replace(ranges, tensors=wider).save(changed)
    assert not build_engine(tiny_path, int8(), tmp_path / "a").cached
    assert build_engine(tiny_path, int8(), tmp_path / "b").cached
    assert not build_engine(tiny_path, int8(ranges=changed), tmp_path / "c").cached
    assert not build_engine(tiny_path, int8(keep_fp16=("n11",)), tmp_path / "d").cached
    dataclasses.replace(ranges, pictures=("0" * 64,)).save(changed)
    again = build_engine(tiny_path, int8(ranges=changed), tmp_path / "e")
    assert EngineSidecar.load_for(again.engine).recipe.pictures == 1, "though they round to the same"


@pytest.fixture
def with_qdq(tmp_path: Path, tiny_path: Path, tiny_ranges: Path) -> Path:
    """The tiny network with Q/DQ nodes of its own, as other tools write them into a float32 graph."""
    path = tmp_path / "quantised.onnx"
    recipe = Recipe("int8", Ranges.load(tiny_ranges), keep_fp32=(), keep_fp16=("n31",))
    onnx.save(run_passes(onnx.load(tiny_path), recipe, keep_bodies=True), path)
    return path


def test_a_model_with_qdq_nodes_of_its_own_needs_no_ranges(
    rtx: None, with_qdq: Path, options: Options, tmp_path: Path
) -> None:
    result = build_engine(with_qdq, options(precision="int8"), tmp_path / "out")
    layers = weighted(EngineSidecar.load_for(result.engine))
    assert {name for name, layer in layers.items() if layer.requested == "int8"} == set(QUANTISED) - {"n31"}


def test_a_model_with_qdq_nodes_of_its_own_is_int8_or_nothing(
    rtx: None, with_qdq: Path, options: Options, int8: Options
) -> None:
    with pytest.raises(EngineError, match=r"fp16 was asked for, but 4 weighted layers .*'int8': 4"):
        build_engine(with_qdq, options(precision="fp16"))
    with pytest.raises(EngineError, match=r"int8 was asked for, but 1 weighted layers .*'int8': 1.*'n11'"):
        build_engine(with_qdq, options(precision="int8", keep_fp16=("n11",)))
    with pytest.raises(ValueError, match="brings Q/DQ nodes of its own, so ranges have no use"):
        build_engine(with_qdq, int8())


def test_weights_that_are_transposed_after_they_are_dequantised(
    rtx: None, with_qdq: Path, options: Options, tmp_path: Path
) -> None:
    """As exporters write linear layers."""
    model = onnx.load(with_qdq)
    (gemm,) = (node for node in model.graph.node if node.name == "n33")
    width = next(iter(onnx.numpy_helper.to_array(w) for w in model.graph.initializer if w.name == gemm.input[1])).shape[
        1
    ]
    model.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.ones((3, width), np.int8), "codes"),
            onnx.numpy_helper.from_array(np.float16(0.01), "step"),
            onnx.numpy_helper.from_array(np.int8(0), "zero"),
        ]
    )
    before = [
        onnx.helper.make_node("QuantizeLinear", [gemm.input[0], "step", "zero"], ["q"], "q"),
        onnx.helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"], "dq"),
        onnx.helper.make_node("DequantizeLinear", ["codes", "step"], ["rows"], "rows"),
        onnx.helper.make_node("Transpose", ["rows"], ["columns"], "columns", perm=[1, 0]),
    ]
    gemm.input[0], gemm.input[1] = "dq", "columns"
    gemm.attribute.remove(next(attribute for attribute in gemm.attribute if attribute.name == "transB"))
    at = list(model.graph.node).index(gemm)
    for node in reversed(before):
        model.graph.node.insert(at, node)
    onnx.save(model, with_qdq)
    result = build_engine(with_qdq, options(precision="int8"), tmp_path / "out")
    assert "n33" not in result.kept
    assert weighted(EngineSidecar.load_for(result.engine))["n33"].requested == "int8"


def scripted_worker(monkeypatch: pytest.MonkeyPatch, realised: dict[str, str]) -> None:
    """A worker on a machine with a GPU: it has built an engine (an empty file) and looked into it."""
    done = {
        "event": "done",
        "tensorrt": "10.3.0",
        "layers": [dataclasses.asdict(LayerInfo("n11", "CONVOLUTION", "int8"))],
        "realised": realised,
        "inputs": [],
        "outputs": [],
        "size": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "peak_memory_bytes": None,
    }
    monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, "-c", f"print({json.dumps(done)!r})"))


def test_what_the_engine_realised_is_written_down(
    rtx: None,
    tiny_path: Path,
    int8: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scripted_worker(monkeypatch, {**dict.fromkeys(QUANTISED, "int8"), "n24": "float16"})
    result = build_engine(tiny_path, int8(), tmp_path)
    assert "the engine inspector tells nothing of 6 layers, 3." in caplog.text
    assert result.realised is not None
    assert [(row.precision, row.layers) for row in result.realised] == [("int8", 5), ("unknown", 6), ("float16", 1)]
    assert EngineSidecar.load_for(result.engine).layers[0].realised == "int8"


def test_a_little_that_the_engine_has_in_more_bits_is_said(
    rtx: None,
    tiny_path: Path,
    int8: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scripted_worker(monkeypatch, {**dict.fromkeys(QUANTISED, "int8"), "n31": "float16"})
    build_engine(tiny_path, int8(), tmp_path)
    assert "TensorRT computes 2.5 % of the work in more bits than asked for: n31 (float16)" in caplog.text


def test_an_engine_that_is_not_int8_is_not_kept(
    rtx: None, tiny_path: Path, int8: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted_worker(monkeypatch, dict.fromkeys(QUANTISED, "float16"))
    with pytest.raises(EngineError, match=r"int8 was asked for, but TensorRT computes 100% .* 5 of 5 layers.*n11"):
        build_engine(tiny_path, int8(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "cache").exists()
