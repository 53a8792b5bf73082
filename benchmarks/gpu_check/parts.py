"""The parts of the check, in the order in which they run, and the functions that need a GPU and nothing else."""

from __future__ import annotations

import functools
import importlib.util

from benchmarks.gpu_check.cases import CASES, Array, Case
from benchmarks.gpu_check.correctness import check_op, run_op
from benchmarks.gpu_check.device import GpuMemory, Launcher, open_gpu
from benchmarks.gpu_check.isolation import Emit, Part
from edge_mrcnn.gpu.launches import Layout

PACKAGE = "benchmarks.gpu_check"
LIMIT_S = 9 * 60
"""For all parts together."""

PARTS = (
    Part("machine", f"{PACKAGE}.environment:describe", 20),
    Part("machine: memory and launches", f"{PACKAGE}.environment:measure", 40),
    Part("build: kernels", f"{PACKAGE}.build:build_kernels", 60),
    Part("correctness: RpnProposals", f"{PACKAGE}.parts:check_proposals", 60),
    Part("correctness: PyramidRoiAlign", f"{PACKAGE}.parts:check_pooling", 60),
    Part("correctness: DetectionNms", f"{PACKAGE}.parts:check_detections", 60),
    Part("correctness: pictures", f"{PACKAGE}.pictures:check_pictures", 40),
    Part("timing: RpnProposals", f"{PACKAGE}.timing:time_proposals", 60),
    Part("timing: PyramidRoiAlign", f"{PACKAGE}.timing:time_pooling", 60),
    Part("timing: DetectionNms", f"{PACKAGE}.timing:time_detections", 60),
    Part("timing: pictures", f"{PACKAGE}.pictures:time_pictures", 40),
    Part("sanitizer: memcheck", f"{PACKAGE}.sanitizer:memcheck", 60),
    Part("sanitizer: racecheck", f"{PACKAGE}.sanitizer:racecheck", 60),
    Part("build: library", f"{PACKAGE}.build:build_library", 90),
    Part("engines: bundled model", f"{PACKAGE}.engines:check_bundled", 240),
    Part("engines: resnet50", f"{PACKAGE}.engines:check_resnet", 150),
)


def check_proposals(emit: Emit) -> None:
    """Correctness of `RpnProposals`."""
    _check("RpnProposals", emit)


def check_pooling(emit: Emit) -> None:
    """Correctness of `PyramidRoiAlign`."""
    _check("PyramidRoiAlign", emit)


def check_detections(emit: Emit) -> None:
    """Correctness of `DetectionNms`."""
    _check("DetectionNms", emit)


def _check(op: str, emit: Emit) -> None:
    launcher = Launcher(open_gpu())
    check_op(op, CASES[op](), functools.partial(_run, launcher), _torch_device(), emit)


def _run(launcher: Launcher, case: Case, layout: Layout, output_layout: Layout) -> list[Array]:
    with GpuMemory(launcher) as gpu:
        return run_op(gpu, case, layout, output_layout)


def _torch_device() -> str | None:
    """Where torchvision runs; None where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
