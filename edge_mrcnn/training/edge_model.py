"""`maskrcnn_edge` and `keypointrcnn_edge`: compact networks for small devices, made of torchvision's components.

Where the time goes decided its shape. At stride 2 and 4 depthwise convolutions are bound by memory, so the first
stages expand with a dense 3x3 convolution (the fused inverted residual of EfficientNetV2); deeper stages are
MobileNetV2's inverted residuals. FPN and RPN see every pixel of stride 4 and are depthwise-separable there; the heads
of masks and keypoints see few regions and are dense, which is what their quality needs. All activations are ReLU or
ReLU6, so that INT8 ranges stay small.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import Conv2dNormActivation

DEFAULT_SIZE = (320, 416)
"""Canvas (H, W): a 480x640 picture becomes 312x416 at its top left."""

ANCHOR_SIZES = ((24,), (48,), (96,), (160,), (256,))
"""Side of the square anchor at strides 4, 8, 16, 32 and 64, in pixels of the canvas: objects of 25 to 150 px."""

ANCHOR_RATIOS = (0.5, 1.0, 2.0)
"""Height divided by width, at each level."""

FPN_CHANNELS = 64
"""Channels of every pyramid level, of the RPN, of the mask head and of the keypoint head."""

BOX_FEATURES = 256
"""Width of the box head's two fully connected layers."""

STEM_CHANNELS = 24
STAGE_CHANNELS = (32, 48, 96, 160)
"""Channels of the backbone at strides 4, 8, 16 and 32."""


class FusedInvertedResidual(nn.Module):
    """Inverted residual whose expansion is a dense 3x3 convolution, with ReLU and without squeeze-and-excitation.

    Source: Tan and Le, EfficientNetV2 (2021), Fused-MBConv; Gupta and Tan, EfficientNet-EdgeTPU (2019).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        """Make the block; the input is added to the output when both have the same shape."""
        super().__init__()
        hidden = in_channels * expansion
        self.conv = nn.Sequential(
            Conv2dNormActivation(in_channels, hidden, 3, stride, activation_layer=nn.ReLU),
            Conv2dNormActivation(hidden, out_channels, 1, activation_layer=None),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C_in, H, W)` to `(B, C_out, H / stride, W / stride)`."""
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 convolution, then a pointwise one: a ninth of the work of a dense 3x3 convolution."""

    def __init__(self, channels: int, *layers: nn.Module) -> None:
        """Make the two convolutions; `layers` follow them. The bias of the second goes where a norm follows."""
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=not layers or not isinstance(layers[0], nn.BatchNorm2d)),
            *layers,
        )
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="linear")


class SeparableRPNHead(RPNHead):  # type: ignore[misc]
    """torchvision's RPN head with a depthwise-separable convolution.

    No batch norm: one head serves all levels, and their statistics differ.
    """

    def __init__(self, in_channels: int, num_anchors: int) -> None:
        """Make the head for `num_anchors` anchors per cell."""
        super().__init__(in_channels, num_anchors)
        self.conv = SeparableConv(in_channels, nn.ReLU(inplace=True))


def edge_backbone(out_channels: int = FPN_CHANNELS) -> BackboneWithFPN:
    """The backbone with its feature pyramid: strides 4, 8, 16, 32, and 64 by subsampling.

    Returns:
        A torchvision backbone whose features are named `0` to `3` and `pool`, all with `out_channels` channels.
    """
    c4, c8, c16, c32 = STAGE_CHANNELS
    stages = OrderedDict(
        stem=Conv2dNormActivation(3, STEM_CHANNELS, 3, 2, activation_layer=nn.ReLU),
        stride4=nn.Sequential(FusedInvertedResidual(STEM_CHANNELS, c4, 2, 3), FusedInvertedResidual(c4, c4, 1, 2)),
        stride8=nn.Sequential(FusedInvertedResidual(c4, c8, 2, 4), *_inverted(c8, 2)),
        stride16=nn.Sequential(InvertedResidual(c8, c16, 2, 4), *_inverted(c16, 3)),
        stride32=nn.Sequential(InvertedResidual(c16, c32, 2, 4), *_inverted(c32, 2)),
    )
    return_layers = {"stride4": "0", "stride8": "1", "stride16": "2", "stride32": "3"}
    body = nn.Sequential(stages)
    _init_convolutions(body)
    backbone = BackboneWithFPN(body, return_layers, list(STAGE_CHANNELS), out_channels, norm_layer=nn.BatchNorm2d)
    backbone.fpn.layer_blocks = nn.ModuleList(
        SeparableConv(out_channels, nn.BatchNorm2d(out_channels)) for _ in STAGE_CHANNELS
    )
    return backbone


def maskrcnn_edge(num_classes: int, **kwargs: Any) -> MaskRCNN:
    """Make the compact Mask R-CNN, untrained.

    Args:
        num_classes: Number of classes, the background included.
        kwargs: Passed to torchvision's `MaskRCNN`, over the defaults below.

    Returns:
        A plain torchvision `MaskRCNN` with about 2 M parameters. Its transform keeps pictures within
        `DEFAULT_SIZE`.
    """
    backbone = edge_backbone()
    channels = backbone.out_channels
    anchors = AnchorGenerator(ANCHOR_SIZES, (ANCHOR_RATIOS,) * len(ANCHOR_SIZES))
    levels = ["0", "1", "2", "3"]
    mask_layers = (channels, channels, channels)
    options: dict[str, Any] = {
        "min_size": DEFAULT_SIZE[0],
        "max_size": DEFAULT_SIZE[1],
        "rpn_anchor_generator": anchors,
        "rpn_head": SeparableRPNHead(channels, anchors.num_anchors_per_location()[0]),
        "rpn_pre_nms_top_n_train": 300,
        "rpn_post_nms_top_n_train": 200,
        "rpn_pre_nms_top_n_test": 300,
        "rpn_post_nms_top_n_test": 200,
        "rpn_batch_size_per_image": 128,
        "box_roi_pool": MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=2),
        "box_head": TwoMLPHead(channels * 7 * 7, BOX_FEATURES),
        "box_predictor": FastRCNNPredictor(BOX_FEATURES, num_classes),
        "box_batch_size_per_image": 64,
        "mask_roi_pool": MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=2),
        "mask_head": MaskRCNNHeads(channels, mask_layers, 1, norm_layer=nn.BatchNorm2d),
        "mask_predictor": MaskRCNNPredictor(channels, channels, num_classes),
    }
    return MaskRCNN(backbone, **{**options, **kwargs})


def keypointrcnn_edge(num_classes: int, num_keypoints: int, **kwargs: Any) -> MaskRCNN:
    """Make the compact network with keypoints beside the masks, untrained.

    The masks stay: a robot grasps by both, and they cost no second pool, since both heads read the same patches. The
    keypoint head is as deep as the mask head, followed by torchvision's predictor: a deconvolution to 28x28, upsampled
    to heatmaps of 56x56.

    Args:
        num_classes: Number of classes, the background included.
        num_keypoints: Number of keypoints (K), for all classes alike.
        kwargs: As for `maskrcnn_edge`.

    Returns:
        A torchvision `MaskRCNN` whose RoI heads have torchvision's keypoint head as well.
    """
    model = maskrcnn_edge(num_classes, **kwargs)
    heads, channels = model.roi_heads, model.backbone.out_channels
    pool = heads.mask_roi_pool
    heads.keypoint_roi_pool = MultiScaleRoIAlign(pool.featmap_names, pool.output_size, pool.sampling_ratio)
    heads.keypoint_head = MaskRCNNHeads(channels, (channels, channels, channels), 1, norm_layer=nn.BatchNorm2d)
    heads.keypoint_predictor = KeypointRCNNPredictor(channels, num_keypoints)
    return model


def _inverted(channels: int, count: int) -> Sequence[nn.Module]:
    """`count` inverted residuals that keep the shape, with an expansion of 4."""
    return [InvertedResidual(channels, channels, 1, 4) for _ in range(count)]


def _init_convolutions(module: nn.Module) -> None:
    """He initialisation, as torchvision's MobileNetV2 uses."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                with torch.no_grad():
                    layer.bias.zero_()
