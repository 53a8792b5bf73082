"""`PyramidRoiAlign` in integers, where both the features and the patches have codes anyway.

A bin's value is a weighted mean, and bilinear weights are products of one weight across and one down. So pooling is two
products of matrices for each roi, of weights in uint8 with the codes under its samples; those are fetched by rows of
channels, two neighbours at once, and for one row of bins after the other, so that they stay in the cache. All levels
are one table of rows, hence they must share a scale.

The weights of the two neighbours of a sample are rounded to 255 parts that always add up to 255: a constant feature map
pools to exactly its value. What is added to the error of the codes is half a step of the features' scale for the means
across, and 1/510 of the difference of two neighbours.

Source: torchvision ops/poolers.py `_multiscale_roi_align`; ops/csrc roi_align_common.h for the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.ops import DOMAIN, PYRAMID_ROI_ALIGN
from edge_mrcnn.spec import ModelSpec

PARTS = 255
"""Steps of a weight."""

LARGEST_BYTES = 64 << 20
"""The codes fetched for one picture may take so much memory; where they would take more, pooling stays in float32."""


def pool_codes(graph: gs.Graph, spec: ModelSpec) -> None:
    """Pool codes instead of floats wherever features and patches are quantised and the features share a scale.

    Args:
        graph: With Q/DQ nodes; changed in place. Its shapes must be known but for the batch.
        spec: Gives the most rois of a picture.
    """
    tables: dict[tuple[str, ...], gs.Variable] = {}
    for node in [node for node in graph.nodes if node.op == PYRAMID_ROI_ALIGN.name and node.domain == DOMAIN]:
        pooling = _read(node)
        if pooling is None or pooling.fetched_bytes(max(spec.proposals, spec.detections)) > LARGEST_BYTES:
            continue
        _Writer(graph, node.name).write(pooling, tables)
        node.outputs.clear()
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)


@dataclass(frozen=True)
class _Pooling:
    """A pooling whose features and patches are quantised.

    Attributes:
        attributes: Of the op.
        rois: `(B, N, 4)`.
        codes: Of each level's features, uint8 `(B, C, H, W)`.
        scale: Scale and zero point of all features.
        quantize: The node that rounds the patches.
    """

    attributes: dict[str, Any]
    rois: gs.Variable
    codes: tuple[gs.Variable, ...]
    scale: tuple[gs.Constant, gs.Constant]
    quantize: gs.Node

    @property
    def samples(self) -> int:
        """Samples along a side of a patch."""
        return int(self.attributes["output_size"]) * int(self.attributes["sampling_ratio"])

    def fetched_bytes(self, rois: int) -> int:
        """Memory of the codes under the samples of one row of bins of so many rois."""
        ratio = int(self.attributes["sampling_ratio"])
        return rois * 2 * ratio * 2 * self.samples * int(self.codes[0].shape[1])


def _read(node: gs.Node) -> _Pooling | None:
    """A pooling that can be done in integers, or nothing."""
    makers = [maker for tensor in node.inputs[1:] for maker in tensor.inputs if maker.op == "DequantizeLinear"]
    if len(makers) < len(node.inputs) - 1 or node.attrs["sampling_ratio"] < 1:
        return None
    readers = node.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "QuantizeLinear":
        return None
    codes = tuple(maker.inputs[0] for maker in makers)
    parameters = [tuple(tensor.values.item() for tensor in maker.inputs[1:]) for maker in makers]
    known = all(all(isinstance(side, int) for side in (tensor.shape or ["?"])[1:]) for tensor in codes)
    if not known or len(set(parameters)) != 1 or any(tensor.dtype != np.uint8 for tensor in codes):
        return None
    scale, zero_point = makers[0].inputs[1:]
    return _Pooling(dict(node.attrs), node.inputs[0], codes, (scale, zero_point), readers[0])


class _Writer:
    """Adds nodes of standard ops under the name of the node that they replace: `w.Add(x, y)` gives the result."""

    def __init__(self, graph: gs.Graph, name: str) -> None:
        self.graph, self.name, self._count = graph, name, 0

    def __getattr__(self, op: str) -> Any:
        """A function that appends a node of the standard op of that name."""
        if op.startswith("_"):
            raise AttributeError(op)
        return lambda *inputs, **attributes: self.emit(op, *inputs, **attributes)[0]

    def emit(self, op: str, *inputs: Any, count: int = 1, **attributes: Any) -> list[gs.Variable]:
        """Append a node; arrays given as inputs become constants."""
        label = f"{self.name}.{op.lower()}_{self._count}"
        self._count += 1
        given = [
            value if isinstance(value, gs.Tensor) else gs.Constant(f"{label}.{index}", np.asarray(value))
            for index, value in enumerate(inputs)
        ]
        outputs = [gs.Variable(f"{label}.out{index}" if count > 1 else label) for index in range(count)]
        self.graph.nodes.append(gs.Node(op, label, attributes, given, outputs))
        return outputs

    def write(self, pooling: _Pooling, tables: dict[tuple[str, ...], gs.Variable]) -> None:
        """Give the codes of the patches to whatever read them.

        Args:
            pooling: What to do.
            tables: The tables of features made so far, by the names of the codes; added to.
        """
        key = tuple(tensor.name for tensor in pooling.codes)
        if key not in tables:
            tables[key] = self.table(pooling.codes)
        size, samples = int(pooling.attributes["output_size"]), pooling.samples
        channels = int(pooling.codes[0].shape[1])
        index, across, down = self.places(pooling)
        ratio = int(pooling.attributes["sampling_ratio"])
        share = np.float32(1 / (PARTS * ratio)), np.uint8(0)
        result = pooling.quantize.inputs[1:]
        parts = {"count": size, "num_outputs": size}
        rows = []
        for places, weights in zip(
            self.emit("Split", index, axis=1, **parts), self.emit("Split", down, axis=2, **parts), strict=True
        ):
            fetched = self.Gather(tables[key], places, axis=0)
            fetched = self.Reshape(fetched, [-1, 2 * ratio, 2 * samples, channels])
            means = self.QLinearMatMul(across, *share, fetched, *pooling.scale, *pooling.scale)
            means = self.Reshape(means, [-1, 2 * ratio, size * channels])
            rows.append(self.QLinearMatMul(weights, *share, means, *pooling.scale, *result))
        patches = self.Concat(*rows, axis=1)
        patches = self.Transpose(self.Reshape(patches, [-1, size, size, channels]), perm=[0, 3, 1, 2])
        codes = pooling.quantize.outputs[0]
        patches.inputs[0].outputs = [codes]
        pooling.quantize.outputs.clear()

    def table(self, codes: Sequence[gs.Variable]) -> gs.Variable:
        """Every place of every picture and level `(B * G, 2 C)`: its channels, and those of the place to its right."""
        channels = int(codes[0].shape[1])
        levels = [self.Reshape(self.Transpose(x, perm=[0, 2, 3, 1]), [0, -1, channels]) for x in codes]
        rows = self.Reshape(self.Concat(*levels, axis=1), [-1, channels])
        first, others = self.Slice(rows, [0], [1], [0]), self.Slice(rows, [1], [2**31], [0])
        return self.Concat(rows, self.Concat(others, first, axis=0), axis=1)  # what is right of a border has no weight

    def places(self, pooling: _Pooling) -> tuple[gs.Variable, gs.Variable, gs.Variable]:
        """Where the samples of each of the R rois are, T along a side of its patch of S bins, and what they weigh.

        Returns:
            Rows of the table `(R, 2 T, T)`; weights across, a matrix `(R, 1, S, 2 T)`, and down `(R, 1, 2 T)`, uint8.
        """
        rois, picture = self.flat_rois(pooling.rois)
        low, side, level, real = self.levels(pooling.attributes, rois)
        sizes = np.array([[x.shape[3], x.shape[2]] for x in pooling.codes], np.int64)
        size = self.Gather(sizes, level, axis=0)  # (R, 2): width, height
        limit = self.Unsqueeze(self.Cast(size, to=np.float32), [2])
        fractions = (np.arange(pooling.samples, dtype=np.float32) + 0.5) / pooling.samples
        at = self.Add(self.Unsqueeze(low, [2]), self.Mul(self.Unsqueeze(side, [2]), fractions))  # (R, 2, T)
        within = self.And(self.GreaterOrEqual(at, np.float32(-1)), self.LessOrEqual(at, limit))
        within = self.And(within, self.Unsqueeze(real, [2]))
        last = self.Sub(limit, np.float32(1))
        at = self.Min(self.Max(at, np.float32(0)), last)
        before = self.Floor(at)
        across, down = self.weights(self.Sub(at, before), within, pooling)
        column, row = self.emit("Split", self.Cast(before, to=np.int64), count=2, axis=1, num_outputs=2)
        width, height = self.emit("Split", self.Unsqueeze(size, [2]), count=2, axis=1, num_outputs=2)
        below = self.Min(self.Add(row, np.int64(1)), self.Sub(height, np.int64(1)))
        row = self.Reshape(self.Concat(self.Unsqueeze(row, [3]), self.Unsqueeze(below, [3]), axis=3), [0, -1, 1])
        areas = sizes.prod(axis=1)
        start = self.Gather(np.cumsum(areas) - areas, level, axis=0)  # (R,)
        start = self.Add(start, self.Mul(picture, np.int64(areas.sum())))
        row = self.Add(self.Mul(row, width), self.Unsqueeze(start, [1, 2]))
        return self.Add(row, column), across, down

    def flat_rois(self, rois: gs.Variable) -> tuple[gs.Variable, gs.Variable]:
        """Rois `(B, N, 4)` as `(R, 4)`, and the number of each one's picture `(R,)`."""
        shape = self.Shape(rois, start=0, end=2)
        pictures = self.Range(np.int64(0), self.Gather(shape, np.int64(0)), np.int64(1))
        return self.Reshape(rois, [-1, 4]), self.Reshape(self.Expand(self.Unsqueeze(pictures, [1]), shape), [-1])

    def levels(self, attributes: dict[str, Any], rois: gs.Variable) -> tuple[gs.Variable, ...]:
        """Top left corners and sides of rois in cells of their levels `(R, 2)`, the levels `(R,)`, bool `(R, 1)`: real.

        Source: the function body of the op, compiler/function_bodies.py `_level_of`.
        """
        strides = np.array(attributes["strides"], np.float64)
        low, high = self.emit("Split", rois, count=2, axis=1, num_outputs=2)
        side = self.Sub(high, low)
        width, height = self.emit("Split", side, count=2, axis=1, num_outputs=2)
        area = self.Mul(width, height)
        real = self.And(self.Greater(width, np.float32(0)), self.Greater(height, np.float32(0)))
        real = self.And(real, self.Less(area, np.float32(np.inf)))
        exponent = float(attributes["canonical_level"]) + float(np.float32(attributes["level_eps"]))
        least = strides[1:] * float(np.float32(attributes["canonical_scale"])) * 2.0**-exponent
        above = self.GreaterOrEqual(area, np.square(least).astype(np.float32).reshape(1, -1))
        level = self.ReduceSum(self.Cast(self.And(above, real), to=np.int64), [1], keepdims=0)
        stride = self.Unsqueeze(self.Gather(strides.astype(np.float32), level, axis=0), [1])
        low, side = (self.Div(self.Where(real, x, np.float32(0)), stride) for x in (low, side))
        if attributes["aligned"]:
            return self.Sub(low, np.float32(0.5)), side, level, real
        return low, self.Max(side, np.float32(1)), level, real

    def weights(self, share: gs.Variable, within: gs.Variable, pooling: _Pooling) -> tuple[gs.Variable, gs.Variable]:
        """Weights across and down by the `share` `(R, 2, T)`, 0 to 1, of the second neighbour of each sample."""
        second = self.Floor(self.Add(self.Mul(share, np.float32(PARTS)), np.float32(0.5)))
        pair = [self.Unsqueeze(x, [3]) for x in (self.Sub(np.float32(PARTS), second), second)]
        pair = self.Where(self.Unsqueeze(within, [3]), self.Concat(*pair, axis=3), np.float32(0))
        size, samples = int(pooling.attributes["output_size"]), pooling.samples
        parts = self.Reshape(self.Cast(pair, to=np.uint8), [0, 2, 1, 2 * samples])
        across, down = self.emit("Split", parts, count=2, axis=1, num_outputs=2)
        own = np.repeat(np.eye(size, dtype=np.bool_), 2 * samples // size, axis=1)
        return self.Where(own, across, np.uint8(0)), self.Squeeze(down, [1])
