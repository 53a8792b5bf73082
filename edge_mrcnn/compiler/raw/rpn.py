"""The region proposal network: its head on each level, its anchors, and what it does with its boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.raw.boxes import find_decoder, find_suppression, find_thresholds
from edge_mrcnn.compiler.raw.pools import Pools
from edge_mrcnn.compiler.raw.regions import Array, Regions, producer
from edge_mrcnn.compiler.raw.survey import MismatchError
from edge_mrcnn.ops import MAX_LEVELS

_ROWS = [0, 3, 4, 1, 2]
"""Transposition by which the RPN lays out a level: rows, columns, anchors."""

_HEAD = frozenset({"Conv", "Relu", "BatchNormalization", "Add", "Mul", "Clip", "LeakyRelu", "HardSwish"})


@dataclass
class Head:
    """The RPN's head.

    Attributes:
        features: The pyramid, finest level first.
        objectness: `(1, A, H, W)` of each level.
        deltas: `(1, 4A, H, W)` of each level.
        merged: The deltas of all levels, one after the other.
        anchors: Of each cell (A).
    """

    features: list[gs.Tensor]
    objectness: list[gs.Tensor]
    deltas: list[gs.Tensor]
    merged: gs.Tensor
    anchors: int

    def describe(self) -> str:
        """Levels and anchors."""
        return f"{len(self.features)} levels, {self.anchors} anchors per cell"


def find_head(regions: Regions, pools: Pools) -> Head:
    """Find the pairs of convolutions that give A and 4A channels on each level.

    Raises:
        MismatchError: There are none, or they differ between levels.
    """
    rows = _level_rows(regions)
    if len(rows) != 2:
        raise MismatchError(
            f"objectness and deltas, laid out by a transposition {_ROWS} and joined", f"{len(rows)} such"
        )
    (first, one), (second, other) = rows
    channels = [_channels(regions, tensor) for tensor in (one[0], other[0])]
    if channels[1] == 4 * channels[0]:
        objectness, deltas, merged = one, other, second
    elif channels[0] == 4 * channels[1]:
        objectness, deltas, merged = other, one, first
    else:
        raise MismatchError("convolutions with A and 4A channels", channels)
    if len(objectness) != len(deltas) or not 1 <= len(deltas) <= MAX_LEVELS:
        raise MismatchError(f"1 to {MAX_LEVELS} levels of both", f"{len(objectness)} and {len(deltas)}")
    features = _features(regions, pools, objectness, deltas)
    return Head(features, objectness, deltas, merged, min(channels))


def _level_rows(regions: Regions) -> list[tuple[gs.Tensor, list[gs.Tensor]]]:
    """Each tensor in which levels are laid out one after the other, and the convolutions it comes from."""
    found = []
    for node in regions.graph.nodes:
        if node.op != "Concat":
            continue
        convolutions = [_laid_out(tensor) for tensor in node.inputs]
        if convolutions and all(each is not None for each in convolutions):
            found.append((node.outputs[0], [each for each in convolutions if each is not None]))
    return found


def _laid_out(tensor: gs.Tensor) -> gs.Tensor | None:
    """The convolution's output behind Reshape, Transpose and Reshape."""
    for op in ("Reshape", "Transpose", "Reshape"):
        node = producer(tensor)
        if node is None or node.op != op or (op == "Transpose" and list(node.attrs.get("perm", ())) != _ROWS):
            return None
        tensor = node.inputs[0]
    node = producer(tensor)
    return tensor if node is not None and node.op == "Conv" else None


def _channels(regions: Regions, tensor: gs.Tensor) -> int:
    node = producer(tensor)
    weight = regions.value(node.inputs[1]) if node is not None else None
    if weight is None:
        raise MismatchError("a convolution with a constant weight", "another")
    return int(weight.shape[0])


def _features(
    regions: Regions, pools: Pools, objectness: Sequence[gs.Tensor], deltas: Sequence[gs.Tensor]
) -> list[gs.Tensor]:
    """The pyramid's levels: what the head's convolutions read, as far back as on the levels that are pooled."""
    pooled = pools.box.features
    finest = _steps_to(objectness[0], pooled[0])
    features = []
    for level, (one, other) in enumerate(zip(objectness, deltas, strict=True)):
        steps = _walk(one, len(finest))
        read = [node.inputs[0] for node in map(producer, (one, other)) if node is not None]
        if len(read) != 2 or read[0] is not read[1]:
            raise MismatchError(
                "objectness and deltas of a level to come from the same tensor", f"level {level} does not"
            )
        pairs = [*zip(finest, steps, strict=True), (producer(deltas[0]), producer(other))]
        if not all(_equal_layers(regions, a, b) for a, b in pairs):
            raise MismatchError("the same head on all levels", f"other weights on level {level} than on level 0")
        features.append(steps[-1].inputs[0])
    for pool in (pools.box, *pools.others):
        if [id(tensor) for tensor in pool.features] != [id(tensor) for tensor in features[: len(pool.nodes)]]:
            raise MismatchError("the pools to take the finest levels of the pyramid", "other tensors")
    return features


def _steps_to(tensor: gs.Tensor, end: gs.Tensor) -> list[gs.Node]:
    """The nodes of the head, the last first, back to the feature map."""
    steps: list[gs.Node] = []
    while tensor is not end:
        node = producer(tensor)
        if node is None or node.op not in _HEAD:
            found = f"{', '.join(step.op for step in steps)} and then {node.op if node else 'an input'}"
            raise MismatchError("convolutions between the finest pooled feature map and the objectness", found)
        steps.append(node)
        tensor = node.inputs[0]
    return steps


def _walk(tensor: gs.Tensor, count: int) -> list[gs.Node]:
    steps: list[gs.Node] = []
    for _ in range(count):
        node = producer(tensor)
        if node is None:
            raise MismatchError(f"a head of {count} nodes on each level", len(steps))
        steps.append(node)
        tensor = node.inputs[0]
    return steps


def _equal_layers(regions: Regions, one: gs.Node | None, other: gs.Node | None) -> bool:
    """Whether two nodes are the same layer on two levels."""
    if one is None or other is None or one.op != other.op or len(one.inputs) != len(other.inputs):
        return False
    if one.op == "Conv" and dict(one.attrs) != dict(other.attrs):
        return False
    return all(a is b or _equal_values(regions, a, b) for a, b in zip(one.inputs[1:], other.inputs[1:], strict=True))


def _equal_values(regions: Regions, one: gs.Tensor, other: gs.Tensor) -> bool:
    first, second = regions.value(one), regions.value(other)
    return first is not None and second is not None and np.array_equal(first, second)


# ------------------------------------------------------------------------------------------------------------ anchors
@dataclass
class Anchors:
    """The anchors.

    Attributes:
        attributes: `cell_anchors`, `strides`, `stride_rule`, `box_weights`, `bbox_xform_clip`.
        cells: `(L, A, 4)`.
    """

    attributes: dict[str, Any]
    cells: Array

    def describe(self) -> str:
        """Their sides."""
        sides = [np.sqrt(np.prod(level[:, 2:] - level[:, :2], axis=1)).mean() for level in self.cells]
        text = ", ".join(f"{side:.0f}" for side in sides)
        return f"about {text} pixels on strides {self.attributes['strides']}, {self.attributes['stride_rule']}"


def find_anchors(regions: Regions, head: Head, canvas: tuple[int, int]) -> Anchors:
    """Lay out the anchors as the graph does and take one cell of each level.

    Args:
        regions: With the shapes of the feature maps and of the canvas.
        head: The RPN's head.
        canvas: The one that the shapes are of.

    Raises:
        MismatchError: They are not the same in all cells, or do not depend on shapes alone.
    """
    decoder = find_decoder(regions, head.merged)
    laid = regions.value(decoder.references)
    grids = [regions.shapes[id(tensor)][-2:] for tensor in head.features]
    counts = [height * width * head.anchors for height, width in grids]
    if laid is None or laid.reshape(-1).size != 4 * sum(counts):
        found = "others, which depend on pixels" if laid is None else f"{laid.size // 4}"
        raise MismatchError(f"{sum(counts)} anchors on {canvas[0]}x{canvas[1]}", found)
    levels = np.split(laid.reshape(-1, 4), np.cumsum(counts)[:-1])
    cells = np.stack([level[: head.anchors] for level in levels])
    strides = [_nominal(canvas, grid) for grid in grids]
    rule = _stride_rule(levels, cells, grids, strides, canvas)
    attributes = {
        "cell_anchors": [float(number) for number in cells.reshape(-1)],
        "strides": strides,
        "stride_rule": rule,
        "box_weights": decoder.weights,
        "bbox_xform_clip": decoder.clip,
    }
    return Anchors(attributes, cells)


def _nominal(canvas: tuple[int, int], grid: tuple[int, ...]) -> int:
    """Stride of a level, a power of two. Source: torchvision ops/poolers.py `_infer_scale`."""
    vertical, horizontal = (2 ** round(math.log2(side / cells)) for side, cells in zip(canvas, grid, strict=True))
    if vertical != horizontal:
        raise MismatchError("feature maps with the same stride on both sides", f"{grid} cells on {canvas}")
    return int(vertical)


def _stride_rule(
    levels: Sequence[Array],
    cells: Array,
    grids: Sequence[tuple[int, ...]],
    strides: Sequence[int],
    canvas: tuple[int, int],
) -> str:
    """Which rule lays out these anchors."""
    by_grid = [tuple(side // count for side, count in zip(canvas, grid, strict=True)) for grid in grids]
    for rule, steps in (("grid", by_grid), ("fixed", [(stride, stride) for stride in strides])):
        expected = [_lay_out(cell, grid, step) for cell, grid, step in zip(cells, grids, steps, strict=True)]
        if all(np.array_equal(a, b) for a, b in zip(levels, expected, strict=True)):
            return rule
    raise MismatchError(f"anchors a stride apart: {by_grid} or {list(strides)}", "another layout")


def _lay_out(cell: Array, grid: tuple[int, ...], step: tuple[int, ...]) -> Array:
    rows, columns = np.meshgrid(np.arange(grid[0]) * step[0], np.arange(grid[1]) * step[1], indexing="ij")
    corner = np.stack([columns, rows, columns, rows], axis=-1).reshape(-1, 1, 4).astype(np.float32)
    laid: Array = (corner + cell).reshape(-1, 4)
    return laid


# ---------------------------------------------------------------------------------------------------------- proposals
@dataclass
class Proposals:
    """What becomes of the RPN's boxes.

    Attributes:
        attributes: Of `RpnProposals`.
        boxes: `(P, 4)`, best first.
    """

    attributes: dict[str, Any]
    boxes: gs.Tensor

    def describe(self) -> str:
        """Its numbers."""
        a = self.attributes
        return (
            f"best {a['pre_nms_top_n']} of each level, NMS at IoU {a['nms_threshold']:g}, best {a['post_nms_top_n']}; "
            f"sides from {a['min_size']:g}, scores from {a['score_threshold']:g}"
        )


def find_proposals(regions: Regions, head: Head, anchors: Anchors, pools: Pools) -> Proposals:
    """Read what lies between the head and the boxes that the box pool takes.

    Raises:
        MismatchError: It is not what torchvision does.
    """
    boxes = pools.box.boxes
    stop = {id(tensor) for tensor in (*head.objectness, *head.deltas)}
    nodes = regions.ancestors([boxes], stop)
    suppression = find_suppression(regions, nodes, "between the RPN's head and the box pool")
    last = producer(boxes)
    if last is None or last.op != "Gather" or last.inputs[1] is not suppression.index:
        raise MismatchError("the box pool to take what the NMS keeps", last.op if last else "an input")
    thresholds = find_thresholds(regions, nodes)
    scores = thresholds.scores or [("GreaterOrEqual", 0.0)]
    if len(scores) != 1 or scores[0][0] != "GreaterOrEqual":
        raise MismatchError("proposals of at least one score to be kept", scores)
    attributes = {
        **anchors.attributes,
        "pre_nms_top_n": _pre_nms(regions, nodes, len(head.features)),
        "post_nms_top_n": suppression.kept,
        "nms_threshold": suppression.threshold,
        "score_threshold": scores[0][1],
        "min_size": thresholds.min_size,
    }
    return Proposals(attributes, boxes)


def _pre_nms(regions: Regions, nodes: Sequence[gs.Node], levels: int) -> int:
    """How many candidates a level has: the k of each TopK, or what its minimum takes besides the level's size."""
    tops = [node for node in nodes if node.op == "TopK"]
    if len(tops) != levels:
        raise MismatchError(f"a TopK on each of {levels} levels", len(tops))
    counts = [_count(regions, node.inputs[1]) for node in tops]
    if len(set(counts)) != 1 and not all(isinstance(regions.number(node.inputs[1]), float) for node in tops):
        raise MismatchError("as many candidates on all levels", counts)
    return max(counts)


def _count(regions: Regions, tensor: gs.Tensor) -> int:
    number = regions.number(tensor)
    node = producer(tensor)
    while number is None and node is not None:
        known = [regions.number(each) for each in node.inputs]
        if node.op in ("Min", "Concat") and any(each is not None for each in known):
            number = next(each for each in known if each is not None)
        elif node.op in ("ReduceMin", "Reshape", "Cast", "Unsqueeze", "Squeeze"):
            node = producer(node.inputs[0])
        else:
            break
    if number is None or number < 1:
        raise MismatchError(
            "a TopK of a number of candidates, or of all where there are fewer", node.op if node else "none"
        )
    return int(number)
