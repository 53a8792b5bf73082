"""The streaming histogram against one that sees all values at once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edge_mrcnn.compiler.calibration.histogram import SIDE_BINS, Histogram


def filled(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part.astype(np.float32))
    return histogram


def all_at_once(histogram: Histogram, *parts: np.ndarray) -> np.ndarray:
    edges = (np.arange(2 * SIDE_BINS + 1) - SIDE_BINS) * histogram.width
    return np.histogram(np.concatenate(parts).astype(np.float32), edges)[0]


SPREADS = [
    pytest.param((1.0,), id="once"),
    pytest.param((1e-3, 1.0, 0.1), id="grows"),
    pytest.param((100.0, 1e-4), id="shrinks"),
    pytest.param((1e-12, 1e12), id="by-more-than-there-are-bins"),
    pytest.param((0.0, 2.0), id="zeros-first"),
]


@pytest.mark.parametrize("spreads", SPREADS)
def test_doubling_gives_the_histogram_of_all_values(spreads: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=3000) * spread for spread in spreads]
    histogram = filled(*parts)
    np.testing.assert_array_equal(histogram.counts, all_at_once(histogram, *parts))
    assert histogram.total == 3000 * len(spreads)
    assert (histogram.low, histogram.high) == tuple(
        float(np.float32(extreme(np.concatenate(parts)))) for extreme in (np.min, np.max)
    )


def test_order_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.laplace(size=500) * spread for spread in (0.01, 30, 1, 5)]
    forward, backward = filled(*parts), filled(*reversed(parts))
    assert forward.width == backward.width
    np.testing.assert_array_equal(forward.counts, backward.counts)


def test_values_on_edges() -> None:
    """An edge belongs to the bin above it, and a power of two still has one."""
    histogram = filled(np.array([1.0, -1.0, 0.5, -0.5, 0.0, -0.0]))
    assert histogram.width == 2 / SIDE_BINS
    places = np.flatnonzero(histogram.counts)
    np.testing.assert_array_equal((places - SIDE_BINS) * histogram.width, [-1.0, -0.5, 0.0, 0.5, 1.0])
    assert histogram.counts[SIDE_BINS] == 2


def test_memory_does_not_grow() -> None:
    histogram = filled(np.ones(10))
    size = histogram.counts.nbytes
    for exponent in range(30):
        histogram.add(np.full(1000, 2.0**exponent, np.float32))
    assert histogram.counts.nbytes == size == 2 * SIDE_BINS * 8


def test_resolution_is_at_least_16_bins_a_step() -> None:
    for magnitude in (1.0, 1.01, 1.99, 3e-5, 7e8):
        histogram = filled(np.array([magnitude]))
        assert magnitude / histogram.width >= SIDE_BINS / 2
        assert magnitude / histogram.width / 127 >= 16


def test_sides() -> None:
    histogram = filled(np.array([0.1, 0.9, 3.9]), np.array([-1.0, -2.0]))
    assert (histogram.side(True).sum(), histogram.side(False).sum()) == (3, 2)
    assert np.flatnonzero(histogram.side(True))[-1] == int(3.9 / histogram.width)
    assert np.flatnonzero(histogram.side(False))[-1] == 2 / histogram.width - 1  # [-2, -2 + width)
    np.testing.assert_array_equal(histogram.magnitudes(), histogram.side(True) + histogram.side(False))


def test_extremes_of_what_was_sampled() -> None:
    """The extremes are those of the whole tensor even where the sample missed them, and the bins reach them."""
    histogram = Histogram()
    histogram.add(np.array([0.5, 1.0], np.float32), low=-7.0, high=2.0)
    assert (histogram.low, histogram.high, histogram.magnitude) == (-7.0, 2.0, 7.0)
    assert histogram.width * SIDE_BINS > 7.0


@pytest.mark.parametrize("values", [np.zeros(5), np.zeros(0), np.full(3, 1e-42)])
def test_nothing_to_speak_of(values: np.ndarray) -> None:
    histogram = filled(values)
    assert histogram.total == values.size
    assert not math.isnan(histogram.width)
    histogram.add(np.array([3.0], np.float32))
    assert histogram.total == values.size + 1
