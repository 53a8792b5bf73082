"""Poisoned memory and launching of `make gpu-check`, on the stand-in for the CUDA driver."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_check import device
from benchmarks.gpu_check.device import CheckError, GpuMemory, Launcher, open_gpu
from benchmarks.gpu_check.isolation import Skipped
from edge_mrcnn.errors import EngineError, PluginError
from edge_mrcnn.gpu import cuda
from edge_mrcnn.gpu.launches import Launch
from tests.gpu.fake_driver import FakeDriver


class Args(ctypes.Structure):
    """Copies `count` bytes."""

    _fields_ = (("source", ctypes.c_void_p), ("target", ctypes.c_void_p), ("count", ctypes.c_int))


def copy(driver: FakeDriver, args: Any) -> None:
    driver.device_view(args.target, args.count)[:] = driver.device_view(args.source, args.count)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    fake = FakeDriver(1, {"copy": (copy, Args)})
    monkeypatch.setattr(cuda, "driver", lambda: fake)
    monkeypatch.setattr(device, "compile_source", lambda source, architecture: f"{source} {architecture}".encode())
    yield fake
    fake.finish(leaks=False)


def launch(source: Any, target: Any, count: int, extra: int = 0) -> list[Launch]:
    args = Args(source.tensor.address, target.tensor.address, count + extra)
    return [Launch("copy/copy.cuh", "copy", (1, 1, 1), 32, args)]


@pytest.mark.parametrize("guard", [0, 256])
def test_a_plan_runs_on_poisoned_memory(driver: FakeDriver, guard: int) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    with GpuMemory(Launcher(open_gpu()), guard) as gpu:
        source, target = gpu.array(values), gpu.empty((2, 3, 4), "float32")
        assert np.isnan(target.read()).all()
        gpu.run(launch(source, target, values.nbytes))
        np.testing.assert_array_equal(target.read(), values)
        assert gpu.workspace(0) == 0
        assert gpu.workspace(100) % 256 == 0
    assert not driver.device.memory.leaks()


def test_channels_last_is_padded_with_poison(driver: FakeDriver) -> None:
    values = np.arange(30, dtype=np.float16).reshape(1, 5, 2, 3)
    with GpuMemory(Launcher(open_gpu())) as gpu:
        array = gpu.array(values, "hwc8")
        stored = np.empty((1, 2, 3, 8), np.float16)
        gpu.download(stored, array.tensor.address)
        np.testing.assert_array_equal(stored[..., :5].transpose(0, 3, 1, 2), values)
        assert np.isnan(stored[..., 5:]).all()
        np.testing.assert_array_equal(array.read(), values)


def test_a_write_beyond_the_end_is_noticed(driver: FakeDriver) -> None:
    with GpuMemory(Launcher(open_gpu())) as gpu:
        source, target = gpu.array(np.zeros(600, np.uint8)), gpu.empty((500,), "uint8")
        gpu.run(launch(source, target, 500))
        with pytest.raises(CheckError, match="beyond an array of 500 bytes"):
            gpu.run(launch(source, target, 500, extra=1))


def test_empty_arrays_have_an_address(driver: FakeDriver) -> None:
    with GpuMemory(Launcher(open_gpu()), 0) as gpu:
        empty = gpu.array(np.zeros((1, 0, 4), np.float32))
        assert empty.tensor.address
        assert empty.read().shape == (1, 0, 4)


def test_without_a_driver_the_part_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise EngineError("the NVIDIA driver does not load")

    monkeypatch.setattr(cuda, "driver", missing)
    with pytest.raises(Skipped, match="does not load"):
        open_gpu()


@pytest.mark.parametrize("reason", [PluginError("no cuda.core"), AttributeError("an old one")])
def test_nvcc_takes_over_where_nvrtc_is_barred(monkeypatch: pytest.MonkeyPatch, reason: Exception) -> None:
    def refuse(source: str, architecture: str) -> bytes:
        raise reason

    monkeypatch.setattr(device, "compile_kernels", refuse)
    monkeypatch.setattr(device, "compile_by_nvcc", lambda source, architecture: (b"by nvcc", ""))
    monkeypatch.setattr(device, "find_tool", lambda name: f"/usr/bin/{name}")
    assert device.compile_source("a/a.cuh", "sm_90") == b"by nvcc"
    monkeypatch.setattr(device, "find_tool", lambda name: None)
    with pytest.raises(type(reason)):
        device.compile_source("a/a.cuh", "sm_90")


def test_nvcc_compiles_a_kernel_file() -> None:
    if device.find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed")
    binary, log = device.compile_by_nvcc("detection_nms/detection_nms.cuh", "sm_87", ["-Xptxas", "-v"])
    assert binary.startswith(b"\x7fELF")
    assert "registers" in log
    with pytest.raises(PluginError, match="nvcc does not compile"):
        device.compile_by_nvcc("detection_nms/no_such_file.cuh", "sm_87")
