"""What makes instance maps of mask patches: one launch for up to 32 pictures (plugins/paste_masks/paste_masks.cuh)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from edge_mrcnn.gpu.launches import Launch, Tensor, ceil_div

SOURCE = "paste_masks/paste_masks.cuh"

# As in the source:
THREADS, TILE_WIDTH, TILE_HEIGHT = 256, 64, 32
MAX_PICTURES = 32

_MAX_ROWS = 0xFFFF
"""An instance map has 16 bits."""


class _Picture(ctypes.Structure):
    """`edge_mrcnn::PastePicture`."""

    _fields_ = (
        ("instances", ctypes.c_void_p),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("scale_x", ctypes.c_float),
        ("scale_y", ctypes.c_float),
    )


class Args(ctypes.Structure):
    """`edge_mrcnn::PasteMasksArgs` of plugins/paste_masks/args.cuh."""

    _fields_ = (
        ("masks", ctypes.c_void_p),
        ("boxes", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("num_detections", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("detections", ctypes.c_int),
        ("mask_size", ctypes.c_int),
        ("expansion", ctypes.c_float),
        ("score_threshold", ctypes.c_float),
        ("mask_threshold", ctypes.c_float),
        ("pictures", _Picture * MAX_PICTURES),
    )


def launches(
    masks: Tensor,
    boxes: Tensor,
    scores: Tensor,
    num_detections: Tensor,
    instances: Sequence[Tensor],
    contents: Sequence[tuple[int, int]],
    score_threshold: float = 0.0,
    threshold: float = 0.5,
) -> list[Launch]:
    """The launches, one for every 32 pictures.

    Rows count as the network gives them: a map's number is row + 1, also where a row before it was left out.

    Args:
        masks: `(B, D, M, M)` float32 or float16 probabilities, each patch stretched over its box.
        boxes: `(B, D, 4)` float32 xyxy in pixels of the canvas. Those that are not finite are left out.
        scores: `(B, D)` float32.
        num_detections: `(B,)` int32.
        instances: The map `(h, w)` uint16 of each picture, of the original's size; every pixel is written. As many as
            B, or fewer, where the batch is not full.
        contents: Height and width of each picture's content on the canvas.
        score_threshold: Detections with a lower score are left out.
        threshold: A pixel belongs to a mask where its probability is at least this.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    _check(masks, boxes, scores, num_detections)
    batch, detections, size, _ = masks.shape
    if not len(instances) == len(contents) <= batch:
        raise ValueError(f"got {len(instances)} maps and {len(contents)} contents for a batch of {batch}")
    made = []
    for first in range(0, len(instances), MAX_PICTURES):
        chunk = slice(first, first + MAX_PICTURES)
        pictures = [_describe(*pair) for pair in zip(instances[chunk], contents[chunk], strict=True)]
        args = Args(
            masks.address + first * detections * size * size * (2 if masks.dtype == "float16" else 4),
            boxes.address + first * detections * 16,
            scores.address + first * detections * 4,
            num_detections.address + first * 4,
            len(pictures),
            detections,
            size,
            (size + 2) / size,
            score_threshold,
            threshold,
            (_Picture * MAX_PICTURES)(*pictures),
        )
        tiles = (
            ceil_div(max(picture.width for picture in pictures), TILE_WIDTH),
            ceil_div(max(picture.height for picture in pictures), TILE_HEIGHT),
        )
        kernel = f"paste_masks_{'f16' if masks.dtype == 'float16' else 'f32'}"
        made.append(Launch(SOURCE, kernel, (*tiles, len(pictures)), THREADS, args))
    return made


def _describe(instances: Tensor, content_hw: tuple[int, int]) -> _Picture:
    if len(instances.shape) != 2 or min(instances.shape) < 1 or instances.dtype != "uint16":
        raise ValueError(f"a map must be (h, w) uint16 with a pixel at least, got {instances.shape} {instances.dtype}")
    height, width = instances.shape
    return _Picture(instances.address, width, height, content_hw[1] / width, content_hw[0] / height)


def _check(masks: Tensor, boxes: Tensor, scores: Tensor, num_detections: Tensor) -> None:
    batch, detections, size, other = masks.shape
    rows = batch, detections
    if size != other or size < 1 or (boxes.shape, scores.shape, num_detections.shape) != ((*rows, 4), rows, (batch,)):
        raise ValueError(
            f"masks (B, D, M, M), boxes (B, D, 4), scores (B, D) and num_detections (B,) do not fit: {masks.shape}, "
            f"{boxes.shape}, {scores.shape} and {num_detections.shape}"
        )
    if masks.dtype not in ("float32", "float16") or detections > _MAX_ROWS:
        raise ValueError(f"masks must be float32 or float16, of up to {_MAX_ROWS} detections, got {masks.dtype}")
