"""The new graph, written node by node; each node gets a name after its part and shapes on two canvases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper, numpy_helper

from edge_mrcnn.compiler.function_bodies import OPSET
from edge_mrcnn.compiler.raw.survey import MismatchError
from edge_mrcnn.ops import DOMAIN, PLUGIN_ATTRIBUTES, VERSION

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape]
"""Of a tensor of one picture: on the canvas that the old graph is read with, and on that of the new graph."""


class Writer:
    """Adds nodes to a new graph.

    Attributes:
        graph: The new graph.
        shapes: Of each tensor that depends on pixels, by `id`.
    """

    def __init__(self) -> None:
        """Start with an empty graph."""
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, int(VERSION))]
        self.graph = gs.Graph(opset=OPSET, import_domains=domains)
        self.shapes: dict[int, Shapes] = {}
        self._taken: Counter[str] = Counter()

    def name(self, base: str) -> str:
        """A name that nothing else has."""
        self._taken[base] += 1
        return base if self._taken[base] == 1 else f"{base}_{self._taken[base] - 1}"

    def constant(self, name: str, value: Array) -> gs.Constant:
        """A constant under a name of its own."""
        return gs.Constant(self.name(name), np.ascontiguousarray(value))

    def add(self, op: str, inputs: Sequence[gs.Tensor], part: str, **attributes: Any) -> gs.Variable:
        """Append a node of a standard op with one output.

        Args:
            op: Name of the op.
            inputs: Its tensors; one that depends on pixels must have shapes.
            part: What the node belongs to; its name begins with it.
            attributes: Of the node.

        Raises:
            MismatchError: The shapes do not fit the op.
        """
        name = self.name(f"{part}.{op.lower()}")
        output = gs.Variable(name, np.float32)
        node = gs.Node(op, name, attributes, list(inputs), [output])
        known = [self.shapes[id(tensor)] for tensor in inputs if id(tensor) in self.shapes]
        if known:
            self.shapes[id(output)] = (self._infer(node, 0), self._infer(node, 1))
        self.graph.nodes.append(node)
        return output

    def add_op(self, op: str, inputs: Sequence[gs.Tensor], name: str, outputs: Sequence[str], **given: Any) -> gs.Node:
        """Append a custom op."""
        results = [gs.Variable(self.name(each)) for each in outputs]
        node = gs.Node(op, name, {**given, **PLUGIN_ATTRIBUTES}, list(inputs), results, domain=DOMAIN)
        self.graph.nodes.append(node)
        return node

    def rewrite(self, tensor: gs.Variable) -> None:
        """Infer a tensor's shapes again after its node was changed."""
        node = tensor.inputs[0]
        self.shapes[id(tensor)] = (self._infer(node, 0), self._infer(node, 1))

    def _infer(self, node: gs.Node, which: int) -> Shape:
        """Shape of a node's output on one of the two canvases, for one picture."""
        types, data, names = {}, {}, []
        for place, tensor in enumerate(node.inputs):
            name = "" if tensor.is_empty() else f"x{place}"
            names.append(name)
            if isinstance(tensor, gs.Constant):
                types[name] = helper.make_tensor_type_proto(
                    helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), list(tensor.shape)
                )
                if tensor.values.ndim < 2:
                    data[name] = numpy_helper.from_array(tensor.values, name)
            elif name:
                types[name] = helper.make_tensor_type_proto(TensorProto.FLOAT, list(self.shapes[id(tensor)][which]))
        proto = helper.make_node(node.op, names, ["y"], **node.attrs)
        schema = onnx.defs.get_schema(node.op, OPSET)
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
            )["y"]
        except Exception as error:  # the C++ errors of onnx are RuntimeError and others, by version
            raise MismatchError(f"inputs that fit a {node.op}", str(error).strip().splitlines()[0]) from error
        dims = found.tensor_type.shape.dim
        if not all(dim.HasField("dim_value") for dim in dims):
            raise MismatchError(f"a {node.op} whose result has a known shape", names)
        return tuple(int(dim.dim_value) for dim in dims)


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as `Writer.add` takes them, without those that hold graphs or tensors."""
    return {name: value for name, value in attributes.items() if not isinstance(value, (gs.Graph, gs.Tensor))}
