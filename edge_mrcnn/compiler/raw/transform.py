"""The beginning of torchvision's graph: normalise, resize, pad. It is cut away; what it does is read out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.raw.regions import Array, Regions, readers
from edge_mrcnn.compiler.raw.survey import MismatchError
from edge_mrcnn.spec import STRIDE_MULTIPLE

_MOVERS = frozenset({"Unsqueeze", "Squeeze", "Gather", "Concat", "Cast", "SplitToSequence", "SequenceAt", "Split"})
"""Ops by which a picture gets into and out of a batch of one."""

_WEIGHTED = frozenset({"Conv", "MatMul", "Gemm"})

PROBE = 1 << 10
"""Sides of pictures, in pixels, with which the rule of the resize is found out."""


@dataclass
class Transform:
    """torchvision's `GeneralizedRCNNTransform`.

    Attributes:
        picture: The graph's input.
        resized: The picture's content, before it is padded.
        rank: Of that: `(3, h, w)` or `(1, 3, h, w)`.
        padded: `(1, 3, H, W)`: what the backbone takes.
        mean: Per channel.
        std: Per channel.
        rule: Shortest side and longest side in pixels after the resize, where the graph takes pictures of any size.
        content: Height and width of the content: that of the fixed size, or the largest that the rule allows.
        canvas: The content padded to multiples of 32.
    """

    picture: gs.Tensor
    resized: gs.Tensor
    rank: int
    padded: gs.Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rule: tuple[int, int] | None
    content: tuple[int, int]
    canvas: tuple[int, int]

    def describe(self) -> str:
        """Normalisation and size."""
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        size = f"any size, to {self.rule[0]} and at most {self.rule[1]} pixels" if self.rule else "a fixed size"
        return f"less {mean}, by {std}; {size}, on {self.canvas[0]}x{self.canvas[1]}"


def find_transform(regions: Regions) -> Transform:
    """Follow the picture up to the first convolution.

    Raises:
        MismatchError: It goes another way.
    """
    picture = _find_picture(regions.graph)
    path = _follow(picture)
    mean, std = _normalisation(regions, path)
    resize = next((node for node in path if node.op == "Resize"), None)
    pad = next((node for node in path if node.op == "Pad"), None)
    if resize is None or pad is None:
        raise MismatchError("a Resize and a Pad between the picture and the first convolution", _ops(path))
    modes = [_text(resize, "mode", "nearest"), _text(resize, "coordinate_transformation_mode", "half_pixel")]
    if modes[0] != "linear" or modes[1] not in ("half_pixel", "pytorch_half_pixel"):
        raise MismatchError("a bilinear Resize of the picture, by half pixels", modes)
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    number = 0.0 if value is None or value.is_empty() else regions.number(value)
    if _text(pad, "mode", "constant") != "constant" or number != 0:
        raise MismatchError("padding with 0 after the normalisation", f"{_text(pad, 'mode', 'constant')} {number}")
    resized = pad.inputs[0]
    height, width = picture.shape[-2:]
    if isinstance(height, int) and isinstance(width, int):
        rule, content = None, _resized_hw(regions, picture, resize, (height, width))
        if abs(content[0] * width - content[1] * height) > height + width:  # each side is rounded down
            raise MismatchError(
                f"a resize of {height}x{width} that keeps its shape", f"one to {content[0]}x{content[1]}"
            )
    else:
        rule = _read_rule(regions, picture, resize)
        content = (rule[0], rule[1])
    rank, canvas = _padded_hw(regions, resized, pad, content)
    return Transform(picture, resized, rank, path[-1].outputs[0], mean, std, rule, content, canvas)


@dataclass
class Inputs:
    """The inputs of the graph, besides weights."""

    picture: gs.Tensor

    def describe(self) -> str:
        """The picture's shape."""
        return f"a picture {self.picture.shape}"


def find_inputs(graph: gs.Graph) -> Inputs:
    """Check that a picture is all that the graph asks for.

    Raises:
        MismatchError: There is another input, or no picture.
    """
    inputs = [tensor for tensor in graph.inputs if not isinstance(tensor, gs.Constant)]
    if len(inputs) != 1:
        found = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in inputs) or "none"
        raise MismatchError("1 input, a picture", f"{len(inputs)} inputs: {found}")
    return Inputs(_find_picture(graph))


def _find_picture(graph: gs.Graph) -> gs.Tensor:
    """The input that is a picture `(3, H, W)`, or a batch of one."""
    inputs = [tensor for tensor in graph.inputs if not isinstance(tensor, gs.Constant)]
    pictures = [tensor for tensor in inputs if len(tensor.shape or []) in (3, 4) and tensor.dtype == np.float32]
    shapes = [tensor.shape for tensor in inputs]
    if len(pictures) != 1:
        raise MismatchError("one picture (3, H, W) in float32", [f"{t.name} {t.shape} {t.dtype}" for t in inputs])
    *batch, channels, _, _ = pictures[0].shape
    if isinstance(channels, int) and channels != 3:
        raise MismatchError("a picture of 3 channels", shapes)
    if batch and isinstance(batch[0], int) and batch[0] != 1:
        raise MismatchError("one picture, since torchvision's export has a branch for each", shapes)
    return pictures[0]


def _follow(picture: gs.Tensor) -> list[gs.Node]:
    """The nodes from the picture to the first layer with weights."""
    path: list[gs.Node] = []
    tensor = picture
    while True:
        reading = readers(tensor)
        if reading and all(node.op in _WEIGHTED for node in reading):
            return path
        known = [node for node in reading if node.op in _MOVERS | {"Sub", "Div", "Add", "Mul", "Resize", "Pad"}]
        if len(reading) != 1 or not known:
            found = f"{_ops(path)} and then {', '.join(node.op for node in reading) or 'nothing'}"
            raise MismatchError("Sub, Div, Resize, Pad and then a convolution", found)
        path.append(reading[0])
        tensor = reading[0].outputs[0]


def _normalisation(regions: Regions, path: Sequence[gs.Node]) -> tuple[tuple[float, float, float], ...]:
    """Mean and std: `(x - mean) / std`, the constants of a Sub and a Div."""
    steps = [node for node in path if node.op in ("Sub", "Div", "Add", "Mul")]
    if [node.op for node in steps] != ["Sub", "Div"]:
        raise MismatchError("Sub of the mean, then Div by the std", _ops(steps) or "neither")
    values = [regions.value(node.inputs[1]) for node in steps]
    sizes = [None if value is None else value.size for value in values]
    if sizes != [3, 3]:
        raise MismatchError("a mean and a std of 3 numbers", f"{sizes} numbers")
    mean, std = (tuple(float(number) for number in value.reshape(-1)) for value in values if value is not None)
    if min(std) <= 0:
        raise MismatchError("a std above 0", std)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _resized_hw(regions: Regions, picture: gs.Tensor, resize: gs.Node, hw: tuple[int, int]) -> tuple[int, int]:
    """Size after the resize of a picture of that size."""
    regions.forget()
    regions.assume(picture, [*[1] * (len(picture.shape) - 3), 3, *hw])
    if resize.inputs[0] is not picture:
        regions.assume(resize.inputs[0], [1, 3, *hw])
    for step in _between(picture, resize):
        regions.assume(step.outputs[0], _shape_after(step, hw))
    sizes = regions.value(resize.inputs[3]) if len(resize.inputs) > 3 else None
    if sizes is not None and sizes.size == 4:
        return int(sizes[2]), int(sizes[3])
    scales = regions.value(resize.inputs[2]) if len(resize.inputs) > 2 else None
    if scales is None or scales.size != 4:
        raise MismatchError("the size after the Resize to follow from that of the picture", "it does not")
    return math.floor(hw[0] * float(scales[2])), math.floor(hw[1] * float(scales[3]))


def _between(picture: gs.Tensor, end: gs.Node) -> list[gs.Node]:
    path = _follow(picture)
    return path[: next(place for place, node in enumerate(path) if node is end)]


def _shape_after(step: gs.Node, hw: tuple[int, int]) -> list[int]:
    """Of the tensors before the resize only the rank is in question."""
    shape = step.outputs[0].shape
    rank = len(shape) if shape else 4 if step.op in ("Unsqueeze", "Concat") else 3
    return [*[1] * (rank - 3), 3, *hw]


def _read_rule(regions: Regions, picture: gs.Tensor, resize: gs.Node) -> tuple[int, int]:
    """Shortest and longest side: what a square becomes, and the long side of a strip."""
    square = _resized_hw(regions, picture, resize, (PROBE, PROBE))
    strip = _resized_hw(regions, picture, resize, (PROBE, 64 * PROBE))
    if square[0] != square[1] or strip[1] < square[0]:
        raise MismatchError(
            "a resize to a shortest and at most a longest side", f"{square} of a square, {strip} of a strip"
        )
    return square[0], strip[1]


def _padded_hw(
    regions: Regions, resized: gs.Tensor, pad: gs.Node, content: tuple[int, int]
) -> tuple[int, tuple[int, int]]:
    """Rank of the content, and the canvas for one of that size."""
    pads: Array | None = None
    for rank in (3, 4):
        regions.forget()
        regions.assume(resized, [*[1] * (rank - 3), 3, *content])
        pads = regions.value(pad.inputs[1])
        if pads is not None and pads.size == 2 * rank:
            break
    if pads is None or pads[: pads.size // 2].any() or pads[-3]:
        raise MismatchError("padding at the right and the bottom", "none" if pads is None else pads.tolist())
    canvas = content[0] + int(pads[-2]), content[1] + int(pads[-1])
    expected = tuple(math.ceil(side / STRIDE_MULTIPLE) * STRIDE_MULTIPLE for side in content)
    if canvas != expected:
        raise MismatchError(f"padding of {content} to multiples of {STRIDE_MULTIPLE}", canvas)
    return pads.size // 2, canvas


def _text(node: gs.Node, name: str, default: str) -> str:
    value = node.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _ops(nodes: Sequence[gs.Node]) -> str:
    return ", ".join(node.op for node in nodes) or "nothing"
