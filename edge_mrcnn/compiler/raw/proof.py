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
from edge_mrcnn.compiler.raw.heads import BoxHead, DenseHead, Detected
from edge_mrcnn.compiler.raw.pools import Pool, Pools
from edge_mrcnn.compiler.raw.regions import Array, Regions, read_by
from edge_mrcnn.compiler.raw.rpn import Head, Proposals
from edge_mrcnn.compiler.raw.survey import MismatchError
from edge_mrcnn.compiler.raw.transform import Transform
from edge_mrcnn.ops import DETECTION_NMS, DOMAIN, OPS, PLUGIN_ATTRIBUTES, PYRAMID_ROI_ALIGN, RPN_PROPOSALS, VERSION

SEED = 5
SPREADS = (2.0, 6.0, 18.0)
"""Standard deviations of random logits: the first that lets enough boxes pass the thresholds is taken."""

ENOUGH = 5
"""Boxes that must pass, unless the limit is lower."""

BOXES = 64
"""Boxes that pools and detections are tried with."""

SOME = 5
"""Detections that the choice of masks is tried with."""

MOST_LOOKED_AT = 12
"""Tensors behind the mask logits that are tried."""

PIXELS = 0.02
"""Boxes that differ by less are the same."""

RELATIVE = 1e-4
"""Patches that differ by less, of their largest value, are the same."""

HALF_PIXEL = 0.5
"""Keypoints that differ by less are the same."""

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
    content = np.array([transform.content], np.float32)
    found = expected = np.zeros((0, 4), np.float32)
    for spread in SPREADS:
        random = np.random.default_rng(SEED)
        objectness = [_normal(random, regions.shapes[id(tensor)], spread) for tensor in head.objectness]
        deltas = [_normal(random, regions.shapes[id(tensor)], 0.4) for tensor in head.deltas]
        ((expected,),) = _run_op(RPN_PROPOSALS.name, [content, *objectness, *deltas], proposals.attributes)
        if len(expected) >= min(ENOUGH, proposals.attributes["post_nms_top_n"]):
            feeds = [*zip(head.objectness, objectness, strict=True), *zip(head.deltas, deltas, strict=True)]
            (found,) = _run_region(regions, feeds, [proposals.boxes])
            break
    return _agree(found, expected, "proposals", proposals.attributes["post_nms_top_n"])


def prove_detections(
    regions: Regions, pools: Pools, head: BoxHead, detected: Detected, transform: Transform, widths: tuple[int, int]
) -> Proof:
    """Hold the region between the box head and the detections against `DetectionNms`.

    Raises:
        MismatchError: They differ.
    """
    content = np.array([transform.content], np.float32)
    found = expected = np.zeros((0, 6), np.float32)
    for spread in SPREADS:
        random = np.random.default_rng(SEED)
        boxes = _boxes(random, transform.content)
        logits = _normal(random, (BOXES, widths[0]), spread)
        deltas = _normal(random, (BOXES, widths[1]), 1.0)
        number, *rows = _run_op(DETECTION_NMS.name, [content, boxes[None], logits, deltas], detected.attributes)
        expected = np.concatenate([rows[0][0], rows[1][0, :, None], rows[2][0, :, None]], axis=1)[: number[0]]
        if len(expected) >= min(ENOUGH, detected.attributes["detections_per_image"]):
            feeds = [(pools.box.boxes, boxes), (head.logits, logits), (head.deltas, deltas)]
            found = _rows(_run_region(regions, feeds, detected.results))
            break
    return _agree(found, expected, "detections", detected.attributes["detections_per_image"])


def prove_pool(regions: Regions, pool: Pool) -> Proof:
    """Hold a pool against `PyramidRoiAlign`.

    Raises:
        MismatchError: They differ.
    """
    random = np.random.default_rng(SEED)
    features = [_normal(random, regions.shapes[id(tensor)], 1.0) for tensor in pool.features]
    height, width = (side * pool.attributes["strides"][0] for side in features[0].shape[2:])
    boxes = _boxes(random, (height, width), 4 * pool.attributes["canonical_scale"])  # so that all levels are in it
    feeds = [(pool.boxes, boxes), *zip(pool.features, features, strict=True)]
    (found,) = _run_region(regions, feeds, [pool.pooled])
    (expected,) = _run_op(PYRAMID_ROI_ALIGN.name, [boxes[None], *features], pool.attributes)
    if found.shape != expected.shape:
        raise MismatchError(f"patches {expected.shape} of random numbers", found.shape)
    worst = np.abs(found - expected).max(axis=(1, 2, 3)) / float(np.abs(expected).max(initial=1))
    if not (worst < RELATIVE).mean() >= 1 - MOST_LOST:
        raise MismatchError(
            "patches of random numbers like PyramidRoiAlign's",
            f"others for {(worst >= RELATIVE).mean():.0%} of the boxes, off by up to {worst.max():.2g} of the largest",
        )
    return Proof(pool.describe())


def prove_mask_choice(regions: Regions, head: DenseHead, detected: Detected, channels: int, size: int) -> Proof:
    """Look behind the mask logits for each detection's own class.

    Raises:
        MismatchError: No tensor holds it.
    """
    random = np.random.default_rng(SEED)
    logits = _normal(random, (SOME, channels, size, size), 2.0)
    labels = random.integers(1, channels, SOME)
    expected = 1 / (1 + np.exp(-logits[np.arange(SOME), labels].astype(np.float64)))
    feeds = [(head.maps, logits), *((tensor, labels) for tensor in detected.results)]
    known = {id(tensor) for tensor, _ in feeds}
    for tensor in _chosen_from(regions, head.maps):
        nodes = regions.ancestors([tensor], known)
        read = {id(each) for node in nodes for each in node.inputs}
        if not all(id(each) in known for each in detected.results if id(each) in read):
            continue
        try:
            (found,) = regions.run(nodes, [pair for pair in feeds if id(pair[0]) in read], [tensor])
        except MismatchError:
            continue  # it depends on more than logits and labels
        if found.size == expected.size and np.allclose(found.reshape(expected.shape), expected, atol=1e-5):
            return Proof(f"{channels} maps of {size}x{size}, of which each detection's own class is taken")
    raise MismatchError("a tensor with the Sigmoid of each detection's own class behind the mask logits", "none")


def prove_keypoints(regions: Regions, head: DenseHead, channels: int, size: int) -> Proof:
    """Look behind the heatmaps for the keypoints as the runtime decodes them.

    Raises:
        MismatchError: No tensor holds them.
    """
    try:
        from edge_mrcnn.runtime.keypoints import decode_keypoints  # needs OpenCV, which an import else does not
    except ImportError:
        return Proof("not compared, since OpenCV is not installed: pip install opencv-python")
    random = np.random.default_rng(SEED)
    boxes = _boxes(random, (256, 256))[:SOME]
    maps = _peaks(random, (SOME, channels, size))
    expected = decode_keypoints(maps, boxes)[..., :2]
    known = {id(head.maps): (head.maps, maps), id(head.pool.boxes): (head.pool.boxes, boxes)}
    for tensor in _loops_on(regions, head.maps):
        nodes = regions.ancestors([tensor], known)
        read = {id(each) for node in nodes for each in read_by(node)}
        try:
            (found,) = regions.run(nodes, [pair for key, pair in known.items() if key in read], [tensor])
        except MismatchError:
            continue  # it depends on more than heatmaps and boxes
        if found.shape == (SOME, 3, channels):
            apart = np.abs(found[:, :2].transpose(0, 2, 1) - expected).max(axis=2)
            if (apart < HALF_PIXEL).mean() >= 1 - MOST_LOST:
                return Proof(f"{apart.size} of made-up heatmaps agree")
            raise MismatchError("keypoints at the peaks of heatmaps", f"others, {apart.max():.1f} pixels off")
    raise MismatchError("a Loop that gives keypoints (N, 3, K) of heatmaps and boxes", "none")


def _peaks(random: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """Heatmaps `(N, K, S, S)` with a round hill each."""
    count, channels, size = shape
    centre = random.uniform(0.1, 0.9, (2, count, channels, 1, 1)) * size
    rows, columns = np.arange(size)[:, None] - centre[0], np.arange(size)[None] - centre[1]
    hills: Array = (8 * np.exp(-(rows**2 + columns**2) / (0.1 * size) ** 2)).astype(np.float32)
    return hills


def _loops_on(regions: Regions, maps: gs.Tensor) -> list[gs.Tensor]:
    """What Loop nodes give that depend on the maps."""
    reached, given = {id(maps)}, list[gs.Tensor]()
    for node in regions.graph.nodes:
        if any(id(tensor) in reached for tensor in read_by(node)):
            reached |= {id(tensor) for tensor in node.outputs}
            given += node.outputs if node.op == "Loop" else []
    return given


def _chosen_from(regions: Regions, maps: gs.Tensor) -> list[gs.Tensor]:
    """Tensors by which a class may be taken from the maps: what Gather and the like give, in order."""
    reached, chosen = {id(maps)}, list[gs.Tensor]()
    for node in regions.graph.nodes:
        if any(id(tensor) in reached for tensor in node.inputs) and node.op not in ("Shape", "Loop", "If"):
            reached |= {id(tensor) for tensor in node.outputs}
            if node.op in ("Gather", "GatherND", "GatherElements", "Reshape", "Unsqueeze"):
                chosen.append(node.outputs[0])
    return chosen[:MOST_LOOKED_AT]


# ------------------------------------------------------------------------------------------------------------- random
def _normal(random: np.random.Generator, shape: Sequence[int], spread: float) -> Array:
    return (random.standard_normal(tuple(shape)) * spread).astype(np.float32)


def _boxes(random: np.random.Generator, hw: tuple[int, int], largest: float = 0.0) -> Array:
    """Boxes `(N, 4)` of all sizes up to the canvas, or up to `largest`: those that do not fit begin in its corner."""
    canvas = np.array([hw[1], hw[0]])
    sides = np.exp(random.uniform(np.log(4), np.log(np.maximum(canvas, largest)), (BOXES, 2)))
    corner = random.uniform(0, 1, (BOXES, 2)) * np.maximum(canvas - sides, 0)
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


def _agree(found: Array, expected: Array, what: str, limit: int) -> Proof:
    """Check that nearly all rows of one are among those of the other, and the other way round."""
    if len(expected) < min(ENOUGH, limit):
        raise MismatchError(f"{what} of random numbers that pass the thresholds", f"{len(expected)}")
    if abs(len(found) - len(expected)) <= MOST_LOST * len(expected):
        close = np.abs(found[:, None] - expected[None]).max(axis=2) < PIXELS
        if min(close.any(axis=0).mean(), close.any(axis=1).mean()) >= 1 - MOST_LOST:
            return Proof(f"{len(found)} {what} of random numbers agree")
    first = [np.round(rows[:1], 2).tolist() for rows in (expected, found)]
    raise MismatchError(
        f"the {what} of random numbers that these attributes give: {len(expected)}, first {first[0]}",
        f"{len(found)}, first {first[1]}",
    )
