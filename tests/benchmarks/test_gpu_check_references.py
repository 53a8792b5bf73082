"""What `make gpu-check` holds the kernels against, on a CPU: torchvision's ops, gold, and the timing around them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from benchmarks.gpu_check import cases, correctness, pictures, reference, timing
from benchmarks.gpu_check.cases import Case
from benchmarks.gpu_check.clock import Call, GpuClock
from benchmarks.gpu_check.isolation import Row

pytestmark = pytest.mark.torch

SHARED = [case for make in cases.CASES.values() for case in make() if case.gold and case.torchvision]


@pytest.mark.parametrize("case", SHARED, ids=lambda case: f"{case.op}: {case.name}")
def test_gold_is_torchvisions(case: Case) -> None:
    expected = reference.torchvision_outputs(case, "cpu")
    agreement = correctness.against_torchvision(case, expected, reference.gold_outputs(case))
    assert agreement.ok, agreement.text()
    assert agreement.matched == agreement.expected, "small cases agree in every row"


@pytest.mark.parametrize("op", cases.CASES)
def test_the_check_finds_right_results_right_and_wrong_ones_wrong(op: str) -> None:
    shared = [case for case in SHARED if case.op == op and case.inputs[0].size]
    small = [min(shared, key=lambda case: sum(array.size for array in case.inputs))]
    rows: list[Row] = []

    def run(case: Case, _layout: str, _output_layout: str, *, spoil: bool) -> list[Any]:
        outputs = reference.gold_outputs(case)
        if spoil:
            outputs[-1] = outputs[-1].copy()
            outputs[-1].flat[0] += 1
        return outputs

    correctness.check_op(op, iter(small), functools.partial(run, spoil=False), "cpu", rows.append)
    assert {row["against"] for row in rows} == {"gold", "torchvision"}
    assert all(row["ok"] for row in rows), [row for row in rows if not row["ok"]]
    rows.clear()
    correctness.check_op(op, iter(small), functools.partial(run, spoil=True), None, rows.append)
    assert rows
    assert not any(row["ok"] for row in rows)


class CountingClock:
    """Calls everything once."""

    def plain_us(self, calls: Sequence[Call]) -> float:
        for call in calls:
            call()
        return 2.0 * len(calls)

    def graph_us(self, calls: Sequence[Call]) -> float:
        return self.plain_us(calls) / 2

    def count_launches(self, call: Call) -> tuple[int, int]:
        call()
        return 7, 3


TIMED: list[tuple[Callable[..., None], Callable[..., Case], int]] = [
    # function, its cases, rows: variants of ours and of torchvision's
    (timing.bench_proposals, functools.partial(cases.big_rpn_case, (128, 160), proposals=50), 3 + 3),
    (timing.bench_pooling, functools.partial(cases.big_roi_case, (128, 160), rois=9, channels=12), 5 + 4),
    (timing.bench_detections, functools.partial(cases.big_nms_case, (128, 160), proposals=60, classes=7), 2 + 2),
]


@pytest.mark.parametrize(("bench", "make", "count"), TIMED, ids=["proposals", "pooling", "detections"])
def test_everything_that_is_timed_runs(bench: Callable[..., None], make: Callable[..., Case], count: int) -> None:
    launched: list[Any] = []
    machine = timing.Bench(CountingClock(), launched.extend, "cpu", l2_bytes=1)
    rows: list[Row] = []
    sets = timing.input_sets(machine, make)
    bench(machine, sets, rows.append)
    assert len(rows) == count
    assert launched
    for row in rows:
        ours = row["subject"] == timing.OURS
        assert (row["graph_us"] == 3.0 and row["floor_bytes"] > 0) if ours else row["kernels"] == 7, row


def test_the_kernels_around_the_network_are_timed() -> None:
    launched: list[Any] = []
    machine = timing.Bench(CountingClock(), launched.extend, "cpu", l2_bytes=1)
    rows: list[Row] = []
    pictures.bench_letterbox(machine, rows.append, (90, 160), (64, 96), sets=2)
    pictures.bench_paste(machine, rows.append, (90, 160), sets=2)
    subjects = [row["subject"].partition(" ")[0] for row in rows]
    assert subjects == ["edge_mrcnn", "edge_mrcnn", "torch", "edge_mrcnn", "edge_mrcnn", "torchvision"]
    assert {launch.kernel for launch in launched} == {"letterbox", "paste_masks_f32", "paste_masks_f16"}


class StubCuda:
    """torch.cuda with a clock that advances by what each call costs, in milliseconds."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0

    def Event(self, enable_timing: bool) -> Any:  # noqa: N802
        assert enable_timing
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def CUDAGraph(self) -> Any:  # noqa: N802
        graph = SimpleNamespace(cost=0.0)
        graph.replay = lambda: setattr(self, "now", self.now + graph.cost)
        return graph

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        begin = self.now
        yield
        graph.cost, self.now = self.now - begin, begin

    def _sleep(self, cycles: int) -> None:
        self.now += 1.0
        self.slept += 1

    def synchronize(self) -> None:
        pass


def test_the_clock_takes_medians_of_the_calls_alone() -> None:
    cuda = StubCuda()
    clock = GpuClock(SimpleNamespace(cuda=cuda))
    calls = [lambda ms=ms: setattr(cuda, "now", cuda.now + ms) for ms in (0.010, 0.020, 0.090)]  # type: ignore[misc]
    assert clock.plain_us(calls) == pytest.approx(20.0), "the median of three that take turns, without the head start"
    assert cuda.slept >= 50
    assert clock.graph_us([calls[0]]) == pytest.approx(10.0)
    assert clock.graph_us(calls[:2]) == pytest.approx(15.0)


def test_inputs_take_turns_until_they_exceed_the_cache() -> None:
    make = functools.partial(cases.big_nms_case, (128, 160), proposals=60, classes=7)
    machine = timing.Bench(CountingClock(), lambda launches: None, "cpu", l2_bytes=100_000)
    sets = timing.input_sets(machine, make)
    nbytes = sum(array.nbytes for array in sets[0].inputs)
    assert sum(sum(array.nbytes for array in case.inputs) for case in sets) // 2 >= 2 * 100_000 - nbytes
    assert len({case.inputs[2].tobytes() for case in sets}) == timing.DIFFERENT_INPUTS
