"""`edge-mrcnn calibrate`: measure activation ranges for int8."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, report
from edge_mrcnn.compiler.calibration.calibrate import CalibrateOptions, calibrate
from edge_mrcnn.compiler.calibration.ranges import Ranges


def command(
    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="model.onnx")],
    data: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA...")],
    options: Annotated[CalibrateOptions, tyro.conf.arg(name="calibrate")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="ranges.json")] = Path("ranges.json"),
    json_target: JsonTarget = None,
) -> None:
    """Measure the ranges of activations that int8 needs, on pictures of what the camera will see.

    DATA: a folder, a COCO annotation file (its pictures; labels do not matter), a video, a glob in quotes, or several.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        data: Pictures to measure on, at least 100.
        options: How to measure.
        output: File that the ranges go to.
        json_target: Where a summary goes as JSON.
    """
    started = time.monotonic()
    ranges = calibrate(model, data, options)
    ranges.save(output)
    seconds = time.monotonic() - started
    report(_lines(model, output, ranges, seconds), _summary(output, ranges, seconds), json_target)


def _lines(model: Path, output: Path, ranges: Ranges, seconds: float) -> list[str]:
    return [
        f"{output}: ranges of {len(ranges.tensors)} tensors of {ranges.model} from {len(ranges.pictures)} pictures, "
        f"method {ranges.method}, in {seconds:.1f} s",
        *(
            [f"{len(ranges.warnings)} warnings about the pictures, said above and kept in it"]
            if ranges.warnings
            else []
        ),
        f"next: edge-mrcnn build {model} --precision int8 --ranges {output}",
    ]


def _summary(output: Path, ranges: Ranges, seconds: float) -> str:
    return json.dumps(
        {
            "ranges": str(output),
            "model": ranges.model,
            "onnx_sha256": ranges.onnx_sha256,
            "method": ranges.method,
            "tensors": len(ranges.tensors),
            "pictures": len(ranges.pictures),
            "seconds": round(seconds, 3),
            "warnings": list(ranges.warnings),
        },
        indent=2,
    )
