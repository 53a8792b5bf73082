"""Structure of golden graphs, and of the two networks at hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import parser

from edge_mrcnn.compiler.placement import (
    measured_tensors,
    ort_placement,
    quantisable_nodes,
    range_source,
    sensitive_nodes,
    tensorrt_inputs,
    weighted_nodes,
)

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop" / "model.onnx"

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'

RESIDUAL = f"""{HEADER}
residual (float[1, 2, 8, 8] x) => (float[1, 2, 4, 4] y, float[1, 2, 4, 4] z)
  <float[2, 2, 1, 1] w = {{1.0, 0.5, -0.5, 1.0}}, float low = {{0.0}}, float high = {{6.0}}> {{
  [stem] a = Conv (x, w)
  b = Relu (a)
  c = MaxPool <kernel_shape: ints = [2, 2], strides: ints = [2, 2]> (b)
  [first] d = Conv (c, w)
  e = Clip (d, low, high)
  [second] f = Conv (e, w)
  [down] g = Conv (c, w)
  h = Add (f, g)
  i = Relu (h)
  [third] j = Conv (i, w)
  y = Add (j, i)
  z = Mul (j, j)
}}
"""


def tensorrt_tensors(graph: gs.Graph, layers: Iterable[gs.Node]) -> list[str]:
    return sorted({node.inputs[index].name for node, index in tensorrt_inputs(graph, list(layers))})


@pytest.fixture
def residual() -> gs.Graph:
    return gs.import_onnx(parser.parse_model(RESIDUAL))


def test_a_product_of_two_activations_has_no_weights() -> None:
    model = parser.parse_model(
        f"""{HEADER}
        g (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {{1.0, 0.5, -0.5, 1.0}}> {{
          v = Neg (w)
          [by_weights] a = MatMul (x, v)
          [by_itself] y = MatMul (a, a)
        }}"""
    )
    assert [node.name for node in weighted_nodes(model)] == ["by_weights"]


def test_a_network_may_be_deeper_than_pythons_stack() -> None:
    names = [f"t{index}" for index in range(2001)]
    nodes = [onnx.helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)]
    product = onnx.helper.make_node("MatMul", ["t0", names[-1]], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in ("t0", "y")]
    graph = onnx.helper.make_graph([*nodes, product], "deep", values[:1], values[1:])
    assert weighted_nodes(onnx.helper.make_model(graph)) == ()


def test_tensorrt_wants_what_layers_read_and_the_branch_that_is_not_fused(residual: gs.Graph) -> None:
    placed = tensorrt_tensors(residual, quantisable_nodes(residual))
    # The later convolution of the block hosts its add: `down`. The last add has no host, since j is read twice.
    assert placed == ["c", "e", "f", "i", "x"]


def test_an_add_without_a_quantised_convolution_stays_as_it_is(residual: gs.Graph) -> None:
    first = [node for node in residual.nodes if node.name == "first"]
    assert tensorrt_tensors(residual, first) == ["c"]


def test_the_earlier_convolution_hosts_an_add_where_the_later_is_kept(residual: gs.Graph) -> None:
    kept = [node for node in quantisable_nodes(residual) if node.name != "down"]
    assert tensorrt_tensors(residual, kept) == ["c", "e", "g", "i", "x"]


def test_integer_kernels_want_both_branches_and_what_comes_out(residual: gs.Graph) -> None:
    placed = ort_placement(residual, quantisable_nodes(residual))
    assert sorted(placed.ranges) == ["b", "c", "e", "f", "g", "i", "j", "x", "y"]
    assert placed.ranges["c"] == "b", "what MaxPool picks from is read with the scale it was written with"
    assert all(placed.ranges[name] == name for name in placed.ranges if name != "c")
    assert [node.op for node in placed.nodes] == ["Conv", "Conv", "Conv", "Conv", "Add", "Conv", "Add"]


def test_a_tensor_that_is_moved_on_has_its_sources_range(residual: gs.Graph) -> None:
    tensors = residual.tensors()
    assert range_source(tensors["c"]) is tensors["b"]
    assert range_source(tensors["i"]) is tensors["i"]


def test_nothing_is_measured_that_no_dialect_needs() -> None:
    # Not a, d and h, so that their activations still fuse; not c, which only moves b.
    assert measured_tensors(parser.parse_model(RESIDUAL)) == ("x", "b", "e", "f", "g", "i", "j", "y")


def test_the_last_layers_before_boxes_scores_and_masks_are_sensitive(tiny: onnx.ModelProto) -> None:
    readers = {name: node for node in tiny.graph.node for name in node.input}
    ends = {node.name for node in sensitive_nodes(tiny)}
    assert len(ends) == 7, "objectness and deltas of two levels, classes, boxes, masks"
    for node in tiny.graph.node:
        if node.name in ends:
            assert readers[node.output[0]].op_type in ("RpnProposals", "DetectionNms", "GatherElements")


def test_the_bundled_model() -> None:
    model = onnx.load(TABLETOP)
    sensitive = {node.name.removesuffix(f"_{n}") for node in sensitive_nodes(model) for n in range(1, 5)}
    roots = {
        "rpn_head.cls_logits",
        "rpn_head.bbox_pred",
        "box_predictor.cls_score",
        "box_predictor.bbox_pred",
        "mask_predictor.mask_fcn_logits",
    }
    assert roots <= sensitive
    assert all(any(name.startswith(root) for root in roots) for name in sensitive)
    assert len(weighted_nodes(model)) == 75
    assert len(quantisable_nodes(model)) == 62
    measured = measured_tensors(model)
    assert measured[0] == "mul", "the normalised picture, and nothing before it"
    assert {"box_roi_align", "mask_roi_align"} <= set(measured), "what the heads read"
    own = {"rpn_proposals", "boxes", "scores", "image_hw", "mask_logits", "box_head.relu_1"}
    assert not own & set(measured), "boxes, and what only sensitive layers read or write"
    assert not [name for name in measured if name.endswith(("stem.0", "conv.0.0", "resize", "maxpool"))]
