"""Cameras whose frames, stalls and losses a test decides: real live sources over a capture of the test's own."""

from __future__ import annotations

import threading
import time

import numpy as np

from edge_mrcnn import Frame, StreamError
from edge_mrcnn.runtime.sources.live import LiveSource


class Camera:
    """What a test holds of a camera.

    Attributes:
        source: The live source.
        stalled: While it is set, nothing comes; reading gives up after `timeout_s`.
        unplugged: While it is set, reading and connecting fail at once.
    """

    def __init__(
        self, name: str, fps: float = 50.0, *, timeout_s: float = 5.0, drop: str = "auto", hw: tuple[int, int] = (8, 12)
    ) -> None:
        self.stalled, self.unplugged = threading.Event(), threading.Event()
        self.fps, self.timeout_s = fps, timeout_s
        self.pixels = np.full((*hw, 3), 80, np.uint8)
        self.source = LiveSource(f"scripted://{name}", lambda: _Capture(self), name=name, drop=drop)


class _Capture:
    damaged = 0

    def __init__(self, camera: Camera) -> None:
        if camera.unplugged.is_set():
            raise StreamError("the cable is out")
        self.fps = camera.fps
        self._camera = camera
        self._due = time.monotonic()
        self._closed = threading.Event()

    def read(self) -> Frame:
        end = time.monotonic() + self._camera.timeout_s
        while True:
            if self._camera.unplugged.is_set():
                raise StreamError("the cable is out")
            now = time.monotonic()
            if now > end:
                raise StreamError("nothing came in time")
            if now >= self._due and not self._camera.stalled.is_set():
                self._due = max(self._due + 1 / self.fps, now)
                return Frame(self._camera.pixels)
            self._closed.wait(min(max(self._due - now, 0.002), 0.02))

    def close(self) -> None:
        self._closed.set()


def wait_for(condition, timeout_s: float = 20.0) -> None:
    """Wait until `condition()` holds.

    Raises:
        AssertionError: It did not in time.
    """
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
