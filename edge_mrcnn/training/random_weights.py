"""Seeded random weights that behave like trained ones: for parity tests and timings of networks without a checkpoint.

Weights as they are initialised give scores that tie; multiplied weights give scores that saturate, which tie as well.
Here batch norms take the statistics of given pictures, and each output layer is centred and scaled on them to a given
spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList

from edge_mrcnn.training.zoo import build_model


def random_model(
    model_name: str,
    pictures: Sequence[npt.NDArray[np.uint8]],
    *,
    num_classes: int | None = None,
    seed: int = 0,
    background: float = 14.0,
) -> GeneralizedRCNN:
    """Build a network of the zoo with seeded random weights whose scores neither tie nor saturate.

    Args:
        model_name: Name in the zoo.
        pictures: `(H, W, 3)` uint8, all of one size; the ones to be run, or of their kind and size.
        num_classes: With the background; None for the entry's default.
        seed: Same seed and pictures, same weights.
        background: Added to the background's logit: the higher, the fewer detections.

    Returns:
        The network in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build_model(model_name, num_classes)
        size = pictures[0].shape[:2]
        model.transform.min_size, model.transform.max_size = (min(size),), max(size)
        batch = [torch.from_numpy(picture).permute(2, 0, 1).to(torch.float32) / 255 for picture in pictures]
        with _every_score_counts(model):
            images, _ = model.transform(batch)
            _calibrate_norms(model, images)
            _spread_outputs(model, images)
        model.roi_heads.box_predictor.cls_score.bias[0] += background
    return model


def _calibrate_norms(model: GeneralizedRCNN, images: ImageList) -> None:
    """Let every batch norm take the statistics of one batch, through the forward of inference."""
    norms = [(norm, norm.momentum) for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.momentum = None  # a plain average over the batches seen
        norm.train()
    features = model.backbone(images.tensors)
    model.roi_heads(features, model.rpn(images, features)[0], images.image_sizes)
    for norm, momentum in norms:
        norm.momentum = momentum
        norm.eval()


def _spread_outputs(model: GeneralizedRCNN, images: ImageList) -> None:
    """Spread the outputs of each output layer; what comes before it runs once."""
    features, heads = model.backbone(images.tensors), model.roi_heads
    for layer, spread in ((model.rpn.head.cls_logits, 2.0), (model.rpn.head.bbox_pred, 0.3)):
        spread_output(layer, spread, lambda: model.rpn.head(list(features.values())))
    proposals, _ = model.rpn(images, features)
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    for layer, spread in ((heads.box_predictor.cls_score, 1.5), (heads.box_predictor.bbox_pred, 1.0)):
        spread_output(layer, spread, lambda: heads.box_predictor(pooled))
    for layer, spread in head_layers(model):
        spread_output(layer, spread, lambda: heads(features, proposals, images.image_sizes))


def head_layers(model: GeneralizedRCNN) -> list[tuple[nn.Module, float]]:
    """The last layers of the mask and keypoint heads that a network has, and what spread their outputs are given."""
    heads = model.roi_heads
    masks = [(heads.mask_predictor.mask_fcn_logits, 2.0)] if heads.has_mask() else []
    return masks + ([(heads.keypoint_predictor.kps_score_lowres, 2.0)] if heads.has_keypoint() else [])


def spread_output(layer: nn.Module, spread: float, forward: Callable[[], object]) -> None:
    """Centre each channel of a layer's output and scale it to a standard deviation of `spread`."""
    seen: list[Tensor] = []
    with layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.transpose(0, 1).flatten(1))):
        forward()
    outputs = torch.cat(seen, 1)
    scale = spread / outputs.std(1).clamp(min=1e-6)
    assert isinstance(layer.weight, Tensor)
    assert isinstance(layer.bias, Tensor)
    channels = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
    layer.weight *= scale.view([-1 if dim == channels else 1 for dim in range(layer.weight.dim())])
    layer.bias.copy_((layer.bias - outputs.mean(1)) * scale)


@contextmanager
def _every_score_counts(model: GeneralizedRCNN) -> Iterator[None]:
    """Set the score threshold to 0, so that the mask head sees data whatever the scores are."""
    threshold, model.roi_heads.score_thresh = model.roi_heads.score_thresh, 0.0
    try:
        yield
    finally:
        model.roi_heads.score_thresh = threshold
