"""Kernels that are wrong, each in one way: the executor reports every one of them, whatever the order of threads."""

from __future__ import annotations

import ctypes
import re
from typing import ClassVar

import numpy as np
import pytest

from edge_mrcnn.gpu.launches import Launch
from tests.plugins import executor, kernel_programs
from tests.plugins.executor import Executor, KernelError, Kernels, compile_kernels

FAULTS = "planted/faults.cuh"
SEEDS = range(8)


class FaultsArgs(ctypes.Structure):
    _fields_: ClassVar = [("in", ctypes.c_void_p), ("out", ctypes.c_void_p), ("number", ctypes.c_int)]


@pytest.fixture(scope="module")
def faults() -> Kernels:
    return compile_kernels(FAULTS, FaultsArgs)


@pytest.fixture(scope="module")
def races() -> Kernels:
    return compile_kernels(FAULTS, FaultsArgs, check="races")


def run_fault(
    kernels: Kernels, kernel: str, threads: int = 256, seed: int = 0, number: int = 9, blocks: int = 1
) -> np.ndarray:
    """Output for the numbers 1, 2, ...; blocks have 64 bytes of dynamic shared memory."""
    with Executor(kernels, seed) as gpu:
        numbers, out = gpu.array(np.arange(1, threads + 1, dtype=np.int32)), gpu.empty((threads,), "int32")
        args = FaultsArgs(numbers.address, out.address, number)
        gpu.run([Launch(FAULTS, kernel, (blocks, 1, 1), threads, args, 64)])
        return out.read()


@pytest.mark.parametrize(
    ("kernel", "threads", "number", "report"),
    [
        ("write_beyond_array", 7, 0, "WRITE of size 4"),
        ("write_beyond_array", 1024, 0, "WRITE of size 4"),
        ("read_before_array", 32, 0, "READ of size 4"),
        ("write_beyond_dynamic_shared", 16, 0, "WRITE of size 4"),
        ("write_beyond_static_shared", 9, 0, "index 8 out of bounds for type 'int [8]'"),
        ("write_beyond_static_shared_by_pointer", 8, 9, "faults.cuh"),
        ("write_beyond_local_array_after_barrier", 8, 9, "WRITE of size 4"),
        ("signed_overflow", 8, 2**31 - 1, "signed integer overflow"),
        ("bad_shift", 8, 32, "shift exponent 32 is too large"),
        ("float_too_large_for_int", 8, 2**30, "is outside the range of representable values of type 'int'"),
        ("misaligned_vector", 8, 0, "misaligned address"),
        ("endless_recursion", 1, 2**30, "stack-overflow"),
    ],
)
def test_sanitizer_reports_it_with_line_and_thread(
    faults: Kernels, kernel: str, threads: int, number: int, report: str
) -> None:
    with pytest.raises(KernelError) as error:
        run_fault(faults, kernel, threads, number=number)
    assert report in str(error.value)
    assert "faults.cuh:" in str(error.value)
    assert f"in {kernel}, block (0, 0, 0), thread (" in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "threads", "reports"),
    [
        (
            "divergent_barrier",
            64,
            [
                "threads meet at different barriers",
                "16 of 64 threads wait at __syncthreads",
                "48 of 64 threads wait at",
            ],
        ),
        ("barrier_that_some_skip", 64, ["16 of 64 threads wait at __syncthreads", "48 of 64 threads ended"]),
        ("lanes_that_never_come", 64, ["32 of 64 threads wait at __shfl_sync with mask 0xffffffff", "__syncthreads"]),
        ("lane_outside_its_mask", 32, ["is not in its own mask", "__any_sync with mask 0x0000ffff"]),
        ("different_votes", 32, ["lanes of a warp meet at different operations", "__any_sync", "__all_sync"]),
        (
            "masks_that_overlap",
            32,
            ["1 of 32 threads wait at __ballot_sync with mask 0xffffffff", "31 of 32 threads ended"],
        ),
    ],
)
def test_threads_that_wait_for_ever_are_reported(
    faults: Kernels, kernel: str, threads: int, reports: list[str]
) -> None:
    for seed in SEEDS:
        with pytest.raises(KernelError) as error:
            run_fault(faults, kernel, threads, seed)
        text = str(error.value)
        assert all(report in text for report in [*reports, f"in {kernel}, block (0, 0, 0)", "the first is thread ("]), (
            text
        )
        lines = {line.split("faults.cuh:")[1].split(";")[0] for line in text.splitlines() if "faults.cuh:" in line}
        assert len(lines) == (2 if kernel in {"divergent_barrier", "lanes_that_never_come"} else 1), text


@pytest.mark.parametrize("seed", SEEDS)
def test_missing_synchronisation_gives_a_wrong_result_whatever_the_seed(faults: Kernels, seed: int) -> None:
    numbers = np.arange(1, 257)
    assert (run_fault(faults, "missing_barrier", seed=seed) != np.roll(numbers, -1) + 1).any()
    assert (run_fault(faults, "missing_syncwarp", seed=seed) != numbers.reshape(-1, 32)[:, ::-1].ravel()).any()


@pytest.mark.parametrize(
    ("kernel", "blocks", "memory", "first", "second"),
    [
        ("missing_barrier", 1, "shared", "numbers[threadIdx.x] = ", "(threadIdx.x + 1) % blockDim.x]"),
        ("missing_syncwarp", 1, "shared", "numbers[threadIdx.x] = ", "numbers[threadIdx.x ^ 31]"),
        ("missing_second_barrier", 1, "shared", "tile[threadIdx.x] = ", "tile[blockDim.x - 1 - threadIdx.x]"),
        ("sum_without_atomic", 1, "global", "args.out[0] += ", "args.out[0] += "),
        ("atomic_and_plain_read", 1, "shared", "atomicAdd(&sum", "args.out[0] = sum"),
        ("blocks_share_output", 2, "global", "args.out[threadIdx.x] = ", "args.out[threadIdx.x] = "),
        ("last_block_without_fence", 3, "global", "args.out[1 + blockIdx.x] = ", "= args.out[1 + i]"),
    ],
)
def test_races_are_found_whatever_the_seed(
    races: Kernels, kernel: str, blocks: int, memory: str, first: str, second: str
) -> None:
    source = (kernel_programs.HERE / FAULTS).read_text().split(f"void {kernel}(")
    for seed in SEEDS:
        with pytest.raises(KernelError) as error:
            run_fault(races, kernel, seed=seed, blocks=blocks, number=blocks - 2)  # the counter starts at -1
        text = str(error.value)
        assert f"data race in {kernel}, block (" in text
        assert f"4 bytes of {memory} memory at" in text
        lines = {
            source[0].count("\n") + source[1][: source[1].index(place)].count("\n") + 1 for place in (first, second)
        }
        assert {int(line) for line in re.findall(r"faults\.cuh:(\d+)", text)} == lines


@pytest.mark.parametrize("seed", SEEDS)
def test_shared_memory_starts_as_garbage(faults: Kernels, seed: int) -> None:
    np.testing.assert_array_equal(run_fault(faults, "uninitialised_shared", 32, seed), [255, -1] * 16)


def test_shuffle_from_a_lane_outside_the_mask_gives_garbage(faults: Kernels) -> None:
    np.testing.assert_array_equal(run_fault(faults, "shuffle_from_outside", 32), -1)


def test_endless_loop_is_ended(faults: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "TIMEOUT_S", 0.5)
    with pytest.raises(KernelError, match="a thread waits in a loop for what never comes"):
        run_fault(faults, "endless_loop", 64)


def test_same_seed_same_order(faults: Kernels) -> None:
    first, again, other = (run_fault(faults, "missing_barrier", seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
