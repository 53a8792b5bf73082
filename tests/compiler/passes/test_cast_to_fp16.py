from __future__ import annotations

import logging
import sys

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import TensorProto, helper, parser

from edge_mrcnn.compiler.passes import cast_to_fp16, run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.ops import DOMAIN, OPS
from tests.compiler.tiny_model import SPEC, feeds

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'

GOLDEN = f"""{HEADER}
golden (float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y, float[1, 2, 4, 4] middle, float[1, 2, 4, 4] p)
  <float[2, 2, 1, 1] w = {{1.0, 0.5, -0.5, 1.0}}, float[1] c = {{2.0}}, float[4] scales = {{1.0, 1.0, 0.5, 0.5}}> {{
  scaled = Mul (x, c)
  a = Conv (scaled, w)
  small = Resize <mode: string = "nearest"> (a, , scales)
  middle = Mul (small, c)
  p = Softmax <axis: int = 1> (middle)
  y = Add (middle, small)
}}
"""


def cast(text: str) -> gs.Graph:
    graph = gs.import_onnx(parser.parse_model(text))
    cast_to_fp16(graph, SPEC)
    return graph


def input_types(graph: gs.Graph, op: str, output: str | None = None) -> list[str]:
    nodes = [n for n in graph.nodes if n.op == op and output in (None, n.outputs[0].name)]
    return [tensor.dtype.name for node in nodes for tensor in node.inputs if tensor.name]


def test_float16_starts_at_the_weights_and_is_handed_on() -> None:
    graph = cast(GOLDEN)
    assert input_types(graph, "Mul", "scaled") == ["float32", "float32"], "before the first weighted layer"
    assert input_types(graph, "Conv") == ["float16", "float16"]
    assert input_types(graph, "Resize") == ["float16", "float32"], "scales are float32 by ONNX's schema"
    assert input_types(graph, "Add") == ["float16", "float16"]
    assert input_types(graph, "Softmax") == ["float32"]


def test_inputs_and_outputs_keep_their_types_and_values() -> None:
    before = parser.parse_model(GOLDEN)
    after = gs.export_onnx(cast(GOLDEN))
    for old, new in zip(
        [*before.graph.input, *before.graph.output], [*after.graph.input, *after.graph.output], strict=True
    ):
        assert (old.name, old.type) == (new.name, new.type)
    onnx.checker.check_model(after, full_check=True)
    feed = {"x": np.linspace(-1, 1, 128, dtype=np.float32).reshape(1, 2, 8, 8)}
    results = [onnxruntime.InferenceSession(m.SerializeToString()).run(None, feed) for m in (before, after)]
    for old, new in zip(*results, strict=True):
        np.testing.assert_allclose(old, new, rtol=4e-3, atol=4e-3)


def test_a_tensor_is_cast_once_for_all_that_want_it() -> None:
    graph = cast(
        f"""{HEADER}
        g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 2, 1, 1] w = {{1.0, 0.5, -0.5, 1.0}}> {{
          a = Conv (x, w)
          b = Conv (x, w)
          y = Add (a, b)
        }}"""
    )
    assert [node.op for node in graph.nodes] == ["Cast", "Conv", "Conv", "Add", "Cast"]


def test_what_mixes_both_types_is_computed_in_float32() -> None:
    graph = cast(
        f"""{HEADER}
        g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 2, 1, 1] w = {{1.0, 0.5, -0.5, 1.0}}> {{
          a = Conv (x, w)
          y = Add (a, x)
        }}"""
    )
    assert input_types(graph, "Add") == ["float32", "float32"]


def test_a_constant_shared_by_both_types_is_there_twice() -> None:
    graph = cast(GOLDEN)
    assert input_types(graph, "Mul", "scaled")[1] == "float32"
    assert next(n for n in graph.nodes if n.op == "Mul" and n.outputs[0].name != "scaled").inputs[1].dtype == np.float16


def weighted(value: str) -> str:
    return f"""{HEADER}
    g (float[1, 1] x) => (float[1, 2] y) <float[1, 2] the_weight = {{{value}}}> {{ y = MatMul (x, the_weight) }}"""


def test_a_weight_beyond_float16_is_refused() -> None:
    with pytest.raises(EngineError, match=r"'the_weight' reaches 70000.*65504.*--precision fp32"):
        cast(weighted("1.0, -70000.0"))


def test_a_weight_that_is_no_number_is_refused() -> None:
    model = parser.parse_model(weighted("1.0, 2.0"))
    model.graph.initializer[0].CopyFrom(
        helper.make_tensor("the_weight", TensorProto.FLOAT, [1, 2], [1.0, float("nan")])
    )
    with pytest.raises(EngineError, match="'the_weight' holds values that are not numbers"):
        cast_to_fp16(gs.import_onnx(model), SPEC)


def test_infinity_is_a_constant_like_any_other() -> None:
    model = parser.parse_model(weighted("1.0, 2.0"))
    model.graph.initializer[0].CopyFrom(
        helper.make_tensor("the_weight", TensorProto.FLOAT, [1, 2], [1.0, float("-inf")])
    )
    graph = gs.import_onnx(model)
    cast_to_fp16(graph, SPEC)
    assert np.isneginf(next(n for n in graph.nodes if n.op == "MatMul").inputs[1].values[0, 1])


def test_subnormal_weights_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        cast(weighted("1.0, 0.00001"))
    assert "1 of 2 weights are subnormal or zero in float16" in caplog.text


def test_a_few_subnormal_weights_are_not_worth_a_word(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[cast_to_fp16.__module__], "TOLERATED", 0.5)
    with caplog.at_level(logging.INFO):
        cast(weighted("1.0, 0.00001"))
    assert not caplog.text


def test_control_flow_is_refused() -> None:
    with pytest.raises(ExportError, match=r"\(If\) is control flow"):
        cast(
            f"""{HEADER}
            g (float[1] x, bool c) => (float[1] y) {{
              y = If (c) <then_branch = t () => (float[1] a) {{ a = Identity (x) }},
                          else_branch = e () => (float[1] b) {{ b = Neg (x) }}>
            }}"""
        )


def test_an_op_without_schema_is_refused() -> None:
    with pytest.raises(ExportError, match=r"'odd': ONNX knows no op other\.Twice"):
        cast(
            """<ir_version: 10, opset_import: ["" : 20, "other" : 1]>
            g (float[1] x) => (float[1] y) { [odd] y = other.Twice (x) }"""
        )


KEEPING = f"""{HEADER}
keeping (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) <float[2, 2, 1, 1] w = {{1.0, 0.5, -0.5, 1.0}}> {{
  [first] a = Conv (x, w)
  [act] b = Relu (a)
  [second] c = Conv (b, w)
  [join] d = Add (c, b)
  [third] y = Conv (d, w)
}}
"""


def keep(*names: str) -> dict[str, str]:
    """Type by node of a network in which some nodes are kept in float32."""
    graph = gs.import_onnx(parser.parse_model(KEEPING))
    cast_to_fp16(graph, SPEC, lambda name: name in names)
    onnx.checker.check_model(gs.export_onnx(graph), full_check=True)
    onnx.shape_inference.infer_shapes(gs.export_onnx(graph), strict_mode=True)
    types = {}
    for node in graph.nodes:
        if node.op != "Cast":
            (types[node.name],) = {tensor.dtype.name for tensor in [*node.inputs, *node.outputs]} - {"y"}
    return types


def test_a_layer_kept_in_float32_does_not_draw_others_after_it() -> None:
    types = keep("second")
    assert types.pop("second") == "float32"
    assert set(types.values()) == {"float16"}


def test_neighbours_kept_in_float32_hand_on_float32() -> None:
    types = keep("first", "act")
    assert (types["first"], types["act"]) == ("float32", "float32")
    assert (types["second"], types["join"]) == ("float16", "float16")
    graph = gs.import_onnx(parser.parse_model(KEEPING))
    cast_to_fp16(graph, SPEC, lambda name: name in ("first", "act"))
    act = next(node for node in graph.nodes if node.name == "act")
    assert act.inputs[0].inputs[0].name == "first", "no cast between them"


def test_an_add_kept_in_float32() -> None:
    types = keep("join")
    assert types.pop("join") == "float32"
    assert set(types.values()) == {"float16"}


@pytest.fixture
def half(tiny: onnx.ModelProto) -> onnx.ModelProto:
    """The tiny network in float16, function bodies kept."""
    return run_passes(tiny, Recipe("fp16"), keep_bodies=True)


def test_the_float32_islands_of_the_contracts(half: onnx.ModelProto) -> None:
    graph = gs.import_onnx(half)
    custom = [node for node in graph.nodes if node.domain == DOMAIN]
    assert len(custom) == 4
    for node in custom:
        op = OPS[node.op]
        specs = [*op.expand_inputs(op.levels(len(node.inputs))), *op.outputs]
        for spec, tensor in zip(specs, [*node.inputs, *node.outputs], strict=True):
            assert tensor.dtype == ("float16" if spec.dtype == "features" else spec.dtype), (node.op, spec.name)


def test_every_weighted_layer_is_float16_and_normalisation_is_not(half: onnx.ModelProto) -> None:
    graph = gs.import_onnx(half)
    for node in graph.nodes:
        if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            assert {tensor.dtype.name for tensor in node.inputs} == {"float16"}, node.op
        if node.op in ("Div", "Sub", "Mul", "Less"):
            assert {tensor.dtype.name for tensor in node.inputs} == {"float32"}, node.op
    casts = [n for n in graph.nodes if n.op == "Cast" and n.attrs["to"] in (TensorProto.FLOAT16, TensorProto.FLOAT)]
    assert len(casts) == 4, "two of the model's own, the picture into float16, the masks out of it"


def test_the_types_hold_under_strict_inference(half: onnx.ModelProto) -> None:
    onnx.checker.check_model(half, full_check=True)
    onnx.shape_inference.infer_shapes(half, strict_mode=True, data_prop=True)


def test_detections_stay_close(tiny: onnx.ModelProto, half: onnx.ModelProto) -> None:
    full, rounded = (
        dict(
            zip(
                [o.name for o in m.graph.output],
                onnxruntime.InferenceSession(m.SerializeToString()).run(None, feeds(3)),
                strict=True,
            )
        )
        for m in (tiny, half)
    )
    np.testing.assert_array_equal(full["labels"], rounded["labels"])
    np.testing.assert_allclose(full["boxes"], rounded["boxes"], atol=0.05)
    np.testing.assert_allclose(full["scores"], rounded["scores"], atol=5e-3)
    np.testing.assert_allclose(full["masks"], rounded["masks"], atol=2e-2)
    assert not np.array_equal(full["masks"], rounded["masks"]), "float16 must show"
