"""A small C4 for tests: a ResNet-18 with norms that do something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.misc import FrozenBatchNorm2d

from edge_mrcnn.training.c4 import maskrcnn_c4

CLASSES = 4
HW = (96, 128)
NAMES = ("__background__", "a", "b", "c")


def small_c4(norm: Callable[..., nn.Module] = nn.BatchNorm2d, seed: int = 0, **kwargs: Any) -> MaskRCNN:
    """Make it, in evaluation mode, with seeded weights.

    Args:
        norm: Norm layer.
        seed: Of the weights.
        kwargs: As for `maskrcnn_c4`.
    """
    torch.manual_seed(seed)
    anchors = AnchorGenerator(((16, 32, 64),), ((0.5, 1.0, 2.0),))
    options = {"rpn_anchor_generator": anchors, "rpn_post_nms_top_n_test": 20, "box_detections_per_img": 8, **kwargs}
    model = maskrcnn_c4(resnet18(weights=None, norm_layer=norm), CLASSES, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return model
