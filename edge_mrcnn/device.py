"""What hardware this is: GPUs by way of the CUDA driver, Jetson or not. Standard library only, and never a crash.

The CUDA driver (`libcuda`) is asked through ctypes, since it is there wherever a GPU can be used, with or without any
Python package or `nvidia-smi` (Jetsons have a limited one).
"""

from __future__ import annotations

import ctypes
import logging
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

DRIVER_LIBRARIES = ("nvcuda.dll",) if platform.system() == "Windows" else ("libcuda.so.1", "libcuda.so")

_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
"""Device attributes. Source: `CUdevice_attribute` of the CUDA driver API."""

JETSON_RELEASE = Path("/etc/nv_tegra_release")
DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
MEMINFO = Path("/proc/meminfo")
CPUINFO = Path("/proc/cpuinfo")

DOT_PRODUCTS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "ARM matrix products",
    "asimddp": "ARM dot products",
}
"""Flags of CPUs whose integer kernels are much faster than float ones, best first, and their names."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As the driver gives it.
        capability: Compute capability `(major, minor)`.
        memory_bytes: All of its memory.
        integrated: Shares the host's memory, as on a Jetson.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int
    integrated: bool = False

    @property
    def sm(self) -> str:
        """Compute capability as targets spell it, such as `sm_87`."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


def load_driver() -> Any | None:
    """The CUDA driver, initialised, or None where there is none or it finds no GPU."""
    for name in DRIVER_LIBRARIES:
        try:
            driver = ctypes.CDLL(name)
            status = driver.cuInit(0)
        except (OSError, AttributeError) as error:
            _log.debug("%s: %s", name, error)
            continue
        if status == 0:
            return driver
        _log.debug("%s: cuInit gave error %d", name, status)
    return None


def find_gpus(driver: Any | None = None) -> list[Gpu]:
    """Every GPU the CUDA driver shows, in its order; none without a driver.

    Args:
        driver: What `load_driver` gave; it is loaded where this is None.
    """
    driver = driver or load_driver()
    if driver is None:
        return []
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return [_describe(driver, ordinal) for ordinal in range(count.value)]


def driver_cuda_version(driver: Any | None = None) -> tuple[int, int] | None:
    """The newest CUDA `(major, minor)` the driver can run, or None without a driver."""
    driver = driver or load_driver()
    number = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def free_memory(driver: Any | None = None) -> int | None:
    """Free memory of the first GPU in bytes, or None without one.

    A GPU that shares the host's memory reports little of what the kernel's page cache would give back, so there the
    host's available memory counts. Otherwise this opens the GPU's primary context: call it in the process that builds.
    """
    driver = driver or load_driver()
    gpus = find_gpus(driver) if driver is not None else []
    if driver is None or not gpus:
        return None
    if gpus[0].integrated:
        return available_host_memory()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    failed = (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or driver.cuCtxSetCurrent(context)
        or driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    )
    return None if failed else free.value


def available_host_memory() -> int | None:
    """Memory in bytes that a new program can have (`MemAvailable`), or None where the kernel does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def integer_dot_products() -> str | None:
    """The instructions by which this CPU multiplies and adds bytes at once, or None where the kernel names none.

    Source: `flags` (x86) and `Features` (ARM) of Linux' /proc/cpuinfo.
    """
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return next((name for flag, name in DOT_PRODUCTS.items() if flag in flags), None)


def jetson_model() -> str | None:
    """The Jetson's model, or None on any other machine.

    Source: NVIDIA's L4T writes `/etc/nv_tegra_release`; the device tree names the board.
    """
    try:
        model = DEVICE_TREE_MODEL.read_bytes().rstrip(b"\0").decode(errors="replace")
    except OSError:
        model = ""
    if JETSON_RELEASE.exists():
        return model or "NVIDIA Jetson"
    return model if "jetson" in model.lower() else None


def _describe(driver: Any, ordinal: int) -> Gpu:
    device, number, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    text = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(text, len(text), device)

    def attribute(which: int) -> int:
        driver.cuDeviceGetAttribute(ctypes.byref(number), which, device)
        return number.value

    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = attribute(_MAJOR), attribute(_MINOR)
    return Gpu(text.value.decode(errors="replace"), capability, memory.value, bool(attribute(_INTEGRATED)))
