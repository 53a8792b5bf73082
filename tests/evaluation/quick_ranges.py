"""Ranges of a model from a handful of pictures, for tests of what is done with ranges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edge_mrcnn.compiler.calibration.ranges import METHODS, Ranges, TensorRange
from edge_mrcnn.compiler.placement import measured_tensors
from edge_mrcnn.runtime.pictures import read_picture
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.sidecar import hash_file
from edge_mrcnn.spec import ModelSpec


def quick_ranges(path: Path, pictures: Sequence[Path], shrink: float = 1.0) -> Ranges:
    """Smallest and largest values of every measured tensor; `shrink` below 1 cuts off what is larger."""
    model = onnx.load(path)
    names = measured_tensors(model)
    known = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for picture in pictures:
        images, image_hw, _ = letterbox_batch([read_picture(picture)], spec.input_hw)
        found = session.run(list(names), {"images": images, "image_hw": image_hw})
        low = np.minimum(low, [value.min(initial=0) for value in found])
        high = np.maximum(high, [value.max(initial=0) for value in found])
    tensors = {
        name: TensorRange(
            a,
            b,
            dict.fromkeys(METHODS, shrink * max(-a, b, 1e-6)),
            dict.fromkeys(METHODS, (shrink * min(a, 0), shrink * max(b, 1e-6))),
        )
        for name, a, b in zip(names, low.tolist(), high.tolist(), strict=True)
    }
    return Ranges(spec.name, hash_file(path), "max", tensors, (), tuple(map(str, pictures)), (), "test", "test")
