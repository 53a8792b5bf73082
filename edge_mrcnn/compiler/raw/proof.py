"""Proof that a region computes what the op does that takes its place: both are run on the same numbers.

Structure finds the numbers of a region, but a constant that was changed between its nodes would be lost with it. So the
region is cut out and run by itself, against the function body of the op with the attributes that were read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import TensorProto, helper

from edge_mrcnn.compiler.function_bodies import OPSET, make_function_body
from edge_mrcnn.compiler.raw.heads import BoxHead, Detected
from edge_mrcnn.compiler.raw.pools import Pool, Pools
from edge_mrcnn.compiler.raw.regions import Array, Regions
from edge_mrcnn.compiler.raw.rpn import Head, Proposals
from edge_mrcnn.compiler.raw.survey import MismatchError
from edge_mrcnn.compiler.raw.transform import Transform
from edge_mrcnn.ops import DETECTION_NMS, DOMAIN, OPS, PLUGIN_ATTRIBUTES, PYRAMID_ROI_ALIGN, RPN_PROPOSALS, VERSION

SEED = 5
BOXES = 64
"""Boxes that pools and detections are tried with."""

PIXELS = 0.02
"""Boxes that differ by less are the same."""

RELATIVE = 1e-4
"""Patches that differ by less, of their largest value, are the same."""

MOST_LOST = 0.02
"""Share of the boxes that rounding may decide otherwise: an IoU within a rounding error of the threshold."""


@dataclass
class Proof:
    """What was compared."""

    text: str

    def describe(self) -> str:
        """What was compared."""
        return self.text


def prove_proposals(regions: Regions, head: Head, proposals: Proposals, transform: Transform) -> Proof:
    """Hold the region between the RPN's head and the proposals against `RpnProposals`.

    Raises:
        MismatchError: They differ.
    """
    random = np.random.default_rng(SEED)
    objectness = [_normal(random, regions.shapes[id(tensor)], 2.0) for tensor in head.objectness]
    deltas = [_normal(random, regions.shapes[id(tensor)], 0.4) for tensor in head.deltas]
    feeds = [*zip(head.objectness, objectness, strict=True), *zip(head.deltas, deltas, strict=True)]
    (found,) = _run_region(regions, feeds, [proposals.boxes])
    content = np.array([transform.content], np.float32)
    (expected,) = _run_op(RPN_PROPOSALS.name, [content, *objectness, *deltas], proposals.attributes)
    share = _share(found, expected[0])
    return (
        Proof(f"{len(found)} proposals of random numbers agree") if share else _differ(found, expected[0], "proposals")
    )


def prove_detections(
    regions: Regions, pools: Pools, head: BoxHead, detected: Detected, transform: Transform, widths: tuple[int, int]
) -> Proof:
    """Hold the region between the box head and the detections against `DetectionNms`.

    Raises:
        MismatchError: They differ.
    """
    random = np.random.default_rng(SEED)
    boxes = _boxes(random, transform.content)
    logits = _normal(random, (BOXES, widths[0]), 2.0)
    deltas = _normal(random, (BOXES, widths[1]), 1.0)
    feeds = [(pools.box.boxes, boxes), (head.logits, logits), (head.deltas, deltas)]
    results = _run_region(regions, feeds, detected.results)
    content = np.array([transform.content], np.float32)
    number, *expected = _run_op(DETECTION_NMS.name, [content, boxes[None], logits, deltas], detected.attributes)
    found = _rows(results)
    wanted = np.concatenate([expected[0][0], expected[1][0, :, None], expected[2][0, :, None]], axis=1)[: number[0]]
    if not _share(found, wanted):
        return _differ(found, wanted, "detections (boxes, score, label)")
    return Proof(f"{len(found)} detections of random numbers agree")


def prove_pool(regions: Regions, pool: Pool) -> Proof:
    """Hold a pool against `PyramidRoiAlign`.

    Raises:
        MismatchError: They differ.
    """
    random = np.random.default_rng(SEED)
    features = [_normal(random, regions.shapes[id(tensor)], 1.0) for tensor in pool.features]
    height, width = (side * pool.attributes["strides"][0] for side in features[0].shape[2:])
    boxes = _boxes(random, (height, width))
    feeds = [(pool.boxes, boxes), *zip(pool.features, features, strict=True)]
    (found,) = _run_region(regions, feeds, [pool.pooled])
    (expected,) = _run_op(PYRAMID_ROI_ALIGN.name, [boxes[None], *features], pool.attributes)
    if found.shape != expected.shape:
        raise MismatchError(f"patches {expected.shape} of random numbers", found.shape)
    worst = float(np.abs(found - expected).max(initial=0)) / float(np.abs(expected).max(initial=1))
    if not worst < RELATIVE:
        raise MismatchError("patches of random numbers like PyramidRoiAlign's", f"a difference of {worst:.2g}")
    return Proof(pool.describe())


# ------------------------------------------------------------------------------------------------------------- random
def _normal(random: np.random.Generator, shape: Sequence[int], spread: float) -> Array:
    return (random.standard_normal(tuple(shape)) * spread).astype(np.float32)


def _boxes(random: np.random.Generator, hw: tuple[int, int]) -> Array:
    """Boxes `(N, 4)` of all sizes in a canvas."""
    height, width = hw
    sides = np.exp(random.uniform(np.log(4), np.log([width, height]), (BOXES, 2)))
    corner = random.uniform(0, 1, (BOXES, 2)) * ([width, height] - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- both sides
def _run_region(
    regions: Regions, feeds: Sequence[tuple[gs.Tensor, Array]], outputs: Sequence[gs.Tensor]
) -> list[Array]:
    """Run what lies between some tensors; others that it asks the shape of are blank."""
    stop = {id(tensor): (tensor, value) for tensor, value in feeds}
    asked = {id(tensor): tensor for tensor in regions.known.values() if id(tensor) not in stop}
    nodes = regions.ancestors(outputs, {*stop, *asked})
    read = {id(tensor) for node in nodes for tensor in node.inputs}
    blank = [(tensor, np.zeros(regions.shapes[key], np.float32)) for key, tensor in asked.items() if key in read]
    used = [pair for key, pair in stop.items() if key in read or any(pair[0] is each for each in outputs)]
    return regions.run(nodes, [*used, *blank], outputs)


def _run_op(op: str, inputs: Sequence[Array], attributes: Mapping[str, Any]) -> list[Array]:
    """Run the function body of an op."""
    names = [f"x{place}" for place in range(len(inputs))]
    outputs = [tensor.name for tensor in OPS[op].outputs]
    node = helper.make_node(op, names, outputs, domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES)
    kinds = [helper.np_dtype_to_tensor_dtype(value.dtype) for value in inputs]
    infos = [helper.make_tensor_value_info(*each, None) for each in zip(names, kinds, strict=True)]
    results = [
        helper.make_tensor_value_info(
            tensor.name, TensorProto.INT32 if tensor.dtype == "int32" else TensorProto.FLOAT, None
        )
        for tensor in OPS[op].outputs
    ]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, int(VERSION))]
    body = make_function_body(op, attributes, len(inputs))
    graph = helper.make_graph([node], op, infos, results)
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    found: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found


def _rows(results: Sequence[Array]) -> Array:
    """Boxes, score and label of each detection `(N, 6)`, whatever their order in the graph."""
    boxes = [each for each in results if each.ndim == 2 and each.shape[1] == 4]
    labels = [each for each in results if each.ndim == 1 and np.issubdtype(each.dtype, np.integer)]
    scores = [each for each in results if each.ndim == 1 and np.issubdtype(each.dtype, np.floating)]
    if not len(boxes) == len(labels) == len(scores) == 1:
        raise MismatchError("boxes (N, 4), scores (N,) and whole labels (N,)", [each.shape for each in results])
    return np.concatenate([boxes[0], scores[0][:, None], labels[0][:, None]], axis=1)


def _share(found: Array, expected: Array) -> bool:
    """Whether nearly all rows of one are among those of the other, and the other way round."""
    if abs(len(found) - len(expected)) > MOST_LOST * len(expected) or not len(expected):
        return False
    close = np.abs(found[:, None] - expected[None]).max(axis=2) < PIXELS
    return bool(min(close.any(axis=0).mean(), close.any(axis=1).mean()) >= 1 - MOST_LOST)


def _differ(found: Array, expected: Array, what: str) -> Proof:
    first = [np.round(rows[:1], 2).tolist() for rows in (expected, found)]
    raise MismatchError(
        f"the {what} of random numbers that these attributes give: {len(expected)}, first {first[0]}",
        f"{len(found)}, first {first[1]}",
    )
