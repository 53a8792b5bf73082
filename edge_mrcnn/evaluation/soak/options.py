"""How a soak goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SoakOptions:
    """How long, how many cameras, and how they behave."""

    minutes: float = 20.0
    """How long to run."""

    cameras: int = 3
    """Cameras served over HTTP. One more comes over RTSP where GStreamer's server is installed."""

    fps: float = 10.0
    """Frames per second of each camera."""

    show: str | None = None
    """What the cameras show, such as a video with objects that the model knows; a test pattern when not given."""

    seed: int = 0
    """Of the faults: the same seed gives the same ones at the same times."""

    timeout_s: float = 2.0
    """After this long without a frame a camera counts as lost."""

    threads: int = 0
    """CPU threads of the network; 0 for one per core."""

    most_growth_percent: float = 1.0
    """The soak fails when memory grows by this much."""

    keep: str | None = None
    """A folder for the recordings; they are removed when not given."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A field is out of range; the message names it.
        """
        for name, least in (("minutes", 0.25), ("cameras", 1), ("fps", 1), ("timeout_s", 0.5), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"SoakOptions.{name} must be at least {least}, got {getattr(self, name)}")
