"""What stands behind the pools: the box head, what becomes of its boxes, mask and keypoint heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.raw.boxes import Decoder, find_decoder, find_suppression, find_thresholds
from edge_mrcnn.compiler.raw.pools import Pool, Pools, unwrap
from edge_mrcnn.compiler.raw.regions import Regions, producer, readers
from edge_mrcnn.compiler.raw.survey import MismatchError

_LAYERS = frozenset({"Conv", "ConvTranspose", "Relu", "LeakyRelu", "BatchNormalization", "Resize", "Cast", "Dropout"})
_PRODUCTS = frozenset({"Gemm", "MatMul", "Add"})


@dataclass
class BoxHead:
    """The box head's outputs.

    Attributes:
        logits: `(N, K)`.
        deltas: `(N, 4K)`, or `(N, 4)` for all classes alike.
        decoder: How the deltas are decoded.
    """

    logits: gs.Tensor
    deltas: gs.Tensor
    decoder: Decoder

    def describe(self) -> str:
        """How its boxes are decoded."""
        return self.decoder.describe()


def find_box_head(regions: Regions, pools: Pools) -> BoxHead:
    """Find the logits by their softmax and the deltas by their decoding.

    Raises:
        MismatchError: One of them is not there, or not once.
    """
    behind = _behind(regions, pools.box)
    sure = [node for node in regions.graph.nodes if node.op == "Softmax" and id(node) in behind]
    if len(sure) != 1:
        raise MismatchError("one Softmax of classes behind the box pool", len(sure))
    logits = sure[0].inputs[0]
    found: list[tuple[gs.Tensor, Decoder]] = []
    reasons: list[MismatchError] = []
    for node in regions.graph.nodes:
        if id(node) not in behind or node.op not in _PRODUCTS or node.outputs[0] is logits:
            continue
        try:
            decoder = find_decoder(regions, node.outputs[0])
        except MismatchError as mismatch:
            reasons.append(mismatch)
            continue
        if unwrap(decoder.references) is pools.box.boxes:
            found.append((node.outputs[0], decoder))
    if len(found) != 1:
        why = reasons[-1].found if reasons else "no such layer"
        raise MismatchError("one layer whose output is decoded on the proposals", f"{len(found)} ({why})")
    return BoxHead(logits, *found[0])


def _behind(regions: Regions, pool: Pool) -> set[int]:
    """The nodes, by `id`, that depend on what a pool gives."""
    reached = {id(pool.pooled)}
    nodes = set()
    for node in regions.graph.nodes:
        if any(id(tensor) in reached for tensor in node.inputs):
            nodes.add(id(node))
            reached |= {id(tensor) for tensor in node.outputs}
    return nodes


# --------------------------------------------------------------------------------------------------------- detections
@dataclass
class Detected:
    """What becomes of the box head's boxes.

    Attributes:
        attributes: Of `DetectionNms`.
        results: The tensors that the NMS picks from: boxes, scores and labels, in the graph's order.
    """

    attributes: dict[str, Any]
    results: list[gs.Tensor]

    def describe(self) -> str:
        """Its numbers."""
        a = self.attributes
        return (
            f"scores above {a['score_threshold']:g}, sides from {a['min_size']:g}, NMS at IoU {a['nms_threshold']:g}, "
            f"best {a['detections_per_image']}"
        )


def find_detections(regions: Regions, pools: Pools, head: BoxHead, widths: tuple[int, int]) -> Detected:
    """Read what lies between the box head and the boxes that are given.

    Args:
        regions: The graph.
        pools: The pools.
        head: The box head's outputs.
        widths: Numbers of logits and of deltas.

    Raises:
        MismatchError: It is not what torchvision does.
    """
    proposals = pools.box.boxes
    before = {id(node) for node in regions.ancestors([proposals])}
    behind = [node for node in regions.graph.nodes if id(node) not in before]
    suppression = find_suppression(regions, behind, "behind the box head")
    results = [
        node.outputs[0] for node in readers(suppression.index) if node.op == "Gather" and not node.attrs.get("axis", 0)
    ]
    if len(results) != 3:
        raise MismatchError("boxes, scores and labels picked by the NMS", f"{len(results)} tensors")
    for pool in pools.others:
        if all(pool.boxes is not result for result in results):
            raise MismatchError("the other pools to take the boxes that the NMS keeps", "others")
    stop = {id(tensor) for tensor in (head.logits, head.deltas, proposals)}
    thresholds = find_thresholds(regions, regions.ancestors(results, stop))
    if len(thresholds.scores) != 1 or thresholds.scores[0][0] != "Greater":
        raise MismatchError("detections above one score to be kept", thresholds.scores or "no comparison")
    classes, deltas = widths
    if deltas not in (4, 4 * classes):
        raise MismatchError(f"4 or {4 * classes} deltas for {classes} classes", deltas)
    attributes = {
        "box_weights": head.decoder.weights,
        "bbox_xform_clip": head.decoder.clip,
        "score_threshold": thresholds.scores[0][1],
        "nms_threshold": suppression.threshold,
        "min_size": thresholds.min_size,
        "detections_per_image": suppression.kept,
        "background": "first",
        "class_agnostic": int(deltas == 4),
    }
    return Detected(attributes, results)


# ------------------------------------------------------------------------------------------------ masks and keypoints
@dataclass
class DenseHead:
    """A head that gives maps.

    Attributes:
        kind: `mask` or `keypoint`.
        pool: What it takes.
        maps: `(D, K, S, S)`: logits of masks, or heatmaps.
    """

    kind: str
    pool: Pool
    maps: gs.Tensor

    def describe(self) -> str:
        """What it gives."""
        return "logits up to their Sigmoid" if self.kind == "mask" else "heatmaps up to their decoding"


def find_dense_head(pool: Pool) -> DenseHead:
    """Follow the layers behind a pool: up to a Sigmoid they give masks, up to a Resize the heatmaps of keypoints.

    Raises:
        MismatchError: They end in another way.
    """
    tensor, ops = pool.pooled, []
    while True:
        following = readers(tensor)
        if len(following) != 1 or following[0].op not in _LAYERS:
            break
        ops.append(following[0].op)
        tensor = following[0].outputs[0]
    maker = producer(tensor)
    if maker is not None and maker.op == "Conv" and [node.op for node in following] == ["Sigmoid"]:
        return DenseHead("mask", pool, tensor)
    if maker is not None and maker.op == "Resize" and "ConvTranspose" in ops:
        return DenseHead("keypoint", pool, tensor)
    found = f"{', '.join(ops) or 'nothing'} and then {', '.join(node.op for node in following) or 'the end'}"
    raise MismatchError("convolutions and a Sigmoid (masks), or a ConvTranspose and a Resize (keypoints)", found)
