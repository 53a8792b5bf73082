"""RoIAlign as two matrix products, for sizes at which gold takes too long: pooled = rows @ map @ columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tests import gold

Array = npt.NDArray[Any]
f32 = np.float32


def pyramid_roi_align(rois: Array, features: Sequence[Array], attributes: Mapping[str, Any]) -> Array:
    """As `gold.pyramid_roi_align`, in float32: `(B*N, C, S, S)`."""
    size, channels = attributes["output_size"], features[0].shape[1]
    out = np.zeros((rois.shape[0] * rois.shape[1], channels, size, size), f32)
    for row, roi in enumerate(rois.reshape(-1, 4)):
        if gold.is_padding(roi) or not np.isfinite(roi).all():
            continue
        level = gold.roi_level(roi, attributes)
        feature = features[level][row // rois.shape[1]].astype(f32)
        stride = attributes["strides"][level]
        columns = _weights(roi[0], roi[2], feature.shape[2], stride, attributes)
        rows = _weights(roi[1], roi[3], feature.shape[1], stride, attributes)
        out[row] = rows @ feature @ columns.T
    return out


def _weights(low: Any, high: Any, cells: int, stride: int, attributes: Mapping[str, Any]) -> Array:
    """Shares of an axis's cells in each bin: `(S, cells)`."""
    count, aligned = attributes["output_size"], attributes["aligned"]
    shift = f32(0.5 if aligned else 0)
    start = low / f32(stride) - shift
    length = high / f32(stride) - shift - start
    length = length if aligned else max(length, f32(1))
    bin_length = length / f32(count)
    samples = attributes["sampling_ratio"] or int(np.ceil(bin_length))
    weights = np.zeros((count, cells), f32)
    for bin_index in range(count):
        offset = (np.arange(samples, dtype=f32) + f32(0.5)) * bin_length / f32(samples)
        position = start + f32(bin_index) * bin_length + offset
        position = np.maximum(position[(position >= -1) & (position <= cells)], f32(0))
        lower = np.minimum(position.astype(int), cells - 1)
        upper = np.minimum(lower + 1, cells - 1)
        fraction = np.where(lower == upper, f32(0), position - lower.astype(f32))
        np.add.at(weights[bin_index], lower, (1 - fraction) / f32(samples))
        np.add.at(weights[bin_index], upper, fraction / f32(samples))
    return weights
