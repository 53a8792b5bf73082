"""What a caller gives to an engine, checked and seen where it lies: NumPy arrays, or arrays on the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.frame import Frame, PixelFormat
from edge_mrcnn.gpu.arrays import ArrayView, Shape, check_array, is_gpu_array, view_array
from edge_mrcnn.gpu.cuda import Stream
from edge_mrcnn.gpu.execution import EngineTensor

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RawPicture:
    """A picture as a camera or decoder gave it.

    Attributes:
        pixels: `(h, w, 3)` uint8 of RGB, `(3/2 h, w)` uint8 of NV12.
        hw: Height and width in pixels.
        format: What the bytes mean.
    """

    pixels: Array | ArrayView
    hw: tuple[int, int]
    format: PixelFormat = "rgb"


def take_feeds(
    feeds: Mapping[str, Any], inputs: Sequence[EngineTensor], stream: Stream, ordinal: int
) -> tuple[dict[str, Array | ArrayView], int]:
    """Check an engine's inputs.

    Args:
        feeds: Every input by name.
        inputs: The engine's.
        stream: Will read those on the GPU; it waits for their producers.
        ordinal: The GPU.

    Returns:
        The inputs, and the number of pictures in them.

    Raises:
        TypeError: One has another type.
        ValueError: One is missing, unknown or of another shape, or they differ in the number of pictures.
    """
    names = [item.name for item in inputs]
    if set(feeds) != set(names):
        raise ValueError(f"the inputs of the network are {', '.join(names)}, got {', '.join(feeds) or 'none'}")
    taken = {
        item.name: _take(feeds[item.name], item.name, item.dtype, (None, *item.shape[1:]), stream, ordinal)
        for item in inputs
    }
    rows = {name: value.shape[0] for name, value in taken.items()}
    if len(set(rows.values())) != 1:
        raise ValueError(f"the inputs must have the same number of pictures, got {rows}")
    return taken, next(iter(rows.values()))


def take_pictures(pictures: Sequence[Any], stream: Stream, ordinal: int) -> list[RawPicture]:
    """Check raw pictures.

    Args:
        pictures: A `Frame`, whose NV12 stays NV12, or `(h, w, 3)` uint8 RGB each.
        stream: Will read those on the GPU; it waits for their producers.
        ordinal: The GPU.

    Raises:
        TypeError: One is not uint8.
        ValueError: One is not `(h, w, 3)`.
    """
    taken = []
    for index, picture in enumerate(pictures):
        if isinstance(picture, Frame):
            taken.append(RawPicture(picture.pixels, picture.image_hw, picture.pixel_format))
            continue
        name = f"pictures[{index}]"
        pixels = _take(picture, name, "uint8", (None, None, 3), stream, ordinal)
        if 0 in pixels.shape:
            raise ValueError(f"{name} is empty: {pixels.shape}")
        taken.append(RawPicture(pixels, (pixels.shape[0], pixels.shape[1])))
    return taken


def _take(value: Any, name: str, dtype: str, shape: Shape, stream: Stream, ordinal: int) -> Array | ArrayView:
    if is_gpu_array(value):
        return view_array(value, stream, name, dtype, shape, ordinal)
    array = np.asarray(value)
    check_array(name, array, dtype, shape)
    return array
