"""A tiny COCO-format data set: bright discs and bars on black, as PNG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as rle

COLOURS = {3: (255, 60, 60), 70: (60, 60, 255)}


def write_shapes(folder: Path, count: int, hw: tuple[int, int] = (120, 160), seed: int = 0) -> Path:
    """Write `count` pictures with two shapes each, apart from each other, and return the annotations' path."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        picture = np.zeros((*hw, 3), np.uint8)
        for place, category in enumerate(rng.permutation([3, 70])):
            polygon = _outline(rng, int(category), place, hw)
            cv2.fillPoly(picture, [polygon.reshape(-1, 2)], COLOURS[int(category)])
            mask = cv2.fillPoly(np.zeros(hw, np.uint8), [polygon], 1)
            packed = rle.encode(np.asfortranarray(mask))
            x, y = polygon.reshape(-1, 2).T
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": int(category),
                    "bbox": [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1],
                    "segmentation": {"size": list(hw), "counts": packed["counts"].decode()},
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
        cv2.imwrite(str(folder / "images" / f"{number}.png"), picture[:, :, ::-1])
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": hw[0], "width": hw[1]})
    categories = [{"id": 70, "name": "bar"}, {"id": 3, "name": "disc"}]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def annotations_of(path: Path) -> dict[str, Any]:
    """The content of an annotations file."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _outline(rng: np.random.Generator, category: int, place: int, hw: tuple[int, int]) -> np.ndarray:
    """Corners (x, y) of a shape in the left or right half of the picture."""
    radius = int(rng.integers(hw[0] // 8, hw[0] // 5))
    x = int(hw[1] * (0.25 + 0.5 * place)) + int(rng.integers(-6, 7))
    y = int(rng.integers(radius + 2, hw[0] - radius - 2))
    if category == 70:
        return np.array(
            [
                [x - radius, y - radius // 2],
                [x + radius, y - radius // 2],
                [x + radius, y + radius // 2],
                [x - radius, y + radius // 2],
            ],
            np.int32,
        )
    return cv2.ellipse2Poly((x, y), (radius, radius), 0, 0, 360, 10).astype(np.int32)
