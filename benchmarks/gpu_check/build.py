"""Builds everything on this machine: the kernels by NVRTC and by nvcc, the C++ library by CMake."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gpu_check.device import compile_by_nvcc, find_tool
from benchmarks.gpu_check.isolation import ROOT, Emit, Row, Skipped
from edge_mrcnn import device
from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.compile import compile_kernels, kernel_folder, ptxas_report

LIBRARY_LIMIT_S = 55


def sources() -> Iterator[str]:
    """Every kernel file, below the kernels' folder."""
    for path in sorted(kernel_folder().glob("*/*.cuh")):
        if path.stem == path.parent.name:
            yield path.relative_to(kernel_folder()).as_posix()


def build_kernels(emit: Emit) -> None:
    """Compile each kernel file for this GPU, both ways, and report what ptxas says of it."""
    gpu = device.find_gpus()[0]
    for source in sources():
        emit(_attempt(source, "NVRTC", lambda s=source: _by_nvrtc(s, gpu.sm)))  # type: ignore[misc]
        if find_tool("nvcc"):
            emit(_attempt(source, "nvcc", lambda s=source: compile_by_nvcc(s, gpu.sm, ["-Xptxas", "-v"])))  # type: ignore[misc]


def _by_nvrtc(source: str, architecture: str) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory() as cache:  # an empty cache, lest nothing be compiled
        binary = compile_kernels(source, architecture, cache=Path(cache))
    return binary, ptxas_report(source, architecture)


def _attempt(source: str, compiler: str, compile_it: Callable[[], tuple[bytes, str]]) -> Row:
    begin = time.monotonic()
    try:
        binary, log = compile_it()
    except (PluginError, AttributeError) as error:
        return {"source": source, "compiler": compiler, "ok": False, "detail": str(error)}
    return {
        "source": source,
        "compiler": compiler,
        "ok": True,
        "seconds": round(time.monotonic() - begin, 2),
        "bytes": len(binary),
        "detail": summarise_ptxas(log),
    }


def summarise_ptxas(log: str) -> str:
    """The most registers that a kernel uses, and the bytes spilled by all of them."""
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))
    return f"{len(registers)} kernels, up to {max(registers, default=0)} registers, {spilled} bytes spilled"


def build_library(emit: Emit) -> None:
    """Configure and build the C++ library, where CMake, nvcc and TensorRT's headers are.

    Raises:
        Skipped: One of them is not.
    """
    for tool in ("cmake", "nvcc"):
        if find_tool(tool) is None:
            raise Skipped(f"{tool} is not installed")
    gpu = device.find_gpus()[0]
    with tempfile.TemporaryDirectory() as folder:
        architecture = gpu.sm.removeprefix("sm_")
        for target, options in (("edge_mrcnn_kernels", []), ("edge_mrcnn_plugins", [])):
            emit(_build_target(Path(folder, target), target, architecture, options))


def _build_target(folder: Path, target: str, architecture: str, options: list[str]) -> Row:
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DCMAKE_CUDA_ARCHITECTURES={architecture}", *options]
    begin = time.monotonic()
    for command in (configure, ["cmake", "--build", str(folder), "--target", target, "--parallel"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIBRARY_LIMIT_S)
        if done.returncode != 0:
            return {"source": target, "compiler": "CMake", "ok": False, "detail": done.stderr[-800:]}
    return {"source": target, "compiler": "CMake", "ok": True, "seconds": round(time.monotonic() - begin, 2)}
