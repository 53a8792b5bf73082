"""Box and mask AP of a torch model while it trains; `edge-mrcnn eval` measures exported ones."""

from __future__ import annotations

import contextlib
import io
from typing import Any, cast

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from edge_mrcnn.training.dataset import CocoDataset
from edge_mrcnn.training.step import CanvasModel


def validate(model: MaskRCNN, dataset: CocoDataset, limit: int = 0) -> dict[str, float]:
    """COCO average precision on pictures of their original size.

    Args:
        model: On any device; it is left in the mode it was in.
        dataset: Without augmentation.
        limit: Take so many pictures, evenly spread; 0 takes all.

    Returns:
        `box_ap`, `box_ap50`, `mask_ap` and `mask_ap50`, times 100; AP is averaged over IoU 0.50 to 0.95.
    """
    count = len(dataset)
    chosen = range(count) if not 0 < limit < count else np.linspace(0, count - 1, limit).round().astype(int)
    was_training, canvas = model.training, CanvasModel(model.eval())
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for index in chosen:
            results += _detect(canvas, dataset, int(index))
    model.train(was_training)
    image_ids = [dataset.records[int(index)].image_id for index in chosen]
    return average_precision(dataset, results, image_ids)


def average_precision(dataset: CocoDataset, results: list[dict[str, Any]], image_ids: list[int]) -> dict[str, float]:
    """COCO AP of results in COCO's format, in points of 100."""
    figures = dict.fromkeys(("box_ap", "box_ap50", "mask_ap", "mask_ap50"), 0.0)
    if not results:
        return figures
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(dataset.annotations))
        found = truth.loadRes(results)
        for name, kind in (("box", "bbox"), ("mask", "segm")):
            evaluation = COCOeval(truth, found, kind)
            evaluation.params.imgIds = image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            figures[f"{name}_ap"], figures[f"{name}_ap50"] = (100 * float(value) for value in evaluation.stats[:2])
    return figures


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
