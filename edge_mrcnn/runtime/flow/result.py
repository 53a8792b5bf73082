"""`Result`: a frame and what was found in it, on its way to the sinks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from edge_mrcnn.detections import Detections
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import Picture

Draw = Callable[[Frame, Detections], Picture]
"""What draws detections into a copy of a frame."""


@dataclass
class Result:
    """A frame and what was found in it.

    Attributes:
        frame: The frame.
        detections: What was found.
        lane: Number of the lane that the frame came from.
        draw: Draws the picture that sinks may ask for.
        stages_ns: Time of each stage before the sinks, in the order of `metrics.STAGES`.
        handed_ns: When it was handed to the sinks, monotonic clock.
        written_ns: When the last sink so far had written it; `handed_ns` before the first.
        open: Sinks that have neither written nor missed it.
        whole: No sink that records has failed on it.
    """

    frame: Frame
    detections: Detections
    lane: int
    draw: Draw
    stages_ns: tuple[int, ...]
    handed_ns: int
    written_ns: int
    open: int
    whole: bool = True
    _picture: Picture | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def picture(self) -> Picture:
        """The annotated picture, drawn when the first sink asks; other sinks wait for that and get the same one."""
        with self._lock:
            if self._picture is None:
                self._picture = self.draw(self.frame, self.detections)
            return self._picture
