"""What each weighted layer of a graph computes in, as the graph asks for it, and how much work it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from edge_mrcnn.compiler.passes.infer_types import LARGEST_VALUE_BYTES
from edge_mrcnn.ops import DOMAIN, OPS
from edge_mrcnn.sidecar import PrecisionShare, int8_share, tabulate
from edge_mrcnn.spec import ModelSpec

__all__ = ["LayerPrecision", "PrecisionShare", "int8_share", "layer_precisions", "requested_table"]

INT8, UNKNOWN = "int8", "unknown"

QUANTISED = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

RESHAPES = ("Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""What TensorRT fuses a dequantisation across."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerPrecision:
    """A layer with weights.

    Attributes:
        name: Of its node.
        op: Its ONNX op.
        precision: `int8` where activation and weight are dequantised from 8 bits, else NumPy's name of its input type.
        macs: Multiply-accumulates for one picture, all rows of proposals and detections taken.
    """

    name: str
    op: str
    precision: str
    macs: int


def layer_precisions(model: onnx.ModelProto, spec: ModelSpec) -> tuple[LayerPrecision, ...]:
    """What each weighted layer computes in, and its work for one picture.

    Args:
        model: As exported or as the passes left it, in either dialect, with or without function bodies; it is not
            changed.
        spec: Its canvas stands in for sides that the graph leaves open.

    Returns:
        Each Conv, ConvTranspose, Gemm and MatMul with weights, in the graph's order; those in function bodies are not
        layers.

    Raises:
        ValueError: The work of a layer cannot be told, as shapes are missing.
    """
    types = _infer_single_picture(model, spec)
    producers = {name: node for node in model.graph.node for name in node.output}
    activations = _find_activations(model.graph)
    found = []
    for node in model.graph.node:
        if node.op_type in _MACS and not node.domain and node.input[1] not in activations:
            macs = _count_macs(node, types)
            found.append(LayerPrecision(node.name, node.op_type, _precision(node, types, producers), macs))
    return tuple(found)


def requested_table(layers: Iterable[LayerPrecision]) -> tuple[PrecisionShare, ...]:
    """Layers and multiply-accumulates by precision, as the graph asks for it."""
    return tabulate((layer.precision, layer.macs) for layer in layers)


@dataclass(frozen=True)
class _TensorType:
    """Type of the elements, as ONNX numbers it, and shape; None where it has dimensions that are not known."""

    element: int
    shape: Shape | None


def _find_activations(graph: onnx.GraphProto) -> set[str]:
    """The tensors that are known only when a picture is: a layer with one for its weight has no weights."""
    weights = {weight.name for weight in graph.initializer}
    found = {value.name for value in graph.input} - weights
    for node in graph.node:
        if found.intersection(node.input):
            found.update(node.output)
    return found


def _precision(node: onnx.NodeProto, types: Mapping[str, _TensorType], producers: Mapping[str, onnx.NodeProto]) -> str:
    if all(_is_dequantised(name, types, producers) for name in node.input[:2]):
        return INT8
    element = types[node.input[0]].element if node.input[0] in types else onnx.TensorProto.UNDEFINED
    if element == onnx.TensorProto.UNDEFINED:
        return UNKNOWN
    return str(onnx.helper.tensor_dtype_to_np_dtype(element).name)


def _is_dequantised(name: str, types: Mapping[str, _TensorType], producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a tensor comes from an 8-bit one, as it is or in another shape."""
    while name in producers and producers[name].op_type in RESHAPES:
        name = producers[name].input[0]
    if name not in producers or producers[name].op_type != "DequantizeLinear":
        return False
    source = types.get(producers[name].input[0])
    return source is not None and source.element in QUANTISED


def _count_macs(node: onnx.NodeProto, types: Mapping[str, _TensorType]) -> int:
    names = (node.input[0], node.input[1], node.output[0])
    shapes = [found.shape if (found := types.get(name)) else None for name in names]
    if missing := [name for name, shape in zip(names, shapes, strict=True) if shape is None]:
        raise ValueError(
            f"node {node.name!r} ({node.op_type}): the shape of {', '.join(missing)} is not known for one picture, so "
            "its work cannot be counted; export the model again: edge-mrcnn export"
        )
    given, weight, result = (shape for shape in shapes if shape is not None)
    transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
    return _MACS[node.op_type](given[::-1] if transposed else given, weight, result)


_MACS: Mapping[str, Callable[[Shape, Shape, Shape], int]] = {
    # Input, weight and output: each output of a convolution takes one window of its group, each input of a transposed
    # one goes into one window of its group, each output of a product takes a row.
    "Conv": lambda given, weight, result: math.prod(result) * math.prod(weight[1:]),
    "ConvTranspose": lambda given, weight, result: math.prod(given) * math.prod(weight[1:]),
    "Gemm": lambda given, weight, result: math.prod(result) * given[1],
    "MatMul": lambda given, weight, result: math.prod(result) * given[-1],
}
"""Multiply-accumulates of each weighted op."""


def _infer_single_picture(model: onnx.ModelProto, spec: ModelSpec) -> dict[str, _TensorType]:
    """Types and shapes of all tensors with a batch of 1.

    The bodies of the custom ops are left out: what they say of shapes is for ONNX Runtime, where rows are limits. The
    contract says how many there are, one op after the other, as each takes what the one before gives.
    """
    slim = _without_weights(model, spec)
    custom = [node for node in slim.graph.node if node.domain == DOMAIN]
    while True:
        inferred = onnx.shape_inference.infer_shapes(slim, data_prop=True)
        types = _read_types(inferred)
        ready = [node for node in custom if all(name in types and types[name].shape for name in node.input)]
        if not ready:
            return types
        for node in ready:
            for value in _describe_outputs(node, types):
                _note_type(slim.graph, value)
            custom.remove(node)


def _without_weights(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """The graph for a batch of 1, without function bodies, large weights and what was known of shapes before."""
    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node)
    weights = {weight.name for weight in model.graph.initializer}
    for value in model.graph.input:
        graph.input.append(value if value.name in weights else _for_one_picture(value, spec))
    for value in model.graph.output:
        graph.output.append(onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None))
    for weight in model.graph.initializer:
        small = weight.ByteSize() <= LARGEST_VALUE_BYTES
        kept = weight if small else onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=weight.dims)
        graph.initializer.append(kept)
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)


def _for_one_picture(value: onnx.ValueInfoProto, spec: ModelSpec) -> onnx.ValueInfoProto:
    dims = value.type.tensor_type.shape.dim
    sides = [dim.dim_value or side for dim, side in zip(dims[1:], (*spec.input_hw, 3), strict=False)]
    return onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, [1, *sides])


def _describe_outputs(node: onnx.NodeProto, types: Mapping[str, _TensorType]) -> list[onnx.ValueInfoProto]:
    op = OPS[node.op_type]
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    given = [types[name].shape or () for name in node.input]
    shapes: Sequence[Sequence[int]] = op.output_shapes(given, attributes)
    features = types[node.input[-1]].element
    elements = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32, "features": features}
    return [
        onnx.helper.make_tensor_value_info(name, elements[tensor.dtype], shape)
        for name, tensor, shape in zip(node.output, op.outputs, shapes, strict=True)
    ]


def _note_type(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> None:
    """Write the type of a tensor where inference looks for it: an output's stands with the outputs."""
    for output in graph.output:
        if output.name == value.name:
            output.CopyFrom(value)
            return
    graph.value_info.append(value)


def _read_types(model: onnx.ModelProto) -> dict[str, _TensorType]:
    graph = model.graph
    found = {weight.name: _TensorType(weight.data_type, tuple(weight.dims)) for weight in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
        known = tuple(dim for dim in dims if dim is not None)
        complete = tensor.HasField("shape") and len(known) == len(dims)
        found.setdefault(value.name, _TensorType(tensor.elem_type, known if complete else None))
    return found
