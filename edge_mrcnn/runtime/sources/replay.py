"""A video or a test pattern played at its own pace, as a camera would give it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth
from edge_mrcnn.runtime.uri import redact

if TYPE_CHECKING:
    from edge_mrcnn.runtime.sources import Source

_LATE_NS = 100_000_000
"""Who takes frames later than this is not caught up with: the frames behind it come that much later too."""


def take_drop(uri: str, options: dict[str, Any], live: bool) -> Drop:
    """Take `drop` out of a URI's options.

    Raises:
        ValueError: Frames of a file shall be dropped: they are not, unless it is played as a camera.
    """
    drop: Drop = options.pop("drop", "auto")
    if drop == "oldest" and not live:
        raise ValueError(f"drop=oldest in {redact(uri)!r}: files never drop frames; with live=1 they play as a camera")
    return drop


class Replay:
    """Frames of a source when they are due by their positions in it, received and stamped by the host just then.

    Attributes:
        uri: Of the source.
        fps: Of the source.
        length: Of the source; None when it is played again and again.
        live: True.
        skipped: 0.
        name: Of the source.
        drop: What happens to frames that nobody takes in time.
        health: How it is doing; `damaged` is that of the present round.

    Example:
        >>> from edge_mrcnn.runtime.sources.pattern import PatternSource
        >>> with Replay(lambda: PatternSource((64, 48), frames=3, fps=100), loop=True) as source:
        ...     frames = iter(source)
        ...     [next(frames).index for _ in range(5)]
        [0, 1, 2, 3, 4]
    """

    live = True
    skipped = 0

    def __init__(self, open_source: Callable[[], Source], *, loop: bool = False, drop: Drop = "auto") -> None:
        """Open the source.

        Args:
            open_source: Opens it, for each round anew; its frames are stamped with their positions.
            loop: Begin again at the end.
            drop: What happens to frames that nobody takes in time.

        Raises:
            StreamError: It cannot be opened.
        """
        self.drop: Drop = drop
        self._open, self._loop = open_source, loop
        self._closed = threading.Event()
        self._source = open_source()
        self.uri, self.name, self.fps = self._source.uri, self._source.name, self._source.fps
        self.length = None if loop else self._source.length
        self.health = SourceHealth()

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they are due, until the source ends or is closed.

        Raises:
            StreamError: The source broke.
        """
        index = 0
        while not self._closed.is_set():
            for frame in self._paced(self._source):
                damaged = self._source.health.damaged
                self.health = SourceHealth("live", index + 1, damaged=damaged, image_hw=frame.image_hw)
                now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
                yield replace(frame, index=index, captured_ns=now_ns, stamp_ns=wall_ns, stamp_source="host")
                index += 1
            if not self._loop or self._closed.wait(1 / self.fps if self.fps else 0):
                break
            self._source.close()
            self._source = self._open()
        self.health = replace(self.health, state="ended", damaged=self._source.health.damaged)

    def _paced(self, frames: Source) -> Iterator[Frame]:
        begin_ns: int | None = None
        for frame in frames:
            now_ns = time.monotonic_ns()
            if begin_ns is None or now_ns - begin_ns - frame.stamp_ns > _LATE_NS:
                begin_ns = now_ns - frame.stamp_ns
            if self._closed.wait(max(begin_ns + frame.stamp_ns - now_ns, 0) / 1e9):
                return
            yield frame

    def close(self) -> None:
        """End the loop and close the source. A second call does nothing."""
        self._closed.set()
        self._source.close()

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
