"""RoIAlign: the nodes that pool the same boxes, one a level of the pyramid, and the rule that chooses the level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.raw.regions import Regions, producer, readers
from edge_mrcnn.compiler.raw.survey import MismatchError
from edge_mrcnn.ops import MAX_LEVELS

SCATTERS = frozenset({"ScatterElements", "Scatter", "ScatterND"})
"""Ops that put the patches of a level in their rows."""

COORDINATES_SINCE = 16
"""Opset from which on RoiAlign has a coordinate mode; before it knew only the one without half a pixel."""

ONE_LEVEL: dict[str, Any] = {"canonical_scale": 224.0, "canonical_level": 4, "level_eps": 1e-6}
"""What the level rule is said to be where there is one level. Source: torchvision ops/poolers.py, its defaults."""


@dataclass
class Pool:
    """A `MultiScaleRoIAlign`.

    Attributes:
        nodes: The RoiAlign nodes, finest level first.
        boxes: `(N, 4)` in pixels of the canvas.
        pooled: `(N, C, S, S)`.
        attributes: Of `PyramidRoiAlign`.
    """

    nodes: tuple[gs.Node, ...]
    boxes: gs.Tensor
    pooled: gs.Tensor
    attributes: dict[str, Any]

    @property
    def features(self) -> list[gs.Tensor]:
        """The feature maps, finest first."""
        return [node.inputs[0] for node in self.nodes]

    def describe(self) -> str:
        """Its levels and its size."""
        size, strides = self.attributes["output_size"], self.attributes["strides"]
        ratio = self.attributes["sampling_ratio"]
        return f"{size}x{size} from strides {strides}, sampling ratio {ratio}, aligned {self.attributes['aligned']}"


@dataclass
class Pools:
    """The pools of a graph: of the proposals, and of the detections.

    Attributes:
        box: For the box head.
        others: For the mask or keypoint head, both or none.
    """

    box: Pool
    others: tuple[Pool, ...]

    def describe(self) -> str:
        """How many there are."""
        return f"one of proposals, {len(self.others)} of detections"


def find_pools(regions: Regions) -> Pools:
    """Group the RoiAlign nodes by the tensor that their patches are merged in.

    Raises:
        MismatchError: There are none, or nodes that pool together differ.
    """
    groups: dict[int, list[gs.Node]] = {}
    merged: dict[int, gs.Tensor] = {}
    for node in regions.graph.nodes:
        if node.op == "RoiAlign":
            tensor = _merge(node.outputs[0])
            merged[id(tensor)] = tensor
            groups.setdefault(id(tensor), []).append(node)
    if not groups:
        raise MismatchError("RoiAlign nodes for 1 to 3 pools", "none")
    pools = [_read_pool(regions, nodes, merged[key]) for key, nodes in groups.items()]
    first = [pool for pool in pools if not any(_depends(regions, pool, other) for other in pools)]
    if len(first) != 1 or len(pools) > 3:
        raise MismatchError(
            "one pool of proposals, and up to two of detections, for masks and keypoints",
            f"{len(first)} pools of proposals, {len(pools) - len(first)} of detections",
        )
    return Pools(first[0], tuple(pool for pool in pools if pool is not first[0]))


def _depends(regions: Regions, pool: Pool, other: Pool) -> bool:
    """Whether the boxes of `pool` come from what `other` pooled."""
    if pool is other:
        return False
    ids = {id(node) for node in regions.ancestors([pool.boxes])}
    return any(id(node) in ids for node in other.nodes)


def _merge(tensor: gs.Tensor) -> gs.Tensor:
    """Where the patches of all levels end up: the last of a row of scatters, or the tensor itself."""
    while True:
        following = [node for node in readers(tensor) if node.op in SCATTERS or node.op == "Cast"]
        if len(following) != 1:
            return tensor
        tensor = following[0].outputs[0]


def _read_pool(regions: Regions, nodes: Sequence[gs.Node], pooled: gs.Tensor) -> Pool:
    nodes = sorted(nodes, key=lambda node: -float(node.attrs.get("spatial_scale", 1.0)))
    boxes = [_boxes_of(regions, node) for node in nodes]
    if len({id(each[0]) for each in boxes}) != 1:
        raise MismatchError("the levels of a pool to pool the same boxes", f"{len(nodes)} levels with different ones")
    attributes = _attributes(nodes, regions.graph.opset)
    places = [index for _, index in boxes]
    if len(nodes) > 1 and len(set(attributes["strides"])) == 1:
        nodes = _only_level(regions, nodes, places, attributes)
    attributes |= _level_rule(regions, places[: len(nodes)], attributes["strides"])
    return Pool(tuple(nodes), boxes[0][0], pooled, attributes)


def _boxes_of(regions: Regions, node: gs.Node) -> tuple[gs.Tensor, gs.Tensor | None]:
    """The boxes that a RoiAlign takes some of, and the tensor of the places of those in its level."""
    columns = producer(node.inputs[1])
    picked = None if columns is None else regions.value(columns.inputs[1])
    if columns is None or columns.op != "Gather" or picked is None or picked.reshape(-1).tolist() != [1, 2, 3, 4]:
        raise MismatchError("RoiAlign to take columns 1 to 4 of rois", columns.op if columns else "an input")
    tensor, index = columns.inputs[0], None
    rows = producer(tensor)
    if rows is not None and rows.op in ("Gather", "GatherND"):
        tensor, index = rows.inputs[0], rows.inputs[1]
        rows = producer(tensor)
    if rows is None or rows.op != "Concat" or len(rows.inputs) != 2:
        raise MismatchError("rois to be a picture's number beside a box", rows.op if rows else "an input")
    return unwrap(rows.inputs[1]), index


def unwrap(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor behind casts and concatenations of one."""
    while True:
        node = producer(tensor)
        if node is None or not (node.op == "Cast" or (node.op == "Concat" and len(node.inputs) == 1)):
            return tensor
        tensor = node.inputs[0]


def _attributes(nodes: Sequence[gs.Node], opset: int) -> dict[str, Any]:
    """What the nodes of a pool have in common."""
    scales = [float(node.attrs.get("spatial_scale", 1.0)) for node in nodes]
    strides = [round(1 / scale) if scale > 0 else 0 for scale in scales]
    powers = all(stride > 0 and stride & (stride - 1) == 0 for stride in strides)
    if not powers or any(stride * scale != 1 for stride, scale in zip(strides, scales, strict=True)):
        raise MismatchError("spatial scales of 1 by a power of two", scales)
    doubling = all(coarse == 2 * fine for fine, coarse in pairwise(strides))
    if not (doubling or len(set(strides)) == 1) or len(strides) > MAX_LEVELS:
        raise MismatchError(f"up to {MAX_LEVELS} levels, each of twice the stride of the one before", strides)
    return {
        "strides": strides,
        "output_size": _same(nodes, "patches", _side),
        "sampling_ratio": _same(nodes, "sampling ratios", lambda node: int(node.attrs.get("sampling_ratio", 0))),
        "aligned": _same(nodes, "coordinate modes", lambda node: _aligned(node, opset)),
    }


def _same(nodes: Sequence[gs.Node], what: str, read: Any) -> int:
    values = [read(node) for node in nodes]
    if len(set(values)) != 1:
        raise MismatchError(f"the same {what} on all levels of a pool", values)
    return int(values[0])


def _side(node: gs.Node) -> int:
    height, width = node.attrs.get("output_height", 1), node.attrs.get("output_width", 1)
    if height != width:
        raise MismatchError("square patches", f"{height}x{width}")
    if node.attrs.get("mode", "avg") not in ("avg", b"avg"):
        raise MismatchError("RoiAlign by the average", node.attrs["mode"])
    return int(height)


def _aligned(node: gs.Node, opset: int) -> int:
    if opset < COORDINATES_SINCE:
        return 0
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    return int((mode.decode() if isinstance(mode, bytes) else mode) == "half_pixel")


# --------------------------------------------------------------------------------------------------------- level rule
def _level_rule(regions: Regions, places: Sequence[gs.Tensor | None], strides: Sequence[int]) -> dict[str, Any]:
    """The numbers of `floor(level + log2(sqrt(area) / scale) + eps)`. Source: torchvision ops/poolers.py `LevelMapper`.

    Raises:
        MismatchError: The level is chosen in another way.
    """
    if len(strides) == 1:
        return dict(ONE_LEVEL)
    compared = [_comparison(regions, place) for place in places]
    if [level for _, level in compared] != list(range(len(strides))) or len({id(t) for t, _ in compared}) != 1:
        raise MismatchError("each level to pool the boxes that are of it", [level for _, level in compared])
    steps = list(_steps_back(regions, compared[0][0]))
    found = [op for op, _ in steps if op != "Cast"]
    expected = ["Sub", "Clip", "Floor", "Add", "Add", "Div", "Log", "Div", "Sqrt"]
    if found != expected:
        raise MismatchError(f"a level rule of {', '.join(reversed(expected))}", ", ".join(reversed(found)))
    numbers = [values for op, values in steps if op != "Cast"]
    first, last = int(math.log2(strides[0])), int(math.log2(strides[-1]))
    limits, lowest = numbers[1], numbers[0]
    if lowest != [first] or limits != [first, last] or not math.isclose(numbers[5][0], math.log(2), rel_tol=1e-6):
        raise MismatchError(f"levels from {first} to {last}, by the logarithm to base 2", [lowest, limits, numbers[5]])
    eps, level = sorted((numbers[3][0], numbers[4][0]), key=abs)
    if level != int(level) or abs(eps) >= 0.5:
        raise MismatchError("a whole canonical level and a small eps", (level, eps))
    return {"canonical_scale": numbers[7][0], "canonical_level": int(level), "level_eps": eps}


def _only_level(
    regions: Regions, nodes: Sequence[gs.Node], places: Sequence[gs.Tensor | None], attributes: dict[str, Any]
) -> list[gs.Node]:
    """The one level that is used of several of the same stride, as torchvision's MobileNetV3 has them: the first.

    Raises:
        MismatchError: The level of a box is not limited to that one.
    """
    compared = [_comparison(regions, place) for place in places]
    limits = [numbers for op, numbers in _steps_back(regions, compared[0][0]) if op == "Clip"]
    first = [node for node, (_, level) in zip(nodes, compared, strict=True) if level == 0]
    if len(first) != 1 or len(limits) != 1 or len(limits[0]) != 2 or limits[0][0] != limits[0][1]:
        raise MismatchError("levels of different strides, or boxes of one level only", attributes["strides"])
    attributes["strides"] = attributes["strides"][:1]
    return first


def _comparison(regions: Regions, places: gs.Tensor | None) -> tuple[gs.Tensor, int]:
    """The tensor of all boxes' levels and the level it is compared with, behind the places of those that are of it."""
    tensor = places
    while tensor is not None:
        node = producer(tensor)
        if node is None or node.op not in ("Squeeze", "Split", "Transpose", "NonZero", "Reshape", "Flatten", "Equal"):
            break
        if node.op == "Equal":
            level = regions.number(node.inputs[1])
            return node.inputs[0], -1 if level is None else int(level)
        tensor = node.inputs[0]
    raise MismatchError("each level to pool where Equal says so", "another way of choosing boxes")


def _steps_back(regions: Regions, tensor: gs.Tensor) -> Iterator[tuple[str, list[float]]]:
    """Op and numbers of each step, the last first, back to the square root."""
    while True:
        node = producer(tensor)
        if node is None:
            return
        given = [tensor for tensor in node.inputs if not tensor.is_empty()]
        numbers = [regions.number(each) for each in given]
        yield node.op, [number for number in numbers if number is not None]
        unknown = [each for each, number in zip(given, numbers, strict=True) if number is None]
        if node.op == "Sqrt" or len(unknown) != 1:
            return
        tensor = unknown[0]
