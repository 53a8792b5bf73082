"""Live sources: how they come back, what they count and what they say, with connections made for the purpose."""

import logging
import threading
from collections.abc import Callable, Iterator
from itertools import islice

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.live import LiveSource

URI = "rtsp://jane:pa55@cam/live"
PIXELS = np.zeros((4, 6, 3), np.uint8)


class Connection:
    """Gives so many frames, with one damaged packet, and then breaks."""

    fps = 25.0

    def __init__(self, frames: int) -> None:
        self.left = frames
        self.damaged = 0
        self.closed = 0

    def read(self) -> Frame:
        if not self.left:
            raise StreamError(f"{URI} broke")
        self.left -= 1
        self.damaged = 1
        return Frame(PIXELS)

    def close(self) -> None:
        self.closed += 1


class Camera:
    """Each connection gives as many frames as it is told to; where that is None, it cannot be made."""

    def __init__(self, *frames: int | None) -> None:
        self._script = iter(frames)
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        frames = next(self._script)
        if frames is None:
            raise StreamError(f"cannot log in to {URI} as jane with pa55")
        self.connections.append(Connection(frames))
        return self.connections[-1]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the source waited before each attempt; it does not wait in truth."""
    waited: list[float] = []

    def pause(self: LiveSource, stop: threading.Event, seconds: float) -> bool:
        waited.append(seconds)
        return not self._over(stop)

    monkeypatch.setattr(LiveSource, "_pause", pause)
    return waited


def read(camera: Camera, count: int, **options: str) -> tuple[LiveSource, list[Frame]]:
    source = LiveSource(URI, camera.connect, name="cam", **options)  # type: ignore[arg-type]
    return source, list(islice(source.read_on(threading.Event()), count))


def test_only_the_first_connection_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StreamError) as caught:
        LiveSource(URI, Camera(None).connect, name="cam")
    assert str(caught.value) == "cannot log in to rtsp://***@cam/live as *** with ***"
    assert caught.value.__cause__ is None
    assert not caplog.records


def test_it_comes_back_for_ever_and_waits_longer_each_time(pauses: list[float]) -> None:
    camera = Camera(1, *[None] * 8, 1, None, 2)
    source, frames = read(camera, 4, frame_id="optical")
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30, 30, 1, 2]
    assert [(frame.index, frame.camera, frame.source) for frame in frames] == [
        (index, "cam", "rtsp://***@cam/live") for index in range(4)
    ]
    assert frames[0].frame_id == "optical"
    found = source.health
    assert (found.state, found.frames, found.reconnects, found.image_hw) == ("live", 4, 2, (4, 6))
    assert found.damaged == 3  # one of each connection
    assert found.error == "cannot log in to rtsp://***@cam/live as *** with ***"
    assert [connection.closed for connection in camera.connections] == [1, 1, 0]
    source.close()
    source.close()
    assert [connection.closed for connection in camera.connections] == [1, 1, 1]


def test_a_server_that_accepts_and_sends_nothing_is_not_hammered(pauses: list[float]) -> None:
    read(Camera(1, 0, 0, 0, 1), 2)
    assert pauses == [1, 2, 4, 8]


@pytest.mark.usefixtures("pauses")
def test_the_log_tells_of_a_loss_and_of_the_return_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read(Camera(1, None, 0, None, 2), 3)
    assert [record.message for record in caplog.records] == [
        "rtsp://***@cam/live is lost: rtsp://***@cam/live broke; connecting again until it is back",
        "rtsp://***@cam/live is back",
    ]


def test_states() -> None:
    source = LiveSource(URI, Camera(2).connect, name="cam")
    assert source.health.state == "connecting"
    stop = threading.Event()
    frames = source.read_on(stop)
    next(frames)
    assert source.health.state == "live"
    source.close()
    assert source.health.state == "ended"
    with pytest.raises(StopIteration):
        next(frames)
    assert source.health.state == "ended"
    with pytest.raises(StreamError, match="is closed; open it again"):
        next(source.read_on(stop))


@pytest.mark.parametrize("how", ["stop", "close"])
def test_the_wait_between_two_attempts_is_cut_short(how: str) -> None:
    source = LiveSource(URI, Camera(0, None).connect, name="cam")
    stop = threading.Event()
    reader = threading.Thread(target=lambda: list(source.read_on(stop)), daemon=True)
    reader.start()
    stop.set() if how == "stop" else source.close()
    reader.join(10)
    assert not reader.is_alive()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(19, "No such device"), "[Errno 19] No such device"),
        (cv2.error(f"cannot decode {URI}"), "error: cannot decode rtsp://***@cam/live"),
        (MemoryError("no room for pa55"), "MemoryError: no room for ***"),
    ],
)
def test_whatever_a_library_throws_the_camera_is_not_given_up(error: Exception, said: str, pauses: list[float]) -> None:
    class Broken(Connection):
        def read(self) -> Frame:
            raise error

        def close(self) -> None:
            raise error

    def refuse() -> Connection:
        raise error

    connections: Iterator[Callable[[], Connection]] = iter((lambda: Broken(1), refuse, lambda: Connection(1)))
    source = LiveSource(URI, lambda: next(connections)(), name="cam")
    assert len(list(islice(source.read_on(threading.Event()), 1))) == 1
    assert source.health.error == said
    assert pauses == [1, 2]
