"""Box, mask and keypoint AP of a torch model while it trains; `edge-mrcnn eval` measures exported ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from edge_mrcnn.evaluation.coco import average_precision
from edge_mrcnn.training.dataset import CocoDataset
from edge_mrcnn.training.step import CanvasModel


def validate(model: GeneralizedRCNN, dataset: CocoDataset, limit: int = 0) -> dict[str, float]:
    """COCO average precision on pictures of their original size.

    Args:
        model: On any device; it is left in the mode it was in.
        dataset: Without augmentation.
        limit: Take so many pictures, evenly spread; 0 takes all.

    Returns:
        `box_ap`, `box_ap50` and, with the heads for them, `mask_ap`, `mask_ap50`, `keypoint_ap` and `keypoint_ap50`,
        in points of 100; AP is averaged over IoU (for keypoints OKS) 0.50 to 0.95, and 0 where there is nothing to
        measure.
    """
    count = len(dataset)
    chosen = range(count) if not 0 < limit < count else np.linspace(0, count - 1, limit).round().astype(int)
    was_training, canvas = model.training, CanvasModel(model.eval())
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for index in chosen:
            results += _detect(canvas, dataset, int(index))
    model.train(was_training)
    kinds = ("box", *(kind for kind in ("mask", "keypoint") if getattr(model.roi_heads, f"has_{kind}")()))
    return score(dataset, results, {dataset.records[int(index)].image_id for index in chosen}, kinds)


def leading_figure(model: GeneralizedRCNN) -> str:
    """The figure of `validate` by which the best checkpoint is chosen: of what the network alone has a head for."""
    heads = model.roi_heads
    return "keypoint_ap" if heads.has_keypoint() else "mask_ap" if heads.has_mask() else "box_ap"


def score(
    dataset: CocoDataset,
    results: list[dict[str, Any]],
    image_ids: set[int],
    kinds: Sequence[str] = ("box", "mask"),
) -> dict[str, float]:
    """The figures of `validate` for results in COCO's format on some of the pictures.

    Args:
        dataset: The pictures' set.
        results: Of the pictures.
        image_ids: Which pictures count.
        kinds: Which figures to give: of `box`, `mask` and `keypoint`.
    """
    content = json.loads(dataset.annotations.read_text(encoding="utf-8"))
    images = [row for row in content["images"] if row["id"] in image_ids]
    annotations = [row for row in content["annotations"] if row["image_id"] in image_ids]
    truth = {"images": images, "annotations": annotations, "categories": content["categories"]}
    found = average_precision(truth, results)
    scores = {kind: getattr(found, kind) for kind in kinds}
    ap = {f"{kind}_ap": figures.ap if figures else None for kind, figures in scores.items()}
    ap50 = {f"{kind}_ap50": figures.ap50 if figures else None for kind, figures in scores.items()}
    return {name: value or 0.0 for name, value in (ap | ap50).items()}


def _detect(canvas: CanvasModel, dataset: CocoDataset, index: int) -> list[dict[str, Any]]:
    """Detections of picture `index` in COCO's results format, in pixels of the original picture."""
    record = dataset.records[index]
    picture, target = dataset[index]
    device = next(canvas.parameters()).device
    _, detections = canvas(picture[None].to(device), [target])
    found = {name: value.cpu() for name, value in detections[0].items()}
    ratio = torch.tensor([full / content for full, content in zip(record.hw, target["image_hw"], strict=True)])
    boxes = found["boxes"] * ratio[[1, 0, 1, 0]]
    sizes = boxes[:, 2:] - boxes[:, :2]
    rows: list[dict[str, Any]] = [
        {
            "image_id": record.image_id,
            "category_id": dataset.category_ids[int(label)],
            "score": float(score),
            "bbox": [*box.tolist(), *size.tolist()],
        }
        for label, score, box, size in zip(found["labels"], found["scores"], boxes[:, :2], sizes, strict=True)
    ]
    if "masks" in found:
        masks = paste_masks_in_image(found["masks"], boxes, record.hw)[:, 0] > 0.5
        for row, mask in zip(rows, masks, strict=True):
            row["segmentation"] = _encode(mask)
    if "keypoints" in found:
        points = found["keypoints"][..., :2] * ratio[[1, 0]]
        for row, label, each in zip(rows, found["labels"], points, strict=True):
            row["keypoints"] = _numbers(each, int(label), dataset.keypoints.labels)
    return rows


def _numbers(points: Tensor, label: int, labels: Sequence[Sequence[int]]) -> list[float]:
    """Points `(K, 2)` of one thing as COCO lists them; zeros for those that its class does not have."""
    numbers = [[*xy, 1.0] if label in having else [0.0] * 3 for xy, having in zip(points.tolist(), labels, strict=True)]
    return [number for three in numbers for number in three]


def _encode(mask: Tensor) -> dict[str, Any]:
    return cast("dict[str, Any]", rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8))))
