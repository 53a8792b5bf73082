"""Label chips: small name tags, drawn once and kept, laid out so that they cover each other as little as possible."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.runtime.palette import Color, is_light

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_OVERSAMPLE = 3
"""Chips are drawn at three times their size and shrunk: letters are made of strokes in OpenCV 4, coarse ones."""

_DARK: Color = (22, 24, 28)
_WHITE: Color = (255, 255, 255)


@dataclass(frozen=True)
class Label:
    """What to write where.

    Attributes:
        text: What the chip says.
        box: `x0, y0, x1, y1` of what it belongs to, pixels.
        color: The chip's, RGB; the text is dark or white, whichever reads better.
    """

    text: str
    box: tuple[float, float, float, float]
    color: Color


def draw_labels(image: npt.NDArray[np.uint8], labels: Sequence[Label], text_px: float) -> None:
    """Draw chips into a picture; the first label chooses its place first.

    A chip stands above its box where there is room, otherwise inside, below or beside it, always within the picture.
    Chips larger than the picture are left out.

    Args:
        image: `(H, W, 3)` uint8 RGB, drawn into.
        labels: Most important first.
        text_px: Height of a capital letter in pixels.
    """
    height, width = image.shape[:2]
    taken = np.zeros((0, 4))
    for label in labels:
        chip, cover = _render(label.text, label.color, round(text_px * 2) / 2)
        chip_height, chip_width = chip.shape[:2]
        if chip_height > height or chip_width > width:
            continue
        x, y = _place(label.box, (chip_width, chip_height), (width, height), taken)
        region = image[y : y + chip_height, x : x + chip_width]
        share = cover.astype(np.float32) / np.float32(255)
        region[:] = (region + (chip.astype(np.float32) - region) * share + 0.5).astype(np.uint8)
        taken = np.vstack([taken, (x, y, x + chip_width, y + chip_height)])


def _place(
    box: tuple[float, float, float, float],
    chip_wh: tuple[int, int],
    image_wh: tuple[int, int],
    taken: npt.NDArray[np.float64],
) -> tuple[int, int]:
    """Top left corner of a chip: of the places around its box the one that covers least of others."""
    x0, y0, x1, y1 = box
    width, height = chip_wh
    corners = np.array(
        [
            (x0, y0 - height - 1),  # above, flush left
            (x1 - width, y0 - height - 1),  # above, flush right
            ((x0 + x1 - width) / 2, y0 - height - 1),  # above, in the middle
            (x0, y0 + 1),  # inside, at the top
            (x0, y1 + 2),  # below, flush left
            (x1 - width, y1 + 2),  # below, flush right
            (x1 + 2, (y0 + y1 - height) / 2),  # to the right
            (x0 - width - 2, (y0 + y1 - height) / 2),  # to the left
            ((x0 + x1 - width) / 2, (y0 + y1 - height) / 2),  # on it
            (x0, y1 - height - 1),  # inside, at the bottom
        ]
    )
    inside = np.clip(corners, 0, np.maximum(np.array(image_wh) - chip_wh, 0))
    cost = np.arange(len(corners)) * 0.02 + np.abs(inside - corners).sum(axis=1) / height
    if len(taken):
        shared = np.minimum(inside[:, None] + chip_wh, taken[:, 2:]) - np.maximum(inside[:, None], taken[:, :2])
        cost += 4 * np.clip(shared, 0, None).prod(axis=2).sum(axis=1) / (width * height)
    x, y = inside[int(np.argmin(cost))]
    return int(x), int(y)


# Scores and numbers of tracks make ever new texts, of 30 kB a chip at 1080p.
@functools.lru_cache(maxsize=256)
def _render(text: str, color: Color, text_px: float) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """A chip: `(h, w, 3)` uint8 RGB and how much of it covers what is below, `(h, w, 1)` uint8 from 0 to 255."""
    ink = _DARK if is_light(color) else _WHITE
    size = text_px * _OVERSAMPLE
    scale = size / cv2.getTextSize("H", _FONT, 1.0, 1)[0][1]
    stroke = max(2, round(size / 9))
    (text_width, _), _ = cv2.getTextSize(text, _FONT, scale, stroke)
    width, height = (-(-round(side) // _OVERSAMPLE) * _OVERSAMPLE for side in (text_width + 1.1 * size, 1.9 * size))
    chip = np.full((height, width, 3), color, np.uint8)
    origin = ((width - text_width) // 2, round((height + size) / 2))
    cv2.putText(chip, text, origin, _FONT, scale, ink, stroke, cv2.LINE_AA)
    cover = np.zeros((height, width), np.uint8)
    radius = round(0.45 * size)
    cv2.rectangle(cover, (radius, 0), (width - radius - 1, height - 1), 255, -1)
    cv2.rectangle(cover, (0, radius), (width - 1, height - radius - 1), 255, -1)
    for x in (radius, width - radius - 1):
        for y in (radius, height - radius - 1):
            cv2.circle(cover, (x, y), radius, 255, -1, cv2.LINE_AA)
    small = (width // _OVERSAMPLE, height // _OVERSAMPLE)
    chip_small = cv2.resize(chip, small, interpolation=cv2.INTER_AREA)
    cover_small = cv2.resize(cover, small, interpolation=cv2.INTER_AREA)
    return np.asarray(chip_small, np.uint8), np.asarray(cover_small[..., None], np.uint8)
