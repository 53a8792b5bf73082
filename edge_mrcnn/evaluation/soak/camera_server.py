"""Cameras that misbehave when told to: MJPEG over HTTP on the loopback. A program, run in a process of its own.

It prints its ports as JSON, then carries out commands from standard input, a line of JSON each:
`{"camera": 0, "fault": "stall", "seconds": 3}`. It ends when its input ends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import deque

import cv2

from edge_mrcnn.runtime.sources import open_source

SIZES = ((640, 480), (320, 240))
PICTURES = 24
QUALITY = 80

BOUNDARY = b"soak"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=" + BOUNDARY + b"\r\n\r\n"
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)
_LOOK_S = 0.1


class Camera:
    """One camera on a port of its own, which it keeps when it comes back."""

    def __init__(self, pictures: list[list[bytes]], fps: float) -> None:
        """Serve pictures, given as JPEG by size, in turn."""
        self._pictures = pictures
        self._period_s = 1 / fps
        self._size = 0
        self._until = dict.fromkeys(("die", "refuse", "stall"), 0.0)
        self._spoilt: deque[str] = deque()
        self._numbers = itertools.count()
        listener = _listen(0)
        self.port: int = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def misbehave(self, fault: str, seconds: float) -> None:
        """Begin a fault: `die`, `refuse` and `stall` for some time, others with the next picture."""
        if fault in self._until:
            self._until[fault] = time.monotonic() + seconds
        elif fault == "resize":
            self._size = (self._size + 1) % len(self._pictures)
        else:
            self._spoilt.append(fault)

    def _is(self, fault: str) -> bool:
        return time.monotonic() < self._until[fault]

    def _accept(self, listener: socket.socket) -> None:
        while True:
            if self._is("die"):
                listener.close()
                while self._is("die"):
                    time.sleep(_LOOK_S)
                listener = _listen(self.port)
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            try:
                connection.recv(4096)
                if self._is("refuse"):
                    connection.sendall(_REFUSAL)
                    return
                connection.sendall(_HEAD)
                self._send_pictures(connection)
            except OSError:
                return  # the client left
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)  # as when a camera loses its power

    def _send_pictures(self, connection: socket.socket) -> None:
        due = time.monotonic()
        while not self._is("die") and not self._is("refuse"):
            due = max(due + self._period_s, time.monotonic() - self._period_s)
            time.sleep(max(0.0, due - time.monotonic()))
            if self._is("stall"):
                continue
            fault = self._spoilt.popleft() if self._spoilt else ""
            for _ in range(8 if fault == "burst" else 1):
                connection.sendall(self._part(fault))

    def _part(self, fault: str) -> bytes:
        if fault == "garbage":
            return random.Random(next(self._numbers)).randbytes(5000)
        pictures = self._pictures[self._size]
        jpeg = pictures[next(self._numbers) % len(pictures)]
        head = b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (BOUNDARY, len(jpeg))
        return head + (jpeg[: len(jpeg) // 2] if fault == "cut" else jpeg) + b"\r\n"


def _listen(port: int) -> socket.socket:
    """A listening socket; one that was there a moment ago may take a while to free its port."""
    for left in range(50, -1, -1):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            if not left:
                raise
            time.sleep(_LOOK_S)
        else:
            break
    listener.listen()
    listener.settimeout(_LOOK_S)
    return listener


def make_pictures(show: str, size: tuple[int, int]) -> list[bytes]:
    """The first pictures of a source, in one size, as JPEG."""
    pictures = []
    with open_source(show) as source:
        for frame in itertools.islice(source, PICTURES):
            bgr = cv2.cvtColor(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
            pictures.append(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
    return pictures


def main() -> None:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cameras", type=int, required=True)
    parser.add_argument("--fps", type=float, required=True)
    parser.add_argument("--show", required=True)
    options = parser.parse_args()
    pictures = [make_pictures(options.show, size) for size in SIZES]
    cameras = [Camera(pictures, options.fps) for _ in range(options.cameras)]
    sys.stdout.write(json.dumps([camera.port for camera in cameras]) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        command = json.loads(line)
        cameras[command["camera"]].misbehave(command["fault"], command["seconds"])


if __name__ == "__main__":
    main()
