"""Servers that a test breaks on purpose, and what waits for their clients to notice."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.lane import Lane

SYSTEM_PYTHON = "/usr/bin/python3"
PATIENCE_S = 30.0
"""For what comes at once on a machine that is not busy."""


class RtspServer:
    """GStreamer's RTSP server in a process of its own; skips the test where Debian's packages are missing."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def url(self, camera: int = 0, userinfo: str = "") -> str:
        return f"rtsp://{userinfo}127.0.0.1:{self.port}/{camera}"

    def start(self) -> None:
        """Start, on the same port as before if there was one."""
        if not Path(SYSTEM_PYTHON).exists():
            pytest.skip(f"there is no {SYSTEM_PYTHON} to run GStreamer's RTSP server")
        script = str(Path(__file__).parent / "rtsp_server.py")
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, script, "--port", str(self.port), *self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            said = self._process.communicate()[1].strip()
            if any(absent in said for absent in ("No module named 'gi'", "Namespace", "GStreamer has no")):
                pytest.skip(f"GStreamer's RTSP server cannot run here: {said.splitlines()[-1]}")
            raise AssertionError(said)
        self.port = int(said)

    def tell(self, command: str) -> None:
        """Give a command and wait until it is carried out."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def die(self) -> None:
        """Die without a word to anyone."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()


class Damage:
    """Stands between an RTSP client and its server and, when told to, spoils one in `every` bytes of the pictures.

    The headers of packets are let be: without them nothing at all would arrive.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self.every = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
                threading.Thread(target=self._to_client, args=(server, client), daemon=True).start()

    def _to_server(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client, server:
            while data := client.recv(65536):
                server.sendall(data)

    def _to_client(self, server: socket.socket, client: socket.socket) -> None:
        rng = np.random.default_rng(0)
        waiting = b""
        with contextlib.suppress(OSError), server, client:
            while data := server.recv(65536):
                waiting += data
                while (size := _first_piece(waiting)) and size <= len(waiting):
                    client.sendall(self._spoilt(waiting[:size], rng))
                    waiting = waiting[size:]

    def _spoilt(self, piece: bytes, rng: np.random.Generator) -> bytes:
        if not self.every or piece[:2] != b"$\0":
            return piece
        found = np.frombuffer(piece, np.uint8).copy()
        hit = rng.random(len(found)) < 1 / self.every
        hit[:20] = False
        found[hit] ^= rng.integers(1, 256, int(hit.sum()), dtype=np.uint8)
        return found.tobytes()

    def __enter__(self) -> Damage:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()


def _first_piece(data: bytes) -> int:
    """Bytes of the first packet, or of the text before it; 0 when that cannot be said yet."""
    if not data.startswith(b"$"):
        return data.find(b"$") if b"$" in data else len(data)
    return 4 + int.from_bytes(data[2:4], "big") if len(data) >= 4 else 0


class MjpegServer:
    """A camera that speaks Motion JPEG over HTTP, or what else it is told, and does as `write` says for each client."""

    def __init__(
        self, write: Callable[[Callable[[bytes], None]], None], kind: str = "multipart/x-mixed-replace; boundary=next"
    ) -> None:
        self.seen: list[str] = []
        self.paths: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.paths.append(self.path)
                outer.seen.append(self.headers.get("Authorization", ""))
                if outer.password and not outer.seen[-1].endswith(outer.password):
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                with contextlib.suppress(OSError):
                    write(self.wfile.write)

            def log_message(self, *_: object) -> None: ...

        self.password = ""
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, userinfo: str = "") -> str:
        return f"http://{userinfo}127.0.0.1:{self.port}/video.mjpg"

    def __enter__(self) -> MjpegServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def jpeg(number: int, size_wh: tuple[int, int] = (96, 64)) -> bytes:
    """A picture with some detail, as a camera would send it."""
    image = np.full((size_wh[1], size_wh[0], 3), 90, np.uint8)
    cv2.putText(image, str(number), (5, 50), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (240, 250, 255), 3)
    return cv2.imencode(".jpg", image)[1].tobytes()


def part(data: bytes) -> bytes:
    """One picture of a Motion JPEG stream."""
    return b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)


def frames_of(lane: Lane, timeout_s: float = PATIENCE_S) -> Iterator[Frame]:
    """Frames as they come; fails when none comes for too long."""
    while True:
        assert lane.wait(timeout_s), f"no frame: {lane.health}"
        assert not lane.ended, lane.error
        frame = lane.take()
        if frame is not None:
            yield frame


def wait_for(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> float:
    """Wait until something is so; gives how long that took in seconds."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + timeout_s, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - begin
