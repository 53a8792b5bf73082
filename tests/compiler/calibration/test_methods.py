"""Each method against its definition, worked out by brute force on the values themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edge_mrcnn.compiler.calibration.histogram import Histogram
from edge_mrcnn.compiler.calibration.methods import find_ranges, keep_share, least_divergence
from edge_mrcnn.compiler.calibration.ranges import METHODS, TensorRange

COUNT = 50_000


def draw(name: str) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.normal(size=COUNT),
        "relu": np.maximum(rng.normal(size=COUNT), 0),
        "laplace": rng.laplace(size=COUNT) * 1e-3,
        "heavy": rng.standard_t(3, size=COUNT),
        "skewed": rng.gamma(1.0, size=COUNT) - 0.5,
        "uniform": rng.uniform(0, 6, COUNT),
        "negative": -np.abs(rng.normal(size=COUNT)),
    }[name]
    return values.astype(np.float32)


def ranges_of(values: np.ndarray, percentile: float = 99.99) -> TensorRange:
    histogram = Histogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    return find_ranges(histogram, percentile)


def int8_error(values: np.ndarray, magnitude: float) -> float:
    step = magnitude / 127
    return float(((np.clip(np.round(values / step), -127, 127) * step - values).astype(np.float64) ** 2).mean())


def uint8_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = np.round(-low / step)
    levels = np.clip(np.round(values / step) + zero, 0, 255)
    return float((((levels - zero) * step - values).astype(np.float64) ** 2).mean())


DISTRIBUTIONS = ("normal", "relu", "laplace", "heavy", "skewed", "uniform", "negative")


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_max_is_exact(name: str) -> None:
    values = draw(name)
    found = ranges_of(values)
    low, high = float(values.min()), float(values.max())
    assert np.float32(found.low) == np.float32(low)
    assert np.float32(found.high) == np.float32(high)
    assert found.symmetric["max"] == pytest.approx(max(high, -low), rel=1e-8)
    assert found.affine["max"] == pytest.approx((min(low, 0), max(high, 0)), rel=1e-8)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_percentile(name: str, percentile: float) -> None:
    values = draw(name)
    found = ranges_of(values, percentile)
    share = percentile / 100
    bins = float(np.abs(values).max()) / 2048  # no bin is wider
    low, high = found.affine["percentile"]
    for end, side in ((found.symmetric["percentile"], np.abs(values)), (high, values), (-low, -values)):
        ranked = np.sort(np.maximum(side, 0))
        place = round(share * COUNT)
        assert ranked[place - 2] - bins <= end <= ranked[min(place + 1, COUNT - 1)] + bins


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_the_least_of_a_fine_search(name: str) -> None:
    values = draw(name)
    found = ranges_of(values)
    tried = [int8_error(values, share * np.abs(values).max()) for share in np.linspace(0.02, 1, 80)]
    assert int8_error(values, found.symmetric["mse"]) <= min(tried) * 1.01


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_affine_mse_is_the_least_of_a_grid(name: str) -> None:
    values = draw(name)[::10]
    found = ranges_of(values)
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    shares = np.linspace(0.1, 1, 19)
    tried = [
        uint8_error(values, low * below, high * above)
        for below in (shares if low < 0 else shares[-1:])
        for above in (shares if high > 0 else shares[-1:])
    ]
    assert uint8_error(values, *found.affine["mse"]) <= min(tried) * 1.02


def divergence(counts: np.ndarray, end: int, levels: int) -> float:
    """Kullback-Leibler divergence of a threshold, step by step as in TensorRT's slides."""
    reference = counts[:end].astype(float)
    reference[-1] += counts[end:].sum()
    quantised = np.zeros(end)
    edges = [end * level // levels for level in range(levels + 1)]
    for start, stop in itertools.pairwise(edges):
        part = counts[start:stop].astype(float)
        present = part > 0
        if present.any():
            quantised[start:stop] = np.where(present, part.sum() / present.sum(), 0)
    p, q = reference / reference.sum(), quantised / quantised.sum()
    with np.errstate(divide="ignore"):
        return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("name", ["normal", "relu", "laplace", "heavy"])
def test_entropy_by_loops(name: str) -> None:
    histogram = Histogram()
    histogram.add(draw(name))
    counts = histogram.magnitudes()
    found = round(least_divergence(counts, 1.0, 128))
    counts = counts[: np.flatnonzero(counts)[-1] + 1].copy()
    counts[0] = min(counts[0], counts[1])
    ends = list(range(len(counts), 127, -8))
    tried = {end: divergence(counts, end, 128) for end in ends}
    assert found in tried
    assert tried[found] == pytest.approx(min(tried.values()), rel=1e-6)


def test_entropy_cuts_a_tail_off() -> None:
    values = np.concatenate([draw("normal"), np.float32([60.0])])
    assert ranges_of(values).symmetric["entropy"] < 10
    assert ranges_of(draw("uniform")).symmetric["entropy"] > 5.5


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_range_is_usable(name: str) -> None:
    found = ranges_of(draw(name))
    for method in METHODS:
        low, high = found.affine[method]
        assert min(found.low, 0) <= low <= 0 <= high <= max(found.high, 0)
        assert high > low
        assert 0 < found.symmetric[method] <= max(found.high, -found.low)


def test_almost_all_zeros() -> None:
    """Nothing can be clipped away: the few values are what the tensor is for."""
    values = np.zeros(COUNT, np.float32)
    values[:5] = 3.0
    found = ranges_of(values)
    assert found.symmetric == dict.fromkeys(METHODS, 3.0)
    assert found.affine == dict.fromkeys(METHODS, (0.0, 3.0))


def test_keep_share_between_edges() -> None:
    counts = np.array([50, 40, 10])
    assert keep_share(counts, 2.0, 95.0) == pytest.approx(5.0)  # half of the last bin
    assert keep_share(counts, 2.0, 90.0) == pytest.approx(4.0)
    assert keep_share(counts, 2.0, 60.0) == pytest.approx(2.5)
    assert keep_share(counts, 2.0, 95.0, total=200) == pytest.approx(4.0)
