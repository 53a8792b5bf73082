"""Mask R-CNN on the map of a ResNet's fourth stage (C4), whose whole fifth stage is the head of every region.

A region is pooled to 14x14 from the one map of stride 16, the first block of the fifth stage (res5, `layer4` in
torchvision) brings it to 7x7. The mean over the 7x7 goes to the class and box predictors; a deconvolution to 14x14 and
a 1x1 convolution make the masks of the same 7x7. Nothing of it needs classes of its own in training, eager runs or
export: it is a torchvision `MaskRCNN` made of other parts.

Source: He, Gkioxari, Dollar and Girshick, Mask R-CNN (2017), section 3 "Network Architecture" and figure 4, left;
section 3.1 for the numbers of regions; Ren et al., Faster R-CNN (2015), for the anchors. Where these are silent
(candidates before NMS, mean and not product for pooling) detectron2's `Res5ROIHeads` and `Base-RCNN-C4.yaml`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

ANCHOR_SIZES = ((32, 64, 128, 256, 512),)
"""Sides of the square anchors in pixels of the canvas, all on the one map."""

ANCHOR_RATIOS = ((0.5, 1.0, 2.0),)
"""Height divided by width."""

POOLED = 14
"""Side of a pooled region; the fifth stage halves it and the deconvolution doubles it again, to the mask's side."""

MASK_CHANNELS = 256
"""Channels between the deconvolution and the masks."""


class C4Backbone(nn.Module):
    """A ResNet up to its fourth stage.

    Attributes:
        body: The stages, by torchvision's names.
        out_channels: Of the map.
    """

    def __init__(self, trunk: nn.Module) -> None:
        """Take the stages up to `layer3` out of `trunk`; they are shared, not copied."""
        super().__init__()
        self.body = IntermediateLayerGetter(trunk, {"layer3": "0"})
        self.out_channels = _channels(trunk.get_submodule("layer3"))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map `(B, 3, H, W)` to `{"0": (B, C, H / 16, W / 16)}`."""
        features: dict[str, Tensor] = self.body(x)
        return features


class Res5BoxHead(nn.Module):
    """The fifth stage and the mean over what it gives."""

    def __init__(self, layer4: nn.Module) -> None:
        """Take the stage."""
        super().__init__()
        self.layer4 = layer4

    def forward(self, pooled: Tensor) -> Tensor:
        """Map `(R, C, 14, 14)` to `(R, 2 C)`."""
        found: Tensor = self.layer4(pooled)
        return found.mean(dim=(2, 3))


class Res5MaskHead(nn.Module):
    """The fifth stage of a box head, for masks: the same weights, which belong to the box head.

    It refers to the box head without registering it. So the weights stand once in state dicts, checkpoints and the
    optimizer, as in detectron2's; copies, devices and types follow the box head's, and a copy of a whole model has the
    copy's. Registered twice they would be saved twice, and a state dict could hold two versions of them.
    """

    def __init__(self, box_head: Res5BoxHead) -> None:
        """Refer to the head that owns the stage."""
        super().__init__()
        self._owner = (box_head,)  # in a tuple torch does not look for modules

    def forward(self, pooled: Tensor) -> Tensor:
        """Map `(R, C, 14, 14)` to `(R, 2 C, 7, 7)`."""
        found: Tensor = self._owner[0].layer4(pooled)
        return found


def maskrcnn_c4(trunk: nn.Module, num_classes: int, **kwargs: Any) -> MaskRCNN:
    """Make a Mask R-CNN of a ResNet: `layer1` to `layer3` before the regions, `layer4` on each of them.

    Args:
        trunk: Untrained or not; its children up to `layer3` are called one after the other, `layer4` halves the sides,
            and what follows is left out. Its norms stay as they are.
        num_classes: Number of classes, the background included.
        kwargs: Passed to torchvision's `MaskRCNN`, over the defaults below, such as other anchors or RoI pools of
            14x14; the parts that share the fifth stage are made here.

    Returns:
        A plain torchvision `MaskRCNN`, whose masks are 14x14. The fifth stage is `roi_heads.box_head.layer4`.
    """
    layer4 = trunk.get_submodule("layer4")
    backbone, box_head = C4Backbone(trunk), Res5BoxHead(layer4)
    channels = _channels(layer4)
    options: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(ANCHOR_SIZES, ANCHOR_RATIOS),
        "rpn_pre_nms_top_n_train": 12000,
        "rpn_post_nms_top_n_train": 2000,
        "rpn_pre_nms_top_n_test": 6000,
        "rpn_post_nms_top_n_test": 300,
        "box_roi_pool": MultiScaleRoIAlign(["0"], output_size=POOLED, sampling_ratio=2),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(channels, num_classes),
        "box_batch_size_per_image": 64,
        "mask_roi_pool": MultiScaleRoIAlign(["0"], output_size=POOLED, sampling_ratio=2),
        "mask_head": Res5MaskHead(box_head),
        "mask_predictor": MaskRCNNPredictor(channels, MASK_CHANNELS, num_classes),
    }
    return MaskRCNN(backbone, **{**options, **kwargs})


def fold_shared_norms(model: MaskRCNN) -> MaskRCNN:
    """The model, or for a C4 a copy whose fifth stage has its batch norms in its convolutions.

    Exporters fold a norm into the convolution before it only where nothing else reads the weight, and these two heads
    read each of them. Folded before the trace, the weights stay one in the graph as well.

    Args:
        model: In evaluation mode, without frozen norms; not changed.
    """
    if not isinstance(model.roi_heads.mask_head, Res5MaskHead):
        return model
    model = copy.deepcopy(model)
    stage = model.roi_heads.box_head.layer4
    pairs = _norms_after_convolutions(stage, model.backbone.out_channels)
    for parent in list(stage.modules()):
        for key, child in list(parent.named_children()):
            if child in pairs.values():
                setattr(parent, key, nn.Identity())
            elif child in pairs:
                setattr(parent, key, fuse_conv_bn_eval(child, pairs[child]))
    return model


def _norms_after_convolutions(stage: nn.Module, channels: int) -> dict[nn.Module, nn.BatchNorm2d]:
    """The batch norm that reads what each convolution gives, found by running the stage once."""
    makers: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # an id stays a tensor's own while the tensor lives
    pairs: dict[nn.Module, nn.BatchNorm2d] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            makers[id(output)] = module
            kept.append(output)
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in makers:
            pairs[makers[id(inputs[0])]] = module

    hooks = [module.register_forward_hook(note) for module in stage.modules()]
    try:
        with torch.no_grad():
            stage(torch.zeros(1, channels, POOLED, POOLED))
    finally:
        for hook in hooks:
            hook.remove()
    return pairs


def _channels(stage: nn.Module) -> int:
    """Channels that a stage of a ResNet gives: those of its last convolution."""
    return [module for module in stage.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
