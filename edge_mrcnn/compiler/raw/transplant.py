"""Layers of the old graph written into the new one: for any batch, norms folded, nothing fixed for one picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.raw.regions import Array, Regions
from edge_mrcnn.compiler.raw.survey import MismatchError
from edge_mrcnn.compiler.raw.writer import Writer, plain

_AS_THEY_ARE = frozenset(
    {
        "Abs", "Add", "AveragePool", "Clip", "Concat", "Div", "Elu", "Erf", "Exp", "Gemm", "GlobalAveragePool",
        "HardSigmoid", "HardSwish", "LayerNormalization", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Neg", "Pad", "Pow",
        "PRelu", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh", "Transpose",
    }
)  # fmt: skip
"""Ops that treat each picture by itself and mean the same in all opsets from 11 to ours."""

_NOTHING = frozenset({"Cast", "Dropout", "Identity"})
"""Ops that do nothing to float32 at inference."""

SHARING = frozenset({"rpn_head"})
"""Parts that use the same layers on several levels; a file may hold their weights once for each."""

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


class Transplant:
    """Writes what old tensors are computed from.

    Attributes:
        regions: The old graph.
        writer: The new graph.
        tensors: The new tensor of each old one that depends on pixels, by `id`.
    """

    def __init__(self, regions: Regions, writer: Writer) -> None:
        """Take from `regions` and write to `writer`."""
        self.regions, self.writer = regions, writer
        self.tensors: dict[int, gs.Tensor] = {}
        self._constants: dict[tuple[Any, ...], gs.Constant] = {}
        self._handlers: dict[str, Callable[[gs.Node, str], gs.Tensor]] = {
            "BatchNormalization": self._batch_norm,
            "Conv": self._convolve,
            "ConvTranspose": self._convolve,
            "Flatten": self._flatten,
            "ReduceMean": self._reduce,
            "Reshape": self._flatten,
            "Resize": self._resize,
        }

    def begin(self, old: gs.Tensor, new: gs.Tensor, shapes: tuple[Sequence[int], Sequence[int]]) -> None:
        """Let `new` stand for `old`.

        Args:
            old: Where a part begins in the old graph.
            new: The tensor of the new graph.
            shapes: Of one picture, or of some RoIs, on either canvas.
        """
        self.tensors[id(old)] = new
        self.writer.shapes[id(new)] = (tuple(shapes[0]), tuple(shapes[1]))
        self.regions.assume(old, shapes[0])

    def copy(self, ends: Sequence[gs.Tensor], part: str) -> list[gs.Tensor]:
        """Write everything between what stands already and `ends`.

        Returns:
            The new tensors of `ends`.

        Raises:
            MismatchError: There is an op among it that is no layer of a network that sees one picture at a time.
        """
        nodes = self.regions.ancestors(ends, set(self.tensors))
        for node in nodes:
            if self.regions.value(node.outputs[0]) is None:
                self._copy_node(node, part)
        missing = [tensor.name for tensor in ends if id(tensor) not in self.tensors]
        if missing:
            raise MismatchError("layers that depend on the picture", f"constants only in {missing}")
        return [self.tensors[id(tensor)] for tensor in ends]

    def _copy_node(self, node: gs.Node, part: str) -> None:
        if node.op in self._handlers:
            result = self._handlers[node.op](node, part)
        elif node.op in _NOTHING:
            result = self._input(node, 0, part)
        elif node.op in _AS_THEY_ARE:
            folded = self._fold_arithmetic(node, part)
            inputs = [self._input(node, place, part) for place in range(len(node.inputs))] if folded is None else []
            result = self.writer.add(node.op, inputs, part, **plain(node.attrs)) if folded is None else folded
        else:
            raise MismatchError("layers of a convolutional network", f"{node.op}, which is none")
        old = node.outputs[0]
        self.tensors[id(old)] = result
        self.regions.assume(old, self.writer.shapes[id(result)][0])

    def _input(self, node: gs.Node, place: int, part: str) -> gs.Tensor:
        """The new tensor for one of a node's inputs."""
        if place >= len(node.inputs) or node.inputs[place].is_empty():
            return gs.Variable.empty()
        old = node.inputs[place]
        if id(old) in self.tensors:
            return self.tensors[id(old)]
        value = self.regions.value(old)
        if value is None:
            raise MismatchError(
                f"inputs of a {node.op} that follow from the picture", "one that is computed in another way"
            )
        return self._constant((id(old),), f"{part}.value", value)

    def _constant(self, key: tuple[Any, ...], name: str, value: Array) -> gs.Constant:
        if key not in self._constants:
            self._constants[key] = self.writer.constant(name, value)
        return self._constants[key]

    # ------------------------------------------------------------------------------------------- layers with weights
    def _convolve(self, node: gs.Node, part: str) -> gs.Tensor:
        """Weights stay shared where they are, as on the levels of the RPN; equal biases of other layers do not."""
        values = [self.regions.value(tensor) for tensor in node.inputs[1:] if not tensor.is_empty()]
        if not values or any(value is None for value in values):
            raise MismatchError(f"a {node.op} with constant weights", "weights that are computed")
        keys: list[int | bytes] = [id(tensor) for tensor in node.inputs[1:] if not tensor.is_empty()]
        if part in SHARING:
            keys = [hashlib.sha256(np.asarray(value).tobytes()).digest() for value in values]
        inputs = [self._input(node, 0, part)]
        for label, value, last in zip(("weight", "bias"), values, range(1, len(values) + 1), strict=False):
            assert value is not None
            inputs.append(self._constant((label, *keys[:last]), f"{part}.{label}", value))
        return self.writer.add(node.op, inputs, part, **plain(node.attrs))

    def _batch_norm(self, node: gs.Node, part: str) -> gs.Tensor:
        values = [self.regions.value(tensor) for tensor in node.inputs[1:5]]
        if any(value is None for value in values):
            raise MismatchError("a batch norm with constant statistics", "others")
        scale, bias, mean, variance = (np.asarray(value, np.float64) for value in values)
        factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
        x = self.tensors.get(id(node.inputs[0]))
        folded = self._fold(node, x, factor, bias - mean * factor) if x is not None else None
        if folded is None:
            raise MismatchError(
                "each batch norm directly behind a convolution that nothing else reads", "another place"
            )
        return folded

    def _fold_arithmetic(self, node: gs.Node, part: str) -> gs.Tensor | None:
        """The result of arithmetic with a number per channel, done in the weights of the convolution before it."""
        if node.op not in ("Add", "Mul", "Sub", "Div"):
            return None
        known = [self.regions.value(tensor) for tensor in node.inputs]
        data = [place for place, value in enumerate(known) if value is None]
        x = self.tensors.get(id(node.inputs[data[0]])) if len(data) == 1 else None
        if x is None or (node.op in ("Sub", "Div") and data[0] != 0):
            return None
        value = np.asarray(known[1 - data[0]], np.float64)
        maker = x.inputs[0].op if x.inputs else ""
        if maker == "MatMul" and node.op == "Add" and value.ndim == 1:
            return self._fold_bias(node, x, part)
        if maker not in _CONVOLUTIONS or (value.size > 1 and (value.ndim < 3 or value.shape[-2:] != (1, 1))):
            return None
        numbers = value.reshape(-1)
        if node.op in ("Mul", "Div"):
            return self._fold(node, x, numbers if node.op == "Mul" else 1 / numbers, np.zeros(1))
        return self._fold(node, x, np.ones(1), numbers if node.op == "Add" else -numbers)

    def _fold_bias(self, node: gs.Node, x: gs.Variable, part: str) -> gs.Tensor | None:
        """A MatMul and its bias as a Gemm."""
        product = x.inputs[0]
        if len(self.writer.shapes[id(x)][0]) != 2 or not isinstance(product.inputs[1], gs.Constant):
            return None
        bias = next(tensor for tensor in node.inputs if self.regions.value(tensor) is not None)
        product.op = "Gemm"
        product.inputs.append(self._constant((id(bias),), f"{part}.bias", np.asarray(self.regions.value(bias))))
        return x

    def _fold(self, node: gs.Node, x: gs.Tensor, factor: Array, offset: Array) -> gs.Tensor | None:
        """Change a convolution's weights so that it gives `factor * x + offset`; None where that is not possible."""
        conv = x.inputs[0] if x.inputs else None
        old = next(tensor for tensor in node.inputs if self.tensors.get(id(tensor)) is x)
        readers = [each for each in old.outputs if each.op != "Shape"]
        if conv is None or conv.op not in _CONVOLUTIONS or len(readers) != 1 or x.outputs:
            return None
        weight = np.asarray(conv.inputs[1].values, np.float64)
        transposed = conv.op == "ConvTranspose"
        if transposed and conv.attrs.get("group", 1) != 1:
            return None
        channels = weight.shape[1 if transposed else 0]
        if factor.size not in (1, channels) or offset.size not in (1, channels):
            return None
        factor, offset = (np.broadcast_to(value, channels) for value in (factor, offset))
        bias = np.asarray(conv.inputs[2].values, np.float64) if len(conv.inputs) > 2 else np.zeros(channels)
        scaled = weight * factor.reshape((1, -1, 1, 1) if transposed else (-1, 1, 1, 1))
        # keyed by value of what is folded in, so that layers that share weights go on sharing them
        key = (id(conv.inputs[1]), factor.tobytes(), offset.tobytes())
        names = conv.inputs[1].name, f"{conv.inputs[1].name}_bias"
        new = [
            self._constant(("folded", *key), names[0], scaled.astype(np.float32)),
            self._constant(("bias", *key), names[1], (bias * factor + offset).astype(np.float32)),
        ]
        data = conv.inputs[0]
        conv.inputs.clear()
        conv.inputs.extend([data, *new])
        return x

    # ---------------------------------------------------------------------------------- layers with shapes baked in
    def _flatten(self, node: gs.Node, part: str) -> gs.Tensor:
        """A Flatten or Reshape that leaves the first dimension as it is, whatever the batch."""
        x = self._input(node, 0, part)
        before = self.writer.shapes[id(x)][0]
        if node.op == "Flatten":
            axis = node.attrs.get("axis", 1) % len(before)
            rest = [int(np.prod(before[axis:]))]
            kept = axis == 1
        else:
            wanted = self.regions.value(node.inputs[1])
            sizes = [] if wanted is None else [int(size) for size in wanted]
            kept = len(sizes) > 1 and sizes[0] in (before[0], -1, 0)
            rest = _resolve(sizes[1:], int(np.prod(before[1:]))) if kept else []
        if not kept or int(np.prod(rest)) != int(np.prod(before[1:])):
            raise MismatchError(f"a {node.op} that keeps pictures, or RoIs, apart", f"one of {before}")
        if tuple(rest) == before[1:]:
            return x
        shape = np.array([-1, *rest], np.int64)
        return self.writer.add("Reshape", [x, self.writer.constant(f"{part}.shape", shape)], part)

    def _reduce(self, node: gs.Node, part: str) -> gs.Tensor:
        axes = node.attrs.get("axes")
        if axes is None and len(node.inputs) > 1:
            axes = self.regions.value(node.inputs[1])
        x = self._input(node, 0, part)
        rank = len(self.writer.shapes[id(x)][0])
        places = sorted(int(axis) % rank for axis in (axes if axes is not None else range(rank)))
        if 0 in places:
            raise MismatchError("a mean within a picture, or RoI", f"one over axes {places}")
        given = self.writer.constant(f"{part}.axes", np.array(places, np.int64))
        return self.writer.add("ReduceMean", [x, given], part, keepdims=int(node.attrs.get("keepdims", 1)))

    def _resize(self, node: gs.Node, part: str) -> gs.Tensor:
        """A Resize by whole numbers: its target is computed from the batch and fixed sides, as the exporter does."""
        x = self._input(node, 0, part)
        (batch, channels, *own), (_, _, *new) = self.writer.shapes[id(x)]
        sizes = self.regions.value(node.inputs[3]) if len(node.inputs) > 3 else None
        scales = self.regions.value(node.inputs[2]) if len(node.inputs) > 2 else None
        if sizes is not None and sizes.size == 4:
            factors = [int(size) / side for size, side in zip(sizes[2:], own, strict=True)]
            factors = [int(sizes[0]) / batch, int(sizes[1]) / channels, *factors]
        elif scales is not None and scales.size == 4:
            factors = [float(scale) for scale in scales]
        else:
            raise MismatchError("a Resize to a size that follows from shapes", "another")
        if factors[:2] != [1, 1] or any(factor != int(factor) for factor in factors):
            raise MismatchError("a Resize of each picture by whole numbers", f"by {factors}")
        target = [side * int(factor) for side, factor in zip(new, factors[2:], strict=True)]
        return self._write_resize(
            x, target, plain(node.attrs), part, [side * int(f) for side, f in zip(own, factors[2:], strict=True)]
        )

    def _write_resize(
        self, x: gs.Tensor, target: Sequence[int], attributes: dict[str, Any], part: str, own: Sequence[int]
    ) -> gs.Tensor:
        writer, graph = self.writer, self.writer.graph
        rows = gs.Variable(writer.name(f"{part}.shape"), np.int64)
        graph.nodes.append(gs.Node("Shape", rows.name, {"start": 0, "end": 2}, [x], [rows]))
        size = gs.Variable(writer.name(f"{part}.size"), np.int64)
        sides = writer.constant(f"{part}.sides", np.array(target, np.int64))
        graph.nodes.append(gs.Node("Concat", size.name, {"axis": 0}, [rows, sides], [size]))
        result = gs.Variable(writer.name(f"{part}.resize"), np.float32)
        nothing = gs.Variable.empty()
        graph.nodes.append(gs.Node("Resize", result.name, attributes, [x, nothing, nothing, size], [result]))
        shapes = writer.shapes[id(x)]
        writer.shapes[id(result)] = ((*shapes[0][:2], *own), (*shapes[1][:2], *target))
        return result


def _resolve(sizes: Sequence[int], total: int) -> list[int]:
    """Sizes with a -1 among them made out."""
    known = int(np.prod([size for size in sizes if size > 0])) or 1
    return [total // known if size == -1 else size for size in sizes]
