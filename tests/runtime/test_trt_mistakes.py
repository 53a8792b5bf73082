"""Mistakes planted in the runner are seen on the stand-in GPU: the other tests would not pass by chance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import cuda, execution
from edge_mrcnn.runtime import trt_graphs, trt_runner, trt_slot
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.runtime.trt_runner import TrtRunner
from tests.gpu.fake_gpu import FakeGpu, Foreign, assert_same
from tests.runtime.trt_cases import draw, feeds

SEEDS = range(6)
Patch = pytest.MonkeyPatch


def use(gpu: FakeGpu, engine: Path, network: OrtRunner) -> None:
    """Everything that can go wrong: two slots, changing batches and sizes, graphs, arrays of others."""
    rng = np.random.default_rng(0)
    with TrtRunner(engine) as runner:
        waiting = []
        for seed, rows in enumerate([1, 1, 1, 2, 1, 2, 2, 1, 1]):
            waiting.append((runner.submit(feeds(rows, seed)), feeds(rows, seed)))
        for pending, given in waiting:
            assert_same(pending.result(), network.infer(given))
        for side in (20, 20, 20, 800, 20, 20, 20, 20):  # the larger one needs more memory
            runner.infer_pictures([draw(rng, (side, 500))])
        for seed in range(3):
            assert_same(runner.infer(feeds(1, seed)), network.infer(feeds(1, seed)))
        for seed in range(4):
            images = Foreign(gpu, feeds(1, seed)["images"])
            try:
                assert_same(runner.infer({**feeds(1, seed), "images": images}), network.infer(feeds(1, seed)))
            finally:
                images.free()
            assert_same(runner.infer(feeds(1, seed)), network.infer(feeds(1, seed)))


def nothing(*_: object) -> None:
    """What a step that was left out does."""


def do_not_wait_for_producers(patch: Patch) -> None:
    patch.setattr(cuda.Stream, "wait", nothing)


def do_not_wait_for_the_result(patch: Patch) -> None:
    patch.setattr(trt_slot.Slot, "wait", nothing)


def reuse_a_slot_under_way(patch: Patch) -> None:
    patch.setattr(trt_runner.TrtRunner, "_take_slot", lambda self: self._slots[0])


def hand_out_pinned_memory(patch: Patch) -> None:
    def read(slot: Any) -> Any:
        work = slot._started()
        return {name: slot._results.view(section)[: work.rows] for name, section in work.binding.outputs.items()}

    patch.setattr(trt_slot.Slot, "read", read)


def leave_graphs_behind(patch: Patch) -> None:
    patch.setattr(trt_graphs.FrameGraphs, "clear", nothing)


def change_a_captured_context(patch: Patch) -> None:
    binding = trt_slot.Slot._binding
    patch.setattr(trt_slot.Slot, "_binding", lambda self, batch, foreign=False: binding(self, batch))


def capture_the_first_frame(patch: Patch) -> None:
    run = trt_graphs.FrameGraphs.run

    def at_once(graphs: Any, key: Any, work: Any, can_be_captured: Any) -> None:
        if key is not None:
            graphs._graphs.setdefault(key, None)
        run(graphs, key, work, can_be_captured)

    patch.setattr(trt_graphs.FrameGraphs, "run", at_once)


def share_memory_between_slots(patch: Patch) -> None:
    shared: list[int] = []
    create = execution.Engine.create_context

    def create_context(engine: Any, memory: int, shapes: Any) -> Any:
        shared.append(memory)
        return create(engine, shared[0], shapes)

    patch.setattr(execution.Engine, "create_context", create_context)


def allow_host_code(patch: Patch) -> None:
    module = FakeGpu.__init__.__globals__["FakeTensorRt"]
    runtime = module.Runtime

    def make(self: Any, logger: Any) -> Any:
        made = runtime(self, logger)
        made.__class__ = type("Runtime", (type(made),), {"__setattr__": nothing})
        return made

    patch.setattr(module, "Runtime", make)


def forget_the_stream(patch: Patch) -> None:
    close = trt_slot.Slot.close

    def leave_open(slot: Any) -> None:
        slot.stream._handle = None
        close(slot)

    patch.setattr(trt_slot.Slot, "close", leave_open)


MISTAKES = [
    do_not_wait_for_producers,
    do_not_wait_for_the_result,
    reuse_a_slot_under_way,
    hand_out_pinned_memory,
    leave_graphs_behind,
    change_a_captured_context,
    capture_the_first_frame,
    share_memory_between_slots,
    allow_host_code,
    forget_the_stream,
]


def run(model: Path, folder: Path, seed: int, plant: Callable[[Patch], None]) -> str | None:
    """What is wrong with a runner in which something is planted, in one order of work; None where nothing shows."""
    with pytest.MonkeyPatch.context() as patch, OrtRunner(model, threads=1) as network:
        gpu = FakeGpu(patch, seed)
        engine = gpu.engine(model, folder)
        plant(patch)
        try:
            use(gpu, engine, network)
            gpu.check()
        except (AssertionError, EngineError) as error:
            return str(error)
        finally:
            with contextlib.suppress(IndexError):
                gpu.driver.cuCtxPopCurrent()
    return None


def test_without_a_mistake_nothing_is_wrong(model: Path, tmp_path: Path) -> None:
    assert [run(model, tmp_path, seed, nothing) for seed in SEEDS] == [None] * len(SEEDS)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_seen(model: Path, tmp_path: Path, mistake: Callable[[Patch], None]) -> None:
    found = [run(model, tmp_path, seed, mistake) for seed in SEEDS]
    assert any(found), "no order of work showed it"
