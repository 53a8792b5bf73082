"""What the tests of the live page share: frames, a run's status, and clients."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from edge_mrcnn import Detections, Frame
from edge_mrcnn.runtime.metrics import CameraStatus, Percentiles, RunStatus, SinkStatus
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sinks.web import WebSink

NAMES = ("__background__", "mug", "bowl")
DEADLINE_S = 60.0


def frame(level: int = 80, camera: str = "front", size: tuple[int, int] = (48, 64), index: int = 0) -> Frame:
    return Frame(np.full((*size, 3), level, np.uint8), source="test://", index=index, camera=camera)


def found(size: tuple[int, int] = (48, 64), labels: tuple[int, ...] = (1,)) -> Detections:
    boxes = np.tile(np.array([[8.0, 8, 40, 40]]), (len(labels), 1))
    return Detections(boxes, np.full(len(labels), 0.9), np.array(labels), size)


def camera(name: str, state: str = "live", error: str = "", counts: dict[str, int] | None = None) -> CameraStatus:
    latency = Percentiles(100, 41.0, 40.0, 60.0)
    return CameraStatus(
        name, "rtsp://10.0.0.2/live", state, 110, 100, 7, 2, 3, 12.5, latency, counts or {}, (48, 64), error
    )


def run_of(*cameras: CameraStatus, sinks: tuple[SinkStatus, ...] = ()) -> RunStatus:
    healthy = all(each.state in ("live", "ended") for each in cameras) and not any(sink.error for sink in sinks)
    stages = {"infer": Percentiles(100, 30.0, 30.0, 35.0), "track": Percentiles(0, 0.0, 0.0, 0.0)}
    return RunStatus("tabletop", "onnxruntime-cpu", 61.0, 12.5, cameras, sinks, stages, healthy)


def open_page(query: str = "", status: Callable[[], RunStatus] | None = None) -> WebSink:
    return WebSink(f"mjpeg://127.0.0.1:0{query}", SinkOptions(class_names=NAMES, status=status))


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gives as soon as that is something."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {DEADLINE_S} s")


def get(
    url: str, path: str, headers: dict[str, str] | None = None, method: str = "GET", body: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own; nothing is followed."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_S)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


class Stream:
    """An open MJPEG stream."""

    def __init__(self, url: str, path: str = "/cameras/front.mjpeg") -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE_S)
        self._connection.request("GET", path)
        self.response = self._connection.getresponse()

    def read(self) -> bytes:
        """The next JPEG."""
        assert self.response.readline().strip() == b"--frame"
        length = 0
        while line := self.response.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        jpeg = self.response.read(length)
        assert jpeg[:2] == b"\xff\xd8"
        assert jpeg[-2:] == b"\xff\xd9"
        assert self.response.readline() == b"\r\n"
        return jpeg

    def close(self) -> None:
        self.response.close()
        self._connection.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def descriptors() -> set[str]:
    """Sockets and the like that this process has open."""
    return set(_links(Path("/proc/self/fd")))


def _links(folder: Path) -> Iterator[str]:
    for link in folder.iterdir():
        try:
            yield f"{link.name} {link.readlink()}"
        except FileNotFoundError:  # the one that listed the folder
            continue


def wait_for_camera(sink: WebSink, count: int = 1) -> dict[str, Any]:
    def enough() -> dict[str, Any] | None:
        status = read_status(sink)
        return status if len(status["cameras"]) >= count else None

    return wait_until(enough, f"{count} cameras in the status")


def read_status(sink: WebSink) -> dict[str, Any]:
    code, _, body = get(sink.url, "/status.json")
    assert code == 200
    return json.loads(body)


def ask(sink: WebSink, text: str = "GET /cameras/front.mjpeg HTTP/1.1\r\nHost: localhost\r\n\r\n") -> socket.socket:
    """A client that asks and never reads."""
    client = socket.create_connection(("127.0.0.1", int(sink.url.split(":")[2][:-1])), timeout=10)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(text.encode())
    return client
