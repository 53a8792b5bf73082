"""`Histogram`: how often a tensor takes which values, in one pass, in memory that does not grow with the pictures."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

SIDE_BINS = 4096
"""Bins on each side of 0, a power of two: at least 16 for each of the 127 steps of int8."""

_LEAST_EXPONENT = -100
"""Values below 2^-100 count as 0: the inverse of their bin's width would not be a float32."""

Counts = npt.NDArray[np.int64]


class Histogram:
    """Counts values in bins of one width, `SIDE_BINS` on each side of 0; 0 is an edge.

    A value beyond the last bin doubles the width as often as it takes and merges the bins in pairs. Widths are powers
    of two, so the counts are those of a histogram that had the final width from the start, whatever the order of the
    values.

    Attributes:
        low: Smallest value told of, infinity before the first.
        high: Largest one, minus infinity before the first.
        width: Of a bin; 0 while all values were 0.
        counts: `(2 * SIDE_BINS,)`; bin `i` holds `(i - SIDE_BINS) * width <= x < (i - SIDE_BINS + 1) * width`.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.counts: Counts = np.zeros(2 * SIDE_BINS, np.int64)
        self._exponent: int | None = None

    @property
    def width(self) -> float:
        """Width of a bin; 0 while all values were 0."""
        return 0.0 if self._exponent is None else math.ldexp(1.0, self._exponent)

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum())

    @property
    def magnitude(self) -> float:
        """Largest magnitude told of; 0 before the first value."""
        return max(self.high, -self.low, 0.0)

    def add(self, values: npt.NDArray[np.float32], low: float | None = None, high: float | None = None) -> None:
        """Count values.

        Args:
            values: Of any shape, finite.
            low: Smallest value of the tensor where `values` are a sample of it; their smallest when not given.
            high: Largest one likewise.
        """
        if not values.size:
            return
        low = float(values.min()) if low is None else low
        high = float(values.max()) if high is None else high
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(high, -low))
        # Exact: the width is a power of two. A value so small that it is none in float32 joins those of bin 0.
        places = np.floor(values.ravel() * np.float32(1 / (self.width or 1.0))).astype(np.int64)
        places += SIDE_BINS
        self.counts += np.bincount(places, minlength=2 * SIDE_BINS)

    def _widen(self, magnitude: float) -> None:
        """Double the width until the bins hold `magnitude`."""
        if magnitude == 0:
            return
        # m * 2^e with 0.5 <= m < 1, so the magnitude lies below 2^e
        exponent = max(math.frexp(magnitude)[1], _LEAST_EXPONENT) - int(math.log2(SIDE_BINS))
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            self._exponent += 1
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[SIDE_BINS // 2 : -SIDE_BINS // 2] = merged

    def side(self, positive: bool) -> Counts:
        """Counts of one side from 0 outwards, `(SIDE_BINS,)`; a view."""
        return self.counts[SIDE_BINS:] if positive else self.counts[SIDE_BINS - 1 :: -1]

    def magnitudes(self) -> Counts:
        """Counts of magnitudes from 0 outwards, `(SIDE_BINS,)`."""
        return self.side(True) + self.side(False)
