"""Compares the ops' kernels with the NumPy gold functions and with torchvision, over shapes, types and layouts.

What runs the kernels is a `Memory`: the GPU, or in the tests the header that runs them on a CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from benchmarks.gpu_check.cases import Array, Case
from benchmarks.gpu_check.comparison import Agreement, compare_rows, compare_values
from benchmarks.gpu_check.isolation import Emit, Row
from benchmarks.gpu_check.reference import gold_outputs, torchvision_outputs
from edge_mrcnn.gpu.kernels import plan_of
from edge_mrcnn.gpu.launches import Launch, Layout, Tensor
from edge_mrcnn.ops import OPS


class Stored(Protocol):
    """An array where kernels reach it."""

    @property
    def tensor(self) -> Tensor:
        """As a plan takes it."""

    def read(self) -> Array:
        """Its values, in the contract's shape whatever the layout."""


class Memory(Protocol):
    """Where kernels run."""

    def array(self, values: Array, layout: Layout = "linear") -> Stored:
        """A copy of the values."""

    def empty(self, shape: tuple[int, ...], dtype: str, layout: Layout = "linear") -> Stored:
        """An array with all bits set."""

    def workspace(self, size: int) -> int:
        """Address of so many bytes, all bits set."""

    def run(self, launches: list[Launch]) -> None:
        """Run a plan, and wait for it."""


def run_op(memory: Memory, case: Case, layout: Layout = "linear", output_layout: Layout = "linear") -> list[Array]:
    """Run an op on a case; the layouts are those of feature maps, `(B, C, H, W)`."""
    spec, plan = OPS[case.op], plan_of(case.op)
    specs = spec.expand_inputs(spec.levels(len(case.inputs)))
    features = case.inputs[-1].dtype.name
    inputs = [
        memory.array(x, layout if s.dtype == "features" and x.ndim == 4 else "linear")
        for x, s in zip(case.inputs, specs, strict=True)
    ]
    shapes = spec.output_shapes([x.shape for x in case.inputs], case.attributes)
    outputs = [
        memory.empty(
            shape, features if s.dtype == "features" else s.dtype, output_layout if len(shape) == 4 else "linear"
        )
        for shape, s in zip(shapes, spec.outputs, strict=True)
    ]
    tensors = [x.tensor for x in inputs], [x.tensor for x in outputs]
    workspace = memory.workspace(plan.workspace_bytes(case.attributes, *tensors))
    memory.run(plan.launches(case.attributes, *tensors, workspace))
    return [output.read() for output in outputs]


Reference = tuple[str, Callable[[list[Array]], Agreement]]

VARIANTS: dict[str, list[tuple[str, Layout, Layout]]] = {
    "RpnProposals": [
        ("float32", "linear", "linear"),
        ("float16", "linear", "linear"),
        ("float16", "hwc8", "linear"),
    ],
    "PyramidRoiAlign": [
        ("float32", "linear", "linear"),
        ("float16", "linear", "linear"),
        ("float16", "linear", "hwc8"),
        ("float16", "hwc8", "linear"),
        ("float16", "hwc8", "hwc8"),
    ],
    "DetectionNms": [("float32", "linear", "linear"), ("float16", "linear", "linear")],
}
"""Type of the features, layout of the inputs, layout of the output."""


def check_op(op: str, cases: Iterator[Case], run: Callable[..., list[Array]], device: str | None, emit: Emit) -> None:
    """Compare one op over all cases, types and layouts.

    Args:
        op: Its name.
        cases: Its cases.
        run: `run_op` with a memory.
        device: torch's, for torchvision; None leaves torchvision out.
        emit: Takes a row for each comparison.
    """
    for case in cases:
        references: dict[str, list[Reference]] = {}
        for dtype, layout, output_layout in VARIANTS[op]:
            variant = case.cast(dtype)
            if dtype not in references:
                references[dtype] = list(_references(variant, run, device))
            name = f"{case.name}, {dtype} {layout}" + (f" to {output_layout}" if op == "PyramidRoiAlign" else "")
            found = run(variant, layout, output_layout)
            for against, compare in references[dtype]:
                emit(report_row(op, name, against, compare(found)))
            again = run(variant, layout, output_layout)
            if any(a.tobytes() != b.tobytes() for a, b in zip(found, again, strict=True)):
                emit(report_row(op, name, "itself, run again", Agreement(False, 0, 1, 0, 0.0)))


def report_row(op: str, name: str, against: str, agreement: Agreement) -> Row:
    """A comparison as a row."""
    return {
        "op": op, "case": name, "against": against, "ok": agreement.ok, "detail": agreement.text(),
        "worst": agreement.worst,
    }  # fmt: skip


def _references(case: Case, run: Callable[..., list[Array]], device: str | None) -> Iterator[Reference]:
    """What a case's result is held against: a name, and the function that does it."""
    if case.gold:
        yield "gold", functools.partial(against_gold, case, gold_outputs(case))
    half = case.inputs[-1].dtype == np.float16
    if half and not case.gold:
        # float16 scores tie where torchvision's sort may choose; on the same numbers the two types must agree
        wide = run(case.cast("float32"), "linear", "linear")
        yield "float32", functools.partial(against_gold, case, wide)
    if device and case.torchvision and not (half and case.op != "PyramidRoiAlign"):
        # torchvision's pooling accumulates in float16: what it gives in float32 is the reference
        expected = torchvision_outputs(case.cast("float32"), device)
        yield "torchvision", functools.partial(against_torchvision, case, expected)


def against_gold(case: Case, expected: list[Array], found: list[Array]) -> Agreement:
    """Compare with outputs of the same form, row by row."""
    if case.op == "PyramidRoiAlign":
        return _compare_pooled(found[0], expected[0])
    tolerances = {"RpnProposals": (1e-3,), "DetectionNms": (0, 1e-3, 1e-5, 0)}[case.op]
    parts = [compare_values(a, b, t) for a, b, t in zip(found, expected, tolerances, strict=True)]
    return Agreement(
        all(part.ok for part in parts),
        sum(part.matched for part in parts),
        sum(part.expected for part in parts),
        sum(part.extra for part in parts),
        max(part.worst for part in parts),
    )


def against_torchvision(case: Case, expected: list[list[Array]], found: list[Array]) -> Agreement:
    """Compare with torchvision's lists, a picture at a time."""
    if case.op == "PyramidRoiAlign":
        return _compare_pooled(found[0], expected[0][0])
    parts = [compare_rows(_rows(case, found, i), picture) for i, picture in enumerate(expected)]
    return Agreement(
        all(part.ok for part in parts),
        sum(part.matched for part in parts),
        sum(part.expected for part in parts),
        sum(part.extra for part in parts),
        max(part.worst for part in parts),
    )


def _compare_pooled(found: Array, expected: Array) -> Agreement:
    """float32: the coordinates' rounding; float16: half a unit in the last place of numbers up to 8 or so."""
    if found.dtype == np.float16:
        return compare_values(found, expected.astype(np.float32), 1e-3, 1e-3)
    return compare_values(found, expected, 2e-4)


def _rows(case: Case, found: list[Array], picture: int) -> list[Array]:
    """A picture's rows without the padding."""
    if case.op == "RpnProposals":
        boxes = found[0][picture]
        return [boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]]
    number, *rest = found
    return [part[picture, : number[picture]] for part in rest]
