"""`edge-mrcnn train`: fine-tune a model of the zoo."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import tyro

from edge_mrcnn.commands import DataFile, JsonTarget, ModelName, report
from edge_mrcnn.training.train import TrainOptions, train


def command(
    model_name: ModelName,
    data: DataFile,
    options: Annotated[TrainOptions, tyro.conf.arg(name="train")],
    json_target: JsonTarget = None,
) -> None:
    """Fine-tune a model on a COCO-format data set with the losses and the sampling of the paper.

    Run it under torchrun to train on several processes or GPUs.

    Args:
        model_name: Zoo name.
        data: COCO annotation file.
        options: How to train.
        json_target: Where the result goes as JSON.
    """
    result = train(model_name, data, options)
    kind = result.chosen_by.removesuffix("_ap")
    reached = "not validated" if result.best_ap is None else f"best {kind} AP {result.best_ap:.1f}"
    lines = [
        f"{result.best}: {result.epochs} epochs, {reached}",
        f"next: edge-mrcnn export {model_name} --weights {result.best} -o model.onnx",
    ]
    report(lines, json.dumps(dataclasses.asdict(result), default=str, indent=2), json_target)
