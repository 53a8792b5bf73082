"""Sinks that do what a test wants: real ones write files, these hold things up."""

from __future__ import annotations

import threading
import time

from edge_mrcnn import Detections, Frame, StreamError


class SinkOfTest:
    """Keeps what it was given.

    Attributes:
        seen: Camera and index of each frame.
        go: Cleared, `write` waits for it.
        threads: Names of the threads that wrote.
        fails_at: Raise at this frame.
        stops_at: Want to stop from this frame on.
    """

    wants_picture = False
    main_thread = False

    def __init__(self, kind: str = "record", *, pause_s: float = 0.0, fails_at: int = 0, stops_at: int = 0) -> None:
        self.kind, self.uri = kind, f"{kind}://test"
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.pause_s, self.fails_at, self.stops_at = pause_s, fails_at, stops_at
        self.seen: list[tuple[str, int]] = []
        self.frames: list[Frame] = []
        self.detections: list[Detections] = []
        self.threads: set[str] = set()
        self.wants_stop = False
        self.closed = False

    def write(self, frame, detections, annotated=None) -> None:
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.go.wait(60)
        time.sleep(self.pause_s)
        if self.wants_picture:
            annotated()
        if self.fails_at and len(self.seen) + 1 >= self.fails_at:
            raise StreamError("the disk is full")
        self.seen.append((frame.camera, frame.index))
        self.frames.append(frame)
        self.detections.append(detections)
        self.wants_stop = bool(self.stops_at) and len(self.seen) >= self.stops_at

    def of(self, camera: str) -> list[int]:
        """Indices of one camera's frames."""
        return [index for name, index in self.seen if name == camera]

    def close(self) -> None:
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()
