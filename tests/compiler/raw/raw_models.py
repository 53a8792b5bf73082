"""torchvision's detectors as its legacy exporter writes them: what people have on their disks.

Runs with torch 2.0 and newer and imports nothing of edge_mrcnn, so that an older torch in another environment makes the
fixtures with the same code (`make_fixtures.py`).
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

CHANNELS = 64
"""Of the small models' pyramid: a quarter of torchvision's."""

FULL = {
    "maskrcnn_resnet50_fpn": maskrcnn_resnet50_fpn,
    "maskrcnn_resnet50_fpn_v2": maskrcnn_resnet50_fpn_v2,
    "keypointrcnn_resnet50_fpn": keypointrcnn_resnet50_fpn,
}


@dataclass(frozen=True)
class Case:
    """A model and how it is exported.

    Attributes:
        name: Of the file.
        kind: `mask`, `mask_v2`, `keypoint` or `box` for a small one on a ResNet of 10 layers, or the name of a model of
            torchvision.
        opset: Of the export.
        hw: Size of the picture it is exported with, `(H, W)` in pixels.
        dynamic: Whether the picture's sides are free.
        min_max: torchvision's min_size and max_size; None for the picture's own, so that it is resized by 1.
        classes: With the background.
        anchors: Sizes of each level, or one size a level as torchvision has them when None; and aspect ratios.
        frozen: Frozen batch norms, as in a model with torchvision's COCO weights; else plain ones.
        paste: Whether masks and boxes are brought to the picture's size.
        batched: Whether the input is `(1, 3, H, W)` rather than `(3, H, W)`.
        pictures: How many pictures the model takes at once.
        limits: Further arguments of the model: thresholds and top-n.
    """

    name: str
    kind: str = "mask"
    opset: int = 17
    hw: tuple[int, int] = (128, 160)
    dynamic: bool = False
    min_max: tuple[int, int] | None = None
    classes: int = 5
    anchors: tuple[tuple[tuple[int, ...], ...], tuple[float, ...]] | None = None
    frozen: bool = False
    paste: bool = True
    batched: bool = False
    pictures: int = 1
    limits: tuple[tuple[str, Any], ...] = ()


def build(case: Case) -> nn.Module:
    """The model of a case with torchvision's random initial weights, in evaluation mode."""
    low, high = case.min_max or (min(case.hw), max(case.hw))
    options: dict[str, Any] = {
        "min_size": low,
        "max_size": high,
        "rpn_pre_nms_top_n_test": 400,
        "rpn_post_nms_top_n_test": 300,
        "box_score_thresh": 0.04,
        **dict(case.limits),
    }
    if case.kind in FULL:
        make = FULL[case.kind]
        return make(weights=None, weights_backbone=None, num_classes=case.classes, **options).eval()
    norm = FrozenBatchNorm2d if case.frozen else nn.BatchNorm2d
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm)
    layers = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256, 512], CHANNELS)
    model = _heads(case, backbone, options)
    if case.frozen:
        _shake_norms(model)
    return model.eval()


def _heads(case: Case, backbone: nn.Module, options: dict[str, Any]) -> nn.Module:
    depth = 2 if case.kind == "mask_v2" else 1
    sizes, ratios = case.anchors or (((16,), (32,), (64,), (128,), (256,)), (0.5, 1.0, 2.0))
    anchors = AnchorGenerator(sizes, (ratios,) * len(sizes))
    options = {
        **options,
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(CHANNELS, anchors.num_anchors_per_location()[0], conv_depth=depth),
        "box_predictor": FastRCNNPredictor(128, case.classes),
        "box_head": TwoMLPHead(CHANNELS * 7 * 7, 128),
    }
    if case.kind == "box":
        return FasterRCNN(backbone, **options)
    if case.kind == "keypoint":
        options["keypoint_head"] = KeypointRCNNHeads(CHANNELS, (CHANNELS,) * 3)
        options["keypoint_predictor"] = KeypointRCNNPredictor(CHANNELS, 6)
        return KeypointRCNN(backbone, **options)
    norm: dict[str, Any] = {}
    if case.kind == "mask_v2":
        norm = {"norm_layer": nn.BatchNorm2d}
        options["box_head"] = FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 2, [128], **norm)
    options["mask_head"] = MaskRCNNHeads(CHANNELS, [CHANNELS] * 2, 1, **norm)
    options["mask_predictor"] = MaskRCNNPredictor(CHANNELS, CHANNELS, case.classes)
    return MaskRCNN(backbone, **options)


def _shake_norms(model: nn.Module) -> None:
    """Frozen batch norms that do something, as trained ones do."""
    generator = torch.Generator().manual_seed(5)
    for norm in (module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)):
        for buffer, low, high in ((norm.weight, 0.6, 1.4), (norm.bias, -0.2, 0.2), (norm.running_var, 0.6, 1.6)):
            buffer.uniform_(low, high, generator=generator)
        norm.running_mean.uniform_(-0.2, 0.2, generator=generator)


class _WithoutPasting(nn.Module):
    """torchvision's forward up to boxes and patches in pixels of the resized picture."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        images, _ = self.model.transform([image])
        features = self.model.backbone(images.tensors)
        proposals, _ = self.model.rpn(images, features)
        found: list[dict[str, Tensor]] = self.model.roi_heads(features, proposals, images.image_sizes)[0]
        return found[0]


def export(case: Case, path: Path, model: nn.Module | None = None) -> None:
    """Write a case's file as most people do: the module itself, with the legacy exporter."""
    model = model or build(case)
    picture = torch.rand(3, *case.hw, generator=torch.Generator().manual_seed(0))
    arguments: Any = ([picture] * case.pictures,)
    if case.batched:
        arguments = (picture[None],)
    elif not case.paste:
        model, arguments = _WithoutPasting(model).eval(), (picture,)
    first = 2 if case.batched else 1
    inputs = ["image"] if case.pictures == 1 else [f"image{index}" for index in range(case.pictures)]
    options: dict[str, Any] = {"input_names": inputs, "opset_version": case.opset}
    if case.pictures == 1:
        last = {"box": [], "keypoint": ["keypoints", "keypoint_scores"]}.get(case.kind.partition("rcnn")[0], ["masks"])
        options["output_names"] = ["boxes", "labels", "scores", *last]
    if case.dynamic:
        options["dynamic_axes"] = {name: {first: "height", first + 1: "width"} for name in inputs}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, str(path), **options)
