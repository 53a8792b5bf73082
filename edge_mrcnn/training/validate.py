"""Box and mask AP of a torch model while it trains; `edge-mrcnn eval` measures exported ones."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from edge_mrcnn.evaluation.coco import average_precision
from edge_mrcnn.training.dataset import CocoDataset
from edge_mrcnn.training.step import CanvasModel


def validate(model: MaskRCNN, dataset: CocoDataset, limit: int = 0) -> dict[str, float]:
    """COCO average precision on pictures of their original size.

    Args:
        model: On any device; it is left in the mode it was in.
        dataset: Without augmentation.
        limit: Take so many pictures, evenly spread; 0 takes all.

    Returns:
        `box_ap`, `box_ap50`, `mask_ap` and `mask_ap50`, in points of 100; AP is averaged over IoU 0.50 to 0.95, and 0
        where there is nothing to measure.
    """
    count = len(dataset)
    chosen = range(count) if not 0 < limit < count else np.linspace(0, count - 1, limit).round().astype(int)
    was_training, canvas = model.training, CanvasModel(model.eval())
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for index in chosen:
            results += _detect(canvas, dataset, int(index))
    model.train(was_training)
    return score(dataset, results, {dataset.records[int(index)].image_id for index in chosen})


def score(dataset: CocoDataset, results: list[dict[str, Any]], image_ids: set[int]) -> dict[str, float]:
    """The figures of `validate` for results in COCO's format on some of the pictures."""
    content = json.loads(dataset.annotations.read_text(encoding="utf-8"))
    images = [row for row in content["images"] if row["id"] in image_ids]
    annotations = [row for row in content["annotations"] if row["image_id"] in image_ids]
    truth = {"images": images, "annotations": annotations, "categories": content["categories"]}
    found = average_precision(truth, results)
    kinds = {"box": found.box, "mask": found.mask}
    ap = {f"{kind}_ap": scores.ap if scores else None for kind, scores in kinds.items()}
    ap50 = {f"{kind}_ap50": scores.ap50 if scores else None for kind, scores in kinds.items()}
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
    masks = paste_masks_in_image(found["masks"], boxes, record.hw)[:, 0] > 0.5
    sizes = boxes[:, 2:] - boxes[:, :2]
    return [
        {
            "image_id": record.image_id,
            "category_id": dataset.category_ids[int(label)],
            "score": float(score),
            "bbox": [*box.tolist(), *size.tolist()],
            "segmentation": _encode(mask),
        }
        for label, score, box, size, mask in zip(
            found["labels"], found["scores"], boxes[:, :2], sizes, masks, strict=True
        )
    ]


def _encode(mask: Tensor) -> dict[str, Any]:
    return cast("dict[str, Any]", rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8))))
