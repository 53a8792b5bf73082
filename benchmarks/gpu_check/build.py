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

NO_HEADERS = "headers were not found"
"""In CMake's warning."""


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
    """Configure and build the C++ library for this GPU, its plugins only where TensorRT's headers are.

    Raises:
        Skipped: CMake or nvcc is not installed.
    """
    cmake, nvcc = find_tool("cmake"), find_tool("nvcc")
    if cmake is None or nvcc is None:
        raise Skipped(f"{'cmake' if cmake is None else 'nvcc'} is not installed")
    architecture = device.find_gpus()[0].sm.removeprefix("sm_")
    with tempfile.TemporaryDirectory() as folder:
        options = [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={architecture}"]
        configured = _run([cmake, "-S", str(ROOT), "-B", folder, *options])
        if configured.returncode != 0:
            emit({"source": "CMakeLists.txt", "compiler": "CMake", "ok": False, "detail": configured.stderr[-800:]})
            return
        for target in ("edge_mrcnn_kernels", "edge_mrcnn_plugins"):
            if target == "edge_mrcnn_plugins" and NO_HEADERS in configured.stderr:
                emit({"source": target, "compiler": "CMake", "detail": "left out: TensorRT's headers are not here"})
                continue
            begin = time.monotonic()
            built = _run([cmake, "--build", folder, "--target", target, "--parallel"])
            row: Row = {"source": target, "compiler": "CMake", "ok": built.returncode == 0}
            emit(row | {"seconds": round(time.monotonic() - begin, 1), "detail": built.stderr[-800:]})


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
