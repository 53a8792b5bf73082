"""Writing an ONNX function node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, helper

from edge_mrcnn.ops import DOMAIN, PLUGIN_ATTRIBUTES, OpSpec

OPSET = 20
"""Of the bodies and of the exported graph: the first that has RoiAlign, GridSample and IsNaN in all float types."""

_KINDS: Mapping[str, AttributeProto.AttributeType] = {
    "int": AttributeProto.INT,
    "ints": AttributeProto.INTS,
    "float": AttributeProto.FLOAT,
    "floats": AttributeProto.FLOATS,
}


class FunctionBuilder:
    """Writes an ONNX function: `b.Add(x, 0.5)` appends a node and returns its output's name.

    A value is the name of a tensor; numbers and lists become constants, each written once.
    """

    def __init__(self, spec: OpSpec, levels: int) -> None:
        """Start the body of `spec` for a node with that many pyramid levels."""
        self.spec = spec
        self.inputs = [tensor.name for tensor in spec.expand_inputs(levels)]
        self.kinds = {attribute.name: attribute.kind for attribute in spec.attributes}
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, str] = {}

    def __getattr__(self, op: str) -> Callable[..., str]:
        """A function that appends a node of the standard op of that name."""
        if op.startswith("_"):
            raise AttributeError(op)
        return lambda *inputs, **attributes: self.emit(op, *inputs, **attributes)[0]

    def emit(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> list[str]:
        """Append a node.

        Args:
            op: Name of a standard op.
            inputs: Names of tensors, or numbers and lists.
            outputs: How many.
            attributes: Numbers, or `"@name"` for the value of the calling node's attribute of that name.

        Returns:
            The names of the outputs.
        """
        values = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        names = [f"{op}_{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        references = {k: v[1:] for k, v in attributes.items() if isinstance(v, str) and v.startswith("@")}
        node = helper.make_node(op, values, names, **{k: v for k, v in attributes.items() if k not in references})
        for key, reference in references.items():
            kind = _KINDS[self.kinds[reference]]
            node.attribute.append(AttributeProto(name=key, ref_attr_name=reference, type=kind))
        self.nodes.append(node)
        return names

    def constant(self, value: float | list[int]) -> str:
        """A constant: int -> int64 scalar, float -> float32 scalar, list -> int64 vector."""
        key = repr(value)
        if key not in self._constants:
            kind = "ints" if isinstance(value, list) else type(value).__name__
            self._constants[key] = self.Constant(**{f"value_{kind}": value})
        return self._constants[key]

    def attribute(self, name: str) -> str:
        """The calling node's attribute as a tensor: int64 or float32, a scalar or a vector."""
        if "@" + name not in self._constants:
            self._constants["@" + name] = self.Constant(**{f"value_{self.kinds[name]}": f"@{name}"})
        return self._constants["@" + name]

    def as_float(self, x: str) -> str:
        """Cast to float32."""
        return self.Cast(x, to=TensorProto.FLOAT)

    def halves(self, x: str, axis: int = -1) -> list[str]:
        """Split in two along an axis."""
        return self.emit("Split", x, outputs=2, axis=axis, num_outputs=2)

    def sides(self, boxes: str) -> list[str]:
        """Width and height of boxes `(..., 4)`, each `(..., 1)`."""
        low, high = self.halves(boxes)
        return self.halves(self.Sub(high, low))

    def build(self, **results: str) -> onnx.FunctionProto:
        """The function; `results` name the tensors that become the outputs."""
        outputs = [tensor.name for tensor in self.spec.outputs]
        self.nodes += [helper.make_node("Identity", [results[name]], [name]) for name in outputs]
        opsets = [helper.make_opsetid("", OPSET)]
        attributes = [*self.kinds, *PLUGIN_ATTRIBUTES]
        return helper.make_function(DOMAIN, self.spec.name, self.inputs, outputs, self.nodes, opsets, attributes)
