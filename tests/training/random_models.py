"""Seeded weights whose scores neither tie nor saturate, pictures to go with them, and torchvision's own results.

Multiplied or plain random weights give scores of 1.0 by the hundred: everything ties, and a comparison of two correct
implementations fails. So each output layer is scaled to a given spread on the very kind of pictures used later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import Bottleneck
from torchvision.ops.poolers import LevelMapper

from edge_mrcnn.training.random_weights import head_layers, spread_output
from edge_mrcnn.training.sparse_pool import roi_pools
from edge_mrcnn.training.zoo import build_model

Images = npt.NDArray[np.uint8]
Sizes = Sequence[tuple[int, int]]

CLASSES = 7
MIN_SCORE = 0.05
MIN_SIDE = 2.0
CALIBRATION_HW = (256, 320)
PADDING = 114
"""Grey of the letterbox: not black, so that a network that reads the padding is found out."""


def picture(height: int, width: int, seed: int) -> Images:
    """A noisy background with a dozen noisy rectangles: uint8 RGB."""
    rng = np.random.default_rng(seed)
    out = rng.integers(90, 160, (1, 1, 3)) + rng.normal(0, 6, (height, width, 3))
    for _ in range(14):
        x, y = rng.integers(0, width - 20), rng.integers(0, height - 20)
        patch = out[y : y + rng.integers(12, height // 2), x : x + rng.integers(12, width // 2)]
        patch[:] = rng.integers(0, 255, (1, 1, 3)) + rng.normal(0, 12, patch.shape)
    return out.clip(0, 255).astype(np.uint8)


def letterboxed(canvas: tuple[int, int], contents: Sizes, seed: int) -> tuple[Images, npt.NDArray[np.float32]]:
    """Pictures of the given content sizes at the top left of a canvas: images `(B, H, W, 3)`, image_hw `(B, 2)`."""
    images = np.full((len(contents), *canvas, 3), PADDING, np.uint8)
    for index, (height, width) in enumerate(contents):
        images[index, :height, :width] = picture(height, width, seed + index)
    return images, np.array(contents, np.float32)


def seeded_model(name: str, seed: int = 0, rois: int = 150) -> GeneralizedRCNN:
    """A model of the zoo with seeded weights and spread-out scores, for canvases of any size.

    Args:
        name: Name in the zoo.
        seed: Of the weights.
        rois: Most proposals of a picture that statistics are taken from.
    """
    torch.manual_seed(seed)
    model = build_model(name, CLASSES)
    calm_residuals(model)
    images, sizes = letterboxed(CALIBRATION_HW, [CALIBRATION_HW] * 2, seed=1000)
    fix_pools(model, CALIBRATION_HW)

    def forward() -> None:
        Reference(model, images, sizes).detect()

    with torch.no_grad(), fewer_rois(model, rois):
        calibrate_norms(model, forward)
        heads = model.roi_heads
        for layer, spread in (
            (model.rpn.head.cls_logits, 2.0),
            (model.rpn.head.bbox_pred, 0.3),
            (heads.box_predictor.cls_score, 1.5),
            (heads.box_predictor.bbox_pred, 1.0),
            *head_layers(model),
        ):
            spread_output(layer, spread, forward)
    return model


def calm_residuals(model: nn.Module) -> None:
    """Let a ResNet's blocks add little to what passes by them, as in a trained one.

    At full strength a hundred random layers map all pictures to nearly the same features, and scaling what little
    varies to a useful spread scales rounding errors with it: even torchvision then disagrees with itself.
    """
    for block in model.modules():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, 0.25)


@contextmanager
def fewer_rois(model: GeneralizedRCNN, most: int) -> Iterator[None]:
    """Fewer proposals and detections for a while: statistics need no thousand, a heatmap's not even twenty."""
    proposals, detections = model.rpn._post_nms_top_n["testing"], model.roi_heads.detections_per_img
    model.rpn._post_nms_top_n["testing"] = min(proposals, most)
    model.roi_heads.detections_per_img = min(5 if model.roi_heads.has_keypoint() else 20, most)
    yield
    model.rpn._post_nms_top_n["testing"], model.roi_heads.detections_per_img = proposals, detections


def calibrate_norms(model: nn.Module, forward: Callable[[], None]) -> None:
    """Let each batch norm see what it normalises, so that activations keep their size through a deep network."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a plain average
        norm.reset_running_stats()
        norm.train()
    forward()
    model.eval()


def fix_pools(model: GeneralizedRCNN, canvas: tuple[int, int]) -> None:
    """Set the pools' scales: torchvision infers them from the first picture's content, which a letterbox misleads."""
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, *canvas))
    for pool in roi_pools(model).values():
        strides = [2 ** round(np.log2(canvas[0] / features[name].shape[2])) for name in pool.featmap_names]
        pool.scales = [1 / stride for stride in strides]
        first, last = int(np.log2(strides[0])), int(np.log2(strides[-1]))
        pool.map_levels = LevelMapper(first, last, pool.canonical_scale, pool.canonical_level)


class Reference:
    """torchvision's own forward on letterboxed pictures: normalise the content, pad with zeros, then its modules."""

    @torch.no_grad()
    def __init__(self, model: GeneralizedRCNN, images: Images, image_hw: npt.NDArray[np.float32]) -> None:
        self.heads = model.roi_heads
        self.sizes = [(int(height), int(width)) for height, width in image_hw]
        batch = torch.zeros(len(images), 3, *images.shape[1:3])
        for row, image, (height, width) in zip(batch, images, self.sizes, strict=True):
            content = torch.from_numpy(image[:height, :width]).permute(2, 0, 1).float() / 255
            row[:, :height, :width] = model.transform.normalize(content)
        features = model.backbone(batch)
        self.features = features if isinstance(features, dict) else {"0": features}
        self.ranks: list[Tensor] = []
        with record_ranks(model, self.ranks):
            self.proposals, _ = model.rpn(ImageList(batch, self.sizes), self.features)

    @torch.no_grad()
    def detect(self) -> list[dict[str, Tensor]]:
        """Boxes, scores, labels and masks of each picture; with a keypoint head also keypoints and their heatmaps."""
        seen: list[Tensor] = []
        with contextlib.ExitStack() as hooks:
            if self.heads.has_keypoint():
                hooks.enter_context(
                    self.heads.keypoint_predictor.register_forward_hook(lambda *given: seen.append(given[-1]))
                )
            results: list[dict[str, Tensor]] = self.heads(self.features, self.proposals, self.sizes)[0]
        for maps in seen:
            for result, own in zip(results, maps.split([len(each["scores"]) for each in results]), strict=True):
                result["keypoint_logits"] = own
        return results

    def separate_proposals(self, model: GeneralizedRCNN) -> None:
        """Lower the limit of proposals to where the last one taken and the next differ most in score.

        At any other place they may differ by a rounding error, and each gives detections of its own.
        """
        limit = model.rpn._post_nms_top_n["testing"]
        full = [scores for scores in self.ranks if len(scores) == limit]
        if full:
            first = limit * 4 // 5
            gaps = torch.stack([scores[first - 1 : -1] - scores[first:] for scores in full]).amin(0)
            limit = first + int(gaps.argmax())
        model.rpn._post_nms_top_n["testing"] = limit
        self.proposals = [boxes[:limit] for boxes in self.proposals]

    @torch.no_grad()
    def set_background(self, least: int) -> None:
        """Shift the background's logit so that the picture with the fewest boxes to compare has about `least` of them.

        More and a picture reaches the limit of detections, whose last places a rounding error decides.
        """
        heads = self.heads
        pooled = heads.box_roi_pool(self.features, self.proposals, self.sizes)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        low, high = -15.0, 15.0
        for _ in range(12):
            middle = (low + high) / 2
            shifted = logits + torch.tensor([middle] + [0.0] * (logits.shape[1] - 1))
            boxes, scores, _ = heads.postprocess_detections(shifted, deltas, self.proposals, self.sizes)
            fewest = min(int(matter(*pair).sum()) for pair in zip(boxes, scores, strict=True))
            low, high = (middle, high) if fewest >= least else (low, middle)
        heads.box_predictor.cls_score.bias[0] += low


@contextmanager
def record_ranks(model: GeneralizedRCNN, ranks: list[Tensor]) -> Iterator[None]:
    """Note the scores of the proposals, best first, which torchvision's RPN keeps to itself."""
    original = model.rpn.filter_proposals

    def filter_proposals(*arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
        boxes, scores = original(*arguments)
        ranks.extend(scores)
        return boxes, scores

    model.rpn.filter_proposals = filter_proposals
    yield
    del model.rpn.filter_proposals


def matter(boxes: Tensor, scores: Tensor) -> Tensor:
    """Which detections are compared, `(N,)` bool: rounding errors decide slivers and scores at the threshold."""
    return (scores >= MIN_SCORE) & ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1)
