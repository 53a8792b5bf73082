"""What both dialects need to write Q/DQ nodes into a graph: one pair per tensor, weights stored as int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.placement import quantisable_nodes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import CalibrationError, EngineError
from edge_mrcnn.spec import ModelSpec

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})

STEPS = 127
"""Steps of int8 on each side of 0; -128 is not used, so that both sides are alike."""

MATRIX = 2
"""Rank of the weight of a Gemm or MatMul."""

_LEAST_SCALE = {np.dtype(np.float16): float(np.finfo(np.float16).smallest_normal), np.dtype(np.float32): 1e-12}
"""By type: below it a float16 scale would be subnormal, and a float32 one only says that a tensor is all zero."""


def has_qdq(graph: gs.Graph) -> bool:
    """Whether a model brings its own Q/DQ nodes, from ModelOpt or quantisation-aware training."""
    return any(node.op in QDQ for node in graph.nodes)


def require_ranges(recipe: Recipe, spec: ModelSpec) -> Ranges:
    """The recipe's ranges.

    Raises:
        CalibrationError: It has none.
    """
    if recipe.ranges is None:
        raise CalibrationError(
            f"int8 was asked for, but there are no ranges for {spec.name} and it brings no Q/DQ nodes of its own; "
            "measure the ranges first: edge-mrcnn calibrate MODEL PICTURES -o ranges.json"
        )
    return recipe.ranges


def layers_to_quantise(graph: gs.Graph, recipe: Recipe) -> list[gs.Node]:
    """The weighted layers that are neither sensitive nor kept by the recipe, in the graph's order."""
    return [node for node in quantisable_nodes(graph) if not recipe.keeps_high(node.name)]


def channel_axis(node: gs.Node) -> int | None:
    """Axis of a layer's weight that counts its output channels; None where one axis does not."""
    if node.op == "Conv":
        return 0
    if node.op == "ConvTranspose":
        return 1 if node.attrs.get("group", 1) == 1 else None
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    rank = len(node.inputs[1].shape)
    return rank - 1 if rank > 1 else None


@dataclass(frozen=True)
class Scale:
    """Affine quantisation of a whole tensor: `value = scale * (code - zero_point)`.

    Attributes:
        scale: A number of the tensor's type.
        zero_point: A number of the codes' type.
    """

    scale: np.generic
    zero_point: np.generic

    @property
    def low(self) -> float:
        """The smallest value that has a code."""
        return float(self.scale) * (np.iinfo(self.zero_point.dtype).min - int(self.zero_point))

    @property
    def high(self) -> float:
        """The largest value that has a code."""
        return float(self.scale) * (np.iinfo(self.zero_point.dtype).max - int(self.zero_point))


def symmetric_scale(largest: float, dtype: np.dtype) -> Scale:
    """int8 about 0 up to a magnitude, the scale in a tensor's type."""
    most = float(np.finfo(dtype).max)
    return Scale(dtype.type(min(max(largest / STEPS, _LEAST_SCALE[dtype]), most)), np.int8(0))


def affine_scale(low: float, high: float) -> Scale:
    """uint8 over an interval that includes 0, which gets a code of its own."""
    scale = np.float32(max((high - low) / 255, _LEAST_SCALE[np.dtype(np.float32)]))
    return Scale(scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255)))


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight in int8.

    Attributes:
        dequantised: What its layers read.
        codes: Int8, of the weight's shape.
        scale: One number, or one for each output channel.
    """

    dequantised: gs.Variable
    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.floating]


class QdqWriter:
    """Adds Q/DQ nodes to a graph: for each tensor and each weight once, however many read it."""

    def __init__(self, graph: gs.Graph) -> None:
        self.graph = graph
        self._names = {*graph.tensors(), *(node.name for node in graph.nodes)}
        self._pairs: dict[str, tuple[gs.Variable, gs.Variable]] = {}
        self._weights: dict[tuple[str, int | None], QuantisedWeight] = {}
        self._latest: dict[str, gs.Variable] = {}

    def quantise(self, tensor: gs.Variable, scale: Scale) -> tuple[gs.Variable, gs.Variable]:
        """The codes of an activation, and the activation as it is after rounding; nobody reads them yet."""
        if tensor.name not in self._pairs:
            parameters = [
                gs.Constant(self._name(f"{tensor.name}_scale"), np.asarray(scale.scale)),
                gs.Constant(self._name(f"{tensor.name}_zero_point"), np.asarray(scale.zero_point)),
            ]
            code_type = scale.zero_point.dtype
            codes = gs.Variable(self._name(f"{tensor.name}_{code_type.name}"), code_type, tensor.shape)
            rounded = gs.Variable(self._name(f"{tensor.name}_rounded"), scale.scale.dtype, tensor.shape)
            self._add("QuantizeLinear", tensor, [tensor, *parameters], codes)
            self._add("DequantizeLinear", tensor, [codes, *parameters], rounded)
            self._pairs[tensor.name] = codes, rounded
        return self._pairs[tensor.name]

    def quantise_weight(
        self, tensor: gs.Tensor, axis: int | None, least: npt.NDArray[np.floating] | float = 0.0
    ) -> QuantisedWeight:
        """A weight stored as int8, symmetric, with the node that dequantises it.

        Args:
            tensor: Of float16 or float32.
            axis: Of the output channels; None for one scale for all.
            least: Smallest scale of each channel.

        Raises:
            EngineError: It is computed while the network runs, or holds what is no finite number.
        """
        key = (tensor.name, axis)
        if key not in self._weights:
            values = _finite_values(tensor)
            rest = tuple(k for k in range(values.ndim) if k != axis)
            largest = np.abs(values).max(axis=rest, initial=0.0)
            floor = _LEAST_SCALE[np.dtype(tensor.dtype)]
            scale = np.asarray(np.maximum(np.maximum(largest / STEPS, floor), least), tensor.dtype)
            divisor = scale.astype(np.float32) if axis is None else np.expand_dims(scale.astype(np.float32), rest)
            codes = np.clip(np.rint(values / divisor), -STEPS, STEPS).astype(np.int8)
            self._weights[key] = QuantisedWeight(self.dequantise(tensor, codes, scale, axis), codes, scale)
        return self._weights[key]

    def dequantise(
        self, tensor: gs.Tensor, codes: npt.NDArray[np.integer], scale: npt.NDArray[np.floating], axis: int | None
    ) -> gs.Variable:
        """A constant in place of another: codes, their scale, zero point 0, and the node that dequantises them."""
        constant = gs.Constant(self._name(f"{tensor.name}_{codes.dtype.name}"), codes)
        return self._dequantise(tensor, constant, scale, axis)

    def dequantise_again(self, tensor: gs.Tensor, weight: QuantisedWeight, axis: int | None) -> gs.Variable:
        """A weight for a further layer, with codes that are stored once but are another tensor when the network runs.

        ONNX Runtime computes the Reshape, which changes nothing, while it loads. Each takes what the one before gives:
        of several that take the same it would make one.
        """
        codes = self._latest.get(weight.dequantised.name, weight.dequantised.inputs[0].inputs[0])
        shape = gs.Constant(self._name(f"{tensor.name}_shape"), np.array(weight.codes.shape, np.int64))
        own = gs.Variable(self._name(f"{tensor.name}_int8"), weight.codes.dtype, weight.codes.shape)
        self._latest[weight.dequantised.name] = own
        self.graph.nodes.append(gs.Node("Reshape", own.name, {}, [codes, shape], [own]))
        return self._dequantise(tensor, own, weight.scale.copy(), axis)

    def finish(self) -> None:
        """Drop what nothing reads any more and put the nodes in order."""
        self.graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)

    def _dequantise(
        self, tensor: gs.Tensor, codes: gs.Tensor, scale: npt.NDArray[np.floating], axis: int | None
    ) -> gs.Variable:
        inputs = [codes, gs.Constant(self._name(f"{tensor.name}_scale"), scale)]
        if len(codes.shape) == MATRIX:  # left out it is 0 as well, but then ONNX Runtime makes no integer Gemm of it
            inputs.append(gs.Constant(self._name(f"{tensor.name}_zero_point"), np.zeros(scale.shape, codes.dtype)))
        result = gs.Variable(self._name(f"{tensor.name}_rounded"), scale.dtype, codes.shape)
        self._add("DequantizeLinear", tensor, inputs, result, axis)
        return result

    def _add(
        self, op: str, of: gs.Tensor, inputs: Sequence[gs.Tensor], result: gs.Variable, axis: int | None = None
    ) -> None:
        name = self._name(f"{'quantize' if op == 'QuantizeLinear' else 'dequantize'}_{of.name}")
        attributes = {} if axis is None else {"axis": axis}
        self.graph.nodes.append(gs.Node(op, name, attributes, list(inputs), [result]))

    def _name(self, name: str) -> str:
        """The name, lengthened where a tensor or node has it already."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _finite_values(tensor: gs.Tensor) -> npt.NDArray[np.float32]:
    if not isinstance(tensor, gs.Constant):
        raise EngineError(
            f"weight {tensor.name!r} is computed while the network runs, so it cannot be stored as int8; keep its "
            "layers out with --keep-fp16"
        )
    values: npt.NDArray[np.float32] = np.asarray(tensor.values, np.float32)
    if not np.isfinite(values).all():
        raise EngineError(f"weight {tensor.name!r} holds values that are not finite numbers; check its checkpoint")
    return values
