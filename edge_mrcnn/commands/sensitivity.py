"""`edge-mrcnn sensitivity`: rank layers by what int8 costs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, report
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.evaluation.sensitivity import SensitivityOptions, sensitivity
from edge_mrcnn.files import write_text


def command(
    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="model.onnx")],
    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")],
    ranges: Annotated[Path, tyro.conf.arg(metavar="ranges.json")],
    options: Annotated[SensitivityOptions, tyro.conf.arg(name="sensitivity")],
    chart: Annotated[Path | None, tyro.conf.arg(metavar="FILE.svg")] = None,
    threads: int | None = None,
    json_target: JsonTarget = None,
) -> None:
    """Rank groups of layers by what quantising each alone costs: signal-to-noise, and AP where labels are.

    DATA: a COCO annotation file, a folder of pictures or a video; --ap needs a COCO file.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        data: Pictures to measure on.
        ranges: Ranges of the model's activations, from `edge-mrcnn calibrate`.
        options: How to measure.
        chart: Where a bar chart goes.
        threads: CPU threads; all cores when not given.
        json_target: Where the result goes as JSON.
    """
    result = sensitivity(model, Ranges.load(ranges), data, options, threads=threads)
    if chart is not None:
        write_text(chart, result.to_svg())
    report(result.lines(), result.to_json(), json_target)
