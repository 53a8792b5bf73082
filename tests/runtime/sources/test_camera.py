"""Cameras of this machine: no machine that tests has one, so a stand-in for OpenCV's capture answers."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources import camera as cameras
from edge_mrcnn.runtime.sources import live, open_source
from edge_mrcnn.runtime.sources.camera import CameraCapture
from edge_mrcnn.runtime.sources.live import LiveSource


class StandIn:
    """Gives three pictures and then no more."""

    def __init__(self, position_ms: Callable[[], float] = lambda: 0.0) -> None:
        self.wishes: dict[int, float] = {}
        self.left = 3
        self.released = 0
        self._position_ms = position_ms

    def set(self, key: int, value: float) -> bool:
        self.wishes[key] = value
        return True

    def get(self, key: int) -> float:
        return self._position_ms() if key == cv2.CAP_PROP_POS_MSEC else self.wishes.get(key, 0.0)

    def read(self):
        self.left -= 1
        return (True, np.full((4, 6, 3), (255, 0, 0), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[StandIn]]:
    """Plug in a camera; gives the connections that were made to it."""

    def plug(position_ms: Callable[[], float] = lambda: 0.0) -> list[StandIn]:
        connections: list[StandIn] = []

        def connect(path: str) -> StandIn:
            connections.append(StandIn(position_ms))
            return connections[-1]

        monkeypatch.setattr(cameras, "_open_device", connect)
        return connections

    return plug


def test_missing_camera() -> None:
    with pytest.raises(StreamError, match=r"no camera /dev/video97; cameras here: "):
        CameraCapture("/dev/video97")


def test_a_file_is_no_camera(tmp_path: Path) -> None:
    path = tmp_path / "video0"
    path.write_bytes(b"")
    with pytest.raises(StreamError, match=r"cannot be opened; it may be in use \(fuser -v"):
        CameraCapture(str(path))


def test_camera(plug_in: Callable[..., list[StandIn]]) -> None:
    connections = plug_in()
    capture = CameraCapture("/dev/video0", width=640, height=480, fps=30, fourcc="MJPG")
    assert capture.fps == 30
    assert connections[0].wishes[cv2.CAP_PROP_FRAME_WIDTH] == 640
    assert connections[0].wishes[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    frames = [capture.read() for _ in range(3)]
    assert frames[0].image[0, 0].tolist() == [0, 0, 255]
    assert frames[0].stamp_source == "host"
    with pytest.raises(StreamError, match="gives no picture; check the cable"):
        capture.read()
    capture.close()
    capture.close()
    assert connections[0].released == 1
    with pytest.raises(StreamError, match="is closed"):
        capture.read()


@pytest.mark.parametrize(
    ("clock", "source"),
    [
        (lambda: time.monotonic_ns() / 1e6 - 50, "device"),  # what V4L2 drivers give
        (lambda: time.time_ns() / 1e6, "host"),  # a driver with another clock
        (lambda: 12.0, "host"),
        (lambda: -1.0, "host"),
        (lambda: float("nan"), "host"),
    ],
)
def test_stamps(plug_in: Callable[..., list[StandIn]], clock: Callable[[], float], source: str) -> None:
    plug_in(clock)
    before = time.time_ns()
    frame = CameraCapture("/dev/video0").read()
    assert frame.stamp_source == source
    age_ns = 50_000_000 if source == "device" else 0
    assert before - age_ns <= frame.stamp_ns + 1000 <= time.time_ns() - age_ns + 1000


def test_it_is_plugged_in_again(
    plug_in: Callable[..., list[StandIn]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "FIRST_RETRY_S", 0.01)
    connections = plug_in()
    with caplog.at_level(logging.INFO), open_source("v4l2:///dev/video3?drop=never&frame_id=wrist") as source:
        assert isinstance(source, LiveSource)
        frames = [frame for frame, _ in zip(source, range(7), strict=False)]
        assert source.health.reconnects >= 2
    assert [frame.index for frame in frames] == list(range(7))
    assert {(frame.camera, frame.frame_id, frame.source) for frame in frames} == {
        ("video3", "wrist", "v4l2:///dev/video3?drop=never&frame_id=wrist")
    }
    assert "v4l2:///dev/video3?drop=never&frame_id=wrist is lost: camera /dev/video3 gives no picture" in caplog.text
    assert all(connection.released == 1 for connection in connections)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("v4l2:///dev/video0?fourcc=MJPEG", "option fourcc .* cannot be 'MJPEG'; expected four letters, such as MJPG"),
        ("v4l2:///dev/video0?drop=newest", "option drop .* expected one of auto, oldest, never"),
        ("v4l2:///dev/video0?timeout_s=0", "option timeout_s .* expected a positive number of seconds"),
        ("v4l2:///dev/video0?name=-", "option name .* expected a name for a camera"),
        ("v4l2:///dev/video0?colour=1", "unknown option 'colour'.*known: name, frame_id, drop, timeout_s, width"),
    ],
)
def test_wrong_options(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(uri)
