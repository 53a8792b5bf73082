"""Types and shapes of all tensors, by ONNX's own inference, which reads through function bodies."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.errors import ExportError
from edge_mrcnn.spec import ModelSpec

LARGEST_VALUE_BYTES = 1024
"""Constants whose values can decide a shape are smaller than this."""


def infer_types(graph: gs.Graph, spec: ModelSpec) -> None:
    """Write type and shape on every tensor that ONNX's inference can tell them of.

    Args:
        graph: Changed in place.
        spec: Names the model in an error.

    Raises:
        ExportError: The graph contradicts itself.
    """
    try:
        inferred = infer_model(gs.export_onnx(graph), strict=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the graph of {spec.name} contradicts itself ({error}); export it again") from error
    tensors = graph.tensors()
    outputs = {tensor.name for tensor in graph.outputs}
    for value in inferred.graph.value_info:
        tensor, found = tensors.get(value.name), value.type.tensor_type
        if isinstance(tensor, gs.Variable) and found.elem_type and value.name not in outputs:
            tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(found.elem_type)
            if found.HasField("shape"):
                tensor.shape = [_dimension(dim) for dim in found.shape.dim]


def infer_model(model: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    """The model with `value_info` for all tensors that inference reaches, and without its large weights.

    Args:
        model: Its large weights are emptied: type and dimensions are enough, and copies of them take seconds.
        strict: Raise where a node contradicts itself.
    """
    for weight in model.graph.initializer:
        if len(weight.raw_data) > LARGEST_VALUE_BYTES:
            weight.ClearField("raw_data")
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(model, strict_mode=strict, data_prop=True)
    return inferred


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.dim_param else None
