"""`edge-mrcnn build`: from `model.onnx` to an engine with its sidecar."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, report
from edge_mrcnn.compiler.builder import BuildOptions, build_engine


def command(
    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="model.onnx")],
    options: Annotated[BuildOptions, tyro.conf.arg(name="build")],
    output_dir: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    json_target: JsonTarget = None,
) -> None:
    """Build a TensorRT engine; with TensorRT-RTX that needs no GPU.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        options: How to build.
        output_dir: Folder for the engine and its sidecar; beside the model when not given.
        json_target: Where the result goes as JSON.
    """
    result = build_engine(model, options, output_dir)
    done = "taken from the cache" if result.cached else f"built in {result.seconds:.1f} s"
    lines = [
        f"{result.engine}: {result.size_bytes / 1e6:.1f} MB for {result.target}, {done}",
        f"{result.sidecar}: what it was made of and for; keep it beside the engine",
    ]
    report(lines, json.dumps(dataclasses.asdict(result), default=str, indent=2), json_target)
