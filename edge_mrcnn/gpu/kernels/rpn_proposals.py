"""What `RpnProposals` launches: clear, histogram, collect, level, merge (plugins/rpn_proposals/rpn_proposals.cuh)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.kernels.ranking import (
    BOX_BYTES,
    DIGITS,
    FLOAT_BYTES,
    KEY_BYTES,
    BoxCoder,
    global_bytes_to_sort,
    room_to_sort,
    total_bytes,
)
from edge_mrcnn.gpu.launches import Launch, Map, Tensor, ceil_div, maps_of
from edge_mrcnn.ops import MAX_LEVELS, RPN_PROPOSALS

SOURCE = "rpn_proposals/rpn_proposals.cuh"

# As in the source:
MAX_CELL_ANCHORS = 128
CLEAR_THREADS = 256
SCAN_THREADS, SCAN_PIXELS = 512, 4
LEVEL_THREADS = 1024
MERGE_THREADS = 256
COUNTERS_BYTES = 4 * (DIGITS + 4)
CLEARED_BYTES = 16
"""By a thread."""


class Args(ctypes.Structure):
    """`edge_mrcnn::RpnProposalsArgs` of plugins/rpn_proposals/args.cuh."""

    _fields_ = (
        ("image_hw", ctypes.c_void_p),
        ("objectness", Map * MAX_LEVELS),
        ("deltas", Map * MAX_LEVELS),
        ("proposals", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("cell_anchors", ctypes.c_float * (4 * MAX_CELL_ANCHORS)),
        ("stride_y", ctypes.c_float * MAX_LEVELS),
        ("stride_x", ctypes.c_float * MAX_LEVELS),
        ("coder", BoxCoder),
        ("nms_threshold", ctypes.c_float),
        ("score_threshold", ctypes.c_float),
        ("levels", ctypes.c_int),
        ("batch", ctypes.c_int),
        ("pre_nms_top_n", ctypes.c_int),
        ("post_nms_top_n", ctypes.c_int),
    )


def workspace_bytes(attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes of workspace for tensors of these shapes; never more for smaller ones.

    Raises:
        PluginError: They, or the attributes, are out of the kernels' range.
    """
    objectness = _objectness(inputs)
    _check(attributes, inputs)
    batch, levels = inputs[0].shape[0], len(objectness)
    slots, candidates = batch * levels, _candidates(attributes, objectness)
    kept = min(candidates, attributes["post_nms_top_n"])
    return total_bytes(
        slots * COUNTERS_BYTES,
        batch * sum(map(_anchors, objectness)) * KEY_BYTES,
        slots * global_bytes_to_sort(room_to_sort(candidates)),
        slots * kept * BOX_BYTES,
        slots * kept * FLOAT_BYTES,
    )


def launches(
    attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int
) -> list[Launch]:
    """The launches in order; none for an empty batch.

    Args:
        attributes: Of the node.
        inputs: image_hw `(B, 2)`, then objectness and deltas of each level.
        outputs: proposals `(B, P, 4)`.
        workspace: Address of `workspace_bytes`.

    Raises:
        PluginError: As `workspace_bytes`.
    """
    objectness = _objectness(inputs)
    _check(attributes, inputs)
    batch, levels = inputs[0].shape[0], len(objectness)
    if batch == 0:
        return []
    args = _args(attributes, inputs, outputs, workspace)
    kept = min(_candidates(attributes, objectness), attributes["post_nms_top_n"])
    pixels = max(tensor.shape[2] * tensor.shape[3] for tensor in objectness)
    suffix = "f16" if objectness[0].dtype == "float16" else "f32"
    cleared = ceil_div(batch * levels * COUNTERS_BYTES, CLEARED_BYTES * CLEAR_THREADS)
    scanned = ceil_div(pixels, SCAN_THREADS * SCAN_PIXELS)
    merged = ceil_div(max(levels * kept, attributes["post_nms_top_n"]), MERGE_THREADS)
    return [
        Launch(SOURCE, f"rpn_proposals_{kernel}", grid, threads, args)
        for kernel, grid, threads in (
            ("clear", (cleared, 1, 1), CLEAR_THREADS),
            (f"histogram_{suffix}", (scanned, levels, batch), SCAN_THREADS),
            (f"collect_{suffix}", (scanned, levels, batch), SCAN_THREADS),
            (f"level_{suffix}", (levels, batch, 1), LEVEL_THREADS),
            ("merge", (merged, batch, 1), MERGE_THREADS),
        )
    ]


def _args(attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int) -> Args:
    objectness = _objectness(inputs)
    levels = len(objectness)
    stride_y, stride_x = zip(*_strides(attributes, objectness), strict=True)
    args = Args()
    args.image_hw, args.proposals, args.workspace = inputs[0].address, outputs[0].address, workspace
    args.objectness = maps_of(objectness)
    args.deltas = maps_of(list(inputs[1 + levels :]))
    args.cell_anchors[: len(attributes["cell_anchors"])] = attributes["cell_anchors"]
    args.stride_y[:levels], args.stride_x[:levels] = stride_y, stride_x
    args.coder = BoxCoder.of(attributes)
    args.nms_threshold, args.score_threshold = attributes["nms_threshold"], attributes["score_threshold"]
    args.levels, args.batch = levels, inputs[0].shape[0]
    args.pre_nms_top_n, args.post_nms_top_n = attributes["pre_nms_top_n"], attributes["post_nms_top_n"]
    return args


def _objectness(inputs: Sequence[Tensor]) -> list[Tensor]:
    return list(inputs[1 : 1 + RPN_PROPOSALS.levels(len(inputs))])


def _anchors(objectness: Tensor) -> int:
    _, anchors, height, width = objectness.shape
    return anchors * height * width


def _candidates(attributes: Mapping[str, Any], objectness: Sequence[Tensor]) -> int:
    """Of a level, at most."""
    return min(int(attributes["pre_nms_top_n"]), max(map(_anchors, objectness)))


def _strides(attributes: Mapping[str, Any], objectness: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Cell size (y, x) of each level in pixels."""
    strides = attributes["strides"]
    if attributes["stride_rule"] == "fixed":
        return [(stride, stride) for stride in strides]
    height, width = (cells * strides[0] for cells in objectness[0].shape[2:])
    return [(height // tensor.shape[2], width // tensor.shape[3]) for tensor in objectness]


def _check(attributes: Mapping[str, Any], inputs: Sequence[Tensor]) -> None:
    objectness = _objectness(inputs)
    levels, anchors = len(objectness), objectness[0].shape[1]
    rule, given, strides = attributes["stride_rule"], len(attributes["cell_anchors"]), len(attributes["strides"])
    if rule not in ("grid", "fixed"):
        raise PluginError(f"RpnProposals.stride_rule must be grid or fixed, got {rule!r}; export the model again")
    for tensor, deltas in zip(objectness, inputs[1 + levels :], strict=True):
        if tensor.shape[1] != anchors or deltas.shape[1:] != (4 * anchors, *tensor.shape[2:]):
            raise PluginError(
                f"RpnProposals has {anchors} anchors a cell on its first level, objectness {tensor.shape} and deltas "
                f"{deltas.shape} on another; export the model again"
            )
    if given != 4 * anchors * levels or strides != levels:
        raise PluginError(
            f"RpnProposals has {levels} levels and {anchors} anchors a cell, which takes {4 * anchors * levels} "
            f"numbers in cell_anchors and {levels} strides, got {given} and {strides}; export the model again"
        )
    if anchors * levels > MAX_CELL_ANCHORS:
        raise PluginError(
            f"RpnProposals has {anchors * levels} anchors a cell over all levels, its kernel takes {MAX_CELL_ANCHORS}; "
            "use fewer sizes and ratios, or run the model in ONNX Runtime"
        )
    for name in ("pre_nms_top_n", "post_nms_top_n"):
        if attributes[name] < 1:
            raise PluginError(f"RpnProposals.{name} must be at least 1, got {attributes[name]}; edit the node")
