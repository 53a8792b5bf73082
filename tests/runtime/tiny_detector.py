"""A detector of a few kilobytes, made with onnx alone and run by the real ONNX Runtime.

Its boxes are fixed shares of the content, so that geometry can be checked exactly, and its best score grows with the
brightness of the canvas, so that mixed-up pictures are found out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_mrcnn.spec import METADATA_KEY, ModelSpec

CANVAS = (64, 96)
CLASSES = ("__background__", "mug", "bottle")
MASK = 28

SHARES = np.array([[0.25, 0.25, 0.75, 0.5], [0.5, 0.0, 2.0, 1.0], [0, 0, 0, 0]], np.float32)
"""Boxes as shares of width and height; the second one reaches out of the content, the third is not there."""

LABELS = np.array([1, 2, 0], np.int32)
SECOND_SCORE = 0.3
"""The first score is 0.5 and up to 0.5 more for a white canvas."""


def disc() -> np.ndarray:
    """A round mask `(M, M)` float32."""
    y, x = np.mgrid[-1 : 1 : MASK * 1j, -1 : 1 : MASK * 1j]
    return (1 / (1 + np.exp(8 * (x**2 + y**2 - 0.7)))).astype(np.float32)


SPEC = ModelSpec("tiny_detector", CANVAS, CLASSES, detections=3, mask_size=MASK)


KEYPOINTS = ("rim", "handle")
KEYPOINT_SIDE = 56

KEYPOINT_SHARES = np.array([[[0.5, 0.1], [0.9, 0.6]], [[0.25, 0.25], [0.5, 0.5]], [[0, 0], [0, 0]]], np.float32)
"""Where keypoints are, as shares of their box; a bottle has no handle."""

KEYPOINT_SPEC = ModelSpec(
    "tiny_keypoints",
    CANVAS,
    CLASSES,
    detections=3,
    mask_size=0,
    keypoint_names=KEYPOINTS,
    keypoint_size=KEYPOINT_SIDE,
    keypoint_labels=((1, 2), (1,)),
    skeleton=((0, 1),),
)


def heatmaps() -> np.ndarray:
    """Logits `(3, K, S, S)` with a peak at each of `KEYPOINT_SHARES`."""
    y, x = np.mgrid[:KEYPOINT_SIDE, :KEYPOINT_SIDE] + 0.5
    at = KEYPOINT_SHARES[..., None, None] * KEYPOINT_SIDE
    return (12 * np.exp(-((x - at[:, :, 0]) ** 2 + (y - at[:, :, 1]) ** 2) / 18)).astype(np.float32)


def save_detector(path: Path, spec: ModelSpec | None = SPEC, batch: int | str = "B") -> Path:
    """Write the detector, with the heads of its spec; without a spec it is a foreign ONNX file with masks."""
    heads = {"masks": np.broadcast_to(disc(), (3, MASK, MASK))} if spec is None or spec.mask_size else {}
    if spec is not None and spec.keypoint_names:
        heads["keypoint_logits"] = heatmaps()
    constants = {
        "shares": SHARES[None],
        "labels_row": LABELS[None],
        "scores_row": np.array([[0.5, SECOND_SCORE, 0]], np.float32),
        "bright_row": np.array([[0.5 / 255, 0, 0]], np.float32),
        "two": np.array([2], np.int32),
        "swap": np.array([1, 0, 1, 0], np.int64),
        "axis1": np.array([1], np.int64),
        "one": np.array([1], np.int64),
        "shape3": np.array([3], np.int64),
    }
    nodes = [
        helper.make_node("Shape", ["images"], ["b"], start=0, end=1),
        helper.make_node("Expand", ["two", "b"], ["num_detections"]),
        helper.make_node("Gather", ["image_hw", "swap"], ["whwh"], axis=1),
        helper.make_node("Unsqueeze", ["whwh", "axis1"], ["size"]),
        helper.make_node("Mul", ["shares", "size"], ["boxes"]),
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["mean4"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Flatten", ["mean4"], ["mean"]),
        helper.make_node("Mul", ["mean", "bright_row"], ["bonus"]),
        helper.make_node("Add", ["bonus", "scores_row"], ["scores"]),
        helper.make_node("Concat", ["b", "shape3"], ["labels_shape"], axis=0),
        helper.make_node("Expand", ["labels_row", "labels_shape"], ["labels"]),
    ]
    for name, rows in heads.items():
        constants |= {f"{name}_row": rows[None].copy(), f"shape_{name}": np.array(rows.shape, np.int64)}
        nodes += [
            helper.make_node("Concat", ["b", f"shape_{name}"], [f"{name}_shape"], axis=0),
            helper.make_node("Expand", [f"{name}_row", f"{name}_shape"], [name]),
        ]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, "H", "W", 3]),
        helper.make_tensor_value_info("image_hw", TensorProto.FLOAT, [batch, 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("num_detections", TensorProto.INT32, [batch]),
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, 3, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3]),
        helper.make_tensor_value_info("labels", TensorProto.INT32, [batch, 3]),
    ]
    outputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *rows.shape]) for name, rows in heads.items()
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny_detector", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if spec is not None:
        helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.save(model, path)
    return path
