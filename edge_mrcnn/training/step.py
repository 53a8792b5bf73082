"""One forward pass of any network of the zoo on letterboxed canvases: losses in training, detections otherwise.

torchvision's own `forward` resizes again; this one takes the canvases as the runtime makes them, so that training,
evaluation and the exported graph see the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList

from edge_mrcnn.training.sparse_pool import roi_pools

Losses = dict[str, Tensor]
Detections = list[dict[str, Tensor]]


def normalise(
    pictures: Tensor, sizes: Sequence[tuple[int, int]], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Canvases as the network's input: normalised, then zero in the padding.

    Args:
        pictures: `(B, H, W, 3)` uint8 RGB.
        sizes: (height, width) of the content at the top left of each.
        mean: Of each channel, on a scale of 0 to 1.
        std: Of each channel, on a scale of 0 to 1.

    Returns:
        `(B, 3, H, W)` float32, in channels-last memory.
    """
    shift = torch.tensor(mean, device=pictures.device) * 255
    scale = torch.tensor(std, device=pictures.device) * 255
    images = (pictures.float() - shift) / scale
    for image, (height, width) in zip(images, sizes, strict=True):
        image[height:] = 0
        image[:, width:] = 0
    return images.permute(0, 3, 1, 2)


class CanvasModel(nn.Module):
    """A Mask R-CNN or Keypoint R-CNN that takes letterboxed canvases."""

    def __init__(self, model: GeneralizedRCNN, *, bf16: bool = False) -> None:
        """Wrap `model`, whose parameters are shared; with `bf16` convolutions and products run in bfloat16."""
        super().__init__()
        self.model = model
        self.bf16 = bf16

    def forward(self, pictures: Tensor, targets: Sequence[dict[str, Any]]) -> tuple[Losses, Detections]:
        """Losses by name where the model is in training mode, else the detections of each canvas.

        Args:
            pictures: `(B, H, W, 3)` uint8 RGB.
            targets: Of each canvas, `image_hw` and, in training, `boxes`, `labels` and what the heads learn from,
                `masks` and `keypoints`, in its pixels.

        Returns:
            The losses of torchvision: `loss_objectness`, `loss_rpn_box_reg`, `loss_classifier`, `loss_box_reg`,
            `loss_mask` and `loss_keypoint`; and `boxes`, `labels`, `scores`, `masks (N, 1, M, M)` and `keypoints
            (N, K, 3)` of each canvas; of masks and keypoints what the network has heads for.
        """
        model = self.model
        sizes = [tuple(target["image_hw"]) for target in targets]
        transform = model.transform
        images = normalise(pictures, sizes, transform.image_mean, transform.image_std)
        truth = list(targets) if model.training else None
        rows_first = _row_by_row(getattr(model.roi_heads, "keypoint_predictor", None))
        with rows_first, torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = {name: level.float() for name, level in model.backbone(images).items()}
            self._set_scales(features, images)
            proposals, rpn_losses = model.rpn(ImageList(images, sizes), features, truth)
            detections, roi_losses = model.roi_heads(features, proposals, sizes, truth)
        return {**rpn_losses, **roi_losses}, detections

    def _set_scales(self, features: dict[str, Tensor], images: Tensor) -> None:
        """Let the RoI pools derive their scales from the canvas.

        Left alone they derive them from the first batch's content, which is wrong when that is much smaller.
        """
        canvas = [(int(images.shape[2]), int(images.shape[3]))]
        first = {name: level[:1].detach() for name, level in features.items()}
        for pool in roi_pools(self.model).values():
            if pool.scales is None:
                pool(first, [torch.tensor([[0.0, 0.0, 8.0, 8.0]], device=images.device)], canvas)


@contextmanager
def _row_by_row(predictor: nn.Module | None) -> Iterator[None]:
    """Lets `predictor` give its heatmaps in plain memory order, the only one that torchvision's keypoint loss takes."""
    if predictor is None:
        yield
        return
    with predictor.register_forward_hook(lambda _module, _inputs, output: output.contiguous()):
        yield
