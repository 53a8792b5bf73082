"""Pictures go into the first convolution as bytes; what was arithmetic on their values becomes its weights.

Normalisation is `inside * (a * x + b)` in each channel, and `inside` is 0 where the letterbox padded. That is linear in
`inside * (x - 128)` and `inside`, so a convolution of these, `inside` being one more channel, gives the same: also at
the borders, where the convolution's own padding is 0 in all channels as it is after normalisation. An integer kernel
reads the bytes as they are, with 128 for its zero point: nothing is computed in float before it and nothing is rounded.
Rounding the weights to int8 does less harm to values about 0 than it would to values from 0 to 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from edge_mrcnn.spec import ModelSpec

ZERO = 128
"""The byte that stands for 0."""

HEIGHTS = (1, 2, 4, 8, 16, 32, 64, 127)
"""What the additional channel may hold inside the picture: the less, the larger, and so the finer, are its weights."""

_CHANNELS_FIRST = [0, 3, 1, 2]


def fold_normalisation(graph: gs.Graph, spec: ModelSpec) -> None:
    """Fold the arithmetic between the picture and the first convolution into the convolution.

    A graph that prepares its pictures in another way stays as it is.

    Args:
        graph: In float32, constants folded; changed in place.
        spec: Not used; every pass takes it.
    """
    for picture in graph.inputs:
        found = _read_chain(picture)
        if found is not None:
            _write_bytes(graph, picture, found)
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)


def read_bytes(graph: gs.Graph, spec: ModelSpec) -> None:
    """Let integer kernels read bytes as they are, where they would be cast to float and rounded to the same bytes.

    Args:
        graph: With Q/DQ nodes; changed in place.
        spec: Not used; every pass takes it.
    """
    for node in [node for node in graph.nodes if node.op == "QuantizeLinear"]:
        codes = bytes_of(node.inputs[0])
        scale, zero_point = (given.values for given in node.inputs[1:])
        if codes is not None and scale == 1 and zero_point == ZERO and zero_point.dtype == np.uint8:
            for reader in list(node.outputs[0].outputs):
                reader.inputs[0] = codes
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)


def bytes_of(tensor: gs.Tensor) -> gs.Tensor | None:
    """The bytes of a tensor that is nothing but bytes less 128, as `fold_normalisation` writes it; None for others."""
    shift = tensor.inputs[0] if tensor.inputs else None
    if shift is None or shift.op != "Sub" or not isinstance(shift.inputs[1], gs.Constant) or not shift.inputs[0].inputs:
        return None
    cast = shift.inputs[0].inputs[0]
    is_shifted = np.array_equal(shift.inputs[1].values, ZERO) and cast.op == "Cast"
    return cast.inputs[0] if is_shifted and cast.inputs[0].dtype == np.uint8 else None


@dataclass(frozen=True)
class _Normalisation:
    """What stands between the picture and a convolution: `inside * (factor * x + offset)`.

    Attributes:
        factor: `(C,)`.
        offset: `(C,)`.
        inside: Bool, broadcastable to `(B, 1, H, W)`.
        conv: The convolution.
    """

    factor: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    inside: gs.Variable
    conv: gs.Node


def _read_chain(picture: gs.Variable) -> _Normalisation | None:
    """Follow a picture `(B, H, W, C)` of bytes up to the convolution, or nothing where the way is another."""
    if picture.dtype != np.uint8 or len(picture.shape or ()) != 4 or not _known(picture.shape[1:]):
        return None
    factor, offset = np.ones(picture.shape[3]), np.zeros(picture.shape[3])
    inside, turned, x = None, False, picture
    while len(x.outputs) == 1:
        node = x.outputs[0]
        if node.op == "Conv":
            fits = turned and inside is not None and node.inputs[0] is x and _is_plain(node)
            return _Normalisation(factor, offset, inside, node) if fits else None
        if node.op == "Transpose" and not turned and node.attrs.get("perm") == _CHANNELS_FIRST:
            turned = True
        elif node.op == "Mul" and inside is None and turned and _mask(node, x) is not None:
            inside = _mask(node, x)
        elif node.op != "Cast":
            step = _affine(node, x, len(factor)) if turned and inside is None else None
            if step is None:
                return None
            factor, offset = factor * step[0], offset * step[0] + step[1]
        x = node.outputs[0]
    return None


def _affine(node: gs.Node, x: gs.Tensor, channels: int) -> tuple[npt.NDArray[np.float64], ...] | None:
    """Factor and offset `(C,)` of one step of arithmetic with a constant, or nothing where it is none."""
    if node.op not in ("Add", "Sub", "Mul", "Div"):
        return None
    first = node.inputs[0] is x
    other = node.inputs[1 if first else 0]
    if not isinstance(other, gs.Constant) or other.values.size not in (1, channels) or (not first and node.op == "Div"):
        return None
    if other.values.size > 1 and other.values.shape[-3:] != (channels, 1, 1):
        return None
    value = np.broadcast_to(np.asarray(other.values, np.float64).reshape(-1), channels)
    one, nought = np.ones(channels), np.zeros(channels)
    if node.op in ("Mul", "Div"):
        return (value if node.op == "Mul" else 1 / value), nought
    if node.op == "Add":
        return one, value
    return (one, -value) if first else (-one, value)


def _mask(node: gs.Node, x: gs.Tensor) -> gs.Variable | None:
    """The bool tensor `(B, 1, H, W)` by which a Mul keeps or zeroes a picture's values, or nothing where it is none."""
    other = node.inputs[1 if node.inputs[0] is x else 0]
    if not other.inputs or other.inputs[0].op != "Cast":
        return None
    inside = other.inputs[0].inputs[0]
    shape = inside.shape
    return inside if inside.dtype == np.bool_ and shape is not None and len(shape) == 4 and shape[1] == 1 else None


def _is_plain(conv: gs.Node) -> bool:
    weight = conv.inputs[1]
    return conv.attrs.get("group", 1) == 1 and isinstance(weight, gs.Constant) and len(weight.outputs) == 1


def _known(shape: list[object]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _write_bytes(graph: gs.Graph, picture: gs.Variable, found: _Normalisation) -> None:
    """Give the convolution the bytes, the additional channel and the weights that fit them."""
    conv = found.conv
    weight, height = _folded_weight(np.asarray(conv.inputs[1].values, np.float64), found)
    batch, rows, columns, channels = picture.shape
    name = conv.inputs[0].name

    def constant(label: str, value: object, dtype: type[np.generic]) -> gs.Constant:
        return gs.Constant(f"{name}.{label}", np.array(value, dtype))

    def add(op: str, inputs: list[gs.Tensor], label: str, shape: list[object], **attributes: object) -> gs.Variable:
        dtype = inputs[-1].dtype if op in ("Sub", "Where") else attributes.get("to", inputs[0].dtype)
        output = gs.Variable(f"{name}.{label}", dtype, shape)
        graph.nodes.append(gs.Node(op, output.name, attributes, inputs, [output]))
        return output

    area = rows * columns
    nothing = constant("nothing", ZERO, np.uint8)
    turned = add("Transpose", [picture], "channels_first", [batch, channels, rows, columns], perm=_CHANNELS_FIRST)
    # Rows in one: through a Reshape ONNX Runtime pushes no Transpose; a Where with channels last would take 7 ms.
    flat = add("Reshape", [turned, constant("flat", [0, 0, -1], np.int64)], "colours", [batch, channels, area])
    size = constant("size", [1, 1, rows, columns], np.int64)
    inside = add("Expand", [found.inside, size], "inside", [batch, 1, rows, columns])
    inside = add("Reshape", [inside, flat.inputs[0].inputs[1]], "flat_inside", [batch, 1, area])
    kept = add("Where", [inside, flat, nothing], "content", [batch, channels, area])
    level = add("Where", [inside, constant("height", ZERO + height, np.uint8), nothing], "level", [batch, 1, area])
    joined = add("Concat", [kept, level], "joined", [batch, channels + 1, area], axis=1)
    shape = [batch, channels + 1, rows, columns]
    codes = add("Reshape", [joined, constant("shape", [0, 0, rows, columns], np.int64)], "bytes", shape)
    values = add("Cast", [codes], "cast", shape, to=np.float32)
    conv.inputs[0] = add("Sub", [values, constant("zero", ZERO, np.float32)], "values", shape)
    conv.inputs[1] = gs.Constant(conv.inputs[1].name, weight.astype(np.float32))


def _folded_weight(weight: npt.NDArray[np.float64], found: _Normalisation) -> tuple[npt.NDArray[np.float64], int]:
    """The weights `(K, C + 1, h, w)` for bytes less 128, and what the last channel holds inside the picture.

    As `a * x + b` is `a * (x - 128) + (128 a + b)`, the last channel carries the second term. It holds as little as it
    can without weights larger than those of the colours, which would make the int8 steps coarser for all.
    """
    factor, offset = found.factor.reshape(1, -1, 1, 1), found.offset.reshape(1, -1, 1, 1)
    colours = weight * factor
    level = (weight * (ZERO * factor + offset)).sum(axis=1, keepdims=True)
    most = np.abs(colours).max(axis=(1, 2, 3), initial=0.0)
    needed = np.abs(level).max(axis=(1, 2, 3), initial=0.0)
    height = next((height for height in HEIGHTS if (needed <= height * most).all()), HEIGHTS[-1])
    return np.concatenate([colours, level / height], axis=1), height
