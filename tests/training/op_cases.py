"""Inputs and attributes for tests of the custom ops, and a way to run one op's function body in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edge_mrcnn.compiler.function_bodies import OPSET, make_function_body
from edge_mrcnn.ops import DOMAIN, OPS, PLUGIN_ATTRIBUTES

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]
Mutation = Callable[[onnx.FunctionProto], None]

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int32": TensorProto.INT32}
LEVELS = (1, 2, 3, 4, 5)
CLIP = float(np.log(1000 / 16))

RPN_ATTRIBUTES: Attributes = {
    "stride_rule": "grid",
    "box_weights": [1.0, 1.0, 1.0, 1.0],
    "bbox_xform_clip": CLIP,
    "pre_nms_top_n": 60,
    "post_nms_top_n": 50,
    "nms_threshold": 0.7,
    "score_threshold": 0.0,
    "min_size": 1e-3,
}
ROI_ATTRIBUTES: Attributes = {
    "output_size": 7,
    "sampling_ratio": 2,
    "aligned": 0,
    "canonical_scale": 224.0,
    "canonical_level": 4,
    "level_eps": 1e-6,
}
NMS_ATTRIBUTES: Attributes = {
    "box_weights": [10.0, 10.0, 5.0, 5.0],
    "bbox_xform_clip": CLIP,
    "score_threshold": 0.05,
    "nms_threshold": 0.5,
    "min_size": 0.01,
    "detections_per_image": 20,
    "background": "first",
    "class_agnostic": 0,
}


def run_body(op: str, inputs: Sequence[Array], attributes: Attributes, mutate: Mutation | None = None) -> list[Array]:
    """Run the body of an op in ONNX Runtime, alone in a graph; `mutate` may spoil it first."""
    spec = OPS[op]
    body = make_function_body(op, attributes, len(inputs))
    if mutate:
        mutate(body)
    names = [tensor.name for tensor in spec.expand_inputs(spec.levels(len(inputs)))]
    results = [f"result_{tensor.name}" for tensor in spec.outputs]
    node = helper.make_node(op, names, results, domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES)
    types = [inputs[-1].dtype.name if tensor.dtype == "features" else tensor.dtype for tensor in spec.outputs]
    graph = helper.make_graph(
        [node],
        op,
        [helper.make_tensor_value_info(n, TYPES[x.dtype.name], x.shape) for n, x in zip(names, inputs, strict=True)],
        [
            helper.make_tensor_value_info(name, TYPES[dtype], [None] * len(tensor.shape))
            for name, dtype, tensor in zip(results, types, spec.outputs, strict=True)
        ],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    return outputs


def pad_rows(rows: Array, count: int) -> Array:
    """Zero rows added up to the fixed shape, `(B, n, ...)` to `(B, count, ...)`: bodies may return fewer."""
    return np.pad(rows, [(0, 0), (0, count - rows.shape[1]), *[(0, 0)] * (rows.ndim - 2)])


# ------------------------------------------------------------------------------------------------------- RpnProposals
def cell_anchors(levels: int) -> list[float]:
    """Three anchors per level, sizes 32, 64, ... as torchvision's, rounded."""
    anchors = []
    for level in range(levels):
        for ratio in (0.5, 1.0, 2.0):
            half_h = 16 * 2**level * ratio**0.5
            half_w = 16 * 2**level / ratio**0.5
            anchors += [-half_w, -half_h, half_w, half_h]
    return [float(round(value)) for value in anchors]


def rpn_attributes(levels: int, **changes: Any) -> dict[str, Any]:
    """Attributes of `RpnProposals` at strides 8, 16, ..."""
    strides = [8 * 2**level for level in range(levels)]
    return {"cell_anchors": cell_anchors(levels), "strides": strides, **RPN_ATTRIBUTES, **changes}


def rpn_inputs(levels: int, dtype: str = "float32", seed: int = 0, canvas: tuple[int, int] = (96, 128)) -> list[Array]:
    """image_hw of two pictures, then objectness and deltas of each level at strides 8, 16, ...; odd grids round up."""
    rng = np.random.default_rng(seed)
    grids = [[-(-side // (8 * 2**level)) for side in canvas] for level in range(levels)]
    objectness = [rng.normal(0, 2, (2, 3, *grid)).astype(dtype) for grid in grids]
    deltas = [rng.normal(0, 0.4, (2, 12, *grid)).astype(dtype) for grid in grids]
    image_hw = np.array([canvas, (canvas[0] - 30, canvas[1] // 2)], np.float32)
    return [image_hw, *objectness, *deltas]


# ---------------------------------------------------------------------------------------------------- PyramidRoiAlign
def roi_attributes(levels: int, **changes: Any) -> dict[str, Any]:
    """Attributes of `PyramidRoiAlign` at strides 4, 8, ..."""
    return {"strides": [4 * 2**level for level in range(levels)], **ROI_ATTRIBUTES, **changes}


def feature_maps(levels: int, dtype: str = "float32", seed: int = 0, channels: int = 3) -> list[Array]:
    """Maps of a 256x320 canvas at strides 4, 8, ..., for two pictures."""
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(2, channels, 256 >> (level + 2), 320 >> (level + 2))).astype(dtype) for level in range(levels)
    ]


def random_rois(count: int, seed: int = 0) -> Array:
    """Boxes of all sizes for two pictures of a 256x320 canvas, some reaching out of it: `(2, count, 4)`."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform((-20, -20), (300, 240), (2, count, 2))
    size = np.exp(rng.uniform(np.log(2), np.log(300), (2, count, 2)))
    return np.concatenate([corner, corner + size], axis=-1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- DetectionNms
def nms_attributes(**changes: Any) -> dict[str, Any]:
    """Attributes of `DetectionNms`."""
    return {**NMS_ATTRIBUTES, **changes}


def nms_inputs(
    proposals: int, classes: int = 5, dtype: str = "float32", seed: int = 0, class_agnostic: bool = False
) -> list[Array]:
    """image_hw of two pictures, proposals within them, class logits, box deltas."""
    rng = np.random.default_rng(seed)
    boxes = np.clip(random_rois(proposals, seed), 0, (320, 256, 320, 256)).astype(np.float32)
    logits = rng.normal(0, 2, (2 * proposals, classes)).astype(dtype)
    deltas = rng.normal(0, 1, (2 * proposals, 4 if class_agnostic else 4 * classes)).astype(dtype)
    return [np.array([(256, 320), (200, 170)], np.float32), boxes, logits, deltas]
