"""From a histogram to the range that 8 bits should hold: max, percentile, entropy and mse.

Each method gives a magnitude for int8 (127 steps each way) and an interval with 0 in it for uint8 (255 steps). A range
that is too wide wastes steps, one that is too narrow clips; the methods differ in what they call a loss:

- `max` clips nothing;
- `percentile` clips a fixed share of the values;
- `entropy` loses the least information about how often each value occurs;
- `mse` makes the mean square error of rounding and clipping together the least.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edge_mrcnn.compiler.calibration.histogram import SIDE_BINS, Counts, Histogram
from edge_mrcnn.compiler.calibration.ranges import TensorRange

INT8_STEPS = 127
UINT8_STEPS = 255

ENTROPY_LEVELS = 128
"""Source: TensorRT's entropy calibrator, as S. Migacz explains it in "8-bit Inference with TensorRT" (2017)."""

_ENTROPY_STRIDE = 8
"""Every so many bins, of 4096, a threshold is tried."""

_COARSE = 2.0 ** (-np.arange(0, 8.25, 0.25))
"""Shares of the largest magnitude that `mse` tries first: down to a 256th."""

_FINE = 33
"""Shares tried next, between the neighbours of the best coarse one."""

Floats = npt.NDArray[np.float64]


def find_ranges(histogram: Histogram, percentile: float) -> TensorRange:
    """Ranges of one tensor by all methods.

    Args:
        histogram: Of its values, at least one of which is not 0.
        percentile: Per cent of the values that method `percentile` keeps, on each side for uint8.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    moments = _Moments(histogram)
    symmetric = {
        "max": histogram.magnitude,
        "percentile": keep_share(histogram.magnitudes(), histogram.width, percentile),
        "entropy": least_divergence(histogram.magnitudes(), histogram.width, ENTROPY_LEVELS),
        "mse": least_error_int8(moments, histogram.magnitude),
    }
    affine = {
        "max": (low, high),
        "percentile": _each_side(histogram, lambda counts: _keep(counts, histogram, percentile)),
        "entropy": _each_side(histogram, lambda counts: least_divergence(counts, histogram.width, ENTROPY_LEVELS)),
        "mse": least_error_uint8(moments, low, high),
    }
    return TensorRange(
        _short(histogram.low),
        _short(histogram.high),
        {name: _short(min(value or histogram.magnitude, histogram.magnitude)) for name, value in symmetric.items()},
        {name: (_short(max(below, low)), _short(min(above, high))) for name, (below, above) in affine.items()},
    )


def keep_share(counts: Counts, width: float, percentile: float, total: int | None = None) -> float:
    """The value beyond which lie `100 - percentile` per cent of all values, on one side of 0.

    It is 0 where that is in the first bin, or nowhere: no range can be made of it.

    Args:
        counts: From 0 outwards.
        width: Of a bin.
        percentile: Per cent of the values to keep.
        total: Number of all values, those on the other side included; the sum of `counts` when not given.
    """
    total = int(counts.sum()) if total is None else total
    beyond = np.concatenate([np.cumsum(counts[::-1])[::-1], [0]])  # beyond[i]: values from edge i outwards
    outside = total * (1 - percentile / 100)
    # The outermost edge with at least `outside` values beyond it; the values of a bin lie evenly in it.
    edge = int(np.searchsorted(-beyond, -outside, side="right")) - 1
    if edge <= 0 or edge >= len(counts):
        return 0.0
    return float((edge + (beyond[edge] - outside) / counts[edge]) * width)


def least_divergence(counts: Counts, width: float, levels: int) -> float:
    """The threshold at which clipped and quantised values keep the most information: least Kullback-Leibler divergence.

    Values beyond a threshold are added to the last bin before it; then the bins are merged into `levels` and what is in
    a level is spread evenly over those of its bins that were not empty. The spike at 0 that a Relu makes says nothing
    about the threshold and counts as much as its neighbour.

    Args:
        counts: From 0 outwards.
        width: Of a bin.
        levels: Number of steps.

    Source: S. Migacz, "8-bit Inference with TensorRT" (2017), with sums by prefix instead of loops.
    """
    occupied = np.flatnonzero(counts)
    if not occupied.size:
        return 0.0
    size = int(occupied[-1]) + 1
    if size <= levels:
        return size * width
    values = counts[:size].astype(np.float64)
    values[0] = min(values[0], values[1])
    ends = np.arange(size, levels - 1, -_ENTROPY_STRIDE)[::-1]
    divergence = _divergences(values, ends, levels)
    return float(ends[len(ends) - 1 - int(np.argmin(divergence[::-1]))] * width)  # of equals the widest


def _divergences(counts: Floats, ends: npt.NDArray[np.int64], levels: int) -> Floats:
    """Kullback-Leibler divergence for thresholds at the bins `ends` `(T,)`; infinite where a bin cannot be told."""
    total, present, information = (
        np.concatenate([[0.0], np.cumsum(values)]) for values in (counts, counts > 0, _xlogx(counts))
    )
    edges = ends[:, None] * np.arange(levels + 1) // levels  # (T, levels + 1)
    inside, filled = np.diff(total[edges], axis=1), np.diff(present[edges], axis=1)
    last = counts[ends - 1]
    outside = total[-1] - total[ends]
    reference = information[ends - 1] + _xlogx(last + outside)
    spread = np.divide(inside, filled, out=np.zeros_like(inside), where=filled > 0)
    quantised = (inside * _log(spread)).sum(axis=1) + outside * _log(spread[:, -1])
    divergence = (reference - quantised) / total[-1] + _log(total[ends]) - np.log(total[-1])
    return np.where((last == 0) & (outside > 0) | (total[ends] == 0), np.inf, divergence)


def _log(values: Floats) -> Floats:
    return np.log(values, out=np.zeros_like(values), where=values > 0)


def _xlogx(values: Floats) -> Floats:
    return values * _log(values)


class _Moments:
    """Number and sum of a histogram's values up to any point, as if the values of a bin lay evenly in it."""

    def __init__(self, histogram: Histogram) -> None:
        self.width = histogram.width
        self.counts = histogram.counts.astype(np.float64)
        centres = (np.arange(2 * SIDE_BINS) - SIDE_BINS + 0.5) * self.width
        self._numbers = np.concatenate([[0.0], np.cumsum(self.counts)])
        self._sums = np.concatenate([[0.0], np.cumsum(self.counts * centres)])

    def upto(self, points: Floats) -> tuple[Floats, Floats]:
        """Number and sum of the values below each point."""
        places = np.clip(points / self.width + SIDE_BINS, 0, 2 * SIDE_BINS)
        bins = np.minimum(places.astype(np.int64), 2 * SIDE_BINS - 1)
        part = places - bins
        within = self.counts[bins] * part
        middle = (bins - SIDE_BINS + part / 2) * self.width
        return self._numbers[bins] + within, self._sums[bins] + within * middle

    def gain(self, step: Floats, first: npt.NDArray[np.int64], steps: int) -> Floats:
        """Sum of squares of the values minus the sum of square errors, for each way `(T,)` to round.

        Args:
            step: Size of a step `(T,)`.
            first: The lowest level `(T,)`, in steps; it stands for all that is below as well.
            steps: Number of steps; the highest level stands for all that is above.
        """
        levels = (first[:, None] + np.arange(steps + 1)) * step[:, None]
        edges = levels[:, 1:] - step[:, None] / 2
        ends = np.full((len(step), 1), SIDE_BINS * self.width)
        numbers, sums = self.upto(np.concatenate([-ends, edges, ends], axis=1))
        gains: Floats = (2 * levels * np.diff(sums, axis=1) - levels**2 * np.diff(numbers, axis=1)).sum(axis=1)
        return gains

    def gain_uint8(self, low: Floats, high: Floats) -> Floats:
        """The same for intervals `(T,)` in 255 steps, one of whose levels is 0."""
        step = (high - low) / UINT8_STEPS
        return self.gain(step, np.round(low / step).astype(np.int64), UINT8_STEPS)


def least_error_int8(moments: _Moments, magnitude: float) -> float:
    """The magnitude for 127 steps each way that makes the mean square error of rounding and clipping the least."""

    def gain(shares: Floats) -> Floats:
        step = magnitude * shares / INT8_STEPS
        return moments.gain(step, np.full(len(step), -INT8_STEPS), 2 * INT8_STEPS)

    return magnitude * _best_share(gain)


def least_error_uint8(moments: _Moments, low: float, high: float) -> tuple[float, float]:
    """The interval for 255 steps that makes the mean square error of rounding and clipping the least.

    Args:
        moments: Of the values.
        low: Smallest value, at most 0.
        high: Largest value, at least 0.
    """
    below = above = _best_share(lambda shares: moments.gain_uint8(low * shares, high * shares))
    for _ in range(2 if low < 0 < high else 0):  # each side while the other stands
        above = _best_share(functools.partial(_gain_uint8, moments, low * below, high))
        below = _best_share(functools.partial(_gain_uint8, moments, high * above, low))
    return low * below, high * above


def _gain_uint8(moments: _Moments, kept: float, other: float, shares: Floats) -> Floats:
    """Gain with one end of the interval kept and the other one at shares of its distance from 0."""
    ends = np.stack([np.full_like(shares, kept), other * shares])
    return moments.gain_uint8(ends.min(axis=0), ends.max(axis=0))


def _best_share(gain: Callable[[Floats], Floats]) -> float:
    """The share of a range, up to 1, with the greatest gain; of equals the widest."""
    best = int(np.argmax(gain(_COARSE)))
    around = _COARSE[max(best - 1, 0)], _COARSE[min(best + 1, len(_COARSE) - 1)]
    shares = np.linspace(*around, _FINE)
    return float(shares[int(np.argmax(gain(shares)))])


def _keep(counts: Counts, histogram: Histogram, percentile: float) -> float:
    return keep_share(counts, histogram.width, percentile, histogram.total)


def _each_side(histogram: Histogram, threshold: Callable[[Counts], float]) -> tuple[float, float]:
    """An interval whose ends a method finds one by one; a side without values ends at 0."""
    below, above = (threshold(histogram.side(positive)) for positive in (False, True))
    return (-below, above) if below or above else (min(histogram.low, 0.0), max(histogram.high, 0.0))


def _short(value: float) -> float:
    """Nine digits: enough to tell any two float32 apart. And no -0."""
    return float(f"{value:.9g}") + 0.0
