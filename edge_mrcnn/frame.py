"""`Frame`: one picture, where it came from and when."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

PixelFormat = Literal["rgb", "nv12"]
"""What `Frame.pixels` hold: `(H, W, 3)` RGB, or NV12 as hardware decoders give it, `(3/2 H, W)`: H rows of luma, then
H/2 rows of interleaved U, V pairs; BT.601, limited range."""

StampSource = Literal["device", "sender", "file", "host"]
"""Who said when a frame was taken, best first: the camera's own clock brought to the wall clock; the sender's, as RTP's
reports or a ROS header carry it; the position in a file, which starts at 0; or this host when it arrived."""


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        pixels: `(H, W, 3)` uint8 RGB, or `(3/2 H, W)` uint8 with `pixel_format="nv12"`. Most readers want `image`.
        source: The URI that the picture came from, without credentials; of a folder, the file's path.
        index: Position in the source, from 0. Live sources drop frames, so indices may have gaps.
        captured_ns: When the host received it, monotonic clock, nanoseconds: for latency only.
        stamp_ns: When it was taken, nanoseconds: for records and ROS; never mixed with `captured_ns`. Wall clock, but
            of a file the position in it.
        stamp_source: Who said `stamp_ns`: `device`, `sender`, `file` or `host`.
        frame_id: Name of the camera's coordinate frame, as ROS has it; empty where there is none.
        camera: Name of the camera or stream, unique in a run: detections are tracked, shown and recorded by it.
        pixel_format: `rgb` or `nv12`.
        depth_m: `(H, W)` float32, metres along the optical axis at each pixel of the picture, 0 or NaN where unknown;
            None where there is no depth.
        intrinsics: `(3, 3)` float64 pinhole matrix of the rectified picture, pixels; None where unknown.
    """

    pixels: npt.NDArray[np.uint8]
    source: str = ""
    index: int = 0
    captured_ns: int = field(default_factory=time.monotonic_ns)
    stamp_ns: int = field(default_factory=time.time_ns)
    stamp_source: StampSource = "host"
    frame_id: str = ""
    camera: str = ""
    pixel_format: PixelFormat = "rgb"
    depth_m: npt.NDArray[np.float32] | None = None
    intrinsics: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Refuse anything but RGB or NV12 bytes, where the mistake is made rather than inside a network.

        Raises:
            TypeError: `pixels` is not a uint8 array.
            ValueError: `pixels` has another shape or no pixels, the depth another size, or the matrix is not 3 x 3.
        """
        pixels: Any = self.pixels
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            got = getattr(pixels, "dtype", type(pixels).__name__)
            raise TypeError(f"Frame.pixels must be a uint8 array (H, W, 3) in RGB, got {got}")
        if self.pixel_format == "nv12":
            if pixels.ndim != 2 or 0 in pixels.shape or pixels.shape[0] % 3 or pixels.shape[1] % 2:
                raise ValueError(f"Frame.pixels in NV12 must be (3/2 H, W) with even H and W, got shape {pixels.shape}")
        elif pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            raise ValueError(f"Frame.pixels must be (H, W, 3) RGB with at least one pixel, got shape {pixels.shape}")
        if self.depth_m is not None and self.depth_m.shape != self.image_hw:
            raise ValueError(
                f"Frame.depth_m must have the picture's size {self.image_hw} (H, W), got {self.depth_m.shape}"
            )
        if self.intrinsics is not None and self.intrinsics.shape != (3, 3):
            raise ValueError(f"Frame.intrinsics must be (3, 3), got {self.intrinsics.shape}")

    @cached_property
    def image(self) -> npt.NDArray[np.uint8]:
        """`(H, W, 3)` uint8 RGB; converted when it is first asked for."""
        if self.pixel_format == "rgb":
            return self.pixels
        import cv2  # only where pixels need converting: the core takes NumPy alone

        return np.asarray(cv2.cvtColor(self.pixels, cv2.COLOR_YUV2RGB_NV12), np.uint8)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.pixels.shape[:2]
        return (height * 2 // 3 if self.pixel_format == "nv12" else height), width
