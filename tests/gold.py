"""Slow, readable NumPy versions of the custom ops: what every face of an op is held against.

All of them work in float32, like the ops, and take a node's attributes as a mapping. Shapes are fixed: rows beyond the
last proposal or detection are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
f32 = np.float32


def sigmoid(x: Array) -> Array:
    """Probability of a logit."""
    with np.errstate(over="ignore"):
        return (f32(1) / (f32(1) + np.exp(-x.astype(f32)))).astype(f32)


def softmax(x: Array) -> Array:
    """Probabilities of logits `(K,)`."""
    with np.errstate(invalid="ignore"):
        e = np.exp(x.astype(f32) - x.max())
    return (e / e.sum()).astype(f32)


def best_first(values: Array) -> Array:
    """Indices of the values, the highest first; of equal ones the lower index; NaN last."""
    return np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")


def iou(a: Array, b: Array) -> float:
    """Intersection over union of two boxes; 0 where a box has no area."""
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    if area_a <= 0 or area_b <= 0:
        return 0.0
    width = max(f32(0), min(a[2], b[2]) - max(a[0], b[0]))
    height = max(f32(0), min(a[3], b[3]) - max(a[1], b[1]))
    return float(width * height / (area_a + area_b - width * height))


def greedy_nms(boxes: Array, scores: Array, threshold: float) -> list[int]:
    """Indices of the boxes `(N, 4)` that stay, best first."""
    kept: list[int] = []
    for candidate in best_first(scores):
        if all(iou(boxes[candidate], boxes[other]) <= f32(threshold) for other in kept):
            kept.append(int(candidate))
    return kept


def decode_box(reference: Array, deltas: Array, attributes: Mapping[str, Any]) -> Array | None:
    """The box that deltas `(4,)` make of a reference box, or None where a number is not finite."""
    if not (np.isfinite(deltas).all() and np.isfinite(reference).all()):
        return None
    size = reference[2:] - reference[:2]
    centre = reference[:2] + f32(0.5) * size
    dx, dy, dw, dh = deltas.astype(f32) / np.asarray(attributes["box_weights"], f32)
    centre = np.array([dx, dy], f32) * size + centre
    half = np.exp(np.minimum(np.array([dw, dh], f32), f32(attributes["bbox_xform_clip"]))) * size * f32(0.5)
    box = np.concatenate([centre - half, centre + half]).astype(f32)
    return box if np.isfinite(box).all() else None


def clip_box(box: Array, image_hw: Array) -> Array:
    """The part of the box within the content."""
    height, width = image_hw
    return np.minimum(np.maximum(box, f32(0)), np.array([width, height, width, height], f32))


def is_padding(box: Array) -> bool:
    """Whether the box has no area; one with a NaN has none."""
    return not (box[2] > box[0] and box[3] > box[1])


def candidate_box(reference: Array, deltas: Array, image_hw: Array, attributes: Mapping[str, Any]) -> Array | None:
    """The decoded and clipped box, or None where it is not finite or too small."""
    box = decode_box(reference, deltas, attributes)
    if box is None:
        return None
    box = clip_box(box, image_hw)
    return box if (box[2:] - box[:2]).min() >= f32(attributes["min_size"]) else None


# ------------------------------------------------------------------------------------------------------- RpnProposals
def rpn_proposals(
    image_hw: Array, objectness: Sequence[Array], deltas: Sequence[Array], attributes: Mapping[str, Any]
) -> Array:
    """`RpnProposals`: proposals `(B, P, 4)`."""
    cells = np.array(attributes["cell_anchors"], f32).reshape(len(objectness), -1, 4)
    canvas = [side * attributes["strides"][0] for side in objectness[0].shape[2:]]
    out = np.zeros((len(image_hw), attributes["post_nms_top_n"], 4), f32)
    for picture, hw in enumerate(image_hw):
        boxes, scores = [], []
        for level, (logits, shifts) in enumerate(zip(objectness, deltas, strict=True)):
            stride = [attributes["strides"][level]] * 2
            if attributes["stride_rule"] == "grid":
                stride = [side // cell_count for side, cell_count in zip(canvas, logits.shape[2:], strict=True)]
            found = _level_proposals(logits[picture], shifts[picture], cells[level], stride, hw, attributes)
            kept = greedy_nms(
                np.array([b for b, _ in found]), np.array([s for _, s in found]), attributes["nms_threshold"]
            )
            boxes += [found[i][0] for i in kept]
            scores += [found[i][1] for i in kept]
        for row, i in enumerate(best_first(np.array(scores))[: out.shape[1]]):
            out[picture, row] = boxes[i]
    return out


def _level_proposals(
    logits: Array, deltas: Array, cells: Array, stride: Sequence[int], hw: Array, attributes: Mapping[str, Any]
) -> list[tuple[Array, Any]]:
    """Boxes and probabilities of a level's candidates, best logit first; logits `(A, H, W)`, deltas `(4A, H, W)`."""
    anchors_per_cell, height, width = logits.shape
    flat = logits.astype(f32).transpose(1, 2, 0).reshape(-1)
    shifts = deltas.astype(f32).reshape(anchors_per_cell, 4, height, width).transpose(2, 3, 0, 1).reshape(-1, 4)
    found = []
    for index in best_first(flat)[: attributes["pre_nms_top_n"]]:
        place, anchor = divmod(int(index), anchors_per_cell)
        y, x = divmod(place, width)
        reference = cells[anchor] + np.array([x * stride[1], y * stride[0]] * 2, f32)
        box = candidate_box(reference, shifts[index], hw, attributes)
        probability = sigmoid(flat[index])
        if box is not None and flat[index] > -np.inf and probability >= f32(attributes["score_threshold"]):
            found.append((box, probability))
    return found


# ---------------------------------------------------------------------------------------------------- PyramidRoiAlign
def roi_level(roi: Array, attributes: Mapping[str, Any]) -> int:
    """Level of a roi by its area, from 0."""
    area = (roi[2] - roi[0]) * (roi[3] - roi[1])
    level = 0
    for i, stride in enumerate(attributes["strides"][1:], start=1):
        exponent = np.log2(float(stride)) - attributes["canonical_level"] - float(f32(attributes["level_eps"]))
        if area >= f32((attributes["canonical_scale"] * 2.0**exponent) ** 2):
            level = i
    return level


def bilinear(feature: Array, y: float, x: float) -> Array:
    """Value `(C,)` of a map `(C, H, W)` at a point; beyond one cell outside it is zero."""
    height, width = feature.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(feature), f32)
    y, x = max(y, f32(0)), max(x, f32(0))
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = (f32(0) if y0 == y1 else y - y0), (f32(0) if x0 == x1 else x - x0)
    top = feature[:, y0, x0] * (1 - fx) + feature[:, y0, x1] * fx
    bottom = feature[:, y1, x0] * (1 - fx) + feature[:, y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def roi_align(feature: Array, roi: Array, stride: int, attributes: Mapping[str, Any]) -> Array:
    """One roi on one map `(C, H, W)`: `(C, S, S)`."""
    count, aligned = attributes["output_size"], attributes["aligned"]
    x1, y1, x2, y2 = roi / f32(stride) - f32(0.5 if aligned else 0)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, f32(1)), max(height, f32(1))
    bin_w, bin_h = width / f32(count), height / f32(count)
    ratio = attributes["sampling_ratio"]
    nx, ny = (ratio or int(np.ceil(side / f32(count))) for side in (width, height))
    out = np.zeros((len(feature), count, count), f32)
    for by in range(count):
        for bx in range(count):
            for sy in range(ny):
                for sx in range(nx):
                    y = y1 + by * bin_h + f32(sy + 0.5) * bin_h / f32(ny)
                    x = x1 + bx * bin_w + f32(sx + 0.5) * bin_w / f32(nx)
                    out[:, by, bx] += bilinear(feature, y, x)
    return out / f32(max(nx * ny, 1))


def pyramid_roi_align(rois: Array, features: Sequence[Array], attributes: Mapping[str, Any]) -> Array:
    """`PyramidRoiAlign`: `(B*N, C, S, S)` in the features' type."""
    size, channels = attributes["output_size"], features[0].shape[1]
    out = np.zeros((rois.shape[0] * rois.shape[1], channels, size, size), f32)
    for row, roi in enumerate(rois.reshape(-1, 4)):
        with np.errstate(over="ignore", invalid="ignore"):
            area = (roi[2] - roi[0]) * (roi[3] - roi[1])
        if is_padding(roi) or not np.isfinite(area):  # corners that are not finite give no finite area either
            continue
        level = roi_level(roi, attributes)
        feature = features[level][row // rois.shape[1]].astype(f32)
        out[row] = roi_align(feature, roi, attributes["strides"][level], attributes)
    return out.astype(features[0].dtype)


# ------------------------------------------------------------------------------------------------------- DetectionNms
def detection_nms(
    image_hw: Array, proposals: Array, class_logits: Array, box_deltas: Array, attributes: Mapping[str, Any]
) -> tuple[Array, Array, Array, Array]:
    """`DetectionNms`: num `(B,)`, boxes `(B, D, 4)`, scores `(B, D)`, labels `(B, D)`."""
    batch, per_picture, _ = proposals.shape
    most = attributes["detections_per_image"]
    number, labels = np.zeros(batch, np.int32), np.zeros((batch, most), np.int32)
    boxes, scores = np.zeros((batch, most, 4), f32), np.zeros((batch, most), f32)
    for picture in range(batch):
        rows = slice(picture * per_picture, (picture + 1) * per_picture)
        found = _class_candidates(
            proposals[picture], class_logits[rows], box_deltas[rows], image_hw[picture], attributes
        )
        kept = []
        for label in {label for *_, label in found}:
            mine = [i for i, (*_, other) in enumerate(found) if other == label]
            stay = greedy_nms(
                np.array([found[i][0] for i in mine]),
                np.array([found[i][1] for i in mine]),
                attributes["nms_threshold"],
            )
            kept += [mine[i] for i in stay]
        kept.sort(key=lambda i: (-found[i][1], i))
        number[picture] = min(len(kept), most)
        for row, i in enumerate(kept[:most]):
            boxes[picture, row], scores[picture, row], labels[picture, row] = found[i]
    return number, boxes, scores, labels


def _class_candidates(
    proposals: Array, class_logits: Array, box_deltas: Array, hw: Array, attributes: Mapping[str, Any]
) -> list[tuple[Array, Any, int]]:
    """Box, score and label of each candidate: proposal by proposal, and class by class within it."""
    classes = class_logits.shape[1]
    foreground = range(1, classes) if attributes["background"] == "first" else range(classes - 1)
    found = []
    for proposal, logits, deltas in zip(proposals, class_logits.astype(f32), box_deltas.astype(f32), strict=True):
        if is_padding(proposal):
            continue
        probabilities = softmax(logits)
        for label in foreground:
            own = deltas if attributes["class_agnostic"] else deltas[4 * label : 4 * label + 4]
            box = candidate_box(proposal, own, hw, attributes)
            if box is not None and probabilities[label] > f32(attributes["score_threshold"]):
                found.append((box, probabilities[label], label))
    return found
