"""That the emulation rounds: every tensor that TensorRT would hold in float16, and in every session ORT makes of it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mrcnn.compiler.emulation import SESSION_CONFIG, emulate
from edge_mrcnn.compiler.passes import (
    apply_passes,
    bind_plugins,
    fold_constants,
    infer_types,
    insert_qdq,
    passes_of,
)
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.spec import METADATA_KEY
from tests.compiler.ranges import BUNDLED, bundled_inputs, measured_ranges
from tests.compiler.tiny_model import SPEC, build_tiny_model, feeds

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def open_session(model: onnx.ModelProto, level: str = "ORT_ENABLE_ALL", saved: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    for key, value in SESSION_CONFIG.items():
        options.add_session_config_entry(key, value)
    if saved is not None:
        options.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def halves(model: onnx.ModelProto, recipe: Recipe) -> set[str]:
    """Activations that are float16 in the graph TensorRT would get."""
    typed = apply_passes(model, passes_of(recipe, keep_bodies=True))
    found = {v.name for v in typed.graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return found & {name for node in typed.graph.node for name in node.output}


def unrounded(model: onnx.ModelProto, names: set[str], inputs: dict[str, np.ndarray]) -> set[str]:
    """Which of the tensors named hold values that float16 has not, when `model` runs; each must be there."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    session = open_session(tapped)
    with np.errstate(over="ignore"):
        return {
            name
            for name, value in zip(sorted(names), session.run(sorted(names), inputs), strict=True)
            if not np.array_equal(value, value.astype(np.float16).astype(np.float32))
        }


def chain(bias: float, weight: float = 1.0) -> onnx.ModelProto:
    """Two 1x1 convolutions: 2048 + 1, which float16 cannot hold, then times `weight`, plus `bias`; then an Add of 0."""
    arrays = {
        "sum": np.ones((1, 2, 1, 1), np.float32),
        "weight": np.full((1, 1, 1, 1), weight, np.float32),
        "bias": np.array([bias], np.float32),
        "parts": np.array([2048.0, 1.0], np.float32).reshape(1, 2, 1, 1),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["ones"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ones", "parts"], ["x"], "scale"),
        helper.make_node("Conv", ["x", "sum"], ["total"], "first"),
        helper.make_node("Conv", ["total", "weight", "bias"], ["result"], "second"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [1, 1, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: SPEC.to_json()})
    return model


ONES = {"images": np.ones((1, 2, 4, 4), np.uint8)}


@pytest.mark.parametrize("level", LEVELS)
def test_rounds_between_convolutions_at_every_level(level: str) -> None:
    """2048 + 1 is 2048 in float16."""
    plain = open_session(chain(-2048.0), level).run(None, ONES)[0]
    assert (plain == 1).all()
    rounded = open_session(emulate(chain(-2048.0), Recipe("fp16")), level).run(None, ONES)[0]
    assert (rounded == 0).all()


@pytest.mark.parametrize("level", LEVELS)
def test_a_float16_graph_is_not_rounded_by_onnx_runtime_itself(level: str) -> None:
    """The reason for the emulation, and proof that the test above tells a graph whose rounding was dropped."""
    typed = apply_passes(chain(-2048.0), passes_of(Recipe("fp16"), keep_bodies=True))
    assert (open_session(typed, level).run(None, ONES)[0] == 1).all()


def test_overflow_shows_as_infinity() -> None:
    result = open_session(emulate(chain(0.0, weight=100.0), Recipe("fp16"))).run(None, ONES)[0]
    assert np.isposinf(result).all()


def test_weights_are_rounded() -> None:
    model = emulate(chain(0.0, weight=1 + 2.0**-12), Recipe("fp16"))
    assert (open_session(model).run(None, ONES)[0] == 2048).all()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_op_boundary_holds_float16_values(precision: str) -> None:
    model = build_tiny_model(batch=1)
    recipe = make_recipe(model, precision)
    emulated, names = emulate(model, recipe), halves(model, recipe)
    names -= dequantised(emulated)
    assert len(names) > 10
    assert unrounded(emulated, names, feeds()) == set()
    own = {name for node in model.graph.node for name in node.output}
    assert len(unrounded(model, names & own, feeds())) > 5, "FP32 is not rounded, so the check can tell"


def test_a_rounding_left_out_is_found() -> None:
    model = build_tiny_model(batch=1)
    names = halves(model, Recipe("fp16"))
    emulated = emulate(model, Recipe("fp16"))
    at = next(i for i, node in enumerate(emulated.graph.node) if node.op_type == "Conv")
    rounded = emulated.graph.node[at].output[0].removesuffix("_exact")
    kept = [node for node in emulated.graph.node if node.name not in (f"round_{rounded}", f"widen_{rounded}")]
    kept[at].output[0] = rounded
    del emulated.graph.node[:]
    emulated.graph.node.extend(kept)
    assert rounded in unrounded(emulated, names, feeds())


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_the_optimiser_keeps_every_rounding(precision: Any, tmp_path: Path) -> None:
    """Tensors that are fetched are computed in any case; this is about the session that is used."""
    model = onnx.load(BUNDLED)
    ranges = measured_ranges(model, bundled_inputs(2)) if precision == "int8" else None
    emulated = emulate(model, Recipe(precision, ranges))
    open_session(emulated, saved=tmp_path / "optimised.onnx")
    assert roundings(onnx.load(tmp_path / "optimised.onnx")) == roundings(emulated)
    assert len(roundings(emulated)) > 80


def test_q_and_dq_stay_and_their_product_is_exact(tmp_path: Path) -> None:
    """A weighted layer reads the dequantised tensor itself; ONNX Runtime makes no integer kernel of it."""
    model = build_tiny_model(batch=1)
    emulated = emulate(model, make_recipe(model, "int8"))
    exact = dequantised(emulated)
    weighted = [n for n in emulated.graph.node if n.op_type in ("Conv", "Gemm") and n.input[0] in exact]
    assert len(weighted) >= 4
    open_session(emulated, saved=tmp_path / "optimised.onnx")
    ops = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert not any("QLinear" in op or "Integer" in op for op in ops)
    assert ops.count("QuantizeLinear") == sum(n.op_type == "QuantizeLinear" for n in emulated.graph.node)


def test_other_ops_read_the_dequantised_tensor_rounded() -> None:
    """Of a residual add: its branch is a float16 tensor in TensorRT."""
    model = build_tiny_model(batch=1)
    emulated = emulate(model, make_recipe(model, "int8"))
    exact = dequantised(emulated)
    read = {name for node in emulated.graph.node if node.op_type == "Add" for name in node.input}
    assert not read & exact
    assert any(name.removesuffix("_fp16") in exact for name in read)


def test_boxes_and_scores_stay_float32() -> None:
    model = build_tiny_model(batch=1)
    assert unrounded(emulate(model, Recipe("fp16")), {"proposals", "boxes"}, feeds()) == {"proposals", "boxes"}


def test_fp32_is_the_model_itself() -> None:
    model = build_tiny_model(batch=1)
    outputs = [open_session(m).run(None, feeds()) for m in (model, emulate(model, Recipe("fp32")))]
    for plain, emulated in zip(*outputs, strict=True):
        np.testing.assert_allclose(emulated, plain, atol=1e-5)


def test_the_other_dialect_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recipe\.dialect must be 'tensorrt', got 'ort'"):
        emulate(build_tiny_model(), Recipe("fp32", dialect="ort"))


def make_recipe(model: onnx.ModelProto, precision: Any) -> Recipe:
    return Recipe(precision, ranges=measured_ranges(model) if precision == "int8" else None)


def dequantised(model: onnx.ModelProto) -> set[str]:
    return {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}


def roundings(model: onnx.ModelProto) -> set[str]:
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    return {n.name for n in casts if any(a.name == "to" and a.i == TensorProto.FLOAT16 for a in n.attribute)}


def test_a_model_with_q_and_dq_of_its_own() -> None:
    """As from quantisation-aware training: its pairs are kept, what is around them is rounded."""
    model = build_tiny_model(batch=1)
    recipe = Recipe("int8", measured_ranges(model))
    own = apply_passes(model, [infer_types, bind_plugins, fold_constants, functools.partial(insert_qdq, recipe=recipe)])
    emulated = emulate(own, Recipe("int8"))
    pairs = [sum(node.op_type == "QuantizeLinear" for node in one.graph.node) for one in (own, emulated)]
    assert pairs[0] == pairs[1] > 4
    names = halves(own, Recipe("int8")) - dequantised(emulated)
    assert len(names) > 10
    assert unrounded(emulated, names, feeds()) == set()
