"""Dialect `ort`: the Q/DQ nodes themselves on golden graphs, and what ONNX Runtime makes of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from edge_mrcnn.compiler.passes import infer_types, insert_qdq_ort, run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import CalibrationError, EngineError
from edge_mrcnn.runtime.runners import EXACT
from tests.compiler.passes.golden import HEADER, make_ranges, measure, wiring
from tests.compiler.tiny_model import SPEC, feeds

WEIGHTS = "float[2, 2, 1, 1] w = {1.0, 0.5, -0.25, 0.125}, float[2] b = {1.0, 2.0}"

RESIDUAL = f"""{HEADER}
residual (float[n, 2, 4, 4] x) => (float[n, 2, 4, 4] y, int64[4] dims)
  <{WEIGHTS}, float low = {{0.0}}, float six = {{6.0}}, float[4] scales = {{1.0, 1.0, 2.0, 2.0}}> {{
  [conv1] a = Conv (x, w, b)
  r = Relu (a)
  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  [conv2] c = Conv (m, w, b)
  k = Clip (c, low, six)
  [downsample] d = Conv (m, w, b)
  [add] e = Add (k, d)
  s = Relu (e)
  up = Resize <mode = "nearest"> (s, , scales)
  [conv3] f = Conv (up, w)
  dims = Shape (f)
  [end] y = Abs (f)
}}
"""
RANGES: Mapping[str, float | tuple[float, float]] = {
    "x": (-1.0, 1.55),
    "r": 2.55,
    "k": 5.1,
    "d": (-2.0, 2.0),
    "s": 7.0,
    "f": (-3.0, 5.0),
}


def quantise(text: str, ranges: Mapping[str, float | tuple[float, float]], **kept: tuple[str, ...]) -> gs.Graph:
    """A golden graph in float32 with Q/DQ nodes."""
    graph = gs.import_onnx(parser.parse_model(text))
    infer_types(graph, SPEC)
    insert_qdq_ort(graph, SPEC, Recipe("int8", make_ranges(ranges), dialect="ort", **kept))
    return graph


def optimised(model: onnx.ModelProto, folder: Path, config: Mapping[str, str] | None = None) -> Counter[str]:
    """The nodes that ONNX Runtime runs in the end."""
    options = onnxruntime.SessionOptions()
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def parameters(graph: gs.Graph) -> dict[str, tuple[float, int]]:
    """Scale and zero point by tensor."""
    found = {}
    for node in graph.nodes:
        if node.op == "QuantizeLinear":
            tensor, scale, zero = node.inputs
            assert (scale.dtype, zero.dtype) == (np.float32, np.uint8)
            found[tensor.name] = (round(float(scale.values), 6), int(zero.values))
    return found


def test_codes_on_both_sides_of_each_kernel() -> None:
    assert wiring(quantise(RESIDUAL, RANGES)) == {
        "conv1": ["dq(q(x))", "dq(int8 w)", "dq(int32 b)"],
        "m": ["dq(q(r))"],
        "conv2": ["dq(q(m))", "dq(int8 w)", "dq(int32 b)"],
        "downsample": ["dq(q(m))", "dq(int8 w)", "dq(int32 b)"],
        "add": ["dq(q(k))", "dq(q(d))"],
        "up": ["dq(q(s))", "", "float32 scales"],
        "conv3": ["dq(q(up))", "dq(int8 w)"],
        "dims": ["q(f)"],
        "end": ["dq(q(f))"],
    }


def test_activations_are_uint8_over_an_interval_with_0_and_moved_tensors_share_a_scale() -> None:
    found = parameters(quantise(RESIDUAL, RANGES))
    assert found["x"] == (0.01, 100)
    assert found["r"] == found["m"] == (0.01, 0)
    assert found["s"] == found["up"]
    assert found["f"] == (round(8 / 255, 6), 96)


def test_each_becomes_an_integer_kernel(tmp_path: Path) -> None:
    nodes = optimised(gs.export_onnx(quantise(RESIDUAL, RANGES)), tmp_path)
    assert nodes["QLinearConv"] == 4
    assert nodes["QLinearAdd"] == 1
    assert nodes["MaxPool"] + nodes["NhwcMaxPool"] == 1
    assert nodes["QuantizeLinear"] == 1, "the input"
    assert nodes["DequantizeLinear"] == 1, "before what has no integer kernel"
    assert not {"Conv", "Add", "Relu", "Clip"} & set(nodes)


@pytest.mark.parametrize("config", [{}, EXACT])
def test_codes_of_a_shared_weight_are_stored_once_and_each_layer_has_its_own(
    config: Mapping[str, str], tmp_path: Path
) -> None:
    model = gs.export_onnx(quantise(RESIDUAL, RANGES))
    stored = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert [list(tensor.dims) for tensor in stored] == [[2, 2, 1, 1]], "four convolutions read it"
    nodes = optimised(model, tmp_path, config)
    assert nodes["QLinearConv"] == 4
    assert nodes["Reshape"] == 0
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    codes = [node.input[3] for node in graph.node if node.op_type == "QLinearConv"]
    assert len(set(codes)) == 4
    feed = {"x": np.random.default_rng(0).uniform(-1, 1.5, (2, 2, 4, 4)).astype(np.float32)}
    options = onnxruntime.SessionOptions()
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    found, plain = (
        onnxruntime.InferenceSession(model.SerializeToString(), told).run(None, feed)[0]
        for told in (options, onnxruntime.SessionOptions())
    )
    np.testing.assert_allclose(found, plain, atol=0.02 * plain.max())


def test_an_activation_that_rounding_does_not_do_stays() -> None:
    wide = quantise(RESIDUAL, {**RANGES, "k": 6.5, "s": (-0.1, 7.0)})
    assert [node.op for node in wide.nodes if node.op in ("Relu", "Clip")] == ["Clip", "Relu"]


def test_the_bias_has_the_scale_of_the_products() -> None:
    graph = quantise(RESIDUAL, RANGES)
    conv = next(node for node in graph.nodes if node.name == "conv1")
    weight, bias = (tensor.inputs[0] for tensor in conv.inputs[1:])
    np.testing.assert_allclose(weight.inputs[1].values, [1 / 127, 0.25 / 127], rtol=1e-6)
    np.testing.assert_allclose(bias.inputs[1].values, 0.01 * weight.inputs[1].values, rtol=1e-6)
    assert bias.inputs[0].dtype == np.int32
    np.testing.assert_array_equal(bias.inputs[0].values, [12700, 101600])


def test_a_large_bias_beside_tiny_weights_fits_int32() -> None:
    graph = quantise(
        f"""{HEADER} g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[2, 1, 1, 1] w = {{0.0, 1.0}}, float[2] b = {{1000000.0, 1.0}}> {{
          [only] y = Conv (x, w, b)
        }}""",
        {"x": 2.55, "y": 1000000.0},
    )
    weight, bias = (t.inputs[0] for t in next(n for n in graph.nodes if n.name == "only").inputs[1:])
    values = bias.inputs[0].values * bias.inputs[1].values
    np.testing.assert_allclose(values, [1e6, 1.0], rtol=1e-4)
    assert weight.inputs[0].values.ravel().tolist() == [0, 127]


def test_what_is_kept_is_float_and_so_is_an_add_of_it() -> None:
    graph = quantise(RESIDUAL, RANGES, keep_fp16=("downsample",))
    reads = wiring(graph)
    assert reads["downsample"] == ["dq(q(m))", "float32 w", "float32 b"]
    assert reads["add"] == ["dq(q(k))", "d"]
    assert reads["conv3"][0] == "dq(q(up))", "its input is quantised all the same"


MATRICES = f"""{HEADER}
matrices (float[n, 4] x) => (float[n, 2] y)
  <float[3, 4] w = {{1.0, 0.5, -0.25, 0.125, 1.0, 2.0, 3.0, 4.0, 0.5, 0.5, 0.5, 0.5}}, float[3] b = {{1.0, 2.0, -1.0}},
   float[3, 2] v = {{1.0, 0.5, -0.25, 0.125, 1.0, 1.0}}> {{
  [fc1] a = Gemm <transB = 1> (x, w, b)
  r = Relu (a)
  [fc2] c = Gemm (r, v)
  y = Relu (c)
}}
"""


def test_matrices_have_integer_kernels_too_and_the_last_result_is_float(tmp_path: Path) -> None:
    graph = quantise(MATRICES, {"x": (-1.0, 1.0), "r": 2.0})
    assert sorted(parameters(graph)) == ["r", "x"]
    nodes = optimised(gs.export_onnx(graph), tmp_path)
    assert nodes["QGemm"] == 2
    assert nodes["Gemm"] == nodes["FusedGemm"] == 0


def test_a_gemm_that_scales_its_product_stays_float() -> None:
    graph = quantise(MATRICES.replace("<transB = 1>", "<transB = 1, alpha = 0.5>"), {"r": 2.0})
    assert wiring(graph)["fc1"] == ["x", "float32 w", "float32 b"]


def test_a_concat_of_quantised_tensors_is_a_kernel(tmp_path: Path) -> None:
    graph = quantise(
        f"""{HEADER} g (float[1, 2, 4, 4] x) => (float[1, 4, 4, 4] y) <{WEIGHTS}> {{
          [conv1] a = Conv (x, w, b)
          [conv2] c = Conv (x, w)
          [join] j = Concat <axis = 1> (a, c)
          y = Abs (j)
        }}""",
        {"x": 1.0, "a": 2.0, "c": 3.0, "j": 3.0},
    )
    assert wiring(graph)["join"] == ["dq(q(a))", "dq(q(c))"]
    assert optimised(gs.export_onnx(graph), tmp_path)["QLinearConcat"] == 1


def test_the_numbers_stay_close() -> None:
    model = parser.parse_model(RESIDUAL)
    feed = {"x": np.random.default_rng(0).uniform(-1, 1.5, (2, 2, 4, 4)).astype(np.float32)}
    graph = gs.import_onnx(model)
    insert_qdq_ort(graph, SPEC, Recipe("int8", measure(model, feed), dialect="ort"))
    full, rounded = (
        onnxruntime.InferenceSession(m.SerializeToString()).run(None, feed) for m in (model, gs.export_onnx(graph))
    )
    np.testing.assert_array_equal(full[1], rounded[1])
    np.testing.assert_allclose(full[0], rounded[0], atol=0.02 * full[0].max())
    assert np.ptp(full[0]) > 0.2 * full[0].max()


@pytest.fixture
def integer(tiny: onnx.ModelProto) -> onnx.ModelProto:
    """The tiny network for a CPU."""
    return run_passes(tiny, Recipe("int8", measure(tiny, feeds(2)), dialect="ort"))


def test_the_tiny_network(tiny: onnx.ModelProto, integer: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.checker.check_model(integer, full_check=True)
    nodes = optimised(integer, tmp_path)
    assert nodes["QLinearConv"] == 4
    assert nodes["QLinearAdd"] == 2
    assert nodes["QGemm"] == 1
    full, rounded = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds(2)) for m in (tiny, integer))
    np.testing.assert_array_equal(full[3], rounded[3])
    np.testing.assert_allclose(full[1], rounded[1], atol=1.0)
    np.testing.assert_allclose(full[4], rounded[4], atol=0.1)
    assert not np.array_equal(full[4], rounded[4]), "rounding must show"


def test_bodies_stay_and_sensitive_layers_are_float(integer: onnx.ModelProto) -> None:
    assert {function.name for function in integer.functions} == {"RpnProposals", "PyramidRoiAlign", "DetectionNms"}
    reads = wiring(gs.import_onnx(integer))
    for name in ("n24", "n25", "n26", "n27", "n33", "n34", "n39"):
        assert reads[name][1].startswith("float32"), name


def test_all_of_the_bundled_model_that_can_be_is_integer(tmp_path: Path) -> None:
    model = onnx.load(Path(__file__).parents[3] / "samples" / "tabletop" / "model.onnx")
    height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    rng = np.random.default_rng(0)
    feed = {
        "images": rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8),
        "image_hw": np.array([[height, width]], np.float32),
    }
    integer = run_passes(model, Recipe("int8", measure(model, feed), dialect="ort"))
    assert integer.ByteSize() < 0.3 * model.ByteSize()
    nodes = optimised(integer, tmp_path)
    assert nodes["QLinearConv"] == 60, "all convolutions but the 11 sensitive ones"
    assert nodes["QLinearAdd"] == 11, "all residual and top-down adds"
    assert nodes["QGemm"] == 2
    assert nodes["QuantizeLinear"] <= 3, "nothing but the picture and what the heads read"


def test_a_model_with_qdq_nodes_of_its_own_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    graph = quantise(RESIDUAL, RANGES)
    before = gs.export_onnx(graph).SerializeToString(deterministic=True)
    with caplog.at_level(logging.INFO):
        insert_qdq_ort(graph, SPEC, Recipe("int8", dialect="ort"))
    assert gs.export_onnx(graph).SerializeToString(deterministic=True) == before
    assert "brings its own Q/DQ nodes" in caplog.text


def test_without_ranges(tiny: onnx.ModelProto) -> None:
    with pytest.raises(CalibrationError, match=r"no ranges for tiny.*edge-mrcnn calibrate MODEL PICTURES"):
        run_passes(tiny, Recipe("int8", dialect="ort"))


def test_a_tensor_without_a_range() -> None:
    with pytest.raises(CalibrationError, match="no range for tensor 's'"):
        quantise(RESIDUAL, {name: ends for name, ends in RANGES.items() if name != "s"})


def test_a_weight_that_is_no_number(tiny: onnx.ModelProto) -> None:
    ranges = measure(tiny, feeds(2))
    weight = next(node for node in tiny.graph.node if node.op_type == "Conv").input[1]
    for tensor in tiny.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), np.nan), weight))
    with pytest.raises(EngineError, match=f"weight '{weight}' holds values that are not finite"):
        run_passes(tiny, Recipe("int8", ranges, dialect="ort"))
