"""`edge-mrcnn export`: from a checkpoint to `model.onnx`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, ModelName, report
from edge_mrcnn.training.export import ExportOptions, export_model


def command(
    model_name: ModelName,
    options: Annotated[ExportOptions, tyro.conf.arg(name="export")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("model.onnx"),
    json_target: JsonTarget = None,
) -> None:
    """Write a torch checkpoint as an ONNX file, which ONNX Runtime runs on a CPU and `build` takes to an engine.

    Args:
        model_name: Zoo name.
        options: What to export.
        output: The file to write.
        json_target: Where the result goes as JSON.
    """
    spec = export_model(model_name, options, output)
    size = output.stat().st_size
    lines = [
        f"{output}: {spec.name}, {len(spec.class_names)} classes, input {spec.input_hw[0]}x{spec.input_hw[1]}, "
        f"{size / 1e6:.1f} MB",
        f"next: edge-mrcnn run {output} PICTURE --to out/   or   edge-mrcnn build {output} --precision fp16",
    ]
    result = {"path": str(output), "bytes": size, "spec": dataclasses.asdict(spec)}
    report(lines, json.dumps(result, indent=2), json_target)
