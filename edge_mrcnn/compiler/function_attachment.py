"""What makes a graph with custom ops a model of its own: their function bodies, the versions it needs, and its spec."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import helper

from edge_mrcnn.compiler.function_bodies import OPSET, make_function_body
from edge_mrcnn.errors import ExportError
from edge_mrcnn.ops import DOMAIN, VERSION
from edge_mrcnn.spec import METADATA_KEY, ModelSpec

PRODUCER = "edge_mrcnn"
IR_VERSION = 10
"""What opset 20 needs; ONNX Runtime reads it from 1.18 on."""


def stamp_model(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Attach the bodies, and write who made the model, the versions it needs, and its spec.

    Raises:
        PluginError: A node's attributes are not those of the contract.
        ExportError: Two nodes of an op need different bodies.
    """
    attach_bodies(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = PRODUCER, ""
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, int(VERSION))])
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})


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
