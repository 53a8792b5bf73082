"""A two-stage network of a few kilobytes with all three custom ops, made with onnx alone: fast to pass, build and run.

python -m tests.compiler.tiny_model model.onnx
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from edge_mrcnn.compiler.network_outputs import KEYPOINT_MAPS, append_keypoint_rows
from edge_mrcnn.ops import DOMAIN, PLUGIN_ATTRIBUTES
from edge_mrcnn.spec import METADATA_KEY, ModelSpec
from tests.compiler.tiny_bodies import BODIES

OPSET, CHANNELS, CLASSES, PROPOSALS, DETECTIONS, PATCH, MASK = 20, 8, 3, 8, 4, 4, 8
CANVAS = (64, 96)

COMMON = {"box_weights": [10.0, 10.0, 5.0, 5.0], "bbox_xform_clip": 4.135166556742356, "nms_threshold": 0.5}
RPN = {
    "cell_anchors": [-8.0, -8.0, 8.0, 8.0, -16.0, -16.0, 16.0, 16.0],
    "strides": [4, 8],
    "stride_rule": "grid",
    **COMMON,
    "pre_nms_top_n": 50,
    "post_nms_top_n": PROPOSALS,
    "score_threshold": 0.0,
    "min_size": 0.001,
}
ROI_ALIGN = {
    "strides": [4, 8],
    "output_size": PATCH,
    "sampling_ratio": 2,
    "aligned": 0,
    "canonical_scale": 224.0,
    "canonical_level": 4,
    "level_eps": 1e-6,
}
NMS = {
    **COMMON,
    "score_threshold": 0.05,
    "min_size": 0.01,
    "detections_per_image": DETECTIONS,
    "background": "first",
    "class_agnostic": 0,
}
SPEC = ModelSpec(
    name="tiny",
    input_hw=CANVAS,
    class_names=("__background__", "box", "ball"),
    proposals=PROPOSALS,
    detections=DETECTIONS,
    mask_size=MASK,
)
WITH_KEYPOINTS = dataclasses.replace(
    SPEC, name="tiny_keypoints", keypoint_names=("top", "base"), keypoint_size=4 * PATCH, skeleton=((0, 1),)
)
ONLY_KEYPOINTS = dataclasses.replace(WITH_KEYPOINTS, mask_size=0)


class Builder:
    """Collects nodes and weights; a Python array given as an input becomes a weight."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def add(self, op: str, *inputs: Any, names: list[str] | None = None, domain: str = "", **attributes: Any) -> str:
        """Append a node; returns its first output."""
        names = names or [f"t{len(self.nodes)}"]
        given = [value if isinstance(value, str) else self.weight(np.asarray(value)) for value in inputs]
        self.nodes.append(helper.make_node(op, given, names, f"n{len(self.nodes)}", domain=domain, **attributes))
        return names[0]

    def custom(self, op: str, *inputs: str, names: list[str], **attributes: Any) -> str:
        """Append a custom op of ours."""
        return self.add(op, *inputs, names=names, domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES)

    def weight(self, value: np.ndarray) -> str:
        """Add a weight; returns its name."""
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def draw(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Random weights whose layer keeps the spread of its input, times `scale`."""
        fan_in = int(np.prod(shape[1:]))
        return (self.random.normal(size=shape) * scale / np.sqrt(fan_in)).astype(np.float32)

    def conv(self, x: str, inside: int, outside: int, size: int = 1, stride: int = 1, scale: float = 1.0) -> str:
        """Append a convolution that pads evenly."""
        weight, bias = self.draw(outside, inside, size, size, scale=scale), self.draw(outside, 1)[:, 0]
        return self.add("Conv", x, weight, bias, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[size // 2] * 4)


def build_tiny_model(
    batch: int | str = "batch", canvas: tuple[int, int] = CANVAS, spec: ModelSpec = SPEC
) -> onnx.ModelProto:
    """The network as an ONNX model with function bodies and spec.

    Args:
        batch: A number, or a name for a dynamic batch.
        canvas: `(H, W)` of its input.
        spec: Written into the metadata; says which heads there are behind the boxes.
    """
    b = Builder()
    features = _backbone(b)
    objectness = [b.conv(x, CHANNELS, 1, scale=3.0) for x in features]
    deltas = [b.conv(x, CHANNELS, 4) for x in features]
    b.custom("RpnProposals", "image_hw", *objectness, *deltas, names=["proposals"], **RPN)
    pooled = b.custom("PyramidRoiAlign", "proposals", *features, names=["pooled"], **ROI_ALIGN)
    flat = b.add("Reshape", pooled, np.array([-1, CHANNELS * PATCH * PATCH]))
    hidden = b.add("Relu", b.add("Gemm", flat, b.draw(16, CHANNELS * PATCH * PATCH), b.draw(16, 1)[:, 0], transB=1))
    logits = b.add("Gemm", hidden, b.draw(CLASSES, 16, scale=4.0), b.draw(CLASSES, 1)[:, 0], transB=1)
    offsets = b.add("MatMul", hidden, b.draw(4 * CLASSES, 16).T.copy())
    outputs = ["num_detections", "boxes", "scores", "labels"]
    b.custom("DetectionNms", "image_hw", "proposals", logits, offsets, names=outputs, **NMS)
    if spec.mask_size:
        _mask_head(b, features)
    if spec.keypoint_size:
        _keypoint_head(b, features)
    return _finish(b, batch, canvas, spec)


def _backbone(b: Builder) -> list[str]:
    """Normalisation, two stages, a residual add and a top-down path; the weights' arithmetic can be folded."""
    picture = b.add("Transpose", b.add("Cast", "images", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    mean = np.array(SPEC.mean, np.float32).reshape(1, 3, 1, 1)
    std = np.array(SPEC.std, np.float32).reshape(1, 3, 1, 1)
    scale = b.add("Reciprocal", std)
    x = b.add("Mul", b.add("Sub", b.add("Div", picture, np.float32(255)), mean), scale)
    height = b.add("Unsqueeze", b.add("Gather", "image_hw", np.array(0), axis=1), np.array([1, 2, 3]))
    rows = np.arange(CANVAS[0], dtype=np.float32).reshape(1, 1, -1, 1)
    x = b.add("Mul", x, b.add("Cast", b.add("Less", rows, height), to=TensorProto.FLOAT))
    x = b.add("Relu", b.conv(x, 3, CHANNELS, 3, 2))
    low = b.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    low = b.add("Relu", b.add("Add", b.conv(low, CHANNELS, CHANNELS, 3), low))
    high = b.add("Clip", b.conv(low, CHANNELS, CHANNELS, 3, 2), np.float32(0), np.float32(6))
    batch = b.add("Shape", high, start=0, end=1)
    sizes = b.add("Concat", batch, np.array([CHANNELS]), b.add("Shape", low, start=2), axis=0)
    up = b.add("Resize", high, "", "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric")
    return [b.add("Add", low, up), high]


def _mask_head(b: Builder, features: list[str]) -> None:
    pooled = b.custom("PyramidRoiAlign", "boxes", *features, names=["mask_pooled"], **ROI_ALIGN)
    up = b.add(
        "ConvTranspose",
        pooled,
        b.draw(CHANNELS, CHANNELS, 2, 2),
        b.draw(CHANNELS, 1)[:, 0],
        kernel_shape=[2, 2],
        strides=[2, 2],
    )
    patches = b.conv(b.add("Relu", up), CHANNELS, CLASSES, scale=3.0)
    label = b.add("Cast", b.add("Reshape", "labels", np.array([-1, 1, 1, 1])), to=TensorProto.INT64)
    own = b.add("GatherElements", patches, b.add("Expand", label, np.array([1, 1, MASK, MASK])), axis=1)
    b.add("Reshape", b.add("Sigmoid", own), np.array([-1, DETECTIONS, MASK, MASK]), names=["masks"])


def _keypoint_head(b: Builder, features: list[str]) -> None:
    """torchvision's predictor: a transposed convolution that overlaps, then heatmaps of twice the side."""
    pooled = b.custom("PyramidRoiAlign", "boxes", *features, names=["keypoint_pooled"], **ROI_ALIGN)
    hidden = b.add("Relu", b.conv(pooled, CHANNELS, CHANNELS, 3))
    weight, bias = b.draw(CHANNELS, 2, 4, 4), b.draw(2, 1)[:, 0]
    settings = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1] * 4}
    low = b.add("ConvTranspose", hidden, weight, bias, **settings)
    scales = np.array([1, 1, 2, 2], np.float32)
    b.add("Resize", low, "", scales, mode="linear", names=[KEYPOINT_MAPS])


def _finish(b: Builder, batch: int | str, canvas: tuple[int, int], spec: ModelSpec) -> onnx.ModelProto:
    d = DETECTIONS
    shapes: dict[str, tuple[int, list[int | str]]] = {
        "images": (TensorProto.UINT8, [batch, *canvas, 3]),
        "image_hw": (TensorProto.FLOAT, [batch, 2]),
        "num_detections": (TensorProto.INT32, [batch]),
        "boxes": (TensorProto.FLOAT, [batch, d, 4]),
        "scores": (TensorProto.FLOAT, [batch, d]),
        "labels": (TensorProto.INT32, [batch, d]),
        **({"masks": (TensorProto.FLOAT, [batch, d, MASK, MASK])} if spec.mask_size else {}),
        **({KEYPOINT_MAPS: (TensorProto.FLOAT, [None] * 4)} if spec.keypoint_size else {}),
    }
    values = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    graph = helper.make_graph(b.nodes, "tiny", values[:2], values[2:], b.weights)
    if spec.keypoint_size:
        append_keypoint_rows(graph, len(spec.keypoint_names), spec.keypoint_size)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    functions = [parser.parse_function(body) for body in BODIES]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    return model


def feeds(batch: int = 1, seed: int = 1) -> dict[str, np.ndarray]:
    """Input of the tiny network: blobs rather than noise, with padding below the content."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (batch, CANVAS[0] // 8, CANVAS[1] // 8, 3), dtype=np.uint8)
    images = small.repeat(8, axis=1).repeat(8, axis=2)
    return {"images": images, "image_hw": np.full((batch, 2), (CANVAS[0] - 8, CANVAS[1]), np.float32)}


if __name__ == "__main__":
    onnx.save(build_tiny_model(), Path(sys.argv[1]))
