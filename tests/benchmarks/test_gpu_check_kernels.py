"""The correctness part of `make gpu-check` with the CPU in the place of the GPU: only the launching is not tested."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.gpu_check import cases, correctness, pictures, sanitizer
from benchmarks.gpu_check.cases import Array, Case
from benchmarks.gpu_check.isolation import Row
from edge_mrcnn.gpu.kernels import letterbox, paste_masks, plan_of
from edge_mrcnn.gpu.launches import Layout
from edge_mrcnn.ops import OPS
from tests.plugins.executor import Executor, compile_kernels

STEP = 6
"""Each sixth case: the ops' own tests run more."""


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_pass_the_check(op: str) -> None:
    plan, seeds = plan_of(op), itertools.count()
    kernels = compile_kernels(plan.SOURCE, plan.Args)

    def run(case: Case, layout: Layout, output_layout: Layout) -> list[Array]:
        with Executor(kernels, seed=next(seeds)) as gpu:
            return correctness.run_op(gpu, case, layout, output_layout)

    small = (case for case in cases.CASES[op]() if case.gold)
    rows: list[Row] = []
    correctness.check_op(op, itertools.islice(small, 0, None, STEP), run, None, rows.append)
    assert len(rows) >= 2 * len(correctness.VARIANTS[op])
    assert [row for row in rows if not row["ok"]] == []


def test_the_kernels_around_the_network_pass_the_check() -> None:
    kernels = {module.SOURCE: compile_kernels(module.SOURCE, module.Args) for module in (letterbox, paste_masks)}
    rows: list[Row] = []
    pictures.check_in(lambda source: Executor(kernels[source], seed=1), rows.append)
    assert {row["op"] for row in rows} == {"letterbox", "paste_masks"}
    assert [row for row in rows if not row["ok"]] == []


def test_what_runs_under_the_sanitizer_runs() -> None:
    runs = list(sanitizer._runs())
    assert len(runs) > 60
    made = {
        module.SOURCE: compile_kernels(module.SOURCE, module.Args) for module in (plan_of("DetectionNms"), letterbox)
    }
    for run in (runs[-8], next(run for run in runs if run.keywords["case"].op == "DetectionNms")):
        source = letterbox.SOURCE if "picture" in run.keywords else plan_of("DetectionNms").SOURCE
        with Executor(made[source]) as gpu:
            run(gpu)
