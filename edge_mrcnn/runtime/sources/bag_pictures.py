"""Pictures, depth and camera matrices out of ROS messages."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.frame import PixelFormat
from edge_mrcnn.runtime.opencv import quiet

Pixels = tuple[npt.NDArray[np.uint8], PixelFormat]

# Source: include/sensor_msgs/image_encodings.hpp of ROS's common_interfaces. ROS names a Bayer pattern from the first
# pixel on, OpenCV from the second pixel of the second row.
_TO_RGB: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "8UC4": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
}
"""Bytes a pixel, and OpenCV's conversion to RGB."""

_PER_METRE = {"16UC1": 1000, "mono16": 1000, "32FC1": 1}
"""Units of a depth picture in a metre. Source: REP 118."""


def is_picture(encoding: str) -> bool:
    """Whether an encoding is one of pictures to look at, rather than of depth or of counted objects."""
    return encoding in _TO_RGB or encoding == "nv12"


def image_pixels(message: Any) -> Pixels:
    """A picture of `sensor_msgs/Image`.

    Returns:
        `(H, W, 3)` RGB, or NV12 as it is.

    Raises:
        ValueError: The encoding is unknown or bytes are missing.
    """
    encoding, height, width = message.encoding, message.height, message.width
    if encoding == "nv12":
        return np.ascontiguousarray(_rows(message, height * 3 // 2)[:, :width]), "nv12"
    if encoding == "mono16":
        high = np.ascontiguousarray(_rows(message, height)[:, int(not message.is_bigendian) : 2 * width : 2])
        return np.asarray(cv2.cvtColor(high, cv2.COLOR_GRAY2RGB), np.uint8), "rgb"
    if encoding not in _TO_RGB:
        known = ", ".join(sorted([*_TO_RGB, "mono16", "nv12"]))
        raise ValueError(f"pictures in {encoding!r} are not known; known: {known}")
    channels, code = _TO_RGB[encoding]
    rows = _rows(message, height)[:, : channels * width]
    pixels = np.ascontiguousarray(rows).reshape((height, width, channels) if channels > 1 else (height, width))
    return pixels if code is None else np.asarray(cv2.cvtColor(pixels, code), np.uint8), "rgb"


def compressed_pixels(message: Any) -> Pixels:
    """A picture of `sensor_msgs/CompressedImage`, JPEG or PNG.

    Returns:
        `(H, W, 3)` RGB.

    Raises:
        ValueError: OpenCV cannot decode it.
    """
    with quiet():
        image = cv2.imdecode(np.asarray(message.data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"a compressed picture ({message.format!r}, {len(message.data)} bytes) cannot be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), "rgb"


def depth_metres(message: Any) -> npt.NDArray[np.float32]:
    """`(H, W)` metres of a depth picture in `16UC1` (millimetres) or `32FC1` (metres); 0 and NaN are unknown.

    Raises:
        ValueError: The encoding is another one or bytes are missing.
    """
    if message.encoding not in _PER_METRE:
        raise ValueError(f"depth in {message.encoding!r} is not known; known: {', '.join(_PER_METRE)}")
    kind = np.dtype(np.float32 if message.encoding == "32FC1" else np.uint16)
    rows = _rows(message, message.height)[:, : message.width * kind.itemsize]
    values = np.ascontiguousarray(rows).view(kind.newbyteorder(">" if message.is_bigendian else "<"))
    metres: npt.NDArray[np.float32] = values.astype(np.float32) / np.float32(_PER_METRE[message.encoding])
    return metres


class Lens(NamedTuple):
    """What a `sensor_msgs/CameraInfo` says.

    Attributes:
        matrix: `(3, 3)` float64 pinhole matrix, pixels.
        image_hw: Height and width of the pictures that it is for.
        distorted: The matrix does not describe the pictures as they are.
    """

    matrix: npt.NDArray[np.float64]
    image_hw: tuple[int, int]
    distorted: bool


def read_lens(message: Any, rectified: bool) -> Lens | None:
    """What a `sensor_msgs/CameraInfo` says of pictures that are rectified or not; None: the camera is not calibrated.

    ROS 1 writes `K`, `P` and `D` where ROS 2 writes `k`, `p` and `d`.
    """
    k, p, d = (np.asarray(getattr(message, name, getattr(message, name.upper(), ()))) for name in "kpd")
    straight = rectified or not np.any(d)
    matrix = p.reshape(3, 4)[:, :3] if straight and np.any(p) else k.reshape(3, 3)
    if not matrix[0, 0] > 0:
        return None
    return Lens(np.array(matrix, np.float64), (message.height, message.width), not straight)


def _rows(message: Any, count: int) -> npt.NDArray[np.uint8]:
    """`(count, step)` bytes; rows may be longer than their pixels."""
    data = np.asarray(message.data).view(np.uint8)
    if message.step < 1 or len(data) < count * message.step:
        raise ValueError(f"a picture of {count} rows of {message.step} bytes has {len(data)}")
    return data[: count * message.step].reshape(count, message.step)
