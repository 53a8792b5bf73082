"""Letterboxing: a picture of any size on the network's canvas, and boxes and points back from there.

Source: `GeneralizedRCNNTransform.resize` and `resize_boxes` in torchvision/models/detection/transform.py. The picture
is scaled by the smaller of the two ratios, its new sides are rounded down, it lies at the top left and the rest of the
canvas is zero; boxes go back by the ratios really used, one per axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Geometry:
    """Where a picture lies on the canvas.

    Attributes:
        original_hw: Height and width of the picture in pixels.
        content_hw: Height and width of its content on the canvas in pixels, from the top left.
    """

    original_hw: tuple[int, int]
    content_hw: tuple[int, int]

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Canvas pixels per picture pixel, for x and for y. They differ a little: both sides were rounded down."""
        return self.content_hw[1] / self.original_hw[1], self.content_hw[0] / self.original_hw[0]

    def unletterbox_boxes(self, xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Take boxes from the canvas to the picture and clip them to it.

        Args:
            xyxy: `(N, 4)` float32, pixels of the canvas.

        Returns:
            `(N, 4)` float32, pixels of the original picture.
        """
        boxes = np.asarray(xyxy, np.float32) / np.array(self.scale_xy * 2, np.float32)
        height, width = self.original_hw
        return np.clip(boxes, 0, np.array((width, height) * 2, np.float32))

    def unletterbox_points(self, points: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Take points from the canvas to the picture; those outside of it stay there.

        Args:
            points: `(..., 2 or more)` float32, x and y in pixels of the canvas first.

        Returns:
            The same with x and y in pixels of the original picture; what comes after them stays as it is.
        """
        moved = np.array(points, np.float32)
        moved[..., :2] /= np.array(self.scale_xy, np.float32)
        return moved


def fit(original_hw: tuple[int, int], input_hw: tuple[int, int]) -> Geometry:
    """How a picture of `original_hw` fits on a canvas of `input_hw`, both `(H, W)` in pixels.

    Whole numbers all the way: `floor(h * min(H / h, W / w))` in floating point loses a row now and then.
    """
    (height, width), (canvas_height, canvas_width) = original_hw, input_hw
    if canvas_height * width <= canvas_width * height:
        content = canvas_height, max(1, width * canvas_height // height)
    else:
        content = max(1, height * canvas_width // width), canvas_width
    return Geometry(original_hw, content)


def letterbox(
    image: npt.NDArray[np.uint8], input_hw: tuple[int, int], out: npt.NDArray[np.uint8] | None = None
) -> tuple[npt.NDArray[np.uint8], Geometry]:
    """Scale a picture onto a canvas.

    Bilinear without antialiasing, as `torch.nn.functional.interpolate(align_corners=False)`, within one grey level.

    Args:
        image: `(h, w, 3)` uint8.
        input_hw: Canvas `(H, W)` in pixels.
        out: `(H, W, 3)` uint8 to write into; whatever it held is overwritten.

    Returns:
        The canvas `(H, W, 3)` uint8, which is `out` where that was given, and where the picture lies on it.

    Raises:
        ValueError: `out` has another shape or type.

    Example:
        >>> canvas, geometry = letterbox(np.zeros((100, 200, 3), np.uint8), (64, 64))
        >>> geometry.content_hw
        (32, 64)
    """
    if out is None:
        out = np.empty((*input_hw, 3), np.uint8)
    elif out.shape != (*input_hw, 3) or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {(*input_hw, 3)}, got {out.dtype} {out.shape}")
    geometry = fit((image.shape[0], image.shape[1]), input_hw)
    height, width = geometry.content_hw
    if geometry.content_hw == geometry.original_hw:
        out[:height, :width] = image
    else:
        # A slice of an array with negative strides (`bgr[..., ::-1]`) is no picture to OpenCV.
        scaled = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_LINEAR)
        out[:height, :width] = scaled
    out[height:] = 0
    out[:height, width:] = 0
    return out, geometry


def letterbox_batch(
    images: Sequence[npt.NDArray[np.uint8]], input_hw: tuple[int, int], out: npt.NDArray[np.uint8] | None = None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], list[Geometry]]:
    """Scale pictures, of any sizes, onto the canvases of one batch.

    Args:
        images: B pictures, each `(h, w, 3)` uint8.
        input_hw: Canvas `(H, W)` in pixels.
        out: `(B, H, W, 3)` uint8 or more rows, to write into.

    Returns:
        `images (B, H, W, 3)` uint8 and `image_hw (B, 2)` float32, as the network takes them, and a geometry each.

    Raises:
        ValueError: `out` has another shape or type.
    """
    if out is None:
        out = np.empty((len(images), *input_hw, 3), np.uint8)
    elif out.ndim != 4 or len(out) < len(images):
        raise ValueError(f"out must be uint8 ({len(images)}, {input_hw[0]}, {input_hw[1]}, 3), got {out.shape}")
    geometries = [letterbox(image, input_hw, canvas)[1] for image, canvas in zip(images, out, strict=False)]
    content = np.array([geometry.content_hw for geometry in geometries], np.float32).reshape(-1, 2)
    return out[: len(images)], content, geometries
