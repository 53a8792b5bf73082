"""What `PyramidRoiAlign` launches: one kernel for each layout (plugins/pyramid_roi_align/pyramid_roi_align.cuh)."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.launches import Launch, Map, Tensor, ceil_div, maps_of, round_up
from edge_mrcnn.ops import MAX_LEVELS

SOURCE = "pyramid_roi_align/pyramid_roi_align.cuh"

# As in the source:
MAX_OUTPUT = 128
BLOCK_BYTES = 4720
"""Of `RoiAlignBlock`."""
STAGE_BYTES = 28 << 10
HWC8_THREADS = 224
LINEAR_THREADS, LINEAR_SLOTS, LINEAR_CHANNELS, LINEAR_ROWS = 128, 512, 64, 8


class Tile(ctypes.Structure):
    """`edge_mrcnn::RoiAlignTile`: which part of the output one block makes."""

    _fields_ = (("channels", ctypes.c_int), ("bin_rows", ctypes.c_int))


class Args(ctypes.Structure):
    """`edge_mrcnn::PyramidRoiAlignArgs` of plugins/pyramid_roi_align/args.cuh."""

    _fields_ = (
        ("rois", ctypes.c_void_p),
        ("pooled", ctypes.c_void_p),
        ("levels", Map * MAX_LEVELS),
        ("inverse_strides", ctypes.c_float * MAX_LEVELS),
        ("level_areas", ctypes.c_float * (MAX_LEVELS - 1)),
        ("level_count", ctypes.c_int),
        ("batch", ctypes.c_int),
        ("rois_per_picture", ctypes.c_int),
        ("output_size", ctypes.c_int),
        ("sampling_ratio", ctypes.c_int),
        ("aligned", ctypes.c_int),
        ("pooled_hwc8", ctypes.c_int),
        ("tile", Tile),
    )


def workspace_bytes(attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """None is needed.

    Raises:
        PluginError: Shapes, types, layouts or attributes are out of the kernels' range.
    """
    _check(attributes, inputs, outputs)
    return 0


def launches(
    attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int
) -> list[Launch]:
    """The launch; none where there are no rois.

    Args:
        attributes: Of the node.
        inputs: rois `(B, N, 4)`, features `(B, C, H, W)` of each level.
        outputs: pooled `(B*N, C, S, S)`.
        workspace: Not used.

    Raises:
        PluginError: As `workspace_bytes`.
    """
    _check(attributes, inputs, outputs)
    (rois, *features), (pooled,) = inputs, outputs
    batch, per_picture, _ = rois.shape
    if batch * per_picture == 0:
        return []
    strides = attributes["strides"]
    areas = [least_area(stride, attributes) for stride in strides[1:]]
    channels_last = features[0].layout == "hwc8"
    size, channels = attributes["output_size"], features[0].shape[1]
    tile = _hwc8_tile(size, channels, pooled.layout) if channels_last else _linear_tile(size, channels)
    args = Args(
        rois.address,
        pooled.address,
        maps_of(features),
        (ctypes.c_float * MAX_LEVELS)(*(1 / stride for stride in strides)),
        (ctypes.c_float * (MAX_LEVELS - 1))(*areas),
        len(features),
        batch,
        per_picture,
        size,
        attributes["sampling_ratio"],
        attributes["aligned"],
        int(pooled.layout == "hwc8"),
        tile,
    )
    grid = batch * per_picture, ceil_div(channels, tile.channels), ceil_div(size, tile.bin_rows)
    if not channels_last:
        kernel = f"pyramid_roi_align_{'f16' if pooled.dtype == 'float16' else 'f32'}"
        return [Launch(SOURCE, kernel, grid, LINEAR_THREADS, args, BLOCK_BYTES + tile.bin_rows * LINEAR_SLOTS * 4)]
    groups = tile.channels // 8
    threads = round_up(groups * tile.bin_rows, 32)
    if pooled.layout == "hwc8":
        return [Launch(SOURCE, "pyramid_roi_align_hwc8_f16", grid, threads, args, BLOCK_BYTES)]
    shared = BLOCK_BYTES + _stage_bytes(groups, tile.bin_rows, size)
    return [Launch(SOURCE, "pyramid_roi_align_hwc8_to_linear_f16", grid, threads, args, shared)]


def least_area(stride: int, attributes: Mapping[str, Any]) -> float:
    """Area in square pixels from which a roi belongs to the level of that stride, which is not the first."""
    scale, eps = (float(np.float32(attributes[name])) for name in ("canonical_scale", "level_eps"))
    side: float = scale * 2.0 ** (math.log2(stride) - attributes["canonical_level"] - eps)
    return side * side


def _hwc8_tile(size: int, channels: int, pooled_layout: str) -> Tile:
    groups = _chunk(ceil_div(channels, 8), 32)
    rows = HWC8_THREADS // groups
    if pooled_layout == "linear":
        # Fewer channels and all rows: then a block's part of the output is contiguous.
        while groups > 4 and (groups * size > HWC8_THREADS or _stage_bytes(groups, size, size) > STAGE_BYTES):
            groups = ceil_div(groups, 2)
        rows = HWC8_THREADS // groups
        while rows > 1 and _stage_bytes(groups, rows, size) > STAGE_BYTES:
            rows -= 1
    return Tile(8 * groups, _chunk(size, rows))


def _linear_tile(size: int, channels: int) -> Tile:
    return Tile(min(channels, LINEAR_CHANNELS), _chunk(size, LINEAR_ROWS))


def _chunk(number: int, most: int) -> int:
    """Size of the chunks, `most` or less, that divide a number as evenly as can be."""
    return ceil_div(number, ceil_div(number, most))


def _stage_bytes(groups: int, rows: int, size: int) -> int:
    return groups * (8 * rows * size + 2) * 2


def _check(attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    (_, *features), (pooled,) = inputs, outputs
    size, ratio, strides = attributes["output_size"], attributes["sampling_ratio"], attributes["strides"]
    if not 1 <= size <= MAX_OUTPUT or ratio < 0 or attributes["aligned"] not in (0, 1):
        raise PluginError(
            f"PyramidRoiAlign takes output_size 1 to {MAX_OUTPUT}, sampling_ratio 0 or more and aligned 0 or 1, got "
            f"{size}, {ratio} and {attributes['aligned']!r}; edit the node"
        )
    if len(strides) != len(features) or any(stride < 1 or stride & (stride - 1) for stride in strides):
        raise PluginError(
            f"PyramidRoiAlign.strides must be powers of two, one for each of {len(features)} levels, got {strides}; "
            "export the model again"
        )
    kinds = {(tensor.dtype, tensor.layout, tensor.shape[1]) for tensor in features}
    dtype, layout, channels = kinds.pop()
    if kinds or channels < 1 or dtype != pooled.dtype:
        raise PluginError(
            "PyramidRoiAlign's levels must have one type and layout and the same channels, and the output their type; "
            f"got {[(tensor.dtype, tensor.layout, tensor.shape) for tensor in (*features, pooled)]}"
        )
    if dtype != "float16" and (dtype != "float32" or "hwc8" in (layout, pooled.layout)):
        raise PluginError(
            "PyramidRoiAlign takes float32 (linear) or float16 (linear or hwc8) features, got "
            f"{dtype} ({layout} to {pooled.layout})"
        )
