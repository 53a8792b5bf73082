"""Float16 by propagation: the types go into the graph, and TensorRT is told to keep to them.

Half precision starts at the weighted layers and at what the custom ops' contracts call `features`, and is handed on
from input to output. So what comes before the first weighted layer (normalisation) and what the contracts type as
float32 (image sizes, boxes, scores) stays float32 without being named. Which tensors of a standard node share a type
is read from its ONNX schema. Nodes kept in float32 by name hand float16 on all the same: one of them in a backbone must
not turn all residual adds after it into float32.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.passes.infer_types import infer_types
from edge_mrcnn.compiler.placement import WEIGHTED
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.ops import DOMAIN, OPS
from edge_mrcnn.spec import ModelSpec

_log = logging.getLogger(__name__)

KEPT = frozenset({"Softmax", "LogSoftmax", "TopK", "NonMaxSuppression", "RoiAlign", "CumSum", "Exp", "Range"})
"""Ops that stay in float32: float16 loses ranking, sums of many terms and coordinates."""

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})

QDQ_OPSET = 19
"""The first opset in which Q/DQ nodes take float16."""

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
LARGEST = float(np.finfo(np.float16).max)
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
TOLERATED = 0.01
"""Share of the weights that may lose digits before it is said: trained networks have some that hardly matter."""


def cast_to_fp16(graph: gs.Graph, spec: ModelSpec, keep_fp32: Callable[[str], bool] | None = None) -> None:
    """Compute in float16 except in the float32 islands; the network's inputs and outputs keep their types.

    Args:
        graph: Changed in place; every node has the types its ONNX schema or contract asks for, by casts where needed.
            Q/DQ nodes that are there already get float16 scales, so that no cast parts them from their layers.
        spec: Names the model in errors.
        keep_fp32: Whether the node of a name is to compute in float32; by default none is.

    Raises:
        EngineError: A weight is not a number, or larger than float16 can hold.
        ExportError: The graph contradicts itself, has control flow, or Q/DQ nodes of an opset without float16 scales.
    """
    if any(tensor.dtype is None for tensor in graph.tensors().values() if tensor.name):
        infer_types(graph, spec)
    caster = _Caster(graph, keep_fp32 or (lambda name: False))
    for node in list(graph.nodes):
        caster.visit(node)
    caster.restore_outputs()
    graph.nodes = caster.nodes
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
    if caster.subnormal > TOLERATED * caster.weights:
        _log.info("%d of %d weights are subnormal or zero in float16", caster.subnormal, caster.weights)


class _Caster:
    """Walks the graph once, in order, and keeps what it made: casts by tensor and type, float16 weights by name."""

    def __init__(self, graph: gs.Graph, keep_fp32: Callable[[str], bool]) -> None:
        self.graph, self.nodes = graph, list[gs.Node]()
        self._kept = keep_fp32
        self._half_on_request = set[str]()  # float32 results of kept nodes, which whatever is not kept takes as float16
        self.subnormal, self.weights = 0, 0
        self._names = set(graph.tensors())
        self._made: dict[tuple[str, np.dtype], gs.Tensor] = {}

    def visit(self, node: gs.Node) -> None:
        """Give a node inputs of the types it takes, and its outputs the types that follow."""
        if any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            raise ExportError(f"node {node.name!r} ({node.op}) is control flow: float16 cannot be propagated")
        if node.domain == DOMAIN:
            self._visit_custom(node)
        else:
            self._visit_standard(node)
        self.nodes.append(node)

    def _visit_custom(self, node: gs.Node) -> None:
        op = OPS[node.op]
        kept = self._kept(node.name)
        types: dict[str, np.dtype] = {"features": FLOAT32 if kept else FLOAT16, "float32": FLOAT32}
        for index, spec in enumerate(op.expand_inputs(op.levels(len(node.inputs)))):
            if spec.dtype in types:
                self._cast_input(node, index, types[spec.dtype])
        for spec, tensor in zip(op.outputs, node.outputs, strict=True):
            tensor.dtype = types.get(spec.dtype, tensor.dtype)
            if kept and spec.dtype == "features":
                self._half_on_request.add(tensor.name)

    def _visit_standard(self, node: gs.Node) -> None:
        schema = _schema(node, self.graph.opset)
        inputs = _type_variables(schema.inputs, len(node.inputs))
        outputs = _type_variables(schema.outputs, len(node.outputs))
        halves = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
        for variable in dict.fromkeys(inputs):
            at = [i for i, name in enumerate(inputs) if name == variable and node.inputs[i].dtype in (FLOAT32, FLOAT16)]
            dtype = self._choose(node, at, variable in halves)
            if dtype is None:
                continue
            results = [t for t, name in zip(node.outputs, outputs, strict=True) if name == variable]
            if dtype == FLOAT16 and self._kept(node.name):
                dtype = FLOAT32
                self._half_on_request.update(tensor.name for tensor in results)
            if dtype == FLOAT16 and node.op in QDQ:
                _fit_scale(node)
            for index in at:
                self._cast_input(node, index, dtype)
            for tensor in results:
                tensor.dtype = dtype
        if node.op == "DequantizeLinear":  # from opset 23 on, its schema leaves the type of its result open
            node.outputs[0].dtype = node.inputs[1].dtype

    def _choose(self, node: gs.Node, at: Sequence[int], can_be_half: bool) -> np.dtype | None:
        """Type for the inputs `at` of a node, which share one, or None where only constants say nothing about it."""
        if not at:
            return None
        if node.op in QDQ:
            return FLOAT16 if self._meets_half(node) else FLOAT32
        if can_be_half and node.op in WEIGHTED and 0 in at:
            return FLOAT16
        found = {self._offered(node.inputs[i]) for i in at if not isinstance(node.inputs[i], gs.Constant)}
        if not found:
            return None
        # What mixes both types is computed in the wider one, so that precision is never lost unasked.
        return FLOAT16 if can_be_half and node.op not in KEPT and found == {FLOAT16} else FLOAT32

    def _offered(self, tensor: gs.Tensor) -> np.dtype:
        half: np.dtype = FLOAT16 if tensor.name in self._half_on_request else tensor.dtype
        return half

    def _meets_half(self, node: gs.Node) -> bool:
        """Whether what a Q/DQ node stands for is read in float16: by anything that stays in float32 neither way."""
        readers = [reader for tensor in node.outputs for reader in tensor.outputs]
        if node.op == "QuantizeLinear":
            return any(self._meets_half(reader) for reader in readers if reader.op == "DequantizeLinear")
        meets = any(reader.op not in KEPT and not self._kept(reader.name) for reader in readers)
        if meets and self.graph.opset < QDQ_OPSET:
            raise ExportError(
                f"node {node.name!r} ({node.op}) is of opset {self.graph.opset}, float16 scales come with {QDQ_OPSET}: "
                f"quantise a model of opset {QDQ_OPSET} or later, as edge-mrcnn export writes it, or build it with "
                "--precision fp32"
            )
        return meets

    def _cast_input(self, node: gs.Node, index: int, dtype: np.dtype) -> None:
        tensor = node.inputs[index]
        if tensor.dtype == dtype:
            return
        key = (tensor.name, dtype)
        if key not in self._made:
            convert = self._convert_weight if isinstance(tensor, gs.Constant) else self._add_cast
            self._made[key] = convert(tensor, dtype)
        node.inputs[index] = self._made[key]

    def _add_cast(self, tensor: gs.Variable, dtype: np.dtype) -> gs.Variable:
        result = gs.Variable(self._name(tensor, dtype), dtype, tensor.shape)
        self.nodes.append(_cast_node(tensor, result))
        return result

    def _convert_weight(self, tensor: gs.Constant, dtype: np.dtype) -> gs.Constant:
        values = np.asarray(tensor.values)
        size = np.abs(values)
        if np.isnan(size).any():
            raise EngineError(f"weight {tensor.name!r} holds values that are not numbers; check its checkpoint")
        finite = size[np.isfinite(size)]
        if dtype == FLOAT16 and finite.size and finite.max() > LARGEST:
            raise EngineError(
                f"weight {tensor.name!r} reaches {finite.max():g}, float16 ends at {LARGEST:g}; "
                "build it with --precision fp32"
            )
        self.weights += values.size
        self.subnormal += int(np.count_nonzero((size < SMALLEST_NORMAL) & (size > 0)))
        return gs.Constant(self._name(tensor, dtype), values.astype(dtype))

    def restore_outputs(self) -> None:
        """Cast the network's outputs that became float16 back."""
        for output in self.graph.outputs:
            if output.dtype != FLOAT16 or not output.inputs:
                continue
            inner = gs.Variable(self._name(output, FLOAT16), FLOAT16, output.shape)
            for producer in list(output.inputs):
                producer.outputs[producer.outputs.index(output)] = inner
            for consumer in list(output.outputs):
                consumer.inputs = [inner if tensor is output else tensor for tensor in consumer.inputs]
            output.dtype = FLOAT32
            self.nodes.append(_cast_node(inner, output))

    def _name(self, tensor: gs.Tensor, dtype: np.dtype) -> str:
        name = f"{tensor.name}_{dtype.name}"
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _schema(node: gs.Node, opset: int) -> onnx.defs.OpSchema:
    try:
        return onnx.defs.get_schema(node.op, opset, node.domain or "")
    except onnx.defs.SchemaError as error:
        raise ExportError(
            f"node {node.name!r}: ONNX knows no op {node.domain or 'ai.onnx'}.{node.op} in opset {opset}, so its types "
            "are unknown; inline it first: onnx.inliner.inline_local_functions"
        ) from error


def _cast_node(source: gs.Variable, result: gs.Variable) -> gs.Node:
    to = onnx.helper.np_dtype_to_tensor_dtype(result.dtype)
    return gs.Node("Cast", f"cast_{result.name}", {"to": int(to)}, [source], [result])


def _fit_scale(node: gs.Node) -> None:
    """Raise scales of a Q/DQ node that float16 would hold as subnormal numbers; its weights are rounded anew."""
    scale = node.inputs[1]
    if not isinstance(scale, gs.Constant) or np.asarray(scale.values).min() >= SMALLEST_NORMAL:
        return
    before = np.asarray(scale.values, np.float32)
    after = np.asarray(np.maximum(before, SMALLEST_NORMAL), np.float32)
    name = node.name or node.outputs[0].name
    node.inputs[1] = gs.Constant(f"{name}_scale_fitted", after)
    if isinstance(node.inputs[0], gs.Constant):
        codes, factor = np.asarray(node.inputs[0].values), before / after
        if before.ndim:
            shape = np.ones(codes.ndim, int)
            shape[node.attrs.get("axis", 1)] = -1
            factor = factor.reshape(shape)
        node.inputs[0] = gs.Constant(f"{name}_fitted", np.asarray(np.rint(codes * factor), codes.dtype))


def _type_variables(formal: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> list[str]:
    """The type variable, or concrete type, of each of `count` tensors; the last formal one may be repeated."""
    return [formal[min(index, len(formal) - 1)].type_str for index in range(count)]
