"""Bodies of the custom ops as ONNX functions in standard ops, generated for the model at hand.

With the bodies in the file, ONNX Runtime runs an exported model on any CPU, and they are the reference of the ops'
other faces. Numbers are read from the attributes of the calling node, so editing a node's threshold changes what runs.
What shapes the graph is generated instead: the number of levels, `stride_rule`, `aligned`, `background`,
`class_agnostic`.

What holds in every body, and in every other face of an op:

- Boxes are xyxy in pixels of the canvas; arithmetic is float32 whatever the type of the features.
- Ties go to the lower index: of a level's candidates the lower cell (row by row, then anchor), of all candidates the
  lower level, of a picture's detections the lower proposal, then the lower class.
- A level's candidates are chosen by logit, as torchvision does; from then on ranking is by sigmoid probability.
- A NaN is never a candidate: neither a NaN logit (in `RpnProposals` minus infinity is none either), nor a box with a
  delta or a decoded coordinate that is NaN or infinite. Softmax carries a NaN logit to all classes of its proposal.
- A box that is not `x2 > x1 and y2 > y1` is padding; one with a NaN is not, so it is padding too.

On a CPU shapes are upper limits: `RpnProposals` and `DetectionNms` return as many rows as the fullest picture of the
batch needs, at least one, and not always `post_nms_top_n` and `detections_per_image`. This spares the heads the work on
padding and changes nothing in the rows that remain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto

from edge_mrcnn.compiler.function_builder import OPSET, FunctionBuilder
from edge_mrcnn.ops import DETECTION_NMS, OPS, PYRAMID_ROI_ALIGN, RPN_PROPOSALS

__all__ = ["OPSET", "make_function_body"]

_NO_CANDIDATE = -1.0
"""Score of what is no candidate; candidates have scores from 0 to 1."""


def make_function_body(op: str, attributes: Mapping[str, Any], input_count: int) -> onnx.FunctionProto:
    """Write the body of an op for a node of the graph.

    Args:
        op: Name of the op.
        attributes: The node's attributes. `stride_rule`, `aligned`, `background` and `class_agnostic` shape the body.
        input_count: Number of the node's inputs; gives the number of levels.

    Returns:
        A function in domain `edge_mrcnn`.

    Raises:
        PluginError: An attribute is missing or of another kind, or no number of levels has that many inputs.
        ValueError: An attribute has a value that the contract does not know.
    """
    spec = OPS[op]
    spec.check_attributes(attributes)
    levels = spec.levels(input_count)
    if op == RPN_PROPOSALS.name:
        return _rpn_proposals(levels, _choice(attributes, "stride_rule", "grid", "fixed"))
    if op == PYRAMID_ROI_ALIGN.name:
        return _pyramid_roi_align(levels, bool(_choice(attributes, "aligned", 0, 1)))
    background = _choice(attributes, "background", "first", "last")
    return _detection_nms(background, bool(_choice(attributes, "class_agnostic", 0, 1)))


def _choice(attributes: Mapping[str, Any], name: str, *known: Any) -> Any:
    if attributes[name] not in known:
        raise ValueError(f"{name} must be one of {known}, got {attributes[name]!r}")
    return attributes[name]


# ------------------------------------------------------------------------------------------- parts of several bodies
def _content_limit(b: FunctionBuilder) -> str:
    """The greatest coordinates `(B, 4)` of each picture's content: w, h, w, h."""
    height, width = b.halves("image_hw", axis=1)
    return b.Concat(width, height, width, height, axis=1)


def _decode(b: FunctionBuilder, references: str, deltas: str, limit: str) -> tuple[str, str]:
    """Apply deltas to boxes and clip them to the content.

    Args:
        b: The body.
        references: Anchors or proposals `(..., 4)`.
        deltas: `(..., 4)`.
        limit: `(..., 4)`, the greatest coordinates.

    Returns:
        Boxes `(..., 4)`, and bool `(..., 1)`: no side is below `min_size`, all deltas and coordinates were finite.

    Source: torchvision models/detection/_utils.py `BoxCoder.decode_single`; ops/boxes.py `clip_boxes_to_image`,
        `remove_small_boxes`.
    """
    low, high = b.halves(references)
    size = b.Sub(high, low)
    centre = b.Add(low, b.Mul(size, 0.5))
    shift, scale = b.halves(b.Div(deltas, b.attribute("box_weights")))
    centre = b.Add(b.Mul(shift, size), centre)
    half = b.Mul(b.Mul(b.Exp(b.Min(scale, b.attribute("bbox_xform_clip"))), size), 0.5)
    decoded = b.Concat(b.Sub(centre, half), b.Add(centre, half), axis=-1)
    # Min and Max may swallow a NaN, so it is looked for before the clipping, and in the deltas as well; times 0, only
    # what is not finite is not 0; halved and added and not ReduceSum, which ONNX Runtime leaves undone where P is 0
    probe = b.Mul(b.Add(decoded, b.Mul(deltas, 0.0)), 0.0)
    finite = b.Equal(b.Add(*b.halves(b.Add(*b.halves(probe)))), 0.0)
    boxes = b.Min(b.Max(decoded, 0.0), limit)
    width, height = b.sides(boxes)
    least = b.attribute("min_size")
    return boxes, b.And(finite, b.And(b.GreaterOrEqual(width, least), b.GreaterOrEqual(height, least)))


def _suppress(b: FunctionBuilder, boxes: str, class_scores: str, scores: str, most: str) -> str:
    """Greedy NMS within each class of each picture: what goes gets the score of no candidate.

    ONNX Runtime breaks ties in favour of the lower index and never suppresses by a box without area.

    Args:
        b: The body.
        boxes: `(B, N, 4)`.
        class_scores: `(B, C, N)`, that of no candidate where a box is not of the class; each is of one class at most.
        scores: `(B, N)`, of each box in its own class.
        most: `(1,)` int64, how many of each class may stay.

    Returns:
        Scores `(B, N)`.
    """
    chosen = b.NonMaxSuppression(boxes, class_scores, most, b.attribute("nms_threshold"), _NO_CANDIDATE / 2)
    places = b.Gather(chosen, [0, 2], axis=1)
    return b.ScatterND(b.Expand(_NO_CANDIDATE, b.Shape(scores)), places, b.GatherND(scores, places))


def _best(b: FunctionBuilder, boxes: str, scores: str, most: str) -> tuple[str, str, str, str]:
    """The best candidates of each picture, as many rows as the fullest picture needs, at least one.

    Args:
        b: The body.
        boxes: `(B, M, 4)`.
        scores: `(B, M)`.
        most: `(1,)` int64, upper limit of the rows.

    Returns:
        Boxes `(B, n, 4)` and scores `(B, n)`, zeros where there is none; their places `(B, n)`; bool `(B, n)`: there
        is one.
    """
    batch = b.Shape(scores, start=0, end=1)
    scores = b.Concat(scores, b.Expand(_NO_CANDIDATE, b.Concat(batch, [1], axis=0)), axis=1)  # so there is a row
    boxes = b.Concat(boxes, b.Expand(0.0, b.Concat(batch, [1, 4], axis=0)), axis=1)
    count = b.Min(most, b.Shape(scores, start=1))
    top, places = b.emit("TopK", scores, count, outputs=2, axis=1)
    numbers = b.ReduceSum(b.Cast(b.GreaterOrEqual(top, 0.0), to=TensorProto.INT64), [1], keepdims=0)
    rows = b.Max(b.ReduceMax(numbers, [0]), [1])
    top, places = (b.Slice(x, [0], rows, [1]) for x in (top, places))
    there = b.GreaterOrEqual(top, 0.0)
    boxes = b.GatherND(boxes, b.Unsqueeze(places, [-1]), batch_dims=1)
    boxes = b.Where(b.Unsqueeze(there, [-1]), boxes, 0.0)
    return boxes, b.Where(there, top, 0.0), places, there


# ------------------------------------------------------------------------------------------------------- RpnProposals
def _rpn_proposals(levels: int, stride_rule: str) -> onnx.FunctionProto:
    """Choose each level's candidates, then treat those of all levels at once: `(B, M, ...)`, level after level.

    Anchors are laid out for the whole grid: they depend on no picture, so ONNX Runtime computes them when it loads.

    Source: torchvision models/detection/rpn.py `RegionProposalNetwork.filter_proposals`.
    """
    b = FunctionBuilder(RPN_PROPOSALS, levels)
    most = b.Unsqueeze(b.attribute("post_nms_top_n"), [0])
    logits, index, own = _candidates(b, levels)
    anchors, places = _grids(b, levels, stride_rule)
    deltas = b.Concat(*[b.Reshape(b.as_float(f"deltas{level}"), [0, -1]) for level in range(levels)], axis=1)
    deltas = b.GatherND(deltas, b.Unsqueeze(b.Gather(places, index), [-1]), batch_dims=1)
    boxes, usable = _decode(b, b.Gather(anchors, index), deltas, b.Unsqueeze(_content_limit(b), [1]))
    probability = b.Sigmoid(logits)
    usable = b.And(b.Squeeze(usable, [-1]), b.Greater(logits, float("-inf")))
    usable = b.And(usable, b.GreaterOrEqual(probability, b.attribute("score_threshold")))
    scores = b.Where(usable, probability, _NO_CANDIDATE)
    by_level = b.Where(own, b.Unsqueeze(scores, [1]), _NO_CANDIDATE)
    proposals, *_ = _best(b, boxes, _suppress(b, boxes, by_level, scores, most), most)
    return b.build(proposals=proposals)


def _candidates(b: FunctionBuilder, levels: int) -> tuple[str, str, str]:
    """The best `pre_nms_top_n` anchors of each level by logit.

    Returns:
        Logits `(B, M)`; indices `(B, M)` of their anchors among those of all levels; bool `(L, M)`: of that level.
    """
    logits, index, level_of = [], [], []
    before = b.constant([0])
    for level in range(levels):
        rows = b.Reshape(b.Transpose(b.as_float(f"objectness{level}"), perm=[0, 2, 3, 1]), [0, -1])
        count = b.Shape(rows, start=1)
        chosen = b.Min(count, b.Unsqueeze(b.attribute("pre_nms_top_n"), [0]))
        rows = b.Where(b.IsNaN(rows), float("-inf"), rows)
        top, places = b.emit("TopK", rows, chosen, outputs=2, axis=1)
        logits.append(top)
        index.append(b.Add(places, before))
        level_of.append(b.Expand(level, chosen))
        before = b.Add(before, count)
    own = b.Equal(b.Concat(*level_of, axis=0), b.Unsqueeze(list(range(levels)), [1]))
    return b.Concat(*logits, axis=1), b.Concat(*index, axis=1), own


def _grids(b: FunctionBuilder, levels: int, stride_rule: str) -> tuple[str, str]:
    """The anchors of all levels, counted level by level, row by row, then by anchor.

    Returns:
        Anchors `(G, 4)`, and int64 `(G, 4)`: the places of their deltas among the deltas of all levels in a row.

    Source: torchvision models/detection/anchor_utils.py `AnchorGenerator.forward`, `grid_anchors`.
    """
    cells = b.Reshape(b.attribute("cell_anchors"), [levels, -1, 4])
    per_cell, coordinates = b.Shape(cells, start=1, end=2), b.constant([0, 1, 2, 3])
    anchors, places = [], []
    before = b.constant([0])
    for level in range(levels):
        grid = _grid(b, level)
        width, area = b.Gather(grid, [1]), b.ReduceProd(grid, keepdims=1)
        count = b.Mul(area, per_cell)
        index = b.Range(0, b.Squeeze(count, [0]), 1)
        cell, anchor = b.Unsqueeze(b.Div(index, per_cell), [1]), b.Mod(index, per_cell)
        stride_y, stride_x = _strides(b, level, grid, stride_rule)
        x, y = b.Mul(b.Mod(cell, width), stride_x), b.Mul(b.Div(cell, width), stride_y)
        corner = b.as_float(b.Concat(x, y, x, y, axis=1))
        anchors.append(b.Add(corner, b.Gather(b.Gather(cells, level), anchor)))
        channel = b.Add(b.Unsqueeze(b.Mul(anchor, 4), [1]), coordinates)
        places.append(b.Add(b.Add(b.Mul(channel, area), cell), b.Mul(before, 4)))
        before = b.Add(before, count)
    return b.Concat(*anchors, axis=0), b.Concat(*places, axis=0)


def _grid(b: FunctionBuilder, level: int) -> str:
    """Height and width of a level `(2,)`, of the first picture: ONNX Runtime folds no Shape of a dynamic batch."""
    return b.Shape(b.Gather(f"objectness{level}", 0), start=1)


def _strides(b: FunctionBuilder, level: int, grid: str, stride_rule: str) -> tuple[str, str]:
    """Vertical and horizontal stride of a level with a `grid` of that height and width, each `(1,)` int64."""
    if stride_rule == "fixed":
        stride = b.Gather(b.attribute("strides"), [level])
        return stride, stride
    canvas = b.Mul(_grid(b, 0), b.Gather(b.attribute("strides"), 0))
    vertical, horizontal = b.halves(b.Div(canvas, grid), axis=0)  # 480 // 8 = 60 for the fifth level, not 64
    return vertical, horizontal


# ---------------------------------------------------------------------------------------------------- PyramidRoiAlign
def _pyramid_roi_align(levels: int, aligned: bool) -> onnx.FunctionProto:
    """Pool each box on its own level only and put it in its row; rows of padding stay zero.

    Source: torchvision ops/poolers.py `_multiscale_roi_align`.
    """
    b = FunctionBuilder(PYRAMID_ROI_ALIGN, levels)
    rois, shape = b.Reshape("rois", [-1, 4]), b.Shape("rois", start=0, end=2)
    batch = b.Unsqueeze(b.Range(0, b.Gather(shape, 0), 1), [1])
    image = b.Reshape(b.Expand(batch, shape), [-1])
    level = _level_of(b, rois, levels)
    # the scale is a float attribute and cannot come from a list, so the boxes are scaled instead; -1 is the last level
    scaled = b.Div(rois, b.Unsqueeze(b.as_float(b.Gather(b.attribute("strides"), level)), [1]))
    size = b.Unsqueeze(b.attribute("output_size"), [0])
    pooled = b.ConstantOfShape(b.Concat(b.Shape(level), b.Shape("x0", start=1, end=2), size, size, axis=0))
    for i in range(levels):
        places = b.Transpose(b.NonZero(b.Equal(level, i)), perm=[1, 0])
        patches = b.RoiAlign(
            b.as_float(f"x{i}"),
            b.GatherND(scaled, places),
            b.GatherND(image, places),
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
            output_height="@output_size",
            output_width="@output_size",
            sampling_ratio="@sampling_ratio",
        )
        pooled = b.ScatterND(pooled, places, patches)
    return b.build(pooled=b.CastLike(pooled, "x0"))


def _level_of(b: FunctionBuilder, rois: str, levels: int) -> str:
    """Level of each roi `(R, 4)` by its area, `(R,)` int64 from 0; -1 for padding and what is not finite.

    A roi belongs to level i or above where `area >= (canonical_scale * 2^(log2(stride_i) - canonical_level - eps))^2`,
    which is `floor(canonical_level + log2(sqrt(area) / canonical_scale) + eps) >= log2(stride_i)`.

    Source: torchvision ops/poolers.py `LevelMapper`; equation 1 of the FPN paper.
    """
    width, height = b.sides(rois)
    area = b.Mul(width, height)
    real = b.And(b.And(b.Greater(width, 0.0), b.Greater(height, 0.0)), b.Less(area, float("inf")))
    index = b.Cast(real, to=TensorProto.INT64)
    if levels > 1:
        double = {"to": TensorProto.DOUBLE}
        exponent = b.Add(b.Cast(b.attribute("canonical_level"), **double), b.Cast(b.attribute("level_eps"), **double))
        scale = b.Mul(b.Cast(b.attribute("canonical_scale"), **double), b.Pow(b.Cast(2.0, **double), b.Neg(exponent)))
        side = b.Mul(b.Cast(b.Slice(b.attribute("strides"), [1], [levels], [0]), **double), scale)
        above = b.And(real, b.GreaterOrEqual(area, b.as_float(b.Mul(side, side))))
        index = b.Add(index, b.ReduceSum(b.Cast(above, to=TensorProto.INT64), [1], keepdims=1))
    return b.Squeeze(b.Sub(index, 1), [1])


# ------------------------------------------------------------------------------------------------------- DetectionNms
def _detection_nms(background: str, class_agnostic: bool) -> onnx.FunctionProto:
    """Source: torchvision models/detection/roi_heads.py `RoIHeads.postprocess_detections`."""
    b = FunctionBuilder(DETECTION_NMS, 1)
    shape = b.Shape("proposals", start=0, end=2)
    kinds = b.Shape("class_logits", start=1)
    first, last = ([1], [2**31 - 1]) if background == "first" else ([0], [-1])
    probability = b.Softmax(b.as_float("class_logits"), axis=-1)
    probability = b.Slice(b.Reshape(probability, b.Concat(shape, kinds, axis=0), allowzero=1), first, last, [2])
    deltas = b.as_float("box_deltas")
    if class_agnostic:
        deltas = b.Reshape(deltas, b.Concat(shape, [1, 4], axis=0), allowzero=1)
    else:
        deltas = b.Reshape(deltas, b.Concat(shape, kinds, [4], axis=0), allowzero=1)
        deltas = b.Slice(deltas, first, last, [2])
    proposals = b.Unsqueeze("proposals", [2])
    boxes, usable = _decode(b, proposals, deltas, b.Unsqueeze(_content_limit(b), [1, 2]))
    usable = b.And(b.Squeeze(usable, [-1]), _has_area(b, proposals))
    usable = b.And(usable, b.Greater(probability, b.attribute("score_threshold")))
    scores = b.Where(usable, probability, _NO_CANDIDATE)
    if class_agnostic:
        boxes = b.Expand(boxes, b.Concat(b.Shape(scores), [4], axis=0))
    return _finish_detections(b, boxes, scores, label_shift=int(background == "first"))


def _has_area(b: FunctionBuilder, boxes: str) -> str:
    """Bool `(...)` for boxes `(..., 4)`: not padding."""
    width, height = b.sides(boxes)
    return b.Squeeze(b.And(b.Greater(width, 0.0), b.Greater(height, 0.0)), [-1])


def _finish_detections(b: FunctionBuilder, boxes: str, scores: str, label_shift: int) -> onnx.FunctionProto:
    """Suppress within each class of each picture, take the best: boxes `(B, P, C, 4)`, scores `(B, P, C)`."""
    most = b.Unsqueeze(b.attribute("detections_per_image"), [0])
    by_class = b.Shape(b.Transpose(scores, perm=[0, 2, 1]))
    rows = b.Concat(b.Mul(b.Gather(by_class, [0]), b.Gather(by_class, [1])), b.Gather(by_class, [2]), axis=0)
    class_scores = b.Reshape(b.Transpose(scores, perm=[0, 2, 1]), rows, allowzero=1)
    class_boxes = b.Reshape(b.Transpose(boxes, perm=[0, 2, 1, 3]), b.Concat(rows, [4], axis=0), allowzero=1)
    kept = _suppress(b, class_boxes, b.Unsqueeze(class_scores, [1]), class_scores, most)
    kept = b.Reshape(kept, by_class, allowzero=1)
    kept = b.Transpose(kept, perm=[0, 2, 1])  # proposals first, so that ties fall as in torchvision
    candidates = b.Mul(b.Gather(by_class, [1]), b.Gather(by_class, [2]))
    flat = b.Concat(b.Gather(by_class, [0]), candidates, axis=0)
    boxes = b.Reshape(boxes, b.Concat(flat, [4], axis=0), allowzero=1)
    boxes, best, places, there = _best(b, boxes, b.Reshape(kept, flat, allowzero=1), most)
    labels = b.Where(there, b.Add(b.Mod(places, b.Shape(scores, start=2)), label_shift), 0)
    number = b.ReduceSum(b.Cast(there, to=TensorProto.INT32), [1], keepdims=0)
    labels = b.Cast(labels, to=TensorProto.INT32)
    return b.build(num_detections=number, boxes=boxes, scores=best, labels=labels)
