"""INT8 as the integer kernels of ONNX Runtime on a CPU take it: Q/DQ nodes in the float32 graph.

TensorRT's placement is slower than float32 there. These kernels want uint8 activations with a zero point, a bias in
int32 whose scale is that of the product, and codes on both sides: whatever goes into a layer and whatever comes out.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes.fold_normalisation import ZERO, bytes_of
from edge_mrcnn.compiler.passes.qdq_nodes import (
    QdqWriter,
    Scale,
    affine_scale,
    channel_axis,
    has_qdq,
    layers_to_quantise,
    require_ranges,
)
from edge_mrcnn.compiler.placement import WEIGHTED, OrtPlacement, activated, ort_placement
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.ops import DOMAIN, PYRAMID_ROI_ALIGN
from edge_mrcnn.spec import ModelSpec

_log = logging.getLogger(__name__)

LARGEST_BIAS = 1 << 30
"""Largest code of a bias: half of int32, which leaves the other half to the sum of the products."""

TOLERANCE = 1e-6
"""By how much of itself a scale in float32 may exceed the end of a Clip by rounding."""


def insert_qdq_ort(graph: gs.Graph, spec: ModelSpec, recipe: Recipe) -> None:
    """Quantise what has an integer kernel and is neither sensitive nor kept; a model with Q/DQ nodes stays as it is.

    Args:
        graph: In float32, sorted; changed in place.
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
    placement = ort_placement(graph, layers_to_quantise(graph, recipe))
    intervals = _intervals(graph, placement, ranges)
    scales = {name: affine_scale(*intervals[source]) for name, source in placement.ranges.items()}
    for node in placement.nodes:
        _drop_activation(node, graph, scales)
    layers = [node for node in placement.nodes if node.op in WEIGHTED]
    writer = QdqWriter(graph)
    _quantise_weights(layers, scales, writer)
    for name, tensor in [(name, tensor) for name, tensor in graph.tensors().items() if name in scales]:
        _quantise_activation(tensor, scales[name], writer)
    writer.finish()


def _intervals(graph: gs.Graph, placement: OrtPlacement, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """What uint8 is to hold of each tensor that was measured; of a picture's bytes (`fold_normalisation`) all.

    The features of all levels of a pooling share an interval, so that they can be one table (`pool_codes`). Not where
    one comes from an activation: that could not be left to rounding any more.
    """
    tensors, sources = graph.tensors(), set(placement.ranges.values())
    bytes_read = {name for name in sources if bytes_of(tensors[name]) is not None}
    found = {name: (float(-ZERO), float(255 - ZERO)) if name in bytes_read else ranges.affine(name) for name in sources}
    for node in graph.nodes:
        if node.op == PYRAMID_ROI_ALIGN.name and node.domain == DOMAIN:
            features = [placement.ranges[x.name] for x in node.inputs[1:] if x.name in placement.ranges]
            makers = [maker.op for name in features for maker in tensors[name].inputs]
            if not features or "Relu" in makers or "Clip" in makers:
                continue
            lows, highs = [found[name][0] for name in features], [found[name][1] for name in features]
            found.update((name, (min(lows), max(highs))) for name in features)
    return found


def _drop_activation(node: gs.Node, graph: gs.Graph, scales: Mapping[str, Scale]) -> None:
    """Leave out a Relu or Clip that does nothing that rounding to uint8 does not do by itself."""
    result = activated(node.outputs[0], graph)
    if result is node.outputs[0] or result.name not in scales:
        return
    activation, scale = result.inputs[0], scales[result.name]
    low, high = _bounds(activation)
    if low <= scale.low and scale.high <= high * (1 + TOLERANCE):
        activation.outputs.clear()
        node.outputs[0] = result


def _bounds(activation: gs.Node) -> tuple[float, float]:
    """The interval that a Relu or Clip leaves."""
    bounds = [0.0 if activation.op == "Relu" else -np.inf, np.inf]
    for index, bound in enumerate(activation.inputs[1:]):
        if isinstance(bound, gs.Constant):
            bounds[index] = float(bound.values)
    return bounds[0], bounds[1]


def _quantise_activation(tensor: gs.Variable, scale: Scale, writer: QdqWriter) -> None:
    """Let all that read a tensor read it rounded, and what only asks for its shape not even that."""
    readers = list(tensor.outputs)
    codes, rounded = writer.quantise(tensor, scale)
    for reader in readers:
        reader.inputs = [
            (codes if reader.op == "Shape" else rounded) if given is tensor else given for given in reader.inputs
        ]


def _quantise_weights(layers: list[gs.Node], scales: Mapping[str, Scale], writer: QdqWriter) -> None:
    """Weights to int8 and biases to int32.

    Layers that share a weight get codes of their own once the model is loaded: with codes in common, ONNX Runtime
    cannot load it in the way that CPUs without VNNI need (`OrtRunner`).
    """
    least: dict[str, npt.NDArray[np.float64]] = {}
    for node in layers:
        # A channel of tiny weights beside a large bias gets a coarser scale, or its bias would not fit int32.
        wanted = np.abs(_bias(node)) / (float(scales[node.inputs[0].name].scale) * LARGEST_BIAS)
        name = node.inputs[1].name
        least[name] = np.maximum(least.get(name, np.zeros(1)), wanted)
    for node in layers:
        tensor, axis = node.inputs[1], channel_axis(node)
        weight = writer.quantise_weight(tensor, axis, least[tensor.name])
        taken = bool(weight.dequantised.outputs)
        node.inputs[1] = writer.dequantise_again(tensor, weight, axis) if taken else weight.dequantised
        if len(node.inputs) > 2 and not node.inputs[2].is_empty():
            scale = (scales[node.inputs[0].name].scale * weight.scale).astype(np.float32)
            codes = np.rint(_bias(node) / scale).astype(np.int32)
            codes, scale = np.broadcast_arrays(codes.reshape(-1), scale)
            node.inputs[2] = writer.dequantise(node.inputs[2], codes.copy(), scale.copy(), axis=0)


def _bias(node: gs.Node) -> npt.NDArray[np.float64]:
    """A layer's bias, 0 where it has none."""
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return np.zeros(1)
    values: npt.NDArray[np.float64] = np.asarray(node.inputs[2].values, np.float64).reshape(-1)
    return values
