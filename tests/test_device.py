"""The CUDA driver's side is tested with a driver made of Python, so that it runs where there is no GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from edge_mrcnn import device
from edge_mrcnn.device import Gpu


class Driver:
    """Answers as libcuda does for the GPUs given; every call gives 0, or `status` where that is set for its name."""

    def __init__(self, gpus: list[Gpu], free: int = 0, **status: int) -> None:
        self.gpus, self.free, self.status = gpus, free, status

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name in self.status:
                return self.status[name]
            getattr(self, f"_{name}", lambda *_: None)(*(getattr(a, "_obj", a) for a in arguments))
            return 0

        return call

    def _cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count.value = len(self.gpus)

    def _cuDriverGetVersion(self, number: Any) -> None:  # noqa: N802
        number.value = 12060

    def _cuDeviceGet(self, handle: Any, ordinal: int) -> None:  # noqa: N802
        handle.value = ordinal

    def _cuDeviceGetName(self, text: Any, size: int, handle: Any) -> None:  # noqa: N802
        text.value = self.gpus[handle.value].name.encode()

    def _cuDeviceTotalMem_v2(self, memory: Any, handle: Any) -> None:  # noqa: N802
        memory.value = self.gpus[handle.value].memory_bytes

    def _cuDeviceGetAttribute(self, number: Any, which: int, handle: Any) -> None:  # noqa: N802
        gpu = self.gpus[handle.value]
        number.value = {75: gpu.capability[0], 76: gpu.capability[1], 18: int(gpu.integrated)}[which]

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> None:  # noqa: N802
        free.value = self.free


ADA = Gpu("NVIDIA RTX 4090", (8, 9), 24 << 30)
ORIN = Gpu("Orin", (8, 7), 8 << 30, integrated=True)


def test_every_gpu_is_described() -> None:
    assert device.find_gpus(Driver([ADA, ORIN])) == [ADA, ORIN]
    assert (ADA.sm, Gpu("", (12, 0), 0).sm) == ("sm_89", "sm_120")


def test_the_drivers_cuda_version() -> None:
    assert device.driver_cuda_version(Driver([])) == (12, 6)
    assert device.driver_cuda_version(Driver([], cuDriverGetVersion=1)) is None


def test_free_memory_is_the_gpus_or_the_hosts_where_they_share() -> None:
    assert device.free_memory(Driver([ADA], free=5)) == 5
    assert device.free_memory(Driver([ORIN], free=5)) == device.available_host_memory()
    assert device.free_memory(Driver([])) is None
    assert device.free_memory(Driver([ADA], cuDevicePrimaryCtxRetain=2)) is None


def test_host_memory_is_what_programs_can_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemFree:  1 kB\nMemAvailable:   64 kB\n")
    monkeypatch.setattr(device, "MEMINFO", meminfo)
    assert device.available_host_memory() == 64 << 10
    monkeypatch.setattr(device, "MEMINFO", tmp_path / "none")
    assert device.available_host_memory() is None


@pytest.mark.parametrize("status", [100, 999])
def test_a_driver_without_gpus_is_no_driver(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver([], cuInit=status))
    assert device.load_driver() is None
    assert device.find_gpus() == []
    assert device.driver_cuda_version() is None


def test_a_machine_without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRIVER_LIBRARIES", ("libno_such_driver.so",))
    assert device.find_gpus() == []
    assert device.free_memory() is None


JETSONS = [
    # /etc/nv_tegra_release there, device tree's model, what it is
    (True, b"NVIDIA Jetson AGX Orin Developer Kit\0", "NVIDIA Jetson AGX Orin Developer Kit"),
    (True, None, "NVIDIA Jetson"),
    (False, b"NVIDIA Jetson Orin Nano\0", "NVIDIA Jetson Orin Nano"),
    (False, b"Raspberry Pi 5\0", None),
    (False, None, None),
]


@pytest.mark.parametrize(("release", "model", "found"), JETSONS)
def test_jetsons_are_known_by_release_file_or_device_tree(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: bool, model: bytes | None, found: str | None
) -> None:
    if release:
        (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3")
    if model is not None:
        (tmp_path / "model").write_bytes(model)
    monkeypatch.setattr(device, "JETSON_RELEASE", tmp_path / "release")
    monkeypatch.setattr(device, "DEVICE_TREE_MODEL", tmp_path / "model")
    assert device.jetson_model() == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: some CPU\nflags\t\t: fpu avx512f avx512_vnni avx_vnni\n", "AVX-512 VNNI"),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", "ARM dot products"),
        ("flags\t\t: fpu sse2 avx2\n", None),
        ("", None),
    ],
)
def test_dot_products_of_bytes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: str | None
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    assert device.integer_dot_products() == expected
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "nothing")
    assert device.integer_dot_products() is None
