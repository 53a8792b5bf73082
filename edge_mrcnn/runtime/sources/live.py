"""Cameras that never stop: connections that come back, and the newest frame for whoever is slow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from edge_mrcnn.frame import Frame

CameraState = Literal["connecting", "live", "lost", "ended"]

Drop = Literal["auto", "oldest", "never"]
"""What happens to frames that nobody takes in time. `oldest`: the newest one waits, the rest are counted as dropped.
`never`: the source waits. `auto`: cameras drop, files wait."""

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
"""Waits between attempts to connect: 1, 2, 4 ... 30 s, for ever."""


@dataclass(frozen=True)
class SourceHealth:
    """How a source is doing.

    Attributes:
        state: `connecting` at first, `live` while frames come, `lost` between connections, `ended` after the last frame.
        frames: Frames received.
        dropped: Of these, frames that nobody took in time.
        damaged: Pictures or packets that could not be decoded.
        reconnects: Connections made after the first.
        error: Why it was lost last, without credentials; empty when it never was.
        image_hw: Height and width of the last frame; None before the first.
    """

    state: CameraState = "connecting"
    frames: int = 0
    dropped: int = 0
    damaged: int = 0
    reconnects: int = 0
    error: str = ""
    image_hw: tuple[int, int] | None = None


class Capture(Protocol):
    """One connection to a camera. Opened, read and closed by one thread."""

    @property
    def fps(self) -> float | None:
        """Frames per second as the camera says, None where it does not."""

    @property
    def damaged(self) -> int:
        """Pictures or packets that could not be decoded so far."""

    def read(self) -> Frame:
        """The next frame; waits for it, but never longer than the timeout that the capture was opened with.

        Raises:
            StreamError: The connection is lost, or nothing came in time.
        """

    def close(self) -> None:
        """Give everything back. A second call does nothing."""
