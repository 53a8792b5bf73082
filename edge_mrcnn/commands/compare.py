"""`edge-mrcnn compare`: what FP16 and INT8 cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, ModelFile, report
from edge_mrcnn.evaluation.compare import compare_precisions
from edge_mrcnn.evaluation.compare_options import CompareOptions
from edge_mrcnn.evaluation.report import comparison_lines, write_report


def command(
    model: ModelFile,
    options: Annotated[CompareOptions, tyro.conf.arg(name="compare")],
    data: Annotated[Path | None, tyro.conf.arg(metavar="DATA.json")] = None,
    frames: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None,
    others: Annotated[tuple[Path, ...], tyro.conf.arg(name="with", metavar="FILE...")] = (),
    reference: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    html: Annotated[Path | None, tyro.conf.arg(name="report", metavar="FILE.html")] = None,
    json_target: JsonTarget = None,
) -> None:
    """Show what precisions cost: accuracy or agreement, size, speed and share of int8, each with its backend.

    Args:
        model: model.onnx; or an engine or a quantised ONNX file, with --reference.
        options: Which precisions, and how they are compared.
        data: COCO annotation file; its pictures are in images/ beside it, or beside it. Accuracy is measured.
        frames: Pictures without labels, such as a folder, a glob or a video. Agreement with the reference is measured.
        others: More ONNX files and engines to compare.
        reference: The FP32 model that everything is compared with; MODEL when not given.
        html: Where a report goes, one HTML file with charts and the pictures that differ most.
        json_target: Where the result goes as JSON.
    """
    if html is not None and not html.parent.is_dir():
        raise ValueError(f"--report {html}: there is no folder {html.parent}; make it first")
    result = compare_precisions(model, data=data, frames=frames, others=others, reference=reference, options=options)
    if html is not None:
        write_report(result, html)
    lines = comparison_lines(result)
    report([*lines, *([f"report: {html}"] if html is not None else [])], result.to_json(), json_target)
