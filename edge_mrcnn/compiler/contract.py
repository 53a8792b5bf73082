"""Holds a custom op's node in a graph against its `OpSpec`, before TensorRT sees it.

TensorRT's parser answers a wrong node with a message about its own internals, and a plugin that rejects a type
corrupts the heap. So everything that can be known from the graph is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.errors import PluginError
from edge_mrcnn.ops import DOMAIN, OPS, PLUGIN_ATTRIBUTES, OpSpec, TensorSpec

FEATURE_TYPES = ("float32", "float16")

EXPORT_AGAIN = "export the model again with this version: edge-mrcnn export"


def custom_nodes(graph: gs.Graph) -> Iterator[tuple[gs.Node, OpSpec]]:
    """Each node of one of our ops with its contract, in the graph's order.

    Raises:
        PluginError: A node of our domain has no contract, or one of our names stands in another domain.
    """
    for node in graph.nodes:
        if node.domain == DOMAIN:
            if node.op not in OPS:
                raise PluginError(
                    f"node {node.name!r}: there is no op {DOMAIN}.{node.op}, expected one of {', '.join(OPS)}; "
                    f"{EXPORT_AGAIN}"
                )
            yield node, OPS[node.op]
        elif node.op in OPS:
            raise PluginError(
                f"node {node.name!r}: {node.op} stands in domain {node.domain or 'ai.onnx'!r}, expected {DOMAIN!r}; "
                f"{EXPORT_AGAIN}"
            )


def check_node(node: gs.Node, op: OpSpec) -> None:
    """Check attributes, number of inputs and outputs, and types and shapes as far as the graph knows them.

    Raises:
        PluginError: Something differs; the message names the node, what was expected and what was found.
    """
    try:
        op.check_attributes(node.attrs)
        levels = op.levels(len(node.inputs))
    except PluginError as error:
        raise PluginError(f"node {node.name!r}: {error}") from error
    for name, value in PLUGIN_ATTRIBUTES.items():
        _expect(node, name, value, node.attrs.get(name, value))
    _expect(node, "number of outputs", len(op.outputs), len(node.outputs))
    for tensor, given in zip(op.expand_inputs(levels), node.inputs, strict=True):
        _check_input(node, tensor, given)
    _check_feature_types(node, op)
    _check_levels(node, op, levels)


def feature_tensors(node: gs.Node, op: OpSpec) -> list[gs.Tensor]:
    """The inputs of a node that share its `features` type."""
    specs = op.expand_inputs(op.levels(len(node.inputs)))
    return [given for tensor, given in zip(specs, node.inputs, strict=True) if tensor.dtype == "features"]


def describe_outputs(node: gs.Node, op: OpSpec) -> None:
    """Write the contract's types and shapes on outputs that have none, so that inference needs no function body."""
    features = next((t.dtype for t in feature_tensors(node, op) if t.dtype is not None), np.dtype(np.float32))
    known = [tensor.shape or [None] * len(spec.shape) for spec, tensor in _pairs(node, op)]
    shapes = op.output_shapes(known, node.attrs, multiply=_multiply)
    for spec, tensor, shape in zip(op.outputs, node.outputs, shapes, strict=True):
        tensor.dtype = tensor.dtype or np.dtype(features if spec.dtype == "features" else spec.dtype)
        tensor.shape = tensor.shape or list(shape)


def _pairs(node: gs.Node, op: OpSpec) -> list[tuple[TensorSpec, gs.Tensor]]:
    return list(zip(op.expand_inputs(op.levels(len(node.inputs))), node.inputs, strict=True))


def _multiply(a: Any, b: Any) -> int | None:
    return a * b if isinstance(a, int) and isinstance(b, int) else None


def _check_input(node: gs.Node, spec: TensorSpec, tensor: gs.Tensor) -> None:
    if tensor.dtype is not None:
        expected = FEATURE_TYPES if spec.dtype == "features" else (spec.dtype,)
        found = np.dtype(tensor.dtype).name
        if found not in expected:
            raise _differs(node, f"type of input {spec.name}", " or ".join(expected), found)
    if tensor.shape is not None:
        _expect(node, f"rank of input {spec.name} {spec.shape}", len(spec.shape), len(tensor.shape))
        for expected_dim, dim in zip(spec.shape, tensor.shape, strict=True):
            if isinstance(expected_dim, int) and isinstance(dim, int):
                _expect(node, f"shape of input {spec.name}", spec.shape, tuple(tensor.shape), equal=expected_dim == dim)


def _check_feature_types(node: gs.Node, op: OpSpec) -> None:
    found = {np.dtype(tensor.dtype).name for tensor in feature_tensors(node, op) if tensor.dtype is not None}
    if len(found) > 1:
        raise _differs(node, "types of its feature inputs", "one for all", " and ".join(sorted(found)))


def _check_levels(node: gs.Node, op: OpSpec, levels: int) -> None:
    """The attributes that hold numbers per level are as long as there are levels."""
    if "strides" in node.attrs:
        _expect(node, "number of strides", levels, len(node.attrs["strides"]))
    if "cell_anchors" not in node.attrs:
        return
    anchors = [tensor.shape[1] for spec, tensor in _pairs(node, op) if spec.name == "objectness0" and tensor.shape]
    if anchors and isinstance(anchors[0], int):
        _expect(node, "length of cell_anchors", levels * anchors[0] * 4, len(node.attrs["cell_anchors"]))


def _expect(node: gs.Node, what: str, expected: Any, found: Any, *, equal: bool | None = None) -> None:
    if not (expected == found if equal is None else equal):
        raise _differs(node, what, expected, found)


def _differs(node: gs.Node, what: str, expected: Any, found: Any) -> PluginError:
    return PluginError(f"node {node.name!r} ({node.op}): {what}: expected {expected}, found {found}; {EXPORT_AGAIN}")
