"""Loading and launching kernels, on the stand-in driver; NVRTC really compiles them where it is installed."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import cuda, launcher
from edge_mrcnn.gpu.cuda import Context, Stream
from edge_mrcnn.gpu.launcher import KernelLauncher
from edge_mrcnn.gpu.launches import Launch
from edge_mrcnn.gpu.memory import DeviceBuffer, PinnedBuffer, copy_to_host, fill
from tests.gpu.fake_driver import FakeDriver
from tests.gpu.fake_streams import CUresult


class Args(ctypes.Structure):
    """Adds a number to each of `count` bytes."""

    _fields_ = (("data", ctypes.c_void_p), ("count", ctypes.c_int), ("summand", ctypes.c_int))


def add(driver: FakeDriver, args: Any) -> None:
    driver.device_view(args.data, args.count)[:] += args.summand


class Compiler:
    """Stands in for NVRTC: counts what it compiles."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __call__(self, source: str, architecture: str, cache: Path | None = None) -> bytes:
        self.seen.append((source, architecture))
        return b"cubin"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(launcher, "compile_kernels", made)
    return made


class Driver(FakeDriver):
    """Knows whether the primary context is open."""

    def cuDevicePrimaryCtxGetState(self, device: int) -> Any:  # noqa: N802
        return CUresult.CUDA_SUCCESS, 0, int(self.retained > 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    driver = Driver(1, {"add": (add, Args), "other": (add, Args)}, capability=(8, 7))
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    yield driver
    driver.finish()


def test_kernels_run_in_order_with_their_own_parameters(fake: FakeDriver, compiler: Compiler) -> None:
    with (
        Context() as context,
        Stream(context) as stream,
        DeviceBuffer(context, 8) as device,
        PinnedBuffer(context, 8) as pinned,
        KernelLauncher(context) as kernels,
        context.activate(),
    ):
        kernels.load(["op/op.cuh"])
        fill(device.address, 1, 8, stream)
        launches = [
            Launch("op/op.cuh", name, (1, 1, 1), 32, Args(device.address, count, summand))
            for name, count, summand in (("add", 8, 2), ("other", 4, 3))
        ]
        kernels.run(launches, stream.handle)
        copy_to_host(pinned.address, device.address, 8, stream)
        stream.synchronize()
        assert pinned.view(np.uint8, (8,)).tolist() == [6] * 4 + [3] * 4
        assert fake.launched == ["add", "other"]


def test_a_launch_hands_the_driver_grid_block_and_shared_memory(
    fake: FakeDriver, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(fake, "cuLaunchKernel", lambda *given: (seen.append(given), (0,))[1])
    args = Args(0x10, 3, 4)
    with Context() as context, KernelLauncher(context) as kernels, context.activate():
        kernels.load(["op/op.cuh"])
        kernels.run([Launch("op/op.cuh", "other", (7, 8, 9), 96, args, shared_bytes=1024)], 0x55)
    ((function, *numbers, stream, _, extra),) = seen
    assert (function, numbers, stream, extra) == (1, [7, 8, 9, 96, 1, 1, 1024], 0x55, 0)


def test_each_source_is_compiled_once_for_the_gpu(fake: FakeDriver, compiler: Compiler) -> None:
    with Context() as context, KernelLauncher(context) as kernels:
        threads = [threading.Thread(target=kernels.load, args=(["a/a.cuh", "b/b.cuh"],)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert compiler.seen == [("a/a.cuh", "sm_87"), ("b/b.cuh", "sm_87")]


def test_a_kernel_that_the_source_does_not_have(fake: FakeDriver, compiler: Compiler) -> None:
    with Context() as context, KernelLauncher(context) as kernels:
        kernels.load(["op/op.cuh"])
        with pytest.raises(EngineError, match="cannot find the kernel absent: CUDA_ERROR_NOT_FOUND"):
            kernels.run([Launch("op/op.cuh", "absent", (1, 1, 1), 32, Args())], 0)


def test_the_kernels_of_a_threads_context_are_shared_and_unloaded_after_the_last(
    fake: FakeDriver, compiler: Compiler
) -> None:
    with Context() as context, context.activate():
        first, second = KernelLauncher.of_thread(), KernelLauncher.of_thread()
        assert first is second
        first.load(["op/op.cuh"])
        assert "module" in fake._objects.values()
        del first
        gc.collect()
        assert "module" in fake._objects.values()
        del second
        gc.collect()
        assert not fake._objects
    assert fake.retained == 0


def test_the_primary_context_stays_open_as_long_as_kernels_of_it_are_shared(
    fake: FakeDriver, compiler: Compiler
) -> None:
    with Context() as context, context.activate():
        kernels = KernelLauncher.of_thread()
    assert fake.retained == 1
    del kernels
    gc.collect()
    assert fake.retained == 0


def test_in_a_context_of_somebody_elses_nothing_is_unloaded_that_may_be_gone(
    fake: FakeDriver, compiler: Compiler
) -> None:
    fake.cuCtxPushCurrent(0xFEED)
    kernels = KernelLauncher.of_thread()
    assert (kernels.context.handle, kernels.context.primary) == (0xFEED, False)
    kernels.load(["op/op.cuh"])
    fake.cuCtxPopCurrent()
    del kernels
    gc.collect()
    assert list(fake._objects.values()) == ["module"], "its maker's context takes it along"
    fake._objects.clear()


def test_a_thread_without_a_context_has_no_kernels(fake: FakeDriver) -> None:
    with pytest.raises(EngineError, match=r"cannot find the thread's CUDA context: CUDA_ERROR_INVALID_CONTEXT"):
        KernelLauncher.of_thread()
    fake.violations.clear()
