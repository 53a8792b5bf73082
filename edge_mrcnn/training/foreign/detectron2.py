"""detectron2's Mask R-CNN and Keypoint R-CNN, with a feature pyramid or on one map (C4), of its model zoo's make.

What differs from torchvision's: boxes are pooled with RoIAlign's half pixel and as many samples as cells, anchors are
not rounded and stand in another order, a level's stride is a power of two whatever the canvas, the background is the
last class, pictures are blue, green, red from 0 to 255, and the first ResNets have their strides in 1x1 convolutions.

Source: detectron2's config/defaults.py, configs/Base-RCNN-FPN.yaml and Base-RCNN-C4.yaml,
modeling/{anchor_generator,poolers,box_regression}.py, modeling/backbone/{resnet,fpn}.py,
modeling/proposal_generator/{rpn,proposal_utils}.py,
modeling/roi_heads/{roi_heads,box_head,fast_rcnn,mask_head,keypoint_head}.py and modeling/meta_arch/rcnn.py.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import ResNet

from edge_mrcnn.class_names import BACKGROUND
from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from edge_mrcnn.training.c4 import POOLED, maskrcnn_c4
from edge_mrcnn.training.conventions import GivenAnchors
from edge_mrcnn.training.foreign import detectron2_names as names
from edge_mrcnn.training.foreign import parts
from edge_mrcnn.training.foreign.layout import Change, Imported, fill_model
from edge_mrcnn.training.foreign.weights import ForeignFile
from edge_mrcnn.training.keypoint_labels import KeypointNames
from edge_mrcnn.training.keypoints import COCO_PERSON

log = logging.getLogger(__name__)

PROJECT = "detectron2"

CANVAS = (800, 1344)
"""The zoo's pictures have a shorter side of 800 and a longer one of at most 1333."""

MEAN = (103.53, 116.28, 123.675)
"""Of blue, green, red from 0 to 255: `MODEL.PIXEL_MEAN`."""

STD = {False: (1.0, 1.0, 1.0), True: (57.375, 57.12, 58.395)}
"""`MODEL.PIXEL_STD`: ones for the ResNets, whose first convolution has it in it, but not for ResNeXts (True)."""

SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)
RPN_STRIDES = (4, 8, 16, 32, 64)
C4_STRIDES = (16,)

TOP_N = {"fpn": (1000, 1000), "c4": (6000, 1000)}
"""Candidates of a level before NMS, and proposals of a picture after it, when tested."""

SMALLEST = 1e-30
"""Proposals are kept if their sides are more than nothing. The smallest difference of two float32 pixels is more."""


@dataclass(frozen=True)
class Shape:
    """What the names and shapes of a checkpoint say of its architecture.

    Attributes:
        kind: `fpn` or `c4`.
        blocks: Bottlenecks in each stage.
        groups: Of the 3x3 convolutions.
        width: Channels of a group in the first stage.
        classes: Without the background.
    """

    kind: str
    blocks: tuple[int, ...]
    groups: int
    width: int
    classes: int


@dataclass(frozen=True)
class Pixels:
    """What the config says of pictures and strides, and the checkpoint does not.

    Attributes:
        mean: Of red, green, blue, on a scale of 0 to 1.
        std: Likewise.
        bgr: The first convolution takes blue first.
        caffe_strides: Strides are in 1x1 convolutions.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    caffe_strides: bool


def recognises(file: ForeignFile) -> bool:
    """Whether the names of the weights are detectron2's, whatever the architecture."""
    return any(names.is_detectron2(name) for name in file.tensors)


def build(file: ForeignFile, options: ImportOptions) -> Imported:
    """Make a model of a checkpoint of detectron2.

    Raises:
        ExportError: The architecture is not supported, or weights are missing, unknown or of another shape.
    """
    names.refuse_others(file)
    shape = read_shape(file)
    pixels = choose_pixels(file, shape, options)
    trunk = parts.make_trunk(shape.blocks, shape.groups, shape.width, caffe_strides=pixels.caffe_strides)
    model = _make_fpn(file, shape, trunk) if shape.kind == "fpn" else _make_c4(file, shape, trunk)
    model.rpn.min_size = SMALLEST
    model.transform.image_mean, model.transform.image_std = list(pixels.mean), list(pixels.std)
    fill_model(model, file, names.RULES[shape.kind], _changes(file, shape, pixels), names.UNUSED)
    head = "maskrcnn" if model.roi_heads.has_mask() else "keypointrcnn"
    name = f"{head}_{parts.name_trunk(shape.blocks, shape.groups, shape.width)}_{shape.kind}"
    classes, keypoints = _describe(model, shape.classes)
    return Imported(model, name, classes, CANVAS, keypoints)


# -------------------------------------------------------------------------------------------- what the checkpoint says
def read_shape(file: ForeignFile) -> Shape:
    """Read the architecture out of names and shapes.

    Raises:
        ExportError: Weights that every supported architecture has are missing.
    """
    kind = "fpn" if "backbone.fpn_output2.weight" in file.tensors else "c4"
    prefix = "backbone.bottom_up." if kind == "fpn" else "backbone."
    blocks = tuple(
        _count_blocks(file, (prefix if stage < 5 or kind == "fpn" else "roi_heads.") + f"res{stage}")
        for stage in range(2, 6)
    )
    if 0 in blocks:
        raise ExportError(
            f"{file.source}: res{2 + blocks.index(0)} is missing: the backbone is no ResNet of four stages"
        )
    middle = take(file, f"{prefix}res2.0.conv2.weight").shape
    groups = middle[0] // middle[1]
    return Shape(kind, blocks, groups, middle[0] // groups, len(take(file, names.CLASSES)) - 1)


def _count_blocks(file: ForeignFile, stage: str) -> int:
    found = {re.match(rf"{re.escape(stage)}\.(\d+)\.conv3\.weight", name) for name in file.tensors}
    return len({each.group(1) for each in found if each})


def take(file: ForeignFile, name: str) -> Tensor:
    """A weight by its name in the file.

    Raises:
        ExportError: There is none.
    """
    if name not in file.tensors:
        raise ExportError(f"{file.source}: {name} is missing, which every {PROJECT} model of a supported kind has")
    return file.tensors[name]


def choose_pixels(file: ForeignFile, shape: Shape, options: ImportOptions) -> Pixels:
    """Mean, deviation, order of channels and place of strides: asked for, else in the file, else the model zoo's."""
    grouped = shape.groups > 1
    bgr = options.channels != "rgb"
    mean = options.mean or _buffer(file, "pixel_mean") or (MEAN if bgr else MEAN[::-1])
    std = options.std or _buffer(file, "pixel_std") or (STD[grouped] if bgr else STD[grouped][::-1])
    caffe = options.strides == "caffe" if options.strides else not grouped
    log.info(
        "%s: channels %s, mean %s, std %s, strides in %s convolutions; what the checkpoint does not say is as in "
        "detectron2's model zoo, and --channels, --mean, --std, --strides change it",
        *(file.source, "BGR" if bgr else "RGB", _text(mean), _text(std), "1x1" if caffe else "3x3"),
    )
    order = -1 if bgr else 1
    red_first = [tuple(value / 255 for value in values[::order]) for values in (mean, std)]
    return Pixels(red_first[0], red_first[1], bgr, caffe)


def _buffer(file: ForeignFile, name: str) -> tuple[float, ...] | None:
    """Three numbers that old checkpoints keep."""
    tensor = file.tensors.get(name)
    return tuple(tensor.flatten().tolist()) if tensor is not None and tensor.numel() == 3 else None


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def read_anchors(file: ForeignFile, kind: str) -> list[Tensor]:
    """Anchors of each level, `(A, 4)`: the file's, which old checkpoints keep, else the model zoo's.

    Raises:
        ExportError: The RPN has another number of anchors, and the file does not say which.
    """
    found = [name for name in file.tensors if re.fullmatch(names.ANCHORS, name)]
    levels = [make_anchors([size]) for size in SIZES] if kind == "fpn" else [make_anchors(SIZES)]
    shapes = [(len(take(file, "proposal_generator.rpn_head.objectness_logits.weight")), 4)] * len(levels)
    if found:
        levels = [file.tensors[name] for name in sorted(found, key=lambda name: int(name.rpartition(".")[2]))]
    if [tuple(level.shape) for level in levels] != shapes:
        whose = "it keeps" if found else "the model zoo's models have, and it does not say which they are,"
        raise ExportError(
            f"{file.source} has {shapes[0][0]} anchors in each cell of {len(shapes)} levels by its RPN, but the "
            f"anchors that {whose} are {len(levels[0])} on {len(levels)} levels: such a model cannot be imported"
        )
    log.info(
        "%s: anchors are %s; thresholds, limits and RoI pools are as in detectron2's model zoo",
        *(file.source, "its own" if found else "the model zoo's"),
    )
    return levels


def make_anchors(sizes: Sequence[float]) -> Tensor:
    """Anchors around the origin, `(len(sizes) * 3, 4)` xyxy: of a size after the other, its ratios in order.

    Source: detectron2 modeling/anchor_generator.py, `generate_cell_anchors`.
    """
    rows = []
    for size in sizes:
        for ratio in RATIOS:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            rows.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(rows)


# -------------------------------------------------------------------------------------------------------------- models
def _make_fpn(file: ForeignFile, shape: Shape, trunk: ResNet) -> GeneralizedRCNN:
    channels = len(take(file, "backbone.fpn_output2.weight"))
    hidden, flat = take(file, "roi_heads.box_head.fc1.weight").shape
    options = {
        **_common_options(file, shape),
        "box_roi_pool": parts.make_pool(math.isqrt(flat // channels), level_eps=0.0),
        "box_head": TwoMLPHead(flat, hidden),
        "box_predictor": FastRCNNPredictor(hidden, shape.classes + 1),
    }
    backbone = parts.make_pyramid(trunk, channels)
    masks, keypoints = _mask_parts(file, shape), _keypoint_parts(file)
    if not masks:
        return KeypointRCNN(backbone, **options, **keypoints)
    model = MaskRCNN(backbone, **options, **masks)
    for key, part in keypoints.items():  # both, which torchvision has no constructor for
        setattr(model.roi_heads, key, part)
    return model


def _make_c4(file: ForeignFile, shape: Shape, trunk: ResNet) -> GeneralizedRCNN:
    pool = parts.make_pool(POOLED, C4_STRIDES, level_eps=0.0)
    reduced = take(file, "roi_heads.mask_head.deconv.weight").shape[1]
    predictor = MaskRCNNPredictor(2048, reduced, shape.classes + 1)
    options = {**_common_options(file, shape), "box_roi_pool": pool, "mask_roi_pool": pool}
    return maskrcnn_c4(trunk, shape.classes + 1, **options, mask_predictor=predictor)


def _common_options(file: ForeignFile, shape: Shape) -> dict[str, Any]:
    before, after = TOP_N[shape.kind]
    strides = RPN_STRIDES if shape.kind == "fpn" else C4_STRIDES
    return {
        "min_size": CANVAS[0],
        "max_size": 1333,
        "rpn_anchor_generator": GivenAnchors(read_anchors(file, shape.kind), strides),
        "rpn_pre_nms_top_n_test": before,
        "rpn_post_nms_top_n_test": after,
    }


def _mask_parts(file: ForeignFile, shape: Shape) -> dict[str, Any]:
    """What a mask head with a pyramid needs, or nothing where there is none."""
    if names.MASKS not in file.tensors:
        return {}
    layers = [
        take(file, f"roi_heads.mask_head.mask_fcn{index}.weight") for index in range(1, 1 + _convs(file, "mask_fcn"))
    ]
    inner, reduced = take(file, "roi_heads.mask_head.deconv.weight").shape[:2]
    return {
        "mask_roi_pool": parts.make_pool(14, level_eps=0.0),
        "mask_head": MaskRCNNHeads(layers[0].shape[1] if layers else inner, [len(layer) for layer in layers], 1),
        "mask_predictor": MaskRCNNPredictor(inner, reduced, shape.classes + 1),
    }


def _keypoint_parts(file: ForeignFile) -> dict[str, Any]:
    """What a keypoint head needs, or nothing where there is none."""
    if names.KEYPOINTS not in file.tensors:
        return {}
    layers = [
        take(file, f"roi_heads.keypoint_head.conv_fcn{index}.weight")
        for index in range(1, 1 + _convs(file, "conv_fcn"))
    ]
    inner, count = take(file, names.KEYPOINTS).shape[:2]
    return {
        "keypoint_roi_pool": parts.make_pool(14, level_eps=0.0),
        "keypoint_head": KeypointRCNNHeads(layers[0].shape[1], [len(layer) for layer in layers]),
        "keypoint_predictor": KeypointRCNNPredictor(inner, count),
    }


def _convs(file: ForeignFile, name: str) -> int:
    """Number of a head's convolutions."""
    return sum(bool(re.fullmatch(rf"roi_heads\.\w+\.{name}\d+\.weight", each)) for each in file.tensors)


def _changes(file: ForeignFile, shape: Shape, pixels: Pixels) -> dict[str, Change]:
    classes = shape.classes + 1
    boxes = parts.add_background(4, classes, len(take(file, names.BOXES)) == 4 != 4 * shape.classes)
    changes: dict[str, Change] = {"backbone.body.conv1.weight": parts.flip_channels} if pixels.bgr else {}
    for kind in ("weight", "bias"):
        changes[f"roi_heads.box_predictor.cls_score.{kind}"] = parts.background_first
        changes[f"roi_heads.box_predictor.bbox_pred.{kind}"] = boxes
        if names.MASKS in file.tensors:
            masks = parts.add_background(1, classes, len(file.tensors[names.MASKS]) == 1 != shape.classes)
            changes[f"roi_heads.mask_predictor.mask_fcn_logits.{kind}"] = masks
    return changes


def _describe(model: GeneralizedRCNN, classes: int) -> tuple[tuple[str, ...] | None, KeypointNames | None]:
    """Names of the classes and of the keypoints, where their numbers are COCO's."""
    if not model.roi_heads.has_keypoint():
        return parts.coco_names(classes), None
    count = int(model.roi_heads.keypoint_predictor.kps_score_lowres.out_channels)
    if count != len(COCO_PERSON.names):
        return parts.coco_names(classes), None
    return (BACKGROUND, "person") if classes == 1 else parts.coco_names(classes), COCO_PERSON
