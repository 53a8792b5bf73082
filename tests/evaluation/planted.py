"""A bundled model with one layer that int8 ruins, though in float32 it computes what it always did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.compiler.ranges import BUNDLED

GROUP = "backbone.fpn.layer_blocks.0"
"""A depthwise convolution and a 1x1 one, with nothing in between."""


def plant_outliers(path: Path, factor: float = 2048.0) -> None:
    """Write the bundled model with one channel between the two made so much smaller, and its weights behind larger.

    Each output channel of the second has one weight that dwarfs the others then, which take its steps.
    """
    model = onnx.load(BUNDLED)
    weights = {weight.name: weight for weight in model.graph.initializer}
    for name, at, scale in ((f"{GROUP}.0.weight", np.s_[5], 1 / factor), (f"{GROUP}.1.weight", np.s_[:, 5], factor)):
        values = numpy_helper.to_array(weights[name]).copy()
        values[at] *= scale
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)
