"""Sinks that block, and clients that are no joy to serve."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from types import TracebackType
from typing import Literal

from edge_mrcnn.detections import Detections
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture

_RESET = struct.pack("ii", 1, 0)


class BlockingSink:
    """Counts frames, and now and then takes its time.

    Attributes:
        uri: `block-record://` or `block-view://`.
        kind: As given.
        frames: Frames by camera.
    """

    wants_picture = False
    wants_stop = False
    main_thread = False

    def __init__(self, kind: Literal["view", "record"]) -> None:
        """Take a kind."""
        self.uri = f"block-{kind}://"
        self.kind = kind
        self.frames: dict[str, int] = {}
        self._until = 0.0

    def block(self, seconds: float) -> None:
        """Let whoever writes wait."""
        self._until = time.monotonic() + seconds

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Count a frame."""
        time.sleep(max(0.0, self._until - time.monotonic()))
        self.frames[frame.camera] = self.frames.get(frame.camera, 0) + 1

    def close(self) -> None:
        """Nothing to finish."""

    def __enter__(self) -> BlockingSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DeafClients:
    """Clients of the page that ask for a stream and never read it, each for some time."""

    def __init__(self, port: int, camera: str) -> None:
        """Take the page's port, and whose stream to ask for."""
        self._port, self._camera = port, camera
        self._open: list[tuple[float, socket.socket]] = []

    def listen_never(self, seconds: float) -> None:
        """One more client, for some seconds."""
        with contextlib.suppress(OSError):  # the page may be full
            self._open.append((time.monotonic() + seconds, self._ask()))

    def break_off(self) -> None:
        """Ask for a stream, take a little of it and be gone without a word."""
        with contextlib.suppress(OSError), self._ask() as client:
            client.recv(2000)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def tend(self) -> None:
        """Let those leave whose time is over."""
        now = time.monotonic()
        for until, client in self._open:
            if until <= now:
                client.close()
        self._open = [(until, client) for until, client in self._open if until > now]

    def close(self) -> None:
        """Let all leave."""
        for _, client in self._open:
            client.close()
        self._open = []

    def _ask(self) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self._port), timeout=2)
        client.sendall(f"GET /cameras/{self._camera}.mjpeg HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode())
        return client


def find_free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
