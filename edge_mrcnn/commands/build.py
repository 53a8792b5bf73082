"""`edge-mrcnn build`: from `model.onnx` to an engine with its sidecar."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, report
from edge_mrcnn.compiler.build_options import BuildOptions, BuildResult
from edge_mrcnn.compiler.builder import build_engine
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.evaluation.budget_options import BudgetOptions
from edge_mrcnn.sidecar import PrecisionShare

if TYPE_CHECKING:
    from edge_mrcnn.evaluation.budget import BudgetResult

LONGEST_LIST = 6
"""Layers that the text names; the JSON has all."""


def command(
    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="model.onnx")],
    options: Annotated[BuildOptions, tyro.conf.arg(name="build")],
    budget: Annotated[BudgetOptions, tyro.conf.arg(name="budget")],
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    max_drop: float | None = None,
    data: Annotated[Path | None, tyro.conf.arg(metavar="DATA.json")] = None,
    json_target: JsonTarget = None,
) -> None:
    """Build a TensorRT engine; with TensorRT-RTX that needs no GPU. Or an int8 model for ONNX Runtime on a CPU.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        options: How to build.
        budget: How layers are chosen with --max-drop.
        output_dir: Folder for the engine and its sidecar; beside the model when not given.
        max_drop: Points of AP, of boxes and of masks, that int8 may cost on --data, such as 0.3: the layers that cost
            most stay out of int8 until it is within that.
        data: COCO annotation file with the model's classes, for --max-drop.
        json_target: Where the result goes as JSON.
    """
    fitted = _fit(model, options, max_drop, data, budget)
    if fitted is not None:
        options = dataclasses.replace(options, keep_fp16=(*options.keep_fp16, *fitted.keep))
    result = build_engine(model, options, output_dir)
    fields = dataclasses.asdict(result) | ({} if fitted is None else {"budget": fitted.to_dict()})
    said = [*lines(result)] if fitted is None else [*fitted.lines(), "", *lines(result)]
    report(said, json.dumps(fields, default=str, indent=2), json_target)


def _fit(
    model: Path, options: BuildOptions, max_drop: float | None, data: Path | None, budget: BudgetOptions
) -> BudgetResult | None:
    """Which layers to keep for a budget, where there is one."""
    if max_drop is None and data is None:
        if budget != BudgetOptions():
            raise ValueError("--certain, --limit and --pictures say how --max-drop is measured: add it, and --data")
        return None
    if max_drop is None or data is None:
        raise ValueError("--max-drop and --data go together: a budget in points of AP, and labelled pictures")
    if options.precision != "int8" or options.ranges is None:
        raise ValueError("--max-drop is for int8: add --precision int8 --ranges ranges.json")
    from edge_mrcnn.evaluation.budget import fit_budget  # a machine that only builds has no need to read pictures

    return fit_budget(
        model,
        Ranges.load(options.ranges),
        data,
        max_drop,
        budget,
        dialect="ort" if options.target == "cpu" else "tensorrt",
        recipe=Recipe("int8", keep_fp16=options.keep_fp16, keep_fp32=options.keep_fp32),
    )


def lines(result: BuildResult) -> Iterator[str]:
    """A build's result as lines of text: the files, and how much of the work is in which precision."""
    done = "taken from the cache" if result.cached else f"built in {result.seconds:.1f} s"
    yield f"{result.engine}: {result.size_bytes / 1e6:.1f} MB for {result.target}, {done}"
    yield f"  multiply-accumulates as asked for: {_shares(result.requested)}"
    if result.realised is not None:
        yield f"  multiply-accumulates as realised: {_shares(result.realised)}"
    if result.kept:
        names = ", ".join(result.kept[:LONGEST_LIST]) + (", ..." if len(result.kept) > LONGEST_LIST else "")
        yield f"  not in int8: {len(result.kept)} layers: {names}"
    yield f"{result.sidecar}: what it was made of and for; keep it beside the {result.engine.suffix[1:]}"


def _shares(table: tuple[PrecisionShare, ...]) -> str:
    """Such as `98.1 % int8 (62 layers), 1.9 % float16 (13 layers)`."""
    return ", ".join(f"{100 * row.share:.1f} % {row.precision} ({row.layers} layers)" for row in table)
