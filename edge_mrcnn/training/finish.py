"""What is done to the traced graph before it is written: names, masks, function bodies, metadata.

Each step has one effect on the model, in place. Nothing here needs torch.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any

import onnx
from onnx import TensorProto, helper

from edge_mrcnn.errors import ExportError
from edge_mrcnn.ops import DETECTION_NMS, DOMAIN, OPS, RPN_PROPOSALS, VERSION
from edge_mrcnn.spec import METADATA_KEY, ModelSpec
from edge_mrcnn.training.function_bodies import OPSET, make_function_body

PRODUCER = "edge_mrcnn"
IR_VERSION = 10
"""What opset 20 needs; ONNX Runtime reads it from 1.18 on."""

ROWS = {"proposals": "proposals", "boxes": "detections", "scores": "detections", "labels": "detections"}
"""Outputs of the custom ops whose second dimension is an upper limit, and what that dimension is called."""

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def finish_graph(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Turn the graph traced from `Exportable` into the one that is written.

    Args:
        model: Changed in place. Its outputs become num_detections, boxes, scores, labels, masks.
        spec: Written into the metadata.

    Raises:
        ExportError: The graph is not as expected, such as with batch norms left in it.
    """
    _refuse_batch_norms(model.graph)
    name_nodes(model.graph)
    append_mask_choice(model.graph, spec.mask_size)
    loosen_rows(model.graph)
    strip_traces(model)
    attach_bodies(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = PRODUCER, ""
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, int(VERSION))])
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})


def _refuse_batch_norms(graph: onnx.GraphProto) -> None:
    left = [node.input[1] for node in graph.node if node.op_type == "BatchNormalization"]
    if left:
        raise ExportError(
            f"{len(left)} batch norms could not be folded into a convolution ({', '.join(left[:3])}, ...): "
            "each must directly follow a convolution that nothing else reads"
        )


# -------------------------------------------------------------------------------------------------------------- names
def name_nodes(graph: onnx.GraphProto) -> None:
    """Name nodes and tensors after the module they come from, such as `backbone.body.layer1.0.conv1`.

    Custom ops are called by their role (`box_roi_align`), layers with weights as their weights, others by their
    module and op. Names are part of no contract, but engines, profiles and calibration files show them.
    """
    weights = {tensor.name for tensor in graph.initializer}
    taken: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        base = _node_name(node, weights, taken)
        node.name = base if not taken[base] else f"{base}_{taken[base]}"
        taken[base] += 1
        for index, tensor in enumerate(node.output):
            if tensor not in outputs:
                renamed[tensor] = node.name if len(node.output) == 1 else f"{node.name}_{index}"
    _rename_tensors(graph, renamed)


def _node_name(node: onnx.NodeProto, weights: set[str], taken: Mapping[str, int]) -> str:
    if node.domain == DOMAIN:
        roles = {RPN_PROPOSALS.name: "rpn_proposals", DETECTION_NMS.name: "detection_nms"}
        return roles.get(node.op_type) or ("mask_roi_align" if taken["box_roi_align"] else "box_roi_align")
    for tensor in node.input:
        if tensor in weights and tensor.endswith(".weight"):
            return str(tensor).removesuffix(".weight")
    scopes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES_KEY), "[]")
    module = next((str(scope) for scope in reversed(ast.literal_eval(scopes)[:-1]) if scope), "")
    op = str(node.op_type).lower()
    return module if module.rpartition(".")[2] == op else f"{module}.{op}".lstrip(".")


def _rename_tensors(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)


# -------------------------------------------------------------------------------------------------------------- masks
def append_mask_choice(graph: onnx.GraphProto, mask_size: int) -> None:
    """Replace the last output, the mask logits of all classes, by `masks`: each detection's own class, 0 beyond them.

    Written here and not traced: the number of detections is known only when the network runs (on a CPU it is no more
    than is needed), and a traced reshape would freeze the upper limit.

    Source: torchvision models/detection/roi_heads.py `maskrcnn_inference`.
    """
    logits = graph.output[-1].name
    constants = {
        "masks.column": [-1, 1],
        "masks.side": [mask_size, mask_size],
        "masks.axes": [2, 3],
    }
    for name, value in constants.items():
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [2], value))
    graph.initializer.append(helper.make_tensor("masks.zero", TensorProto.FLOAT, [], [0.0]))
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", ["labels"], "masks.label", {"to": TensorProto.INT64}),
        ("Reshape", ["masks.label", "masks.column"], "masks.index", {}),
        ("GatherND", [logits, "masks.index"], "masks.logits", {"batch_dims": 1}),
        ("Sigmoid", ["masks.logits"], "masks.probability", {}),
        ("Shape", ["labels"], "masks.rows", {}),
        ("Concat", ["masks.rows", "masks.side"], "masks.shape", {"axis": 0}),
        ("Reshape", ["masks.probability", "masks.shape"], "masks.patches", {}),
        ("Greater", ["scores", "masks.zero"], "masks.there", {}),
        ("Cast", ["masks.there"], "masks.weight", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["masks.weight", "masks.axes"], "masks.factor", {}),
        ("Mul", ["masks.patches", "masks.factor"], "masks", {}),
    ]
    graph.node.extend(helper.make_node(op, x, [y], name=y, **attributes) for op, x, y, attributes in steps)
    graph.value_info.append(graph.output.pop())
    shape: list[str | int | None] = ["batch", ROWS["boxes"], mask_size, mask_size]
    graph.output.append(helper.make_tensor_value_info("masks", TensorProto.FLOAT, shape))


def loosen_rows(graph: onnx.GraphProto) -> None:
    """Call the numbers of proposals and detections by name in all shapes: on a CPU they are upper limits."""
    values = {value.name: value.type.tensor_type.shape.dim for value in [*graph.value_info, *graph.output]}
    rows = ""
    for node in graph.node:
        specs = OPS[node.op_type].outputs if node.domain == DOMAIN else ()
        for output, spec in zip_longest(node.output, specs):
            dims = values.get(output, ())
            if spec is not None and spec.name in ROWS:
                rows = ROWS[spec.name]
                dims[1].dim_param = rows
            elif rows and dims and "*" in dims[0].dim_param:
                dims[0].dim_param = f"batch*{rows}"


# ------------------------------------------------------------------------------------------------- bodies and metadata
def strip_traces(model: onnx.ModelProto) -> None:
    """Remove what the exporter noted down: stack traces with paths of this machine, half of a small model's size."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    graph.name = PRODUCER
    for part in chain(graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def attach_bodies(model: onnx.ModelProto) -> None:
    """Give the model a function body for each custom op in it, and check every node against the op's contract.

    Raises:
        PluginError: A node's attributes are not those of the contract.
        ExportError: Two nodes of an op need different bodies.
    """
    bodies: dict[str, onnx.FunctionProto] = {}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        attributes = read_attributes(node)
        body = make_function_body(node.op_type, attributes, len(node.input))
        if bodies.setdefault(node.op_type, body) != body:
            raise ExportError(f"two nodes of {node.op_type} differ in what one function body cannot hold: {attributes}")
    del model.functions[:]
    model.functions.extend(bodies.values())


def read_attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as plain values."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, int | float) else list(value)
