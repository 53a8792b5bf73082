"""`Frame`: one picture, where it came from and when."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: `(H, W, 3)` uint8, RGB.
        source: The URI that the picture came from.
        index: Position in the source, from 0. Live sources drop frames, so indices may have gaps.
        captured_ns: When the host received it, monotonic clock, nanoseconds: for latency only.
        stamp_ns: When it was taken, wall clock, nanoseconds: for records and ROS; never mixed with `captured_ns`.
        stamp_source: What set `stamp_ns`: `host` (arrival), `file` (position in a video) or `device` (the camera).
        frame_id: Name of the camera's coordinate frame, as ROS has it; empty where there is none.
    """

    image: npt.NDArray[np.uint8]
    source: str = ""
    index: int = 0
    captured_ns: int = field(default_factory=time.monotonic_ns)
    stamp_ns: int = field(default_factory=time.time_ns)
    stamp_source: str = "host"
    frame_id: str = ""

    def __post_init__(self) -> None:
        """Refuse anything but RGB bytes, where the mistake is made rather than inside a network.

        Raises:
            TypeError: `image` is not a uint8 array.
            ValueError: `image` is not `(H, W, 3)` or has no pixels.
        """
        image: Any = self.image
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            got = getattr(image, "dtype", type(image).__name__)
            raise TypeError(f"Frame.image must be a uint8 array (H, W, 3) in RGB, got {got}")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"Frame.image must be (H, W, 3) RGB with at least one pixel, got shape {image.shape}")

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]
