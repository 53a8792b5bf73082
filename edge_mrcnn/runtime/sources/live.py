"""Cameras that never stop: connections that come back, and the newest frame for whoever is slow."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Protocol

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.uri import camera_name, redact, scrub

logger = logging.getLogger(__name__)

CameraState = Literal["connecting", "live", "lost", "ended"]

Drop = Literal["auto", "oldest", "never"]
"""What happens to frames that nobody takes in time. `oldest`: the newest one waits, the rest are counted as dropped.
`never`: the source waits. `auto`: cameras drop, files wait."""

DROPS: tuple[Drop, ...] = ("auto", "oldest", "never")

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
"""Waits between attempts to connect: 1, 2, 4 ... 30 s, for ever."""

_LOOK_S = 0.1
"""How often a thread that waits looks whether the source was closed."""


def as_drop(text: str) -> Drop:
    """One of auto, oldest, never.

    Raises:
        ValueError: It is none of them.
    """
    for drop in DROPS:
        if text == drop:
            return drop
    raise ValueError(f"drop must be one of {', '.join(DROPS)}, got {text!r}")


def as_seconds(text: str) -> float:
    """A positive number of seconds.

    Raises:
        ValueError: It is none.
    """
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(f"a time must be a positive number of seconds, got {text!r}")
    return seconds


LIVE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "name": camera_name,
    "frame_id": str,
    "drop": as_drop,
    "timeout_s": as_seconds,
}
"""Options in the query that every live source has, and what converts them."""

TIMEOUT_S = 5.0
"""A camera that gives nothing for so long counts as lost, unless the URI says otherwise."""


@dataclass(frozen=True)
class SourceHealth:
    """How a source is doing.

    Attributes:
        state: `connecting` at first, `live` while frames come, `lost` from the loss of a connection to the next frame,
            `ended` after the last frame.
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
    """One connection to a camera. Used by one thread at a time."""

    @property
    def fps(self) -> float | None:
        """Frames per second as the camera says, None where it does not."""

    @property
    def damaged(self) -> int:
        """Pictures or packets that could not be decoded so far."""

    def read(self) -> Frame:
        """The next frame; waits for it, but never longer than the timeout that the capture was opened with.

        Its `source`, `index`, `camera` and, unless the capture knows better, `frame_id` are filled in by `LiveSource`.

        Raises:
            StreamError: The connection is lost, or nothing came in time.
        """

    def close(self) -> None:
        """Give everything back. A second call does nothing."""


class LiveSource:
    """A camera that is connected to again, for ever, whenever it is lost.

    Only the first connection may fail: whoever opens a camera that is not there wants to know. A camera that gives
    nothing for as long as its captures wait counts as lost.

    Attributes:
        uri: What was opened, without credentials.
        name: Of the camera.
        drop: What happens to frames that nobody takes in time.
        fps: Frames per second as the camera says, None where it does not.
        length: None: a camera has no end.
        live: True.
        skipped: 0.
    """

    length: int | None = None
    live = True
    skipped = 0

    def __init__(
        self, uri: str, open_capture: Callable[[], Capture], *, name: str, frame_id: str = "", drop: Drop = "auto"
    ) -> None:
        """Connect for the first time.

        Args:
            uri: Of the camera, credentials and all: none of them gets into a log or an error.
            open_capture: Makes a connection; raises `StreamError` where it cannot, or a library's `OSError`.
            name: Of the camera.
            frame_id: Name of its coordinate frame, empty where there is none.
            drop: What happens to frames that nobody takes in time.

        Raises:
            StreamError: The camera cannot be reached, or it gives no pictures.
        """
        self.uri = redact(uri)
        self.name = name
        self.drop: Drop = drop
        self._uri = uri
        self._open_capture = open_capture
        self._frame_id = frame_id
        self._lock = threading.Lock()  # of what `health` shows and of who owns the capture
        self._health = SourceHealth()
        self._dropped: Callable[[], int] = int
        self._closed = threading.Event()
        self._damaged_before = 0
        self._reading = False
        self._retry_s = FIRST_RETRY_S
        self._capture: Capture | None = self._connect()
        self.fps = self._capture.fps

    @property
    def health(self) -> SourceHealth:
        """How it is doing; may be read from any thread."""
        with self._lock:
            return replace(self._health, dropped=self._dropped())

    def __iter__(self) -> Iterator[Frame]:
        """The newest frame each time, or all of them where `drop` is `never`; waits while the camera is lost.

        The loop ends when the source is closed.

        Raises:
            StreamError: The source is closed, or already being read.
        """
        from edge_mrcnn.runtime.sources.lane import Lane  # a lane reads live sources in a way of its own

        lane = Lane(self)
        before = self.health.dropped
        self._dropped = lambda: before + lane.dropped
        lane.start()
        try:
            while not lane.ended:
                frame = lane.take() if lane.wait(_LOOK_S) else None
                if frame is not None:
                    yield frame
        finally:
            lane.stop()
        if lane.error is not None:
            raise lane.error

    def read_on(self, stop: threading.Event) -> Iterator[Frame]:
        """Every frame as it comes, whatever happens to the connection, until `stop` is set or the source is closed.

        `stop` is looked at between two frames and while the camera is lost: a camera that stalls just then is noticed
        when its capture's timeout is over.

        Raises:
            StreamError: The source is closed, or already being read.
        """
        self._take_over()
        try:
            while not self._over(stop):
                if self._capture is None and not self._reconnect(stop):
                    break
                frame = self._read_one()
                if frame is not None:
                    yield frame
        finally:
            with self._lock:
                self._reading = False
            if self._closed.is_set():
                self._release()

    def close(self) -> None:
        """Disconnect. A second call does nothing. A thread that reads just then disconnects when it is through."""
        self._closed.set()
        with self._lock:
            reading = self._reading
            self._health = replace(self._health, state="ended")
        if not reading:
            self._release()

    def __enter__(self) -> LiveSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_over(self) -> None:
        with self._lock:
            if self._closed.is_set():
                raise StreamError(f"{self.uri} is closed; open it again")
            if self._reading:
                raise StreamError(f"{self.uri} is already being read; open it a second time to read it twice")
            self._reading = True

    def _over(self, stop: threading.Event) -> bool:
        return stop.is_set() or self._closed.is_set()

    def _connect(self) -> Capture:
        """The first connection; what a library says about it is freed of the credentials."""
        try:
            return self._open_capture()
        except StreamError as error:
            raise StreamError(scrub(str(error), self._uri)) from None
        except OSError as error:
            raise StreamError(f"{self.uri} cannot be opened: {scrub(str(error), self._uri)}") from None

    def _read_one(self) -> Frame | None:
        """The next frame; None when the camera has just been lost."""
        assert self._capture is not None
        try:
            frame = self._capture.read()
        except Exception as error:  # whatever a library throws: a camera is never given up
            self._lose(error)
            return None
        with self._lock:
            before = self._health
            self._health = replace(
                before,
                state="ended" if self._closed.is_set() else "live",
                frames=before.frames + 1,
                damaged=self._damaged_before + self._capture.damaged,
                image_hw=frame.image_hw,
            )
        if before.state == "lost":
            logger.info("%s is back", self.uri)
        self._retry_s = FIRST_RETRY_S  # only now: some servers accept a connection and send nothing
        frame_id = frame.frame_id or self._frame_id
        return replace(frame, source=self.uri, index=before.frames, camera=self.name, frame_id=frame_id)

    def _lose(self, error: Exception) -> None:
        kind = "" if isinstance(error, (StreamError, OSError)) else f"{type(error).__name__}: "
        why = kind + scrub(str(error), self._uri)
        with self._lock:
            before = self._health
            if self._capture is not None:
                self._damaged_before += self._capture.damaged
            state: CameraState = "ended" if self._closed.is_set() else "lost"
            self._health = replace(before, state=state, damaged=self._damaged_before, error=why)
        self._release()
        if before.state != "lost" and not self._closed.is_set():
            logger.warning("%s is lost: %s; connecting again until it is back", self.uri, why)

    def _reconnect(self, stop: threading.Event) -> bool:
        """Try until there is a connection; False when told to stop."""
        while self._pause(stop, self._retry_s):
            self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
            try:
                capture = self._open_capture()
            except Exception as error:
                self._lose(error)
                continue
            self._capture, self.fps = capture, capture.fps
            with self._lock:
                self._health = replace(self._health, reconnects=self._health.reconnects + 1)
            return True
        return False

    def _pause(self, stop: threading.Event, seconds: float) -> bool:
        """Wait; False as soon as told to stop."""
        end = time.monotonic() + seconds
        while not self._over(stop):
            left = end - time.monotonic()
            if left <= 0:
                return True
            stop.wait(min(left, _LOOK_S))
        return False

    def _release(self) -> None:
        with self._lock:
            capture, self._capture = self._capture, None
        if capture is None:
            return
        try:
            capture.close()
        except Exception as error:  # what is lost anyway must not keep it from coming back
            logger.debug("%s: %s while disconnecting", self.uri, scrub(str(error), self._uri))
