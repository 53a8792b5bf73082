"""Times the kernels beside torchvision's ops, on the same inputs, with the bytes that have to be moved.

Ours and torchvision's get their inputs in the same memory. Inputs take turns: eight different ones, and copies of them,
until they no longer fit into the GPU's L2 cache. What each side computes is said in its name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.gpu_check import cases
from benchmarks.gpu_check.cases import Case
from benchmarks.gpu_check.clock import Call, GpuClock
from benchmarks.gpu_check.device import Launcher, open_gpu
from benchmarks.gpu_check.environment import require_torch
from benchmarks.gpu_check.floors import floor_bytes
from benchmarks.gpu_check.isolation import Emit, Row
from benchmarks.gpu_check.reference import Pooler, Postprocessor, Proposer, upload
from edge_mrcnn.gpu.kernels import plan_of
from edge_mrcnn.gpu.launches import Launch, Layout, Tensor, round_up
from edge_mrcnn.ops import OPS

DIFFERENT_INPUTS = 8
MOST_INPUTS = 64
LARGE, SMALL = (800, 1344), (480, 640)
SMALL_PROPOSALS = 300
OURS = "edge_mrcnn"
POOLER = "MultiScaleRoIAlign"
PROPOSAL_VARIANTS: tuple[tuple[str, Layout], ...] = (
    ("float32", "linear"),
    ("float16", "linear"),
    ("float16", "hwc8"),
)
POOLING_VARIANTS: tuple[tuple[str, Layout, Layout], ...] = (
    ("float32", "linear", "linear"),
    ("float16", "linear", "linear"),
    ("float16", "linear", "hwc8"),
    ("float16", "hwc8", "linear"),
    ("float16", "hwc8", "hwc8"),
)

Run = Callable[[Sequence[Launch]], None]
"""Gives launches to torch's current stream."""


class Clock(Protocol):
    """Times calls."""

    def plain_us(self, calls: Sequence[Call]) -> float:
        """Launched one by one."""

    def graph_us(self, calls: Sequence[Call]) -> float:
        """Within a CUDA graph."""

    def count_launches(self, call: Call) -> tuple[int, int] | None:
        """Kernels, and copies and fills."""


@dataclass(frozen=True)
class Bench:
    """What timing needs of the machine.

    Attributes:
        clock: Times calls.
        run: Launches plans.
        device: torch's.
        l2_bytes: Size of the cache that inputs have to exceed.
    """

    clock: Clock
    run: Run
    device: str
    l2_bytes: int


def time_proposals(emit: Emit) -> None:
    """`RpnProposals` beside torchvision's region proposal network."""
    bench = open_bench()
    for canvas, proposals in ((LARGE, 1000), (SMALL, SMALL_PROPOSALS)):
        bench_proposals(
            bench, input_sets(bench, functools.partial(cases.big_rpn_case, canvas, proposals=proposals)), emit
        )


def time_pooling(emit: Emit) -> None:
    """`PyramidRoiAlign` beside torchvision's `MultiScaleRoIAlign`."""
    bench = open_bench()
    for canvas, rois, size in ((LARGE, 1000, 7), (LARGE, 100, 14), (SMALL, SMALL_PROPOSALS, 7)):
        make = functools.partial(cases.big_roi_case, canvas, rois=rois, output_size=size)
        bench_pooling(bench, input_sets(bench, make), emit)


def time_detections(emit: Emit) -> None:
    """`DetectionNms` beside torchvision's `postprocess_detections`."""
    bench = open_bench()
    for canvas, proposals, crowded in ((LARGE, 1000, False), (LARGE, 1000, True), (SMALL, SMALL_PROPOSALS, False)):
        make = functools.partial(cases.big_nms_case, canvas, proposals=proposals, crowded=crowded)
        bench_detections(bench, input_sets(bench, make), emit)


def open_bench() -> Bench:
    """The first GPU.

    Raises:
        Skipped: There is no GPU, or no torch that sees it.
    """
    torch = require_torch()
    launcher = Launcher(open_gpu())
    l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    return Bench(
        GpuClock(torch),
        lambda launches: launcher.run(launches, torch.cuda.current_stream().cuda_stream),
        "cuda",
        l2_bytes,
    )


def input_sets(bench: Bench, make: Callable[..., Case]) -> list[Case]:
    """Inputs that take turns: some that differ, again and again until as float16 they exceed the L2 cache twice."""
    first = make(seed=0)
    nbytes = sum(array.nbytes for array in first.inputs)
    count = max(3, min(MOST_INPUTS, 1 + 4 * bench.l2_bytes // nbytes))
    different = [first, *(make(seed=seed) for seed in range(1, min(count, DIFFERENT_INPUTS)))]
    return list(itertools.islice(itertools.cycle(different), count))


def bench_proposals(bench: Bench, sets: Sequence[Case], emit: Emit) -> None:
    """Time one size: each type and layout of ours, then torchvision whole, without anchors, and filtering alone."""
    for dtype, layout in PROPOSAL_VARIANTS:
        emit(_time_ours(bench, sets, dtype, layout))
    tensors = _upload_all(bench, sets, "float32")
    for name, keep in (("anchors, decode, filter_proposals", False), ("decode, filter_proposals", True)):
        network = Proposer(sets[0], bench.device, keep_anchors=keep)
        emit(_time_theirs(bench, sets[0], name, "float32", [functools.partial(network, x) for x in tensors]))
    network = Proposer(sets[0], bench.device, keep_anchors=True)
    calls = [network.filter_only(x) for x in tensors]
    emit(_time_theirs(bench, sets[0], "filter_proposals", "float32", calls))


def bench_pooling(bench: Bench, sets: Sequence[Case], emit: Emit) -> None:
    """Time one size: each type and pair of layouts of ours, then torchvision in both types, and channels last."""
    import torch

    for dtype, layout, output_layout in POOLING_VARIANTS:
        emit(_time_ours(bench, sets, dtype, layout, output_layout))
    pool = Pooler(sets[0].attributes)
    for dtype in ("float32", "float16"):
        tensors = _upload_all(bench, sets, dtype)
        for x in tensors:
            x[0] = x[0].to(x[1].dtype)  # roi_align takes one type; the conversion is not its own
        emit(_time_theirs(bench, sets[0], POOLER, dtype, [functools.partial(pool, x) for x in tensors]))
        for x in tensors:
            x[1:] = [level.contiguous(memory_format=torch.channels_last) for level in x[1:]]
        calls = [functools.partial(pool, x) for x in tensors]
        emit(_time_theirs(bench, sets[0], f"{POOLER}, channels last", dtype, calls))


def bench_detections(bench: Bench, sets: Sequence[Case], emit: Emit) -> None:
    """Time one size: each type of ours, then torchvision whole, and its `batched_nms` alone."""
    from torchvision.ops import batched_nms

    for dtype in ("float32", "float16"):
        emit(_time_ours(bench, sets, dtype, "linear"))
    tensors = _upload_all(bench, sets, "float32")
    post = Postprocessor(sets[0])
    calls = [functools.partial(post, x) for x in tensors]
    emit(_time_theirs(bench, sets[0], "postprocess_detections", "float32", calls))
    candidates = [_candidates(x, sets[0]) for x in tensors]
    limit = sets[0].attributes["nms_threshold"]
    calls = [functools.partial(batched_nms, *x, limit) for x in candidates]
    emit(_time_theirs(bench, sets[0], f"batched_nms of {len(candidates[0][0])} candidates", "float32", calls))


def _candidates(tensors: Sequence[Any], case: Case) -> tuple[Any, Any, Any]:
    """What reaches torchvision's `batched_nms`: boxes, scores, labels; undecoded boxes stand for decoded ones."""
    _, proposals, logits, _ = tensors
    scores = logits.softmax(-1)[:, 1:]
    rows, labels = (scores > case.attributes["score_threshold"]).nonzero(as_tuple=True)
    return proposals.reshape(-1, 4)[rows].contiguous(), scores[rows, labels].contiguous(), labels + 1


def _upload_all(bench: Bench, sets: Sequence[Case], dtype: str) -> list[list[Any]]:
    return [upload(case.cast(dtype), bench.device) for case in sets]


def _time_ours(bench: Bench, sets: Sequence[Case], dtype: str, layout: Layout, output_layout: Layout = "linear") -> Row:
    """One row for an op of ours."""
    case = sets[0].cast(dtype)
    plans = [plan_on(one.cast(dtype), bench.device, layout, output_layout) for one in sets]
    both = f"{layout} to {output_layout}" if case.op == "PyramidRoiAlign" else layout
    return time_plans(bench, (case.op, case.name, dtype, both), [launches for launches, _ in plans], floor_bytes(case))


def _time_theirs(bench: Bench, case: Case, name: str, dtype: str, calls: Sequence[Call]) -> Row:
    """One row for torchvision."""
    return time_calls(bench, (case.op, case.name, dtype, "linear"), f"torchvision {name}", calls)


def time_plans(bench: Bench, what: tuple[str, str, str, str], plans: Sequence[Sequence[Launch]], nbytes: int) -> Row:
    """One row for our kernels.

    Args:
        bench: The machine.
        what: Op, case, type and layout.
        plans: One for each of the inputs that take turns.
        nbytes: That have to be moved.
    """
    import torch

    calls = [functools.partial(bench.run, launches) for launches in plans]
    with torch.inference_mode():
        plain, graph = bench.clock.plain_us(calls), bench.clock.graph_us(calls)
    times: Row = {"plain_us": round(plain, 2), "graph_us": round(graph, 2)}
    return _row(what, OURS, times) | {"kernels": len(plans[0]), "copies": 0, "floor_bytes": nbytes}


def time_calls(bench: Bench, what: tuple[str, str, str, str], subject: str, calls: Sequence[Call]) -> Row:
    """One row for somebody else's functions; they wait for the GPU within, so no CUDA graph can hold them."""
    import torch

    with torch.inference_mode():
        plain, launched = bench.clock.plain_us(calls), bench.clock.count_launches(calls[0])
    kernels, copies = launched or (None, None)
    return _row(what, subject, {"plain_us": round(plain, 2), "graph_us": None, "kernels": kernels, "copies": copies})


def _row(what: tuple[str, str, str, str], subject: str, more: Row) -> Row:
    op, case, dtype, layout = what
    return {"op": op, "case": case, "subject": subject, "dtype": dtype, "layout": layout} | more


def plan_on(case: Case, device: str, layout: Layout, output_layout: Layout) -> tuple[list[Launch], list[Any]]:
    """Put a case into torch's memory; returns the plan and the tensors that it needs alive."""
    import torch

    spec, plan = OPS[case.op], plan_of(case.op)
    specs = spec.expand_inputs(spec.levels(len(case.inputs)))
    features = case.inputs[-1].dtype.name
    inputs, alive = [], []
    for tensor, description in zip(upload(case, device), specs, strict=True):
        chosen: Layout = layout if description.dtype == "features" and tensor.ndim == 4 else "linear"
        stored = _to_hwc8(tensor) if chosen == "hwc8" else tensor
        alive.append(stored)
        inputs.append(Tensor(stored.data_ptr(), tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), chosen))
    outputs = []
    for shape, description in zip(
        spec.output_shapes([x.shape for x in case.inputs], case.attributes), spec.outputs, strict=True
    ):
        dtype = features if description.dtype == "features" else description.dtype
        chosen = output_layout if len(shape) == 4 else "linear"
        stored_shape = (shape[0], *shape[2:], round_up(shape[1], 8)) if chosen == "hwc8" else shape
        alive.append(torch.empty(stored_shape, dtype=getattr(torch, dtype), device=device))
        outputs.append(Tensor(alive[-1].data_ptr(), shape, dtype, chosen))
    workspace = torch.empty(plan.workspace_bytes(case.attributes, inputs, outputs), dtype=torch.uint8, device=device)
    alive.append(workspace)
    return plan.launches(case.attributes, inputs, outputs, workspace.data_ptr()), alive


def _to_hwc8(tensor: Any) -> Any:
    """`(B, C, H, W)` as `(B, H, W, C)` with the channels padded to a multiple of 8."""
    import torch

    channels = tensor.shape[1]
    padding = round_up(channels, 8) - channels
    return torch.nn.functional.pad(tensor.permute(0, 2, 3, 1), (0, padding)).contiguous()
