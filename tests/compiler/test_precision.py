"""Work and precision of layers, counted by hand on graphs small enough to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mrcnn.compiler.passes import apply_passes, bind_plugins, cast_to_fp16, infer_types, remove_function_bodies
from edge_mrcnn.compiler.precision import LayerPrecision, int8_share, layer_precisions, requested_table
from edge_mrcnn.sidecar import PrecisionShare
from edge_mrcnn.spec import ModelSpec
from tests.compiler.tiny_model import CANVAS, CHANNELS, CLASSES, DETECTIONS, MASK, PATCH, PROPOSALS, SPEC

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop" / "model.onnx"


C, P, D = CHANNELS, PROPOSALS, DETECTIONS

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)]


def layer(op: str, image: list[int | str], weight: list[int], **attributes: Any) -> onnx.ModelProto:
    """A model of one layer."""
    return make_model([helper.make_node(op, ["x", "w"], ["y"], "layer", **attributes)], image, {"w": np.zeros(weight)})


def make_model(nodes: list[onnx.NodeProto], image: list[int | str], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    kept = {name: w.astype(np.float32) if w.dtype == np.float64 else w for name, w in weights.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in kept.items()],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=10)


WORK = [
    # layer, its work by hand
    (layer("Conv", ["n", 3, 32, 48], [16, 3, 3, 3], strides=[2, 2], pads=[1] * 4), (16 * 16 * 24) * (3 * 3 * 3)),
    (layer("Conv", ["n", 8, 10, 10], [8, 1, 5, 5], group=8), (8 * 6 * 6) * (1 * 5 * 5)),
    (layer("Conv", ["n", 8, 10, 10], [4, 4, 1, 1], group=2), (4 * 10 * 10) * 4),
    (layer("Conv", ["n", 8, 10, 10], [4, 8, 3, 3], dilations=[2, 2]), (4 * 6 * 6) * (8 * 3 * 3)),
    # each of 6 x 7 inputs of 8 channels is spread over 2 x 2 outputs of 5 channels
    (layer("ConvTranspose", ["n", 8, 6, 7], [8, 5, 2, 2], strides=[2, 2]), (6 * 7 * 8) * (2 * 2 * 5)),
    (layer("Gemm", ["n", 20], [6, 20], transB=1), 20 * 6),
    (layer("Gemm", ["n", 20], [20, 6]), 20 * 6),
    (layer("Gemm", ["n", 20], [1, 6], transA=1), 20 * 6),
    (layer("MatMul", ["n", 7, 20], [20, 6]), 7 * 20 * 6),
]


@pytest.mark.parametrize(("model", "macs"), WORK, ids=range(len(WORK)))
def test_the_work_of_a_layer_for_one_picture(model: onnx.ModelProto, macs: int) -> None:
    before = model.SerializeToString()
    assert [(found.name, found.precision, found.macs) for found in layer_precisions(model, SPEC)] == [
        ("layer", "float32", macs)
    ]
    assert model.SerializeToString() == before


def test_sides_that_are_left_open_are_the_specs() -> None:
    (found,) = layer_precisions(layer("Conv", ["n", "h", "w", 3], [4, 64, 1, 1]), SPEC)
    assert found.macs == (96 * 3 * 4) * CANVAS[0]


def test_a_product_of_activations_is_no_layer() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["z"], "other_way", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "z"], ["square"], "gram"),
        helper.make_node("Transpose", ["w"], ["v"], "weight", perm=[1, 0]),
        helper.make_node("MatMul", ["square", "v"], ["y"], "layer"),
    ]
    (found,) = layer_precisions(make_model(nodes, ["n", 5, 7], {"w": np.zeros((4, 5))}), SPEC)
    assert (found.name, found.macs) == ("layer", 5 * 5 * 4)


def test_what_follows_on_an_output_of_a_custom_op_has_shapes(tiny: onnx.ModelProto) -> None:
    """`boxes` is an output of the network too."""
    tiny.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 4), np.float32), "w"))
    tiny.graph.node.append(helper.make_node("MatMul", ["boxes", "w"], ["moved"], "moved"))
    assert layer_precisions(tiny, SPEC)[-1].macs == D * 4 * 4


def test_a_layer_whose_shape_is_not_known_is_named() -> None:
    nodes = [
        helper.make_node("Unknown", ["x"], ["z"], "odd", domain="elsewhere"),
        helper.make_node("MatMul", ["z", "w"], ["y"], "lost"),
    ]
    with pytest.raises(ValueError, match=r"node 'lost' \(MatMul\): the shape of z, y is not known"):
        layer_precisions(make_model(nodes, ["n", 4], {"w": np.zeros((4, 4))}), SPEC)


def quantised(activation: np.dtype | None, weight: np.dtype | None) -> onnx.ModelProto:
    """A product of 8-bit operands; None leaves one as it is."""
    nodes, weights, image, matrix = [], {"s": np.float32([0.1]).reshape(())}, "x", "w"
    if activation is not None:
        weights["zx"] = np.zeros((), activation)
        nodes.append(helper.make_node("QuantizeLinear", ["x", "s", "zx"], ["xq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["xq", "s", "zx"], ["xd"]))
        image = "xd"
    weights["w"] = np.ones((400, 6), np.float32 if weight is None else weight)
    if weight is not None:
        nodes.append(helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]))
        matrix = "wd"
    return make_model([*nodes, helper.make_node("MatMul", [image, matrix], ["y"], "layer")], ["n", 400], weights)


@pytest.mark.parametrize(
    ("activation", "weight", "precision"),
    [
        (np.int8, np.int8, "int8"),
        (np.uint8, np.int8, "int8"),
        (np.uint8, np.uint8, "int8"),
        (np.int16, np.int8, "float32"),
        (np.int8, None, "float32"),
        (None, np.int8, "float32"),
    ],
)
def test_int8_takes_both_operands(activation: Any, weight: Any, precision: str) -> None:
    (found,) = layer_precisions(quantised(activation, weight), SPEC)
    assert (found.precision, found.macs) == (precision, 400 * 6)


TINY = [
    # the layers of the tiny network, in its order, at one picture of 64 x 96
    ("Conv", (32 * 48 * C) * (3 * 9)),
    ("Conv", (16 * 24 * C) * (C * 9)),
    ("Conv", (8 * 12 * C) * (C * 9)),
    ("Conv", (16 * 24 * 1) * C),
    ("Conv", (8 * 12 * 1) * C),
    ("Conv", (16 * 24 * 4) * C),
    ("Conv", (8 * 12 * 4) * C),
    ("Gemm", P * (C * PATCH * PATCH) * 16),
    ("Gemm", P * 16 * CLASSES),
    ("MatMul", P * 16 * 4 * CLASSES),
    ("ConvTranspose", D * (PATCH * PATCH * C) * (2 * 2 * C)),
    ("Conv", D * (MASK * MASK * CLASSES) * C),
]


def test_every_row_of_proposals_and_detections_counts(tiny: onnx.ModelProto) -> None:
    assert [(found.op, found.macs) for found in layer_precisions(tiny, SPEC)] == TINY


@pytest.mark.parametrize("keep_bodies", [False, True])
def test_passes_change_the_precision_and_not_the_work(tiny: onnx.ModelProto, keep_bodies: bool) -> None:
    passes = [infer_types, bind_plugins, cast_to_fp16, *([] if keep_bodies else [remove_function_bodies])]
    found = layer_precisions(apply_passes(tiny, passes), SPEC)
    assert [(item.op, item.macs) for item in found] == TINY
    assert {item.precision for item in found} == {"float16"}


def test_a_real_model() -> None:
    model = onnx.load(TABLETOP)
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    found = {item.name: item for item in layer_precisions(model, spec)}
    weighted = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert list(found) == weighted
    rows, count, classes = spec.proposals, spec.detections, len(spec.class_names)
    assert found["backbone.body.stem.0"].macs == (160 * 208 * 24) * (3 * 9)
    assert found["box_head.fc6"].macs == rows * (64 * 7 * 7) * 256
    assert found["box_head.fc7"].macs == rows * 256 * 256
    assert found["mask_predictor.conv5_mask"].macs == count * (14 * 14 * 64) * (2 * 2 * 64)
    assert found["mask_predictor.mask_fcn_logits"].macs == count * (28 * 28 * classes) * 64


def test_the_table_by_precision() -> None:
    layers = [
        LayerPrecision("a", "Conv", "int8", 70),
        LayerPrecision("b", "Conv", "float16", 10),
        LayerPrecision("c", "Gemm", "int8", 20),
    ]
    table = requested_table(layers)
    assert table == (PrecisionShare("int8", 2, 90, 0.9), PrecisionShare("float16", 1, 10, 0.1))
    assert int8_share(table) == 0.9
    assert int8_share(requested_table(layers[1:2])) == 0.0
    assert requested_table([]) == ()
