"""What puts pictures onto the network's canvas: one launch for up to 32 pictures (plugins/letterbox/letterbox.cuh)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edge_mrcnn.gpu.launches import Launch, Tensor, ceil_div

SOURCE = "letterbox/letterbox.cuh"

PixelFormat = Literal["rgb", "bgr", "nv12"]
Color = Literal["bt601", "bt709", "bt601-full", "bt709-full"]

# As in the source:
THREADS, TILE_WIDTH, TILE_HEIGHT = 256, 32, 8
MAX_PICTURES = 32
_FORMATS: dict[PixelFormat, int] = {"rgb": 0, "bgr": 1, "nv12": 2}

_LUMA_SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
"""Of red and of blue. Source: ITU-R BT.601 and BT.709."""


@dataclass(frozen=True)
class Picture:
    """A picture in the GPU's memory.

    Attributes:
        address: Of its first pixel; of NV12: of the luma.
        hw: Height and width in pixels.
        format: `rgb` or `bgr`, 3 bytes a pixel; `nv12`, as video decoders give it.
        pitch: Bytes from one row to the next; None: rows follow each other without a gap.
        chroma: Address of the U, V pairs of NV12; None: they follow the luma's rows.
        chroma_pitch: Bytes from one row of pairs to the next; None: the luma's pitch, rounded up to even.
        color: What Y, U, V mean: BT.601 or BT.709 in limited range (luma 16 to 235), or `-full` (JPEG's is
            `bt601-full`).
    """

    address: int
    hw: tuple[int, int]
    format: PixelFormat = "rgb"
    pitch: int | None = None
    chroma: int | None = None
    chroma_pitch: int | None = None
    color: Color = "bt601"


class _ColorMatrix(ctypes.Structure):
    """`edge_mrcnn::ColorMatrix`."""

    _fields_ = tuple(
        (name, ctypes.c_float) for name in ("luma_offset", "luma_scale", "red_v", "green_u", "green_v", "blue_u")
    )


class _Picture(ctypes.Structure):
    """`edge_mrcnn::LetterboxPicture`."""

    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("chroma", ctypes.c_void_p),
        ("pitch", ctypes.c_longlong),
        ("chroma_pitch", ctypes.c_longlong),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("content_width", ctypes.c_int),
        ("content_height", ctypes.c_int),
        ("scale_x", ctypes.c_float),
        ("scale_y", ctypes.c_float),
        ("format", ctypes.c_int),
        ("matrix", _ColorMatrix),
    )


class Args(ctypes.Structure):
    """`edge_mrcnn::LetterboxArgs` of plugins/letterbox/args.cuh."""

    _fields_ = (
        ("canvas", ctypes.c_void_p),
        ("image_hw", ctypes.c_void_p),
        ("canvas_width", ctypes.c_int),
        ("canvas_height", ctypes.c_int),
        ("count", ctypes.c_int),
        ("pictures", _Picture * MAX_PICTURES),
    )


def launches(
    pictures: Sequence[Picture | Tensor],
    contents: Sequence[tuple[int, int]],
    canvas: Tensor,
    image_hw: Tensor | None = None,
) -> list[Launch]:
    """The launches, one for every 32 pictures.

    Args:
        pictures: B pictures of any sizes; a tensor `(h, w, 3)` uint8 is RGB.
        contents: Height and width of each picture's content on the canvas, from the top left.
        canvas: `(B, H, W, 3)` uint8 or more rows; RGB comes out, zero beside the content.
        image_hw: `(B, 2)` float32 or more rows, where the contents' sizes are written; None: nowhere.

    Raises:
        ValueError: The shapes do not fit each other, or a picture is not what its format says.
    """
    rows, height, width, _ = canvas.shape
    if len(pictures) != len(contents) or len(pictures) > rows:
        raise ValueError(f"got {len(pictures)} pictures, {len(contents)} contents and {rows} canvases")
    if image_hw is not None and image_hw.shape[0] < len(pictures):
        raise ValueError(f"image_hw must have a row for each of {len(pictures)} pictures, got {image_hw.shape}")
    described = [_describe(picture, hw, (height, width)) for picture, hw in zip(pictures, contents, strict=True)]
    made = []
    for first in range(0, len(described), MAX_PICTURES):
        chunk = described[first : first + MAX_PICTURES]
        args = Args(
            canvas.address + first * height * width * 3,
            image_hw.address + first * 8 if image_hw is not None else None,
            width,
            height,
            len(chunk),
            (_Picture * MAX_PICTURES)(*chunk),
        )
        grid = ceil_div(width, TILE_WIDTH), ceil_div(height, TILE_HEIGHT), len(chunk)
        made.append(Launch(SOURCE, "letterbox", grid, THREADS, args))
    return made


def _describe(picture: Picture | Tensor, content_hw: tuple[int, int], canvas_hw: tuple[int, int]) -> _Picture:
    if isinstance(picture, Tensor):
        if len(picture.shape) != 3 or picture.shape[2] != 3 or picture.dtype != "uint8":
            raise ValueError(f"a picture must be (h, w, 3) uint8, got {picture.shape} {picture.dtype}")
        picture = Picture(picture.address, (picture.shape[0], picture.shape[1]))
    (height, width), (content_height, content_width) = picture.hw, content_hw
    if min(height, width) < 1 or not (1 <= content_height <= canvas_hw[0] and 1 <= content_width <= canvas_hw[1]):
        raise ValueError(f"a picture of {picture.hw} cannot become {content_hw} on a canvas of {canvas_hw}")
    nv12 = picture.format == "nv12"
    row_bytes = width if nv12 else 3 * width
    pitch = row_bytes if picture.pitch is None else picture.pitch
    chroma_pitch = pitch + pitch % 2 if picture.chroma_pitch is None else picture.chroma_pitch
    if pitch < row_bytes or (nv12 and chroma_pitch < width + width % 2):
        raise ValueError(
            f"a pitch of {pitch} and {chroma_pitch} bytes is too short for {picture.format} of {width} pixels"
        )
    chroma = picture.address + pitch * height if picture.chroma is None else picture.chroma
    return _Picture(
        picture.address,
        chroma if nv12 else None,
        pitch,
        chroma_pitch,
        width,
        height,
        content_width,
        content_height,
        width / content_width,
        height / content_height,
        _FORMATS[picture.format],
        _matrix(picture.color),
    )


def _matrix(color: Color) -> _ColorMatrix:
    """From Y, U, V of 0 to 255, each as far from its zero as the range says, to R, G, B."""
    standard, _, full = color.partition("-")
    red, blue = _LUMA_SHARES[standard]
    green = 1 - red - blue
    offset, luma_scale, chroma_scale = (0, 1.0, 1.0) if full else (16, 255 / 219, 255 / 224)
    red_v, blue_u = 2 * (1 - red) * chroma_scale, 2 * (1 - blue) * chroma_scale
    return _ColorMatrix(offset, luma_scale, red_v, -blue_u * blue / green, -red_v * red / green, blue_u)
