"""Network cameras: options, clocks and what is missing. How they fail is in tests/faults."""

import logging
import sys
import time
from itertools import islice

import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources import network, open_source
from tests.faults.servers import MjpegServer, jpeg, part


def stream(write) -> None:
    while True:
        write(part(jpeg(1)))
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("rtsp://me:pa55@cam/?transport=quic", r"option transport in 'rtsp://\*\*\*@cam/.*expected one of tcp, udp"),
        ("rtsp:///live", "'rtsp:///live' names no host"),
        ("http://me:pa55@/live", r"'http://\*\*\*@/live' names no host"),
        ("rtsp://cam/?decode=gpu", "option decode .* expected one of software, hardware"),
        ("http://cam/?timeout_s=-1", "option timeout_s .* expected a positive number of seconds"),
        ("rtsp://cam/?drop=0", "option drop .* expected one of auto, oldest, never"),
    ],
)
def test_wrong_options(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(uri)


def test_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"need PyAV, .*pip install 'edge-mrcnn\[video\]'") as caught:
        open_source("rtsp://me:pa55@cam/")
    assert caught.value.name == "av"


def test_a_host_that_does_not_exist() -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    with pytest.raises(
        StreamError, match=r"http://\*\*\*@no-such-host.invalid/\?token=\*\*\* cannot be opened"
    ) as caught:
        open_source("http://me:pa55@no-such-host.invalid/?token=s3cret")
    assert "ping no-such-host.invalid" in str(caught.value)
    assert "pa55" not in str(caught.value)


@pytest.mark.parametrize(("off_s", "source"), [(3600, "host"), (-3600, "host"), (5, "sender")])
def test_a_clock_that_was_never_set(
    off_s: int, source: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.setattr(network, "_sender_ns", lambda packet: time.time_ns() + off_s * 10**9)
    with caplog.at_level(logging.WARNING), MjpegServer(stream) as server, open_source(server.url()) as camera:
        frames = list(islice(camera, 5))
    assert {frame.stamp_source for frame in frames} == {source}
    assert abs(frames[-1].stamp_ns - time.time_ns() - (off_s if source == "sender" else 0) * 1e9) < 5e9
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == (source == "host")
    assert all(f"is off by {off_s} s: frames are stamped on arrival" in warning for warning in warnings)
