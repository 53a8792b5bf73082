"""Which GPU and which versions, how fast memory is copied, what a launch costs."""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.device import find_tool
from benchmarks.gpu_check.isolation import Emit, Skipped
from edge_mrcnn import device
from edge_mrcnn.evaluation.machine import describe_machine

PACKAGES = (
    "cuda-bindings", "cuda-core", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "onnx", "onnxruntime", "tensorrt",
    "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx", "torch", "torchvision",
)  # fmt: skip
TOOLS = ("nvcc", "compute-sanitizer", "cmake")
LARGEST_COPY = 1 << 30
TINY_KERNELS = 200


def require_torch() -> Any:
    """Torch with a GPU.

    Raises:
        Skipped: It is not there, or sees no GPU.
    """
    if importlib.util.find_spec("torch") is None:
        raise Skipped("torch is not installed")
    import torch

    if not torch.cuda.is_available():
        raise Skipped(f"torch {torch.__version__} sees no GPU")
    torch.cuda.init()
    return torch


def describe(emit: Emit) -> None:
    """Report the GPU and every version that matters; standard library and driver only."""
    gpu = device.find_gpus()[0]
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = device.driver_cuda_version()
    emit(
        {
            "gpu": gpu.name,
            "sm": gpu.sm,
            "memory_gib": round(gpu.memory_bytes / 2**30, 1),
            "integrated": gpu.integrated,
            "driver": _driver_version(),
            "driver_cuda": f"{cuda[0]}.{cuda[1]}" if cuda else None,
            "packages": versions,
            "tools": {name: _tool_version(name) for name in TOOLS},
            "machine": dataclasses.asdict(describe_machine()),
        }
    )


def _driver_version() -> str | None:
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), first)


def _tool_version(name: str) -> str | None:
    path = find_tool(name)
    if path is None:
        return None
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20)
    lines = [line for line in done.stdout.splitlines() if any(c.isdigit() for c in line) and "(c)" not in line.lower()]
    return lines[-1].strip() if lines else path


def measure(emit: Emit) -> None:
    """Report what memory and launches can do at best: the floors rest on it."""
    torch = require_torch()
    properties = torch.cuda.get_device_properties(0)
    free, _ = torch.cuda.mem_get_info()
    size = min(LARGEST_COPY, free // 8)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = _median_seconds(torch, lambda: target.copy_(source), 40)
    emit(
        {
            "copy_gb_s": round(2 * size / seconds / 1e9, 1),
            "copy_bytes": size,
            "torch_cuda": torch.version.cuda,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
        }
    )
    emit(_launch_costs(torch))


def _launch_costs(torch: Any) -> dict[str, float]:
    """Microseconds a tiny kernel takes: given one by one, as seen by the host, and within a CUDA graph."""
    tiny = torch.zeros(32, device="cuda")

    def burst() -> None:
        for _ in range(TINY_KERNELS):
            tiny.add_(1)

    burst()
    torch.cuda.synchronize()
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        burst()
        times.append(time.perf_counter() - begin)
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        burst()
    in_graph = _median_seconds(torch, graph.replay, 20)
    host = statistics.median(times)
    return {
        "host_launch_us": round(host / TINY_KERNELS * 1e6, 2),
        "graph_kernel_us": round(in_graph / TINY_KERNELS * 1e6, 2),
    }


def _median_seconds(torch: Any, call: Any, runs: int) -> float:
    for _ in range(5):
        call()
    times = []
    for _ in range(runs):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)
