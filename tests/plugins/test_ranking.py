"""What RpnProposals and DetectionNms stand on: choosing by radix, sorting, greedy suppression, each on its own."""

from __future__ import annotations

import ctypes
from typing import ClassVar

import numpy as np
import pytest

from edge_mrcnn.gpu.launches import Launch
from tests import gold
from tests.plugins.executor import Array, Executor, Kernels, compile_kernels

SOURCE = "ranking/ranking.cuh"
SHARED_KEYS = 2048


class RankingArgs(ctypes.Structure):
    _fields_: ClassVar = [
        ("keys", ctypes.c_void_p),
        ("boxes", ctypes.c_void_p),
        ("sorted", ctypes.c_void_p),
        ("kept_boxes", ctypes.c_void_p),
        ("kept", ctypes.c_void_p),
        ("number", ctypes.c_void_p),
        ("probabilities", ctypes.c_void_p),
        ("least", ctypes.c_ulonglong),
        ("threshold", ctypes.c_float),
        ("count", ctypes.c_int),
        ("want", ctypes.c_int),
        ("room", ctypes.c_int),
        ("known", ctypes.c_int),
    ]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compile_kernels(SOURCE, RankingArgs)


def rank(kernels: Kernels, keys: np.ndarray, want: int, room: int, known: int = 63) -> np.ndarray:
    """What `rank_keys` sorts."""
    least = int(keys[0]) >> known << known
    assert all(int(key) >> known << known == least for key in keys)
    with Executor(kernels) as gpu:
        result, number = gpu.empty((room,), "uint64"), gpu.empty((1,), "uint32")
        args = RankingArgs(
            keys=gpu.array(keys).address,
            sorted=result.address,
            number=number.address,
            least=least,
            count=len(keys),
            want=want,
            room=room,
            known=known,
        )
        gpu.run([Launch(SOURCE, "rank_keys", (1, 1, 1), 256, args)])
        return result.read()[: int(number.read()[0])]


def check_rank(kernels: Kernels, keys: np.ndarray, want: int, room: int, known: int = 63) -> np.ndarray:
    found = rank(kernels, keys, want, room, known)
    best = np.sort(keys)[::-1]
    np.testing.assert_array_equal(found, best[: len(found)])  # so nothing better is missing, and it is in order
    assert min(want, len(keys)) <= len(found) <= room
    return found


def keys_of(numbers: np.ndarray) -> np.ndarray:
    """Keys of non-negative numbers, shuffled."""
    bits = np.asarray(numbers, np.float32).view(np.uint32).astype(np.uint64) | np.uint64(1 << 31)
    index = np.uint64(0xFFFFFFFF) - np.arange(len(bits), dtype=np.uint64)
    return np.random.default_rng(0).permutation(bits << np.uint64(32) | index)


@pytest.mark.parametrize("count", [1, 2, 3, 31, 33, 64, 65, 127, 128, 129, 1000, 2047, 2048])
def test_all_keys_are_sorted_where_there_is_room(kernels: Kernels, count: int) -> None:
    keys = keys_of(np.random.default_rng(count).random(count))
    assert len(check_rank(kernels, keys, want=1, room=SHARED_KEYS)) == count


@pytest.mark.parametrize("count", [2049, 4096, 5000])
def test_more_keys_are_sorted_in_global_memory(kernels: Kernels, count: int) -> None:
    keys = keys_of(np.random.default_rng(count).random(count))
    assert len(check_rank(kernels, keys, want=count, room=8192)) == count


NUMBERS = {
    "random": lambda n: np.random.default_rng(1).random(n),
    "all equal": lambda n: np.full(n, 0.25),
    "two values": lambda n: np.where(np.arange(n) % 5 == 0, 0.5, 0.25),
    "one bit apart": lambda n: np.full(n, 0.5, np.float32) + np.arange(n) * 2.0**-24,
    "half precision": lambda n: np.random.default_rng(2).random(n).astype(np.float16),
    "zeros and one": lambda n: np.eye(1, n)[0],
    "tiny": lambda n: np.arange(n) * 1.4e-45,
    "huge": lambda n: np.geomspace(1e-38, 3e38, n),
}


@pytest.mark.parametrize("want", [1, 100, 2048])
@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
def test_the_best_are_chosen(kernels: Kernels, numbers, want: int) -> None:
    check_rank(kernels, keys_of(numbers(5000)), want, room=SHARED_KEYS)


@pytest.mark.parametrize("want", [1, 1000, 2048])
def test_keys_that_share_their_upper_digits_are_told_apart(kernels: Kernels, want: int) -> None:
    rng = np.random.default_rng(3)
    lower = rng.choice(1 << 20, 3000, replace=False).astype(np.uint64)
    for shift in (0, 12, 30):
        keys = np.uint64(0xC12 << 52) | lower << np.uint64(shift)
        found = check_rank(kernels, keys, want, room=SHARED_KEYS, known=52)
        assert want < SHARED_KEYS or len(found) == want


def test_choosing_ends_as_soon_as_the_rest_fits(kernels: Kernels) -> None:
    keys = keys_of(np.concatenate([np.full(1500, 0.75), np.full(3000, 0.25)]))
    assert len(check_rank(kernels, keys, want=1000, room=SHARED_KEYS)) == 1500


# -------------------------------------------------------------------------------------------------------- probabilities
def test_probabilities_never_rise_whatever_exp_does(kernels: Kernels) -> None:
    # keys out of order stand for an exp that is off by a last bit
    rng = np.random.default_rng(5)
    keys = keys_of(np.linspace(3, 1, 150) + rng.normal(0, 0.03, 150))
    keys = keys[np.argsort(-((keys & np.uint64(0xFFFFFFFF)).astype(np.int64)))]  # by place, so nearly by number
    keys[::3] = 0
    with Executor(kernels) as gpu:
        result = gpu.empty((100,), "float32")
        args = RankingArgs(keys=gpu.array(keys).address, probabilities=result.address, count=len(keys))
        gpu.run([Launch(SOURCE, "keep_probabilities", (1, 1, 1), 32, args)])
        found = result.read()
    kept = keys[keys != 0] >> np.uint64(32)
    scores = gold.sigmoid((kept & np.uint64(0x7FFFFFFF)).astype(np.uint32).view(np.float32))
    assert (np.diff(scores) > 0).any()
    np.testing.assert_allclose(found, np.minimum.accumulate(scores), rtol=1e-6)
    assert (np.diff(found) <= 0).all()


# ---------------------------------------------------------------------------------------------------------- suppression
def suppress(
    kernels: Kernels, boxes: np.ndarray, threshold: float, most: int, threads: int, seed: int = 0
) -> list[int]:
    with Executor(kernels, seed) as gpu:
        kept, number = gpu.empty((most,), "int32"), gpu.empty((1,), "uint32")
        kept_boxes: Array = gpu.empty((most, 4), "float32")
        args = RankingArgs(
            boxes=gpu.array(boxes).address,
            kept_boxes=kept_boxes.address,
            kept=kept.address,
            number=number.address,
            threshold=threshold,
            count=len(boxes),
            want=most,
        )
        gpu.run([Launch(SOURCE, "suppress_boxes", (1, 1, 1), threads, args)])
        rows = kept.read()[: int(number.read()[0])]
        np.testing.assert_array_equal(kept_boxes.read()[: len(rows)], boxes[rows])
        return [int(row) for row in rows]


def expected(boxes: np.ndarray, threshold: float, most: int) -> list[int]:
    there = [i for i in range(len(boxes)) if not gold.is_padding(boxes[i])]
    kept = gold.greedy_nms(boxes[there], np.zeros(len(there)), threshold) if there else []
    return [there[i] for i in kept][:most]


def random_boxes(count: int, canvas: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, canvas, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 60, (count, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("threads", [32, 64, 256, 1024])
@pytest.mark.parametrize("count", [1, 31, 32, 33, 100, 300])
def test_suppression_is_greedy(kernels: Kernels, count: int, threads: int) -> None:
    boxes = random_boxes(count, canvas=90, seed=count)
    boxes[1::7] = 0  # no candidates
    assert suppress(kernels, boxes, 0.4, count, threads) == expected(boxes, 0.4, count)


@pytest.mark.parametrize("most", [1, 2, 31, 32, 33, 70])
def test_suppression_stops_at_the_limit(kernels: Kernels, most: int) -> None:
    boxes = random_boxes(200, canvas=300)
    assert suppress(kernels, boxes, 0.5, most, 64) == expected(boxes, 0.5, most)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 0.7, 0.95, 1.0])
def test_suppression_at_any_threshold(kernels: Kernels, threshold: float) -> None:
    boxes = random_boxes(150, canvas=60)
    boxes[100:] = boxes[:50]
    assert suppress(kernels, boxes, threshold, 150, 64) == expected(boxes, threshold, 150)


def test_a_chain_of_neighbours_is_settled_in_order(kernels: Kernels) -> None:
    # each overlaps the next one only: every second stays, which takes as many rounds as there are boxes in a warp
    boxes = np.array([[4 * i, 0, 4 * i + 10, 10] for i in range(100)], np.float32)
    assert suppress(kernels, boxes, 0.3, 100, 32) == list(range(0, 100, 2))


def test_an_iou_of_exactly_the_threshold_stays(kernels: Kernels) -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 2.0001]], np.float32)  # 0.5, and 0.500025
    assert suppress(kernels, boxes, 0.5, 3, 32) == [0, 1]
    third = np.array([[0, 0, 3, 1], [2, 0, 4, 1]], np.float32)  # 1/4
    assert suppress(kernels, third, 0.25, 2, 32) == [0, 1]
    assert suppress(kernels, third, float(np.nextafter(np.float32(0.25), np.float32(0))), 2, 32) == [0]


def test_one_box_many_times_stays_once(kernels: Kernels) -> None:
    assert suppress(kernels, np.tile(np.float32([1, 2, 30, 40]), (500, 1)), 0.5, 500, 128) == [0]


@pytest.mark.parametrize("seed", range(4))
def test_suppression_does_not_depend_on_the_order_of_threads(kernels: Kernels, seed: int) -> None:
    boxes = random_boxes(300, canvas=120)
    assert suppress(kernels, boxes, 0.3, 300, 128, seed) == expected(boxes, 0.3, 300)
