"""Function bodies spoilt on purpose: the comparison with the gold functions must find each of them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.training.op_cases import (
    Array,
    Mutation,
    feature_maps,
    nms_attributes,
    nms_inputs,
    random_rois,
    roi_attributes,
    rpn_attributes,
    rpn_inputs,
)
from tests.training.test_function_bodies import check_detections, check_pooled, check_proposals


def ignore(attribute: str, value: float | list[float]) -> Mutation:
    """A body that takes `value` whatever the node's attribute says."""

    def mutate(body: onnx.FunctionProto) -> None:
        (node,) = [node for node in body.node if node.attribute and node.attribute[0].ref_attr_name == attribute]
        kind = "value_floats" if isinstance(value, list) else "value_float"
        node.CopyFrom(helper.make_node("Constant", [], list(node.output), **{kind: value}))

    return mutate


def replace_op(old: str, new: str) -> Mutation:
    """A body in which the last node of one op became one of another op."""

    def mutate(body: onnx.FunctionProto) -> None:
        [node for node in body.node if node.op_type == old][-1].op_type = new

    return mutate


def reverse_ties(body: onnx.FunctionProto) -> None:
    """A body whose last TopK prefers the higher index: it searches the reversed row and turns the indices round."""
    at, top = [(i, node) for i, node in enumerate(body.node) if node.op_type == "TopK"][-1]
    row, index = top.input[0], top.output[1]
    top.input[0], top.output[1] = "reversed_row", "reversed_index"
    before = [
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Constant", [], ["minus_one"], value_ints=[-1]),
        helper.make_node("Constant", [], ["lowest"], value_ints=[-(2**40)]),
        helper.make_node("Slice", [row, "minus_one", "lowest", "one", "minus_one"], ["reversed_row"]),
    ]
    after = [
        helper.make_node("Shape", [row], ["width"], start=1),
        helper.make_node("Sub", ["width", "one"], ["last"]),
        helper.make_node("Sub", ["last", "reversed_index"], [index]),
    ]
    nodes = [*body.node[:at], *before, top, *after, *body.node[at + 1 :]]
    del body.node[:]
    body.node.extend(nodes)


def accept_padding(body: onnx.FunctionProto) -> None:
    """A body of `DetectionNms` that takes proposals without area."""
    width, height, *_ = [node for node in body.node if node.op_type == "Greater"]
    width.op_type = height.op_type = "GreaterOrEqual"


def tied_proposals() -> tuple[list[Array], dict[str, Any]]:
    inputs = rpn_inputs(2)
    for x in inputs[1:]:
        x[:] = 0
    return inputs, rpn_attributes(2, nms_threshold=1.0)


def saturated_proposals() -> tuple[list[Array], dict[str, Any]]:
    inputs = rpn_inputs(2)
    inputs[1] = np.abs(inputs[1]) + 20
    inputs[2] = np.abs(inputs[2]) + 30
    return inputs, rpn_attributes(2)


def padded_detections() -> tuple[list[Array], dict[str, Any]]:
    inputs = nms_inputs(37)
    inputs[1][:, ::2, 2:] = inputs[1][:, ::2, :2]
    return inputs, nms_attributes(min_size=0.0, score_threshold=0.2)


SPOILT: dict[str, tuple[Callable[..., object], Callable[[], tuple[list[Array], dict[str, Any]]], Mutation]] = {
    "proposals: min_size": (
        check_proposals,
        lambda: (rpn_inputs(3), rpn_attributes(3, min_size=30.0)),
        ignore("min_size", 0.0),
    ),
    "proposals: score_threshold": (
        check_proposals,
        lambda: (rpn_inputs(3), rpn_attributes(3, score_threshold=0.95)),
        ignore("score_threshold", 0.0),
    ),
    "proposals: box_weights": (
        check_proposals,
        lambda: (rpn_inputs(3), rpn_attributes(3, box_weights=[10.0, 10.0, 5.0, 5.0])),
        ignore("box_weights", [1.0, 1.0, 1.0, 1.0]),
    ),
    "proposals: clip": (
        check_proposals,
        lambda: (rpn_inputs(3), rpn_attributes(3, bbox_xform_clip=0.2)),
        ignore("bbox_xform_clip", 4.0),
    ),
    "proposals: ties": (check_proposals, tied_proposals, reverse_ties),
    "proposals: rank by logit": (check_proposals, saturated_proposals, replace_op("Sigmoid", "Identity")),
    "pooling: level_eps": (
        check_pooled,
        lambda: ([np.full((2, 1, 4), (0, 0, 112, 112), np.float32), *feature_maps(4)], roi_attributes(4)),
        ignore("level_eps", -1e-3),
    ),
    "pooling: canonical_scale": (
        check_pooled,
        lambda: ([random_rois(5), *feature_maps(4)], roi_attributes(4, output_size=1)),
        ignore("canonical_scale", 100.0),
    ),
    "detections: min_size": (
        check_detections,
        lambda: (nms_inputs(37), nms_attributes(min_size=30.0)),
        ignore("min_size", 0.0),
    ),
    "detections: nms_threshold": (
        check_detections,
        lambda: (nms_inputs(37), nms_attributes(nms_threshold=0.1)),
        ignore("nms_threshold", 0.9),
    ),
    "detections: ties": (
        check_detections,
        lambda: ([x * (i < 2) for i, x in enumerate(nms_inputs(37))], nms_attributes()),
        reverse_ties,
    ),
    "detections: padding": (check_detections, padded_detections, accept_padding),
}


@pytest.mark.parametrize(("check", "case", "mutate"), SPOILT.values(), ids=SPOILT.keys())
def test_a_spoilt_body_is_found_out(
    check: Callable[..., object], case: Callable[[], tuple[list[Array], dict[str, Any]]], mutate: Mutation
) -> None:
    inputs, attributes = case()
    check(inputs, attributes)
    with pytest.raises(AssertionError):
        check(inputs, attributes, mutate)
