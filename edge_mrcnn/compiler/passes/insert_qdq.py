"""INT8 as TensorRT fuses it: Q/DQ nodes in the float16 graph, by ranges measured on the exported one.

TensorRT moves a Q back and a DQ on over what commutes with rounding (MaxPool, nearest Resize, Reshape), so a pair
stands right before the layer that reads it, and rounds after an activation, not before. What has no pair computes in
float16.
"""

from __future__ import annotations

import logging

import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes.qdq_nodes import (
    QdqWriter,
    channel_axis,
    has_qdq,
    layers_to_quantise,
    require_ranges,
    symmetric_scale,
)
from edge_mrcnn.compiler.placement import range_source, tensorrt_inputs
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.spec import ModelSpec

_log = logging.getLogger(__name__)


def insert_qdq(graph: gs.Graph, spec: ModelSpec, recipe: Recipe) -> None:
    """Quantise the layers that are neither sensitive nor kept; a model with Q/DQ nodes of its own stays as it is.

    Symmetric, zero point 0; activations per tensor, weights per output channel and stored as int8, biases as they are;
    one pair per tensor, whatever else reads it goes on reading the tensor itself; scales in the tensor's type.

    Args:
        graph: In float16 (`cast_to_fp16`); changed in place.
        spec: Names the model in errors.
        recipe: Ranges, and what to keep.

    Raises:
        CalibrationError: There are no ranges, or a tensor has none.
        EngineError: A weight is not a finite number, or no constant.
    """
    if has_qdq(graph):
        _log.info("%s brings its own Q/DQ nodes: they are left as they are, and no ranges are used", spec.name)
        return
    ranges = require_ranges(recipe, spec)
    layers = layers_to_quantise(graph, recipe)
    writer = QdqWriter(graph)
    for node, index in tensorrt_inputs(graph, layers):
        tensor = node.inputs[index]
        scale = symmetric_scale(ranges.symmetric(_exported_name(tensor, ranges)), tensor.dtype)
        _, node.inputs[index] = writer.quantise(tensor, scale)
    for node in layers:
        node.inputs[1] = writer.quantise_weight(node.inputs[1], channel_axis(node)).dequantised
    writer.finish()


def _exported_name(tensor: gs.Variable, ranges: Ranges) -> str:
    """The name that a tensor's range goes by: casts gave it another, in front of it or towards an output."""
    source = range_source(tensor)
    names: list[str] = [source.name, *(reader.outputs[0].name for reader in source.outputs if reader.op == "Cast")]
    return next((name for name in names if name in ranges.tensors), names[0])
