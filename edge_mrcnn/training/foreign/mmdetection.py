"""mmdetection's Mask R-CNN with a feature pyramid, of versions 2 and 3.

What differs from torchvision's: boxes are pooled with RoIAlign's half pixel and as many samples as cells, anchors are
not rounded, a level's stride is a power of two whatever the canvas, the background is the last class, pictures go from
0 to 255, and with backbones of Caffe they are blue, green, red and strides are in 1x1 convolutions. Its limit on how
much a box may shrink at once, to a sixty-second, is not kept: only growth is limited, as everywhere here.

Source: mmdetection models/task_modules/{prior_generators/anchor_generator,coders/delta_xywh_bbox_coder}.py,
models/dense_heads/rpn_head.py, models/roi_heads/roi_extractors/single_level_roi_extractor.py,
models/roi_heads/bbox_heads/bbox_head.py, models/layers/bbox_nms.py.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from edge_mrcnn.class_names import BACKGROUND
from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from edge_mrcnn.training.conventions import AlignedRoIAlign, GivenAnchors
from edge_mrcnn.training.foreign import mmdetection_names as names
from edge_mrcnn.training.foreign import parts
from edge_mrcnn.training.foreign.layout import Change, Imported, fill_model
from edge_mrcnn.training.foreign.mmdetection_config import read_class_names, read_config
from edge_mrcnn.training.foreign.mmdetection_recipe import Pixels, Recipe, check_config, choose_pixels, read_recipe
from edge_mrcnn.training.foreign.weights import ForeignFile

log = logging.getLogger(__name__)

PROJECT = "mmdetection"

LEVEL_EPS = 1e-6
"""Source: mmdetection single_level_roi_extractor.py, `map_roi_levels`."""

SMALLEST = 1e-30
"""Proposals are kept if their sides are more than nothing. The smallest difference of two float32 pixels is more."""


def recognises(file: ForeignFile) -> bool:
    """Whether the names of the weights are mmdetection's, whatever the architecture."""
    return any(name.startswith(names.PREFIXES) for name in file.tensors)


def build(file: ForeignFile, options: ImportOptions) -> Imported:
    """Make a model of a checkpoint of mmdetection.

    Raises:
        ExportError: The architecture is not supported, or weights are missing, unknown or of another shape.
    """
    names.refuse_others(file)
    config = read_config(file.extra)
    check_config(config, file.source)
    recipe = read_recipe(config)
    blocks = tuple(_count_blocks(file, stage) for stage in (1, 2, 3, 4))
    middle = _take(file, "backbone.layer1.0.conv2.weight").shape
    groups = middle[0] // middle[1]
    width = middle[0] // groups
    pixels = choose_pixels(file, config, groups, width, options)
    trunk = parts.make_trunk(blocks, groups, width, caffe_strides=pixels.caffe_strides)
    classes = len(_take(file, names.CLASSES)) - 1
    channels = len(_take(file, "neck.fpn_convs.0.conv.weight"))
    model = MaskRCNN(
        parts.make_pyramid(trunk, channels),
        **_limits(recipe),
        **_heads(file, recipe, channels, classes + 1),
        rpn_anchor_generator=GivenAnchors(_make_anchors(file, recipe), recipe.strides),
    )
    model.rpn.min_size = SMALLEST
    model.rpn.box_coder = BoxCoder(_weights(recipe.rpn_stds))
    order = -1 if pixels.bgr else 1
    model.transform.image_mean = [value / 255 for value in pixels.mean[::order]]
    model.transform.image_std = [value / 255 for value in pixels.std[::order]]
    fill_model(model, file, names.RULES, _changes(file, classes, pixels), names.UNUSED)
    name = f"maskrcnn_{parts.name_trunk(blocks, groups, width)}_fpn"
    return Imported(model, name, _class_names(file, classes), recipe.canvas)


def make_anchors(base: float, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors around the origin, `(ratios * scales, 4)` xyxy: of a ratio after the other, its scales in order.

    Args:
        base: Side of an anchor of scale 1: the stride of the level.
        scales: Of the sides.
        ratios: Height by width.

    Source: mmdetection anchor_generator.py, `gen_single_level_base_anchors`.
    """
    heights = torch.tensor(ratios).sqrt()[:, None] * torch.tensor(scales) * base
    widths = 1 / torch.tensor(ratios).sqrt()[:, None] * torch.tensor(scales) * base
    half = torch.stack([widths.flatten(), heights.flatten()], 1) / 2
    return torch.cat([-half, half], 1)


def _make_anchors(file: ForeignFile, recipe: Recipe) -> list[Tensor]:
    levels = [make_anchors(stride, recipe.scales, recipe.ratios) for stride in recipe.strides]
    count = len(_take(file, "rpn_head.rpn_cls.weight"))
    if count != len(levels[0]):
        raise ExportError(
            f"{file.source} has {count} anchors in a cell, and its config, or mmdetection's model zoo where there is "
            f"none in it, {len(levels[0])}: only anchors that are known can be imported"
        )
    return levels


def _limits(recipe: Recipe) -> dict[str, object]:
    """Thresholds and numbers, by their names in torchvision's constructor."""
    return {
        "min_size": recipe.canvas[0],
        "max_size": recipe.canvas[1],
        "rpn_pre_nms_top_n_test": recipe.candidates,
        "rpn_post_nms_top_n_test": recipe.proposals,
        "rpn_nms_thresh": recipe.proposal_iou,
        "box_score_thresh": recipe.score,
        "box_nms_thresh": recipe.detection_iou,
        "box_detections_per_img": recipe.detections,
        "bbox_reg_weights": _weights(recipe.box_stds),
    }


def _heads(file: ForeignFile, recipe: Recipe, channels: int, num_classes: int) -> dict[str, object]:
    """Pools and heads, by their names in torchvision's constructor."""
    hidden, flat = _take(file, "roi_head.bbox_head.shared_fcs.0.weight").shape
    layers: list[int] = []
    while (name := f"roi_head.mask_head.convs.{len(layers)}.conv.weight") in file.tensors:
        layers.append(len(file.tensors[name]))
    inner, reduced = _take(file, names.DECONVOLUTION).shape[:2]
    return {
        "box_roi_pool": _make_pool(recipe, 0, math.isqrt(flat // channels)),
        "box_head": TwoMLPHead(flat, hidden),
        "box_predictor": FastRCNNPredictor(hidden, num_classes),
        "mask_roi_pool": _make_pool(recipe, 1, 14),
        "mask_head": MaskRCNNHeads(channels, layers, 1),
        "mask_predictor": MaskRCNNPredictor(inner, reduced, num_classes),
    }


def _make_pool(recipe: Recipe, index: int, size: int) -> AlignedRoIAlign:
    """The pool of the box head (0) or the mask head (1)."""
    return AlignedRoIAlign(
        parts.FPN_LEVELS,
        size,
        recipe.sampling[index],
        parts.FPN_STRIDES,
        canonical_scale=recipe.finest_scale[index] * 4,  # two levels above the finest, of stride 16
        canonical_level=4,
        level_eps=LEVEL_EPS,
    )


def _weights(stds: Sequence[float]) -> tuple[float, float, float, float]:
    """What deltas are divided by, of what they are multiplied by."""
    x, y, width, height = (1 / std for std in stds)
    return x, y, width, height


def _count_blocks(file: ForeignFile, stage: int) -> int:
    return sum(bool(re.fullmatch(rf"backbone\.layer{stage}\.\d+\.conv3\.weight", name)) for name in file.tensors)


def _take(file: ForeignFile, name: str) -> Tensor:
    """A weight by its name in the file.

    Raises:
        ExportError: There is none.
    """
    if name not in file.tensors:
        raise ExportError(f"{file.source}: {name} is missing, which every Mask R-CNN of {PROJECT} has")
    return file.tensors[name]


def _changes(file: ForeignFile, classes: int, pixels: Pixels) -> dict[str, Change]:
    boxes, masks = len(_take(file, names.BOXES)), len(_take(file, names.MASKS))
    changes: dict[str, Change] = {"backbone.body.conv1.weight": parts.flip_channels} if pixels.bgr else {}
    for kind in ("weight", "bias"):
        changes[f"roi_heads.box_predictor.cls_score.{kind}"] = parts.background_first
        changes[f"roi_heads.box_predictor.bbox_pred.{kind}"] = parts.add_background(
            4, classes + 1, boxes == 4 != 4 * classes
        )
        changes[f"roi_heads.mask_predictor.mask_fcn_logits.{kind}"] = parts.add_background(
            1, classes + 1, masks == 1 != classes
        )
    return changes


def _class_names(file: ForeignFile, classes: int) -> tuple[str, ...] | None:
    """The file's names, or COCO's for as many classes as COCO has, as mmdetection does."""
    found = read_class_names(file.extra)
    if found is not None and len(found) == classes:
        return (BACKGROUND, *found)
    if found is not None:
        log.warning("%s names %d classes, but has %d: the names are not used", file.source, len(found), classes)
    return parts.coco_names(classes)
