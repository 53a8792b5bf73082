"""RTSP cameras that die, stall, come back, change their resolution and garble what they send; GStreamer's server."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from itertools import islice
from urllib.parse import quote

import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources import live, open_source
from edge_mrcnn.runtime.sources.lane import Lane
from tests.faults.servers import Damage, RtspServer, frames_of, wait_for

pytest.importorskip("av", reason="PyAV is not installed")

PASSWORD = "p@ss/w:rd%1"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(live, "LAST_RETRY_S", 0.4)


@contextlib.contextmanager
def lane_of(url: str) -> Iterator[Lane]:
    with open_source(url) as source:
        lane = Lane(source)
        lane.start()
        try:
            yield lane
        finally:
            lane.stop(10)


@pytest.mark.parametrize(("codec", "transport"), [("h264", "tcp"), ("mjpeg", "udp")])
def test_frames_and_their_times(codec: str, transport: str) -> None:
    url = f"?transport={transport}&timeout_s=10&name=front&frame_id=front_optical"
    with RtspServer("--codec", codec, "--fps", "10") as server, lane_of(server.url() + url) as lane:
        frame = next(frames_of(lane))
        assert (frame.camera, frame.frame_id, frame.image_hw) == ("front", "front_optical", (240, 320))
        assert frame.source == server.url() + url
        assert lane.source.fps == 10
        now = time.time_ns()
        with_time = (frame for frame in frames_of(lane) if frame.stamp_source == "sender")
        _, sent = next(with_time), next(with_time)  # RTCP's first report may come in the middle of a picture
        assert abs(sent.stamp_ns - now) < 20e9
        following = next(with_time)
        steps = (following.stamp_ns - sent.stamp_ns) / 100e6 / (following.index - sent.index)
        assert steps == pytest.approx(1, abs=0.05)  # the camera's own clock ticks evenly, whatever the network does


def test_nothing_there() -> None:
    with RtspServer() as server:
        pass
    with pytest.raises(StreamError, match=r"rtsp://127.0.0.1:\d+/0 cannot be opened: Connection refused; check that"):
        open_source(server.url())


def test_no_such_path() -> None:
    with RtspServer() as server, pytest.raises(StreamError, match=r"cannot be opened: .*404"):
        open_source(server.url(7))


@pytest.mark.parametrize("auth", [[], ["--digest"]], ids=["basic", "digest"])
def test_passwords_open_and_are_told_to_nobody(
    auth: list[str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    escaped = quote(PASSWORD, safe="")
    with RtspServer("--user", "jane", "--password", PASSWORD, *auth) as server, caplog.at_level(logging.DEBUG):
        with pytest.raises(StreamError, match="refuses the user or the password") as caught:
            open_source(server.url(userinfo="jane:wr0ng@"))
        with lane_of(server.url(userinfo=f"jane:{escaped}@") + "?timeout_s=3") as lane:
            frame = next(frames_of(lane))
            server.die()
            wait_for(lambda: "refused" in lane.health.error)
        error = lane.health.error
    shown = [
        str(caught.value),
        repr(caught.value),
        frame.source,
        lane.source.uri,
        error,
        caplog.text,
        *capfd.readouterr(),
    ]
    assert "is lost" in caplog.text
    for text in shown:
        assert not any(secret in text for secret in ("jane", "wr0ng", PASSWORD, escaped)), text


def test_a_server_that_dies_and_returns(caplog: pytest.LogCaptureFixture) -> None:
    with RtspServer() as server, lane_of(server.url()) as lane, caplog.at_level(logging.INFO):
        before = next(frames_of(lane))
        server.die()
        wait_for(lambda: lane.health.state == "lost")
        wait_for(lambda: "Connection refused" in lane.health.error)
        server.start()
        after = next(frame for frame in frames_of(lane) if lane.health.reconnects)
        assert lane.health.state == "live"
        assert lane.health.reconnects == 1
        assert after.index > before.index
        assert after.image_hw == before.image_hw
    assert [record.message.partition("/0 ")[2][:7] for record in caplog.records] == ["is lost", "is back"]


def test_a_stall_counts_as_lost_and_ends() -> None:
    with RtspServer() as server, lane_of(server.url() + "?timeout_s=1") as lane:
        next(frames_of(lane))
        server.tell("stall")
        took_s = wait_for(lambda: lane.health.state == "lost")
        assert 0.8 < took_s < 5
        assert lane.health.error == "no whole picture came for 1 s"
        server.tell("resume")
        wait_for(lambda: lane.health.state == "live")
        assert lane.health.reconnects >= 1


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_a_camera_that_changes_its_resolution(codec: str) -> None:
    with RtspServer("--codec", codec) as server, lane_of(server.url()) as lane:
        assert next(frames_of(lane)).image_hw == (240, 320)
        server.tell("size 176x144")
        changed = next(frame for frame in frames_of(lane) if frame.image_hw != (240, 320))
        assert changed.image_hw == (144, 176)
        assert changed.image.shape == (144, 176, 3)
        assert lane.health.reconnects == 0


def test_garbled_packets_are_counted_and_passed_over() -> None:
    with RtspServer() as server, Damage(server.port) as damage:
        url = f"rtsp://127.0.0.1:{damage.port}/0?timeout_s=20"
        with lane_of(url) as lane:
            next(frames_of(lane))
            assert lane.health.damaged == 0
            damage.every = 400
            wait_for(lambda: lane.health.damaged >= 3)
            damage.every = 0
            frames = lane.health.frames
            wait_for(lambda: lane.health.frames >= frames + 20)
            assert lane.health.reconnects == 0


def test_eight_cameras_of_which_two_fail() -> None:
    """A dead camera and a stalled one hold up nobody."""
    many = RtspServer("--cameras", "7", "--size", "160x120", "--fps", "10")
    with many as server, RtspServer() as doomed, contextlib.ExitStack() as stack:
        urls = [server.url(number) + f"?name=cam{number}" for number in range(7)]
        lanes = [stack.enter_context(lane_of(url)) for url in [*urls, doomed.url() + "?name=doomed"]]
        for lane in lanes:
            next(frames_of(lane))
        doomed.die()
        wait_for(lambda: lanes[7].health.state == "lost")
        before = [lane.health.frames for lane in lanes]
        begin = time.monotonic()
        for lane in lanes[:7]:
            list(islice(frames_of(lane), 10))
        assert time.monotonic() - begin < 20
        assert [lane.health.state for lane in lanes] == ["live"] * 7 + ["lost"]
        assert all(lane.health.frames >= count + 8 for lane, count in zip(lanes[:7], before, strict=False))
        assert {frame.camera for lane in lanes[:7] for frame in islice(frames_of(lane), 1)} == {
            f"cam{number}" for number in range(7)
        }
        assert sum(lane.health.reconnects for lane in lanes[:7]) == 0
        for lane in lanes:
            lane.stop(0)


def test_a_loop_over_a_camera_gets_the_newest_frame() -> None:
    with RtspServer("--fps", "20") as server, open_source(server.url()) as source:
        frames = iter(source)
        first = next(frames)
        wait_for(lambda: source.health.dropped >= 5)
        second = next(frames)
        assert second.index - first.index > 5
        frames.close()  # type: ignore[attr-defined]
        assert source.health.frames > second.index
        assert next(iter(source)).index > second.index  # and it can be gone on with
