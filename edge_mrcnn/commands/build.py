"""`edge-mrcnn build`: from `model.onnx` to an engine with its sidecar."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, report
from edge_mrcnn.compiler.build_options import BuildOptions, BuildResult
from edge_mrcnn.compiler.builder import build_engine
from edge_mrcnn.sidecar import PrecisionShare

LONGEST_LIST = 6
"""Layers that the text names; the JSON has all."""


def command(
    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="model.onnx")],
    options: Annotated[BuildOptions, tyro.conf.arg(name="build")],
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    json_target: JsonTarget = None,
) -> None:
    """Build a TensorRT engine; with TensorRT-RTX that needs no GPU. Or an int8 model for ONNX Runtime on a CPU.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        options: How to build.
        output_dir: Folder for the engine and its sidecar; beside the model when not given.
        json_target: Where the result goes as JSON.
    """
    result = build_engine(model, options, output_dir)
    report(lines(result), json.dumps(dataclasses.asdict(result), default=str, indent=2), json_target)


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
