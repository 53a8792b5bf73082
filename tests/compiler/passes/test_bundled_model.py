"""The bundled model in float16, bodies kept, in ONNX Runtime: it must see on real pictures what it sees in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.recipe import Recipe

TABLETOP = Path(__file__).parents[3] / "samples" / "tabletop"


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of every box of a (N, 4) with every one of b (M, 4)."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def test_float16_sees_the_same() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV, which reads the pictures, is not installed")
    model = onnx.load(TABLETOP / "model.onnx")
    half = run_passes(model, Recipe("fp16"), keep_bodies=True)
    sessions = [onnxruntime.InferenceSession(m.SerializeToString()) for m in (model, half)]
    height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    found = matched = 0
    for path in sorted((TABLETOP / "val").rglob("*.jpg"))[:3]:
        picture = cv2.cvtColor(cv2.resize(cv2.imread(str(path)), (width, height)), cv2.COLOR_BGR2RGB)
        feed = {"images": picture[None], "image_hw": np.array([[height, width]], np.float32)}
        full, rounded = ([output[0] for output in session.run(None, feed)] for session in sessions)
        sure = full[2][: full[0]] >= 0.1  # nearer to the threshold of 0.05, rounding decides
        iou = box_iou(full[1][: full[0]][sure], rounded[1][: rounded[0]])
        iou = np.where(full[3][: full[0]][sure][:, None] == rounded[3][: rounded[0]], iou, 0.0)
        pairs = iou.argmax(1)
        close = (iou.max(1) > 0.95) & (np.abs(full[2][: full[0]][sure] - rounded[2][pairs]) < 0.02)
        close &= np.abs(full[4][: full[0]][sure] - rounded[4][pairs]).mean((1, 2)) < 0.01
        found, matched = found + len(close), matched + int(close.sum())
    assert found >= 15, "the pictures show something"
    assert matched >= 0.97 * found
