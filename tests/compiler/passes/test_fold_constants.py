from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import parser

from edge_mrcnn.compiler.passes import apply_passes, fold_constants, infer_types
from tests.compiler.tiny_model import SPEC, feeds

GOLDEN = """
<ir_version: 10, opset_import: ["" : 20, "edge_mrcnn" : 1]>
golden (float[batch, 3, 4] x) => (float[batch, 3, 4] y, int64[batch] n, int64[1] size, float[2048, 4096] large)
  <float[3, 1] std = {1.0, 2.0, 4.0}, float one = {1.0}, int64[2] shape = {2048, 4096}, int64[1] second = {1}> {
  inverse = Reciprocal (std)
  doubled = Add (inverse, inverse)
  y = Mul (x, doubled)
  channels = Shape <start: int = 1, end: int = 2> (x)
  size = Shape <start: int = 0, end: int = 1> (x)
  n = Mul (size, channels)
  large = Expand (one, shape)
}
"""


def folded(text: str) -> gs.Graph:
    graph = gs.import_onnx(parser.parse_model(text))
    infer_types(graph, SPEC)
    fold_constants(graph, SPEC)
    return graph


def test_constant_arithmetic_and_static_shapes_are_computed() -> None:
    graph = folded(GOLDEN)
    multiply = next(node for node in graph.nodes if node.op == "Mul" and node.outputs[0].name == "y")
    np.testing.assert_array_equal(multiply.inputs[1].values, np.array([[2.0], [1.0], [0.5]], np.float32))
    ops = [node.op for node in graph.nodes]
    assert "Reciprocal" not in ops
    assert "Add" not in ops
    kept = [node.outputs[0].name for node in graph.nodes if node.op == "Shape"]
    assert kept == ["size"], "the batch is dynamic and its shape must stay; the channels' can be computed"


def test_a_large_constant_is_left_to_be_computed() -> None:
    assert "Expand" in [node.op for node in folded(GOLDEN).nodes]


def test_a_custom_op_with_constant_inputs_stays() -> None:
    graph = folded(
        """<ir_version: 10, opset_import: ["" : 20, "edge_mrcnn" : 1]>
        g (float[1] x) => (float[1] y) <float[1] c = {1.0}> {
          mine = edge_mrcnn.Anything (c)
          y = Add (x, mine)
        }"""
    )
    assert [node.op for node in graph.nodes] == ["Anything", "Add"]


def test_the_network_computes_the_same(tiny: onnx.ModelProto) -> None:
    folded_model = apply_passes(tiny, [infer_types, fold_constants])
    assert len(folded_model.graph.node) < len(tiny.graph.node)
    assert [function.name for function in folded_model.functions] == [function.name for function in tiny.functions]
    before, after = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds(2)) for model in (tiny, folded_model)
    )
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-5)
