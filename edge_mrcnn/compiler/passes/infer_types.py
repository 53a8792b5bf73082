"""Types and shapes of all tensors, by ONNX's own inference, which reads through function bodies."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.errors import ExportError
from edge_mrcnn.spec import ModelSpec


def infer_types(graph: gs.Graph, spec: ModelSpec) -> None:
    """Write type and shape on every tensor that ONNX's inference can tell them of.

    Args:
        graph: Changed in place.
        spec: Names the model in an error.

    Raises:
        ExportError: The graph contradicts itself.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(gs.export_onnx(graph), strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(
            f"the graph of {spec.name} contradicts itself: {error}; export it again: edge-mrcnn export"
        ) from error
    tensors = graph.tensors()
    outputs = {tensor.name for tensor in graph.outputs}
    for value in inferred.graph.value_info:
        tensor, found = tensors.get(value.name), value.type.tensor_type
        if isinstance(tensor, gs.Variable) and found.elem_type and value.name not in outputs:
            tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(found.elem_type)
            if found.HasField("shape"):
                tensor.shape = [_dimension(dim) for dim in found.shape.dim]


def _dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) if dim.dim_param else None
