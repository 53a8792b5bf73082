"""Motion JPEG over HTTP from cameras that cut pictures, fall silent, hang up or never answer."""

from __future__ import annotations

import gc
import io
import os
import socket
import threading
import time
from collections.abc import Callable
from itertools import count, islice, pairwise

import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources import live, open_source
from edge_mrcnn.runtime.sources.lane import Lane
from tests.faults.servers import MjpegServer, frames_of, jpeg, part, wait_for

pytest.importorskip("av", reason="PyAV is not installed")

Write = Callable[[bytes], None]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(live, "LAST_RETRY_S", 0.1)


def stream(write: Write, first: int = 0, last: int | None = None) -> None:
    """A picture every 20 ms."""
    for number in count(first) if last is None else range(first, last):
        write(part(jpeg(number % 10)))
        time.sleep(0.02)


def test_frames() -> None:
    with MjpegServer(stream) as server, open_source(server.url() + "?drop=never") as source:
        assert source.fps is None
        frames = list(islice(source, 20))
    assert [frame.index for frame in frames] == list(range(20))
    assert {frame.image.shape for frame in frames} == {(64, 96, 3)}
    assert {frame.stamp_source for frame in frames} == {"host"}
    assert {frame.camera for frame in frames} == {"cam_127_0_0_1"}
    assert all(one.captured_ns < two.captured_ns for one, two in pairwise(frames))
    assert abs(int(np.median(frames[0].image)) - 90) < 5  # the colours are what was sent


def test_a_password() -> None:
    with MjpegServer(stream) as server:
        server.password = "amFuZTpwQHNz"  # jane:p@ss, as HTTP writes it
        with open_source(server.url(userinfo="jane:p%40ss@")) as source:
            assert next(iter(source)).image_hw == (64, 96)
            assert "jane" not in source.uri
        with pytest.raises(StreamError, match="refuses the user or the password") as caught:
            open_source(server.url(userinfo="jane:wr0ng@"))
        assert "jane" not in str(caught.value)
        assert "wr0ng" not in str(caught.value)


def test_what_is_ours_in_the_query_is_not_sent() -> None:
    with MjpegServer(stream) as server, open_source(server.url() + "?name=a&channel=%31&timeout_s=3") as source:
        assert source.name == "a"
        assert server.paths == ["/video.mjpg?channel=%31"]


@pytest.mark.parametrize("share", [0.33, 0.6, 0.9])
def test_cut_pictures_are_counted_and_passed_over(share: float) -> None:
    def cut(write: Write) -> None:
        for number in count():
            whole = jpeg(number % 10, (320, 240))
            write(part(whole if number % 4 or number < 20 else whole[: round(share * len(whole))]))
            time.sleep(0.01)

    with MjpegServer(cut) as server, open_source(server.url() + "?drop=never") as source:
        lane = Lane(source)
        lane.start()
        for frame in frames_of(lane):
            assert frame.image_hw == (240, 320)
            if lane.health.damaged >= 5 and frame.index > 40:
                break
        assert lane.health.reconnects == 0
        lane.stop(10)


def test_a_picture_of_another_size() -> None:
    def grow(write: Write) -> None:
        stream(write, last=30)
        while True:
            write(part(jpeg(1, (160, 120))))
            time.sleep(0.02)

    with MjpegServer(grow) as server, open_source(server.url()) as source:
        assert next(frame.image_hw for frame in source if frame.image_hw != (64, 96)) == (120, 160)
        assert source.health.reconnects == 0


def test_a_camera_that_hangs_up_is_called_again() -> None:
    with MjpegServer(lambda write: stream(write, last=30)) as server, open_source(server.url()) as source:
        lane = Lane(source, drop="never")
        lane.start()
        assert len(list(islice(frames_of(lane), 70))) == 70
        lane.stop(10)
        assert lane.health.reconnects >= 2
        assert len(server.seen) >= 3


def test_silence_counts_as_lost() -> None:
    def fall_silent(write: Write) -> None:
        stream(write, last=30)
        time.sleep(60)

    with MjpegServer(fall_silent) as server, open_source(server.url() + "?timeout_s=0.5") as source:
        lane = Lane(source)
        lane.start()
        wait_for(lambda: lane.health.reconnects >= 2)
        assert lane.health.error == "no whole picture came for 0.5 s"
        lane.stop(10)


def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        begin = time.monotonic()
        with pytest.raises(StreamError, match=r"did not answer within 0.5 s; check that the camera is on \(ping 127"):
            open_source(f"http://127.0.0.1:{deaf.getsockname()[1]}/?timeout_s=0.5")
        assert time.monotonic() - begin < 5


def test_something_else_than_video() -> None:
    with MjpegServer(lambda write: write(b"<html>Welcome</html>" * 10)) as server, pytest.raises(StreamError):
        open_source(server.url())


def test_closing_ends_a_loop_that_waits_in_vain() -> None:
    with MjpegServer(lambda write: stream(write, last=30)) as server, open_source(server.url()) as source:
        loop = threading.Thread(target=lambda: [None for _ in source], daemon=True)
        loop.start()
        wait_for(lambda: source.health.frames > 5)
        source.close()
        loop.join(10)
        assert not loop.is_alive()
        assert source.health.state == "ended"
        with pytest.raises(StreamError, match="is closed; open it again"):
            next(iter(source))


def test_a_source_is_read_once_at_a_time() -> None:
    with MjpegServer(stream) as server, open_source(server.url()) as source:
        frames = iter(source)
        next(frames)
        with pytest.raises(StreamError, match="already being read"):
            next(iter(source))
        frames.close()  # type: ignore[attr-defined]


def test_fifty_connections_leave_nothing_behind() -> None:
    with MjpegServer(lambda write: stream(write, last=3)) as server, open_source(server.url()) as source:
        lane = Lane(source)
        lane.start()
        wait_for(lambda: lane.health.reconnects >= 10, 60)
        gc.collect()
        descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        wait_for(lambda: lane.health.reconnects >= 60, 120)
        lane.stop(10)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
    assert threading.active_count() <= threads + 1


def transport_stream(frames: int, codec: str, **options: str) -> list[bytes]:
    """MPEG-TS, what came of each frame and of the end in a piece of its own."""
    import av

    file = io.BytesIO()
    pieces = []
    with av.open(file, "w", format="mpegts", options={"flush_packets": "1", "pat_period": "0.01"}) as container:
        encoder = container.add_stream(codec, rate=25, options=options)
        encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames + 1):
            image = np.full((48, 64, 3), number * 3 % 256, np.uint8)
            begin = len(file.getvalue())
            container.mux(encoder.encode(av.VideoFrame.from_ndarray(image) if number < frames else None))
            pieces.append(file.getvalue()[begin:])
    return pieces


def test_the_first_key_frame_is_waited_for_while_packets_come() -> None:
    """Until then nothing can be decoded; connecting again would only mean to wait for another."""
    pieces = transport_stream(100, "libx264", tune="zerolatency", preset="ultrafast", g="75", keyint_min="75")

    def from_the_middle(write: Write) -> None:
        for piece in pieces[10:]:  # the next key frame is 65 frames away
            write(piece)
            time.sleep(0.04)

    with MjpegServer(from_the_middle, "video/mp2t") as server:
        begin = time.monotonic()
        with open_source(server.url() + "?timeout_s=1") as source:
            lane = Lane(source)
            lane.start()
            next(frames_of(lane, 10))
            assert time.monotonic() - begin > 2
            assert lane.health.reconnects == 0
            lane.stop(10)


def test_a_file_is_read_to_its_last_frame_and_then_again() -> None:
    """Encoders hold frames back, so do decoders: what they have in hand at the end is not lost."""
    file = b"".join(transport_stream(12, "mpeg2video", bf="2"))
    server = MjpegServer(lambda write: write(file), "video/mp2t")
    with server, open_source(server.url() + "?drop=never") as source:
        frames = iter(source)
        assert [next(frames).image_hw for _ in range(12)] == [(48, 64)] * 12
        assert source.health.reconnects == 0
        assert next(frames).index == 12
        assert source.health.reconnects == 1


def test_a_reader_that_was_left_behind_disconnects_when_its_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    def fall_silent(write: Write) -> None:
        stream(write, last=30)
        time.sleep(60)

    with MjpegServer(fall_silent) as server, open_source(server.url() + "?timeout_s=2") as source:
        lane = Lane(source)
        lane.start()
        wait_for(lambda: lane.health.frames >= 30)
        lane.stop(0.05)
        assert "did not stop within 0.05 s: its reader is left behind" in caplog.text
        assert lane.take() is not None  # what was accepted is still there
        assert lane.ended
        source.close()
        name = f"edge-mrcnn-read-{source.name}"
        wait_for(lambda: all(thread.name != name for thread in threading.enumerate()))
        assert source._capture is None
        assert source.health.state == "ended"
