"""The executor: right kernels give right results in every order of threads."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edge_mrcnn.gpu.launches import Launch, Map
from tests.plugins import kernel_programs
from tests.plugins.executor import Array, Executor, KernelError, Kernels, Launched, compile_kernels

CORRECT = "planted/correct.cuh"
TWO_LAUNCHES = "planted/two_launches/two_launches.cuh"
SEEDS = range(8)
BLOCKS = (1, 31, 32, 33, 64, 200, 256, 1024)


class CorrectArgs(ctypes.Structure):
    _fields_: ClassVar = [("in", ctypes.c_void_p), ("out", ctypes.c_void_p), ("count", ctypes.c_int)]


class TwoLaunchesArgs(ctypes.Structure):
    _fields_: ClassVar = [
        ("map", Map),
        ("in", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("rows", ctypes.c_int),
        ("columns", ctypes.c_int),
        ("factors", ctypes.c_float * 3),
    ]


@pytest.fixture(scope="module", params=["memory", "races"])
def correct(request: pytest.FixtureRequest) -> Kernels:
    return compile_kernels(CORRECT, CorrectArgs, check=request.param)


@pytest.fixture(scope="module")
def two_launches() -> Kernels:
    return compile_kernels(TWO_LAUNCHES, TwoLaunchesArgs)


def run_correct(
    kernels: Kernels, kernel: str, seed: int, values: np.ndarray, out: np.ndarray, block: int, **options: Any
) -> np.ndarray:
    """Output of the kernel, poisoned before where `out` is an empty array."""
    grid, shared_bytes = options.get("grid", (1, 1, 1)), options.get("shared_bytes", 0)
    with Executor(kernels, seed) as gpu:
        numbers, result = gpu.array(values.astype(np.int32)), gpu.array(out.astype(np.int32))
        args = CorrectArgs(numbers.address, result.address, values.size)
        gpu.run([Launch(CORRECT, kernel, grid, block, args, shared_bytes)])
        return result.read()


def garbage(count: int) -> np.ndarray:
    return np.full(count, -1, np.int32)


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, 3000).astype(np.int32)


@pytest.mark.parametrize("block", BLOCKS)
def test_sum_of_blocks(correct: Kernels, values: np.ndarray, block: int) -> None:
    blocks = -(-values.size // block) if block > 1 else 100
    used = values[: blocks * block]
    expected = np.add.reduceat(used, np.arange(0, used.size, block))
    for seed in SEEDS[:3]:
        result = run_correct(correct, "block_sum", seed, used, garbage(blocks), block, grid=(blocks, 1, 1))
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_scan_and_partition_of_a_block(correct: Kernels, values: np.ndarray, block: int) -> None:
    used, shared_bytes = values[:block], 4 * -(-block // 32)
    for seed in SEEDS[:3]:
        scanned = run_correct(correct, "block_scan", seed, used, garbage(block), block, shared_bytes=shared_bytes)
        np.testing.assert_array_equal(scanned, np.cumsum(used))
        parted = run_correct(correct, "partition_even", seed, used, garbage(block), block, shared_bytes=shared_bytes)
        np.testing.assert_array_equal(parted, [*used[used % 2 == 0], *used[used % 2 == 1]])


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics_under_contention(correct: Kernels, values: np.ndarray, seed: int) -> None:
    start = np.array([0] * 9 + [2**31 - 1, -1, 0, 0, 0])
    result = run_correct(correct, "count_with_atomics", seed, values, start, 128, grid=(25, 1, 1))
    np.testing.assert_array_equal(result[:8], np.bincount(values & 7, minlength=8))
    assert list(result[8:12]) == [values.size, values.min(), values.max(), 255]
    assert result[12:14].view(np.int64)[0] == values.size << 31


@pytest.mark.parametrize("seed", SEEDS)
def test_last_block_sees_all(correct: Kernels, seed: int) -> None:
    result = run_correct(correct, "last_block", seed, garbage(1), np.zeros(2 + 9 * 64), 64, grid=(9, 1, 1))
    assert result[1] == 9 * 64


def test_grid_in_three_dimensions(correct: Kernels) -> None:
    result = run_correct(correct, "write_indices", 0, garbage(1), garbage(4 * 3 * 2 * 5), 5, grid=(4, 3, 2))
    z, y, x, thread = np.indices((2, 3, 4, 5))
    np.testing.assert_array_equal(result.reshape(2, 3, 4, 5), x + 10 * y + 100 * z + 1000 * thread)


@pytest.mark.parametrize("seed", SEEDS)
def test_warp_operations_under_uniform_branches(correct: Kernels, values: np.ndarray, seed: int) -> None:
    used = values[:256].copy()
    used[70] = -5  # in an even warp
    expected = np.empty(256, int)
    for warp, numbers in enumerate(used.reshape(8, 32)):
        if warp % 2 == 0:
            new = np.full(32, -1) if (numbers < 0).any() else numbers[np.arange(32) ^ 1]
            new = new + new[np.where(np.arange(32) < 16, 15, 16)]
        else:
            new = numbers.reshape(4, 8)[:, 3].repeat(8) * 3
        expected[warp * 32 :][:32] = new
    expected = expected * 4 + 2 * (expected < 0).any() + (expected < 1000).all()
    result = run_correct(correct, "nested_warp_operations", seed, used, garbage(256), 256)
    np.testing.assert_array_equal(result, expected)


def test_half_conversion_is_exact_and_rounds_ties_to_even(correct: Kernels) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    exact = halves.view(np.float16).astype(np.float32).view(np.int32)
    near = (exact[:, None] + np.array([0, 1, -1, 0x0FFF, 0x1000, 0x1001])).ravel().astype(np.int32)  # ties among them
    tiny = np.arange(0x32000000, 0x39000000, 0xFFF1, dtype=np.int32)  # around the subnormal halves
    bits = np.concatenate([halves.astype(np.int32), near, tiny, tiny | np.int32(-(2**31))])
    blocks = -(-bits.size // 1024)
    result = run_correct(correct, "convert_halves", 0, bits, garbage(2 * bits.size), 1024, grid=(blocks, 1, 1))
    floats = bits.view(np.float32)
    with np.errstate(over="ignore"):
        expected = np.where(np.isnan(floats), np.uint16(0x7FFF), floats.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(result[0::2], expected)
    widened = (bits & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(result[1::2].view(np.float32), widened)


def test_functions_of_one_thread(correct: Kernels) -> None:
    floats = np.array([0.0, 1.0, -2.5, 1e30, np.inf, np.nan, 1 / 3], np.float32)
    x = np.array([0, 1, -1, 12, -(2**31), 2**31 - 1, 0x00F0F000, *floats.view(np.int32)], np.int32)
    result = run_correct(correct, "call_functions", 0, x, garbage(16 * x.size), x.size).reshape(-1, 16)
    unsigned, f = x.view(np.uint32), x.view(np.float32)
    binary = [f"{value:032b}" for value in unsigned.tolist()]
    with np.errstate(all="ignore"):
        sums = f * f + f / np.float32(3)
    for column, expected in enumerate(
        [
            [text.count("1") for text in binary],
            [text[::-1].find("1") + 1 for text in binary],
            [text.index("1") if "1" in text else 32 for text in binary],
            np.array([int(text[::-1], 2) for text in binary], np.uint32),
            np.minimum(x, 7),
            np.maximum(x, 7),
            np.maximum(unsigned, 7),
            f,
            f,
            np.fmin(f, np.float32(0.5)),
            sums,
            np.floor(f),
            [text.count("1") for text in binary],
            x ^ 3,
            unsigned >> 1,
            63 - (x & 31),
        ]
    ):
        expected = np.asarray(expected)
        found = result[:, column].view(np.float32) if expected.dtype == np.float32 else result[:, column]
        if expected.dtype == np.uint32:
            found = found.view(np.uint32)
        np.testing.assert_array_equal(found, expected, err_msg=f"column {column}")


# ---- The Python side ------------------------------------------------------------------------------------------------


def two_launches_args(gpu: Executor, values: np.ndarray) -> tuple[TwoLaunchesArgs, Array]:
    rows, columns = values.shape
    out = gpu.empty(values.shape, "float32")
    workspace = gpu.workspace(values.nbytes)
    args = TwoLaunchesArgs(Map(), gpu.array(values).address, out.address, workspace, rows, columns, (1, 2, 3))
    return args, out


def test_launcher_runs_and_is_logged(two_launches: Kernels) -> None:
    values = np.random.default_rng(0).random((7, 100), np.float32)
    plan = [("scale_rows", 0), ("reverse_rows", 400)]
    with Executor(two_launches) as gpu:
        args, out = two_launches_args(gpu, values)
        assert gpu.workspace_bytes(args) == values.nbytes
        launched = gpu.launch_host(args, "float32")
        by_launcher = out.read()
        launches = [Launch(TWO_LAUNCHES, name, (7, 1, 1), 64, args, shared) for name, shared in plan]
        gpu.run(launches)
        np.testing.assert_array_equal(out.read(), by_launcher)
    assert launched == [Launched.of(launch) for launch in launches]
    factors = np.array([1, 2, 3], np.float32)[np.arange(100) % 3]
    np.testing.assert_array_equal(by_launcher, (values * factors)[:, ::-1])


def test_errors_of_a_launch(two_launches: Kernels) -> None:
    with Executor(two_launches) as gpu:
        args, _ = two_launches_args(gpu, np.zeros((2, 3), np.float32))
        for launch, error in (
            (Launch(TWO_LAUNCHES, "no_such_kernel", (1, 1, 1), 64, args), "there is no kernel no_such_kernel"),
            (Launch(TWO_LAUNCHES, "scale_rows", (0, 1, 1), 64, args), "CUDA error 9"),
            (Launch(TWO_LAUNCHES, "scale_rows", (1, 65536, 1), 64, args), "CUDA error 9"),
            (Launch(TWO_LAUNCHES, "scale_rows", (1, 1, 1), 1025, args), "CUDA error 9"),
            (Launch(TWO_LAUNCHES, "scale_rows", (1, 1, 1), 64, args, 48 * 1024 + 1), "CUDA error 1"),
        ):
            with pytest.raises(KernelError, match=error):
                gpu.run([launch])
        with pytest.raises(KernelError, match="the launcher returned CUDA error 1"):
            gpu.launch_host(args, "float16")


def test_arrays_come_back_as_they_went(correct: Kernels) -> None:
    with Executor(correct) as gpu:
        for shape, dtype, layout in (
            ((2, 3, 4, 5), "float16", "linear"),
            ((2, 3, 4, 5), "float16", "hwc8"),
            ((2, 16, 4, 5), "float16", "hwc8"),
            ((0, 4), "float32", "linear"),
            ((7,), "uint8", "linear"),
        ):
            values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
            array = gpu.array(values, layout)
            assert array.tensor.shape == shape
            assert array.address % 256 == 0
            np.testing.assert_array_equal(array.read(), values)
        assert np.isnan(gpu.empty((3, 1, 2, 2), "float16", "hwc8").read()).all()


def test_structures_that_differ_do_not_compile(correct: Kernels) -> None:
    class Swapped(ctypes.Structure):
        _fields_: ClassVar = [("out", ctypes.c_void_p), ("in", ctypes.c_void_p), ("count", ctypes.c_int)]

    with pytest.raises(AssertionError, match="CorrectArgs::out: Python has 8 bytes at 0"):
        compile_kernels(correct.source, Swapped)


def test_without_a_compiler_tests_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_programs, "COMPILER", "no-such-compiler")
    with pytest.raises(pytest.skip.Exception, match="no-such-compiler is not installed"):
        compile_kernels(CORRECT, CorrectArgs)


def test_programs_that_nobody_uses_are_deleted(tmp_path: Path) -> None:
    for name, age_s in (("old", kernel_programs.KEPT_S + 60), ("used", 60)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    kernel_programs.delete_unused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
