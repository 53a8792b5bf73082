"""What a training picture goes through: the letterbox, and light random changes that keep it plausible."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_mrcnn.runtime.preprocess import fit, letterbox


@dataclass(frozen=True)
class View:
    """How a picture lies on a canvas: x on the canvas = `scale_x` * x in the picture + `shift_x`, y likewise.

    Attributes:
        canvas_hw: (H, W) of the canvas.
        content_hw: (height, width) of the part at the top left that shows the picture; the rest is padding.
        scale_x: Canvas pixels per picture pixel, negative when mirrored.
        scale_y: Canvas pixels per picture pixel.
        shift_x: Canvas pixels.
        shift_y: Canvas pixels.
    """

    canvas_hw: tuple[int, int]
    content_hw: tuple[int, int]
    scale_x: float
    scale_y: float
    shift_x: float = 0.0
    shift_y: float = 0.0

    @classmethod
    def letterbox(cls, hw: tuple[int, int], canvas_hw: tuple[int, int]) -> View:
        """The whole picture where the runtime's letterbox puts it: as large as fits, at the top left."""
        height, width = fit(hw, canvas_hw).content_hw
        return cls(canvas_hw, (height, width), width / hw[1], height / hw[0])

    @property
    def scale(self) -> float:
        """Canvas pixels per picture pixel: the geometric mean over both axes."""
        return float(np.sqrt(abs(self.scale_x) * self.scale_y))

    def boxes(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes `(N, 4)` xyxy of the picture in pixels of the canvas, clipped to the content."""
        x = np.sort(xyxy[:, 0::2] * self.scale_x + self.shift_x, axis=1).clip(0, self.content_hw[1])
        y = (xyxy[:, 1::2] * self.scale_y + self.shift_y).clip(0, self.content_hw[0])
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)

    def points(self, xyv: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points `(..., 3)` of the picture, x, y and visibility, in pixels of the canvas.

        Those outside the content, and those whose visibility is 0, become zeros.
        """
        x, y = xyv[..., 0] * self.scale_x + self.shift_x, xyv[..., 1] * self.scale_y + self.shift_y
        inside = (x >= 0) & (x < self.content_hw[1]) & (y >= 0) & (y < self.content_hw[0]) & (xyv[..., 2] > 0)
        return np.where(inside[..., None], np.stack([x, y, xyv[..., 2]], -1), 0).astype(np.float32)

    def crops(self, box: NDArray[np.float32]) -> bool:
        """Whether a part of `box` (xyxy in the picture) lies outside the content."""
        x = np.sort(box[0::2] * self.scale_x + self.shift_x)
        y = box[1::2] * self.scale_y + self.shift_y
        low, high = min(x[0], y[0]), max(x[1] - self.content_hw[1], y[1] - self.content_hw[0])
        return bool(low < -0.5 or high > 0.5)

    def matrix(self, origin: tuple[int, int] = (0, 0)) -> NDArray[np.float64]:
        """The `(2, 3)` matrix for OpenCV, whose pixel centres are at whole numbers.

        Args:
            origin: (x, y) in the picture of the top left pixel of what is warped.
        """
        x = self.shift_x + self.scale_x * (origin[0] + 0.5) - 0.5
        y = self.shift_y + self.scale_y * (origin[1] + 0.5) - 0.5
        return np.array([[self.scale_x, 0, x], [0, self.scale_y, y]], np.float64)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training picture.

    Attributes:
        flip: Mirror half of the pictures left to right. Not for classes that a mirror changes, such as letters.
        zoom: Smallest and largest scale relative to the letterbox, drawn log-uniformly; above 1 crops.
        light: Largest relative change of brightness, of contrast and of each channel's gain.
        plain: Part of the pictures shown at the letterbox's own scale, as the runtime will.
    """

    flip: bool = True
    zoom: tuple[float, float] = (0.7, 1.4)
    light: float = 0.25
    plain: float = 0.3

    def view(self, hw: tuple[int, int], canvas_hw: tuple[int, int], rng: np.random.Generator) -> View:
        """Draw a view: mirrored or not, scaled, and cropped or shifted where the scale leaves room."""
        base = View.letterbox(hw, canvas_hw)
        mirrored = self.flip and rng.random() < 0.5
        zoom = float(np.exp(rng.uniform(*np.log(self.zoom)))) if rng.random() >= self.plain else 1.0
        scale_x, scale_y = base.scale_x * zoom, base.scale_y * zoom
        width, height = hw[1] * scale_x, hw[0] * scale_y
        content = (min(base.content_hw[0], max(1, int(height))), min(base.content_hw[1], max(1, int(width))))
        shift_x = -rng.random() * max(0.0, width - content[1])
        shift_y = -rng.random() * max(0.0, height - content[0])
        if mirrored:
            scale_x, shift_x = -scale_x, shift_x + width
        return View(canvas_hw, content, scale_x, scale_y, shift_x, shift_y)

    def colour(self, picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Change brightness, contrast and the colour of the light of `(h, w, 3)` uint8 RGB."""
        contrast, brightness = 1 + self.light * rng.uniform(-1, 1, 2)
        gains = brightness * (1 + 0.3 * self.light * rng.uniform(-1, 1, 3))
        levels = np.arange(256, dtype=np.float64)[:, None]
        table = ((levels - 128) * contrast + 128) * gains
        return np.asarray(cv2.LUT(picture, table.clip(0, 255).astype(np.uint8)[None]), np.uint8)


def mirrored_order(names: Sequence[str]) -> list[int]:
    """Where each keypoint of a mirrored picture comes from: `left_eye` from `right_eye`, `nose` from `nose`.

    Args:
        names: Of the keypoints. One that says `left` changes places with its namesake that says `right`.
    """
    swap = {"left": "right", "right": "left"}
    places = {name: place for place, name in enumerate(names)}
    twins = [re.sub(r"(?<![a-z])(left|right)(?![a-z])", lambda found: swap[found[0]], name) for name in names]
    return [places.get(twin, place) for place, twin in enumerate(twins)]


def warp_picture(picture: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """Lay a picture `(h, w, 3)` on its canvas, `(H, W, 3)`; the padding is zero.

    The plain letterbox is the runtime's own.
    """
    if view == View.letterbox((picture.shape[0], picture.shape[1]), view.canvas_hw):
        return letterbox(picture, view.canvas_hw)[0]
    height, width = view.content_hw
    canvas = np.zeros((*view.canvas_hw, 3), np.uint8)
    content = cv2.warpAffine(
        picture, view.matrix(), (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    canvas[:height, :width] = content
    return canvas


def warp_mask(crop: NDArray[np.uint8], origin: tuple[int, int], view: View) -> NDArray[np.uint8]:
    """Lay a binary mask, cropped out of its picture at `origin` (x, y), on the canvas.

    Returns:
        `(H, W)` uint8, 0 or 1.
    """
    mask = np.zeros(view.canvas_hw, np.uint8)
    height, width = view.content_hw
    warped = cv2.warpAffine(crop * 255, view.matrix(origin), (width, height), flags=cv2.INTER_LINEAR)
    mask[:height, :width] = warped > 127
    return mask
