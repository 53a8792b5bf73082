"""`edge-mrcnn eval`: COCO box, mask and keypoint AP."""

from __future__ import annotations

from typing import Annotated

import tyro

from edge_mrcnn.commands import DataFile, JsonTarget, ModelFile, report
from edge_mrcnn.evaluation.coco import EvalOptions, evaluate
from edge_mrcnn.runtime.detector import Detector


def command(
    model: ModelFile,
    data: DataFile,
    options: Annotated[EvalOptions, tyro.conf.arg(name="eval")],
    threads: int | None = None,
    json_target: JsonTarget = None,
) -> None:
    """Measure COCO AP of a model's boxes, masks and keypoints on a COCO-format data set.

    Args:
        model: model.onnx or engine.
        data: COCO annotation file.
        options: Class matching and limit.
        threads: CPU threads; all cores when not given.
        json_target: Where the result goes as JSON.
    """
    with Detector(model, threshold=None, threads=threads) as detector:
        result = evaluate(detector, data, options, model=str(model))
    report(result.lines(), result.to_json(), json_target)
