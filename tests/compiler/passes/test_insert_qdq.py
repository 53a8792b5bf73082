"""The rules of dialect `tensorrt`, each on a golden graph."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import parser

from edge_mrcnn.compiler.passes import apply_passes, cast_to_fp16, insert_qdq, passes_of, run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import CalibrationError, EngineError, ExportError
from tests.compiler.passes.golden import HEADER, make_ranges, measure, wiring
from tests.compiler.tiny_model import SPEC, feeds

WEIGHTS = "float[2, 2, 1, 1] w = {1.0, 0.5, -0.25, 0.125}, float[2] b = {1.0, 2.0}"

CHAIN = f"""{HEADER}
chain (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <{WEIGHTS}> {{
  [first] a = Conv (x, w, b)
  r = Relu (a)
  [second] y = Conv (r, w)
}}
"""

SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)


def quantise(text: str, ranges: dict[str, float | tuple[float, float]], **kept: tuple[str, ...]) -> gs.Graph:
    """A golden graph in float16 with Q/DQ nodes."""
    recipe = Recipe("int8", make_ranges(ranges), **kept)
    graph = gs.import_onnx(parser.parse_model(text))
    cast_to_fp16(graph, SPEC, recipe.keeps_fp32)
    insert_qdq(graph, SPEC, recipe)
    return graph


def nodes(graph: gs.Graph, op: str) -> list[gs.Node]:
    return [node for node in graph.nodes if node.op == op]


def weight_of(graph: gs.Graph, layer: str) -> tuple[np.ndarray, np.ndarray, gs.Node]:
    """Codes, scale and DequantizeLinear of a layer's weight."""
    node = next(node for node in graph.nodes if node.name == layer)
    dequantise = node.inputs[1].inputs[0]
    return dequantise.inputs[0].values, dequantise.inputs[1].values, dequantise


def test_a_layer_reads_a_quantised_tensor_and_weights_stored_as_int8() -> None:
    graph = quantise(CHAIN, {"x": 2.54, "r": 1.27})
    assert wiring(graph) == {
        "first": ["dq(q(x))", "dq(int8 w)", "float16 b"],
        "r": ["a"],
        "second": ["dq(q(r))", "dq(int8 w)"],
    }


def test_activations_are_symmetric_int8_with_scales_in_the_tensors_type() -> None:
    graph = quantise(CHAIN, {"x": (-2.54, 1.0), "r": 1.27})
    scales = {}
    for node in nodes(graph, "QuantizeLinear"):
        (tensor, scale, zero), (reader,) = node.inputs, node.outputs[0].outputs
        assert zero.dtype == np.int8
        assert zero.values == 0
        assert tensor.dtype == scale.dtype == reader.outputs[0].dtype == np.float16
        assert reader.inputs[1:] == node.inputs[1:], "one scale for both ways"
        scales[tensor.name] = float(scale.values)
    assert scales == {"x_float16": float(np.float16(0.02)), "r": float(np.float16(0.01))}


def test_weights_are_per_output_channel_and_symmetric() -> None:
    codes, scale, node = weight_of(quantise(CHAIN, {"x": 1.0, "r": 1.0}), "first")
    assert node.attrs["axis"] == 0
    assert scale.dtype == np.float16
    np.testing.assert_array_equal(scale, np.array([1 / 127, 0.25 / 127], np.float16))
    np.testing.assert_array_equal(codes.reshape(2, 2), [[127, 64], [-127, 64]])


def test_weights_shared_by_layers_are_quantised_once() -> None:
    graph = quantise(CHAIN, {"x": 1.0, "r": 1.0})
    assert weight_of(graph, "first")[2] is weight_of(graph, "second")[2]


@pytest.mark.parametrize(
    ("layer", "result", "shape", "axis"),
    [
        ("y = ConvTranspose <kernel_shape = [1, 1]> (x, w)", "1, 3, 1, 1", (2, 3, 1, 1), 1),
        ("f = Flatten (x) y = Gemm <transB = 1> (f, w)", "1, 3", (3, 2), 0),
        ("f = Flatten (x) y = Gemm (f, w)", "1, 3", (2, 3), 1),
        ("f = Flatten (x) y = MatMul (f, w)", "1, 3", (2, 3), 1),
    ],
)
def test_the_axis_of_the_output_channels(layer: str, result: str, shape: tuple[int, ...], axis: int) -> None:
    values = np.array([1, 2, 3, 4, 5, -6], np.float32).reshape(shape)
    weight = f"float[{', '.join(map(str, shape))}] w = {{{', '.join(map(str, values.ravel()))}}}"
    graph = quantise(f"{HEADER} g (float[1, 2, 1, 1] x) => (float[{result}] y) <{weight}> {{ {layer} }}", {"x": 1.0})
    (node,) = [node for node in graph.nodes if node.op in ("ConvTranspose", "Gemm", "MatMul")]
    dequantise = node.inputs[1].inputs[0]
    assert dequantise.attrs["axis"] == axis
    largest = np.abs(values).max(axis=tuple(k for k in range(values.ndim) if k != axis))
    np.testing.assert_array_equal(dequantise.inputs[1].values, (largest / 127).astype(np.float16))


def test_groups_of_a_transposed_convolution_share_one_scale() -> None:
    graph = quantise(
        f"""{HEADER} g (float[1, 2, 1, 1] x) => (float[1, 2, 1, 1] y) <float[2, 1, 1, 1] w = {{1.0, -2.0}}> {{
          [up] y = ConvTranspose <group = 2> (x, w)
        }}""",
        {"x": 1.0},
    )
    codes, scale, _ = weight_of(graph, "up")
    assert scale.shape == ()
    assert codes.ravel().tolist() == [64, -127]


def test_the_range_is_that_after_the_activation() -> None:
    graph = quantise(
        f"""{HEADER} g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        <{WEIGHTS}, float low = {{0.0}}, float high = {{6.0}}> {{
          a = Conv (x, w)
          c = Clip (a, low, high)
          [last] y = Conv (c, w)
        }}""",
        {"x": 1.0, "c": 6.0},
    )
    assert wiring(graph)["last"][0] == "dq(q(c))"
    assert wiring(graph)["c"] == ["a", "float16 low", "float16 high"]


RESIDUAL = f"""{HEADER}
residual (float[1, 2, 4, 4] x) => (float[1, 2, 2, 2] y) <{WEIGHTS}> {{
  m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
  [conv1] a = Conv (m, w, b)
  [conv2] c = Conv (a, w, b)
  [downsample] d = Conv (m, w, b)
  [add1] e = Add (c, d)
  r = Relu (e)
  [conv3] f = Conv (r, w, b)
  [add2] g = Add (f, r)
  s = Relu (g)
  [conv4] y = Conv (s, w, b)
}}
"""
RANGES: dict[str, float | tuple[float, float]] = {"x": (-1.0, 1.0), "a": 1.0, "c": 2.0, "d": 2.0, "r": 3.0, "s": 3.0}


def test_of_a_residual_add_only_the_branch_that_is_not_fused_is_quantised() -> None:
    graph = quantise(RESIDUAL, RANGES)
    assert wiring(graph)["add1"] == ["dq(q(c))", "d"], "the downsampling convolution is the later one and hosts the add"
    assert wiring(graph)["add2"] == ["f", "dq(q(r))"]


def test_a_tensor_has_one_pair_however_many_read_it() -> None:
    graph = quantise(RESIDUAL, RANGES)
    quantised = [node.inputs[0].name.removesuffix("_float16") for node in nodes(graph, "QuantizeLinear")]
    assert sorted(quantised) == ["a", "c", "m", "r", "s"]
    read = next(n for n in graph.nodes if n.name == "conv3").inputs[0]
    assert read is next(n for n in graph.nodes if n.name == "add2").inputs[1]


def test_what_maxpool_picks_from_lends_it_its_range() -> None:
    graph = quantise(RESIDUAL, RANGES)
    scale = next(n.inputs[1] for n in nodes(graph, "QuantizeLinear") if n.inputs[0].name == "m_float16")
    assert scale.values == np.float16(1 / 127)


def test_a_kept_convolution_hosts_no_quantised_add() -> None:
    graph = quantise(RESIDUAL, RANGES, keep_fp16=("downsample",))
    assert wiring(graph)["add1"] == ["c", "dq(q(d))"], "the other convolution hosts it"
    assert wiring(graph)["downsample"] == ["m", "float16 w", "float16 b"]
    graph = quantise(RESIDUAL, RANGES, keep_fp16=("downsample", "conv2"))
    assert wiring(graph)["add1"] == ["c", "d"]


def test_layers_kept_in_float32_have_no_pair_and_float32_weights() -> None:
    graph = quantise(RESIDUAL, RANGES, keep_fp32=("conv3",))
    conv3 = next(node for node in graph.nodes if node.name == "conv3")
    assert [tensor.dtype.name for tensor in conv3.inputs] == ["float32"] * 3
    assert "dq" not in str(wiring(graph)["conv3"])
    assert wiring(graph)["conv4"] == ["dq(q(s))", "dq(int8 w)", "float16 b"]


def test_a_scale_is_never_subnormal() -> None:
    graph = quantise(
        f"""{HEADER} g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] w = {{0.001, 0.0, 0.0, 0.0}}> {{
          [only] y = Conv (x, w)
        }}""",
        {"x": 0.0},
    )
    codes, scale, _ = weight_of(graph, "only")
    np.testing.assert_array_equal(scale, np.full(2, SMALLEST_NORMAL, np.float16))
    assert codes.ravel().tolist() == [round(0.001 / SMALLEST_NORMAL), 0, 0, 0]
    assert float(nodes(graph, "QuantizeLinear")[0].inputs[1].values) == SMALLEST_NORMAL


def test_depthwise_convolutions_have_a_scale_for_each_channel() -> None:
    graph = quantise(
        f"""{HEADER} g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 1, 1, 1] w = {{1.0, -3.0}}> {{
          [depthwise] y = Conv <group = 2> (x, w)
        }}""",
        {"x": 1.0},
    )
    codes, scale, node = weight_of(graph, "depthwise")
    assert node.attrs["axis"] == 0
    assert codes.ravel().tolist() == [127, -127]
    np.testing.assert_array_equal(scale, np.array([1 / 127, 3 / 127], np.float16))


def test_an_output_that_layers_read_too_keeps_its_type() -> None:
    graph = quantise(
        f"""{HEADER} g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] a, float[1, 2, 4, 4] y) <{WEIGHTS}> {{
          a = Conv (x, w)
          [second] y = Conv (a, w)
        }}""",
        {"x": 1.0, "a": 12.7},
    )
    assert [output.dtype.name for output in graph.outputs] == ["float32", "float32"]
    scale = next(n for n in graph.nodes if n.name == "second").inputs[0].inputs[0].inputs[1]
    assert scale.values == np.float16(0.1)


# The two networks at hand.


def test_the_rois_are_read_from_the_tensor_itself(tiny: onnx.ModelProto) -> None:
    graph = gs.import_onnx(run_passes(tiny, Recipe("int8", measure(tiny, feeds(2)))))
    for node in graph.nodes:
        if node.op in ("PyramidRoiAlign", "RpnProposals", "DetectionNms"):
            assert not [given for given in node.inputs if given.inputs and given.inputs[0].op == "DequantizeLinear"]


def test_sensitive_layers_stay_float16(tiny: onnx.ModelProto) -> None:
    graph = gs.import_onnx(run_passes(tiny, Recipe("int8", measure(tiny, feeds(2)))))
    reads = wiring(graph)
    for name in ("n24", "n25", "n26", "n27", "n33", "n34", "n39"):
        assert "dq" not in str(reads[name]), name
        assert next(n for n in graph.nodes if n.name == name).inputs[1].dtype == np.float16
    quantised = [
        node.name
        for node in graph.nodes
        if node.op in ("Conv", "Gemm", "ConvTranspose") and "dq" in reads[node.name][1]
    ]
    assert len(quantised) == 5


def test_the_result_is_valid_and_runs(tiny: onnx.ModelProto) -> None:
    model = run_passes(tiny, Recipe("int8", measure(tiny, feeds(2))), keep_bodies=True)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    full, rounded = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds(2)) for m in (tiny, model))
    np.testing.assert_array_equal(full[3], rounded[3])
    np.testing.assert_allclose(full[1], rounded[1], atol=1.0)
    np.testing.assert_allclose(full[4], rounded[4], atol=0.1)
    assert not np.array_equal(full[4], rounded[4]), "rounding must show"


def test_the_same_each_time_and_the_model_is_left_alone(tiny: onnx.ModelProto) -> None:
    recipe = Recipe("int8", measure(tiny, feeds(2)))
    before = tiny.SerializeToString(deterministic=True)
    first, second = (run_passes(tiny, recipe).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert tiny.SerializeToString(deterministic=True) == before


def test_no_range_is_asked_for_that_was_not_measured(tiny: onnx.ModelProto) -> None:
    """Whatever is kept, what is left to quantise lies within what calibration measures."""
    ranges = measure(tiny, feeds(2))
    for node in (node.name for node in tiny.graph.node):
        run_passes(tiny, Recipe("int8", ranges, keep_fp32=(f"^{node}$",)))


# Models that bring their own Q/DQ nodes.

OWN = f"""{HEADER}
own (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
  <int8[2, 2, 1, 1] w = {{100, 50, -25, 12}}, float[2] ws = {{0.01, 0.00001}}, int8[2] wz = {{0, 0}},
   float s = {{0.02}}, int8 z = {{0}}, float[2] b = {{1.0, 2.0}}> {{
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  [weights] v = DequantizeLinear <axis = 0> (w, ws, wz)
  [conv] y = Conv (d, v, b)
}}
"""


def test_a_model_with_qdq_nodes_of_its_own_needs_no_ranges(caplog: pytest.LogCaptureFixture) -> None:
    graph = gs.import_onnx(parser.parse_model(OWN))
    cast_to_fp16(graph, SPEC)
    before = [node.name for node in graph.nodes]
    with caplog.at_level(logging.INFO):
        insert_qdq(graph, SPEC, Recipe("int8"))
    assert [node.name for node in graph.nodes] == before
    assert "tiny brings its own Q/DQ nodes" in caplog.text


def test_its_scales_become_float16_without_casts_in_between() -> None:
    graph = gs.import_onnx(parser.parse_model(OWN))
    cast_to_fp16(graph, SPEC)
    assert [node.op for node in graph.nodes] == [
        "Cast",
        "QuantizeLinear",
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
        "Cast",
    ]
    for node in graph.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            assert node.inputs[1].dtype == np.float16
    onnx.checker.check_model(gs.export_onnx(graph), full_check=True)


def test_its_weights_are_rounded_anew_where_float16_cannot_hold_the_scale() -> None:
    graph = gs.import_onnx(parser.parse_model(OWN))
    cast_to_fp16(graph, SPEC)
    codes, scale, _ = weight_of(graph, "conv")
    np.testing.assert_array_equal(scale, np.array([0.01, SMALLEST_NORMAL], np.float16))
    factor = 0.00001 / SMALLEST_NORMAL
    assert codes.dtype == np.int8
    assert codes.ravel().tolist() == [100, 50, round(-25 * factor), round(12 * factor)]


def test_its_activations_keep_one_scale_for_both_ways() -> None:
    model = parser.parse_model(OWN.replace("float s = {0.02}", "float s = {0.00002}"))
    graph = gs.import_onnx(model)
    cast_to_fp16(graph, SPEC)
    q, d, _ = (node for node in graph.nodes if "Linear" in node.op)
    assert q.inputs[1].values == d.inputs[1].values == np.float16(SMALLEST_NORMAL)


def test_an_opset_without_float16_scales_is_refused() -> None:
    graph = gs.import_onnx(parser.parse_model(OWN.replace('"" : 20', '"" : 17')))
    with pytest.raises(ExportError, match=r"is of opset 17, float16 scales come with 19"):
        cast_to_fp16(graph, SPEC)


def test_its_layers_kept_in_float32_keep_their_scales() -> None:
    graph = gs.import_onnx(parser.parse_model(OWN))
    cast_to_fp16(graph, SPEC, lambda name: name == "conv")
    assert [node.op for node in graph.nodes if node.op == "Cast"] == []
    assert {node.inputs[1].dtype.name for node in graph.nodes if "Linear" in node.op} == {"float32"}


def test_a_whole_network_with_float32_scales_becomes_what_the_ranges_give(tiny: onnx.ModelProto) -> None:
    """As ModelOpt writes it: Q/DQ nodes in a float32 graph."""
    recipe = Recipe("int8", measure(tiny, feeds(2)))
    in_float32 = [*passes_of(Recipe("fp32"), keep_bodies=True), functools.partial(insert_qdq, recipe=recipe)]
    own = apply_passes(tiny, in_float32)
    ours, theirs = run_passes(tiny, recipe, keep_bodies=True), run_passes(own, Recipe("int8"), keep_bodies=True)
    onnx.checker.check_model(theirs, full_check=True)
    graph = gs.import_onnx(theirs)
    assert wiring(graph) == wiring(gs.import_onnx(ours))
    for node in graph.nodes:
        if "Linear" in node.op:
            assert node.inputs[1].dtype == np.float16
            assert not [reader for reader in node.outputs[0].outputs if reader.op == "Cast"]
    first, second = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds(2)) for m in (ours, theirs))
    np.testing.assert_array_equal(first[3], second[3])
    np.testing.assert_allclose(first[4], second[4], atol=0.02)


# What cannot be quantised.


def test_without_ranges(tiny: onnx.ModelProto) -> None:
    with pytest.raises(
        CalibrationError, match=r"no ranges for tiny.*edge-mrcnn calibrate MODEL PICTURES -o ranges.json"
    ):
        run_passes(tiny, Recipe("int8"))


def test_a_tensor_without_a_range() -> None:
    with pytest.raises(CalibrationError, match="no range for tensor 'r'"):
        quantise(CHAIN, {"x": 1.0})


@pytest.mark.parametrize("option", ["keep_fp16", "keep_fp32"])
def test_a_layer_to_keep_that_is_not_there(option: str) -> None:
    path = Path(__file__).parents[3] / "samples" / "tabletop" / "model.onnx"
    recipe = Recipe("int8", make_ranges({}), **{option: ("rpn_haed.conv",)})
    with pytest.raises(ValueError, match=rf"{option}: 'rpn_haed.conv' is found in no layer's name.*rpn_head\.conv\.0"):
        run_passes(onnx.load(path), recipe)


def test_a_weight_that_is_no_number() -> None:
    model = parser.parse_model(CHAIN)
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.full((2, 2, 1, 1), np.inf, np.float32), model.graph.initializer[0].name)
    )
    graph = gs.import_onnx(model)
    cast_to_fp16(graph, SPEC)
    with pytest.raises(EngineError, match=r"weight 'w_float16' holds values that are not finite"):
        insert_qdq(graph, SPEC, Recipe("int8", make_ranges({"x": 1.0, "r": 1.0})))
