"""The bundled model, ranges for it, and what can be made of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.sidecar import hash_file
from tests.compiler.ranges import BUNDLED, TABLETOP, bundled_inputs, measured_ranges

VAL, CLIP = TABLETOP / "val" / "annotations.json", TABLETOP / "clip.mp4"


def make_ranges(pictures: Sequence[str] = (), warnings: Sequence[str] = ()) -> Ranges:
    """Ranges of the bundled model from a few pictures, which they do not name unless told to."""
    ranges = measured_ranges(onnx.load(BUNDLED), bundled_inputs(6), hash_file(BUNDLED))
    return dataclasses.replace(ranges, pictures=tuple(pictures), warnings=tuple(warnings))


def save_spoilt(path: Path, noise: float) -> Path:
    """The bundled model with noise on every weight, as a share of the weight's own spread."""
    model, rng = onnx.load(BUNDLED), np.random.default_rng(0)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim > 1:
            spoilt = values + rng.normal(0, noise * values.std(), values.shape).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(spoilt, weight.name))
    onnx.save(model, path)
    return path


def save_quantised(path: Path, ranges: Ranges) -> Path:
    """The bundled model with Q/DQ nodes for ONNX Runtime's integer kernels."""
    onnx.save(run_passes(onnx.load(BUNDLED), Recipe("int8", ranges, dialect="ort")), path)
    return path
