"""detectron2's and mmdetection's Mask R-CNN at inference, stated anew as functions of a state dict with their names.

Nothing here comes from the package: what an importer makes of such a state dict is compared with this. A picture is
already resized; it is normalised, then padded with zeros at the right and bottom to the canvas, as both projects do.

Sources: detectron2 modeling/backbone/{resnet,fpn}.py, modeling/anchor_generator.py, modeling/box_regression.py,
    modeling/proposal_generator/{rpn,proposal_utils}.py, modeling/poolers.py,
    modeling/roi_heads/{roi_heads,box_head,fast_rcnn,mask_head}.py, config/defaults.py (version 0.6);
    mmdetection models/backbones/{resnet,resnext}.py, models/necks/fpn.py, models/dense_heads/rpn_head.py,
    models/task_modules/{prior_generators/anchor_generator,coders/delta_xywh_bbox_coder}.py,
    models/roi_heads/roi_extractors/single_level_roi_extractor.py, models/roi_heads/bbox_heads/bbox_head.py,
    models/roi_heads/mask_heads/fcn_mask_head.py, models/layers/bbox_nms.py (version 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.training.foreign.restated_steps import (
    Picture,
    Settings,
    Weights,
    choose_detections,
    choose_masks,
    choose_proposals,
    detectron2_anchors,
    detectron2_decode,
    detectron2_levels,
    detectron2_names,
    mmdetection_anchors,
    mmdetection_decode,
    mmdetection_levels,
    mmdetection_names,
    pool,
    prepare,
    pyramid,
    rpn_head,
    stage,
    stem,
    with_strides,
)

PYTORCH_STYLE = {
    "mean": (123.675, 116.28, 103.53),
    "std": (58.395, 57.12, 57.375),
    "bgr": False,
    "stride_in_1x1": False,
}
"""mmdetection's settings for backbones from torchvision."""

X101_32X8D = {"std": (57.375, 57.12, 58.395), "stride_in_1x1": False, "groups": 32}
"""Both projects' settings for the ResNeXt-101 that was trained in Caffe2."""


@dataclass(frozen=True)
class Found:
    """Detections of one picture, best first.

    Attributes:
        boxes: `(N, 4)` xyxy in pixels of the canvas.
        scores: `(N,)`.
        classes: `(N,)`, counted from 0, without the background.
        masks: `(N, M, M)`, probabilities in the frame of each box.
        proposals: `(P, 4)`, best first.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor
    proposals: Tensor


@torch.no_grad()
def detectron2_fpn(weights: Weights, picture: Picture, canvas: tuple[int, int], settings: Settings) -> Found:
    """`GeneralizedRCNN` with `build_resnet_fpn_backbone` and `StandardROIHeads`.

    Args:
        weights: The state dict.
        picture: `(h, w, 3)` uint8 RGB.
        canvas: Padded to this (H, W), multiples of 32.
        settings: Of the config.
    """
    x = prepare(picture, canvas, settings)
    x = stem(weights, "backbone.bottom_up.stem.conv1", "backbone.bottom_up.stem.conv1.norm", x)
    bodies = []
    for number, stride in zip((2, 3, 4, 5), (1, 2, 2, 2), strict=True):
        x = stage(weights, f"backbone.bottom_up.res{number}", detectron2_names, x, stride, settings)
        bodies.append(x)
    inner, outer = ([f"backbone.fpn_{kind}{number}" for number in (2, 3, 4, 5)] for kind in ("lateral", "output"))
    levels = pyramid(weights, inner, outer, bodies)
    rpn = "proposal_generator.rpn_head"
    anchors = [
        detectron2_anchors([size], stride, level)
        for size, stride, level in with_strides(levels, (32, 64, 128, 256, 512))
    ]
    candidates = [
        (logits, detectron2_decode(deltas, boxes, (1, 1, 1, 1)))
        for (logits, deltas), boxes in zip(
            rpn_head(weights, levels, f"{rpn}.conv", f"{rpn}.objectness_logits", f"{rpn}.anchor_deltas"),
            anchors,
            strict=True,
        )
    ]
    proposals = choose_proposals(candidates, picture.shape[:2], settings)
    pooled = pool(levels[:4], proposals, detectron2_levels(proposals), 7).flatten(1)
    for name in ("fc1", "fc2"):
        pooled = weights.linear(f"roi_heads.box_head.{name}", pooled).relu()
    head = "roi_heads.box_predictor"
    logits, deltas = weights.linear(f"{head}.cls_score", pooled), weights.linear(f"{head}.bbox_pred", pooled)
    boxes = detectron2_decode(deltas, proposals, (10, 10, 5, 5))
    boxes, scores, classes = choose_detections(logits, boxes, picture.shape[:2], settings)
    x = pool(levels[:4], boxes, detectron2_levels(boxes), 14)
    for number in (1, 2, 3, 4):
        x = weights.conv(f"roi_heads.mask_head.mask_fcn{number}", x, padding=1).relu()
    x = weights.conv("roi_heads.mask_head.predictor", weights.deconv("roi_heads.mask_head.deconv", x).relu())
    return Found(boxes, scores, classes, choose_masks(x, classes), proposals)


@torch.no_grad()
def detectron2_c4(weights: Weights, picture: Picture, canvas: tuple[int, int], settings: Settings) -> Found:
    """`GeneralizedRCNN` with `build_resnet_backbone` up to res4 and `Res5ROIHeads`. Arguments as `detectron2_fpn`."""
    x = prepare(picture, canvas, settings)
    x = stem(weights, "backbone.stem.conv1", "backbone.stem.conv1.norm", x)
    for number, stride in zip((2, 3, 4), (1, 2, 2), strict=True):
        x = stage(weights, f"backbone.res{number}", detectron2_names, x, stride, settings)
    rpn = "proposal_generator.rpn_head"
    ((logits, deltas),) = rpn_head(weights, [x], f"{rpn}.conv", f"{rpn}.objectness_logits", f"{rpn}.anchor_deltas")
    anchors = detectron2_anchors((32, 64, 128, 256, 512), 16, x)
    candidates = [(logits, detectron2_decode(deltas, anchors, (1, 1, 1, 1)))]
    proposals = choose_proposals(candidates, picture.shape[:2], settings)

    def res5(boxes: Tensor) -> Tensor:
        pooled = pool([x], boxes, torch.zeros(len(boxes)), 14, first_stride=16)
        return stage(weights, "roi_heads.res5", detectron2_names, pooled, 2, settings)

    pooled = res5(proposals).mean(dim=(2, 3))
    head = "roi_heads.box_predictor"
    logits, deltas = weights.linear(f"{head}.cls_score", pooled), weights.linear(f"{head}.bbox_pred", pooled)
    boxes = detectron2_decode(deltas, proposals, (10, 10, 5, 5))
    boxes, scores, classes = choose_detections(logits, boxes, picture.shape[:2], settings)
    x5 = weights.deconv("roi_heads.mask_head.deconv", res5(boxes)).relu()
    masks = choose_masks(weights.conv("roi_heads.mask_head.predictor", x5), classes)
    return Found(boxes, scores, classes, masks, proposals)


@torch.no_grad()
def mmdetection(weights: Weights, picture: Picture, canvas: tuple[int, int], settings: Settings) -> Found:
    """`MaskRCNN` with `ResNet` or `ResNeXt`, `FPN`, `RPNHead` and `StandardRoIHead`. Arguments as `detectron2_fpn`."""
    x = stem(weights, "backbone.conv1", "backbone.bn1", prepare(picture, canvas, settings))
    bodies = []
    for number, stride in zip((1, 2, 3, 4), (1, 2, 2, 2), strict=True):
        x = stage(weights, f"backbone.layer{number}", mmdetection_names, x, stride, settings)
        bodies.append(x)
    inner, outer = ([f"neck.{kind}_convs.{index}.conv" for index in range(4)] for kind in ("lateral", "fpn"))
    levels = pyramid(weights, inner, outer, bodies)
    heads = rpn_head(weights, levels, "rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg")
    candidates = []
    for (logits, deltas), (_, stride, level) in zip(heads, with_strides(levels, [None] * 5), strict=True):
        anchors = mmdetection_anchors([8.0], stride, level)
        candidates.append((logits.sigmoid(), mmdetection_decode(deltas, anchors, (1, 1, 1, 1))))
    proposals = choose_proposals(candidates, picture.shape[:2], settings)
    pooled = pool(levels[:4], proposals, mmdetection_levels(proposals), 7).flatten(1)
    for index in (0, 1):
        pooled = weights.linear(f"roi_head.bbox_head.shared_fcs.{index}", pooled).relu()
    head = "roi_head.bbox_head"
    logits, deltas = weights.linear(f"{head}.fc_cls", pooled), weights.linear(f"{head}.fc_reg", pooled)
    boxes = mmdetection_decode(deltas, proposals, (0.1, 0.1, 0.2, 0.2))
    boxes, scores, classes = choose_detections(logits, boxes, picture.shape[:2], settings)
    x = pool(levels[:4], boxes, mmdetection_levels(boxes), 14)
    for index in range(4):
        x = weights.conv(f"roi_head.mask_head.convs.{index}.conv", x, padding=1).relu()
    x = weights.deconv("roi_head.mask_head.upsample", x).relu()
    masks = choose_masks(weights.conv("roi_head.mask_head.conv_logits", x), classes)
    return Found(boxes, scores, classes, masks, proposals)
