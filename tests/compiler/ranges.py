"""Ranges measured the plain way, so that tests of what uses them need no calibration: the largest value seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edge_mrcnn.compiler.calibration.ranges import METHODS, Ranges, TensorRange
from edge_mrcnn.compiler.placement import measured_tensors
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources.pictures import read_picture
from tests.compiler.tiny_model import feeds

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop"
BUNDLED = TABLETOP / "model.onnx"


def measured_ranges(
    model: onnx.ModelProto, inputs: Iterable[Mapping[str, np.ndarray]] = (), sha256: str = "0" * 64
) -> Ranges:
    """Ranges of every tensor that a recipe may need, from a few runs.

    Args:
        model: As exported.
        inputs: Feeds of each run; those of the tiny model when there are none.
        sha256: Of the model's file.
    """
    names = measured_tensors(model)
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 1e-3)
    for run in list(inputs) or [feeds(1, 1), feeds(1, 2)]:
        for name, value in zip(names, session.run(names, dict(run)), strict=True):
            low[name] = min(low[name], float(value.min(initial=0)))
            high[name] = max(high[name], float(value.max(initial=0)))
    tensors = {name: _range(low[name], high[name]) for name in names}
    return Ranges("test", sha256, "max", tensors, (), (), (), "0", onnxruntime.__version__)


def bundled_inputs(count: int) -> list[dict[str, np.ndarray]]:
    """Feeds of the bundled model, a labelled picture each."""
    paths = sorted((TABLETOP / "val" / "images").iterdir())[:count]
    batches = [letterbox_batch([read_picture(path)], (320, 416)) for path in paths]
    return [{"images": images, "image_hw": image_hw} for images, image_hw, _ in batches]


def _range(low: float, high: float) -> TensorRange:
    return TensorRange(
        low, high, dict.fromkeys(METHODS, max(-low, high)), dict.fromkeys(METHODS, (min(low, 0.0), max(high, 0.0)))
    )
