"""What models of other projects are made of here: ResNets with strides as given, aligned pools, reordered classes.

Whatever can be said in the weights is said there, so that no later stage needs to know of it: the background goes from
the last place to the first, and blue, green, red to red, green, blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNN_ResNet50_FPN_Weights
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from edge_mrcnn.class_names import BACKGROUND
from edge_mrcnn.training.conventions import AlignedRoIAlign
from edge_mrcnn.training.foreign.layout import Change

FPN_STRIDES = (4, 8, 16, 32)
"""Of the maps that the heads take; the RPN has one more, of 64."""

FPN_LEVELS = ("0", "1", "2", "3")
"""torchvision's names of these maps."""

DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
"""Blocks in each stage to a ResNet's depth. Source: He et al., Deep Residual Learning (2015), table 1."""

NORM_EPS = 1e-5
"""Source: detectron2 layers/batch_norm.py and torch's `BatchNorm2d`, which mmdetection takes."""

COCO_NAMES = 80
"""COCO's classes without the background; a model of as many is taken to have them."""


def make_trunk(blocks: Sequence[int], groups: int, width: int, *, caffe_strides: bool) -> ResNet:
    """Make a ResNet or ResNeXt with frozen batch norms and random weights.

    Args:
        blocks: Bottlenecks in each of its four stages.
        groups: Of the 3x3 convolutions.
        width: Channels of a group in the first stage.
        caffe_strides: A stage's first 1x1 convolution has the stride of 2, as in the first ResNets, and not its 3x3.
    """
    norm = partial(FrozenBatchNorm2d, eps=NORM_EPS)
    trunk = ResNet(Bottleneck, list(blocks), groups=groups, width_per_group=width, norm_layer=norm)
    for block in trunk.modules():
        if isinstance(block, Bottleneck) and caffe_strides:
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return trunk


def make_pyramid(trunk: ResNet, channels: int) -> BackboneWithFPN:
    """Put a feature pyramid of five maps on a ResNet; the fifth is every other cell of the fourth."""
    layers = {f"layer{stage}": str(stage - 1) for stage in range(1, 5)}
    inputs = [64 * Bottleneck.expansion * 2**stage for stage in range(4)]
    return BackboneWithFPN(trunk, layers, inputs, channels, extra_blocks=LastLevelMaxPool())


def make_pool(size: int, strides: Sequence[int] = FPN_STRIDES, *, level_eps: float) -> AlignedRoIAlign:
    """Make an aligned RoIAlign with as many samples as cells, on the maps of the given strides."""
    return AlignedRoIAlign(FPN_LEVELS[: len(strides)], size, 0, strides, level_eps=level_eps)


def name_trunk(blocks: Sequence[int], groups: int, width: int) -> str:
    """A name such as `resnet50` or `resnext101`, or with the numbers of blocks where these are unusual."""
    kind = "resnet" if groups == 1 else "resnext"
    depth = DEPTHS.get((blocks[0], blocks[1], blocks[2], blocks[3]))
    usual = (groups, width) in ((1, 64), (32, 4), (32, 8), (64, 4))
    return f"{kind}{depth}" if depth and usual else f"{kind}_{'_'.join(map(str, blocks))}_{groups}x{width}d"


def coco_names(count: int) -> tuple[str, ...] | None:
    """COCO's names, the background first, for a model of 80 classes without it; None for others."""
    if count != COCO_NAMES:
        return None
    names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by COCO's ids, which have gaps
    return (BACKGROUND, *(name for name in names[1:] if name != "N/A"))


# ------------------------------------------------------------------------------------------------------------ changes
def flip_channels(weight: Tensor) -> Tensor:
    """Weights of the first convolution `(C, 3, k, k)` for red, green, blue, of those for blue, green, red."""
    return weight.flip(1)


def background_first(rows: Tensor) -> Tensor:
    """Rows of a class predictor `(K + 1, ...)` with the background's first, where it was last."""
    return torch.cat([rows[-1:], rows[:-1]])


def add_background(rows_each: int, num_classes: int, agnostic: bool) -> Change:
    """Rows for the background before those of the classes; where one set is for all classes, a copy for each.

    Args:
        rows_each: Rows of a class: 4 of boxes, 1 of masks.
        num_classes: With the background.
        agnostic: The weights are one set for all classes.

    Returns:
        What makes `(num_classes * rows_each, ...)` of the project's rows. The background's are never used.
    """

    def change(rows: Tensor) -> Tensor:
        if agnostic:
            return rows.repeat(num_classes, *[1] * (rows.dim() - 1))
        return torch.cat([rows.new_zeros(rows_each, *rows.shape[1:]), rows])

    return change
