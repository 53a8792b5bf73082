"""RTSP by way of GStreamer, as a Jetson's decoder takes it, from a server that dies, stalls and comes back.

A decoder of this machine stands in for the Jetson's; everything else is what runs there.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.faults.gstreamer_child import start_child
from tests.faults.servers import RtspServer, wait_for

PASSWORD = "p@ss:rd%1"
WATCH = """
    import dataclasses, json, logging, sys
    from edge_mrcnn.runtime.sources import gstreamer, live, open_source
    from edge_mrcnn.runtime.sources.lane import Lane
    live.FIRST_RETRY_S, live.LAST_RETRY_S = 0.05, 0.4
    logging.basicConfig(level=logging.DEBUG)
    jetsons = gstreamer.hardware_pipeline
    ours = lambda uri: jetsons(uri).replace("(memory:NVMM)", "").replace("nvvidconv", "videoconvert")
    gstreamer.hardware_pipeline = ours
    with open_source(sys.argv[1]) as source:
        lane = Lane(source)
        lane.start()
        while sys.stdin.readline():
            frame = lane.take()
            said = dataclasses.asdict(lane.health)
            said["frame"] = frame and [frame.pixel_format, frame.image.shape, frame.camera, frame.source]
            print(json.dumps(said), flush=True)
        lane.stop(10)
"""


class Watcher:
    """A child that reads a camera, and says how that goes when it is asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.said, self.errors = process, list[dict[str, Any]](), list[str]()
        assert process.stderr is not None
        self._reader = threading.Thread(target=self.errors.extend, args=(process.stderr,), daemon=True)
        self._reader.start()

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self._reader.join(5)
            raise AssertionError("".join(self.errors))
        self.said.append(json.loads(line))
        return self.said[-1]

    def wait(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        wait_for(lambda: condition(self.ask()))
        return self.said[-1]

    def finish(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(20) == 0
        self._reader.join(5)


@contextlib.contextmanager
def watching(url: str) -> Iterator[Watcher]:
    process = start_child(WATCH, url, stdin=subprocess.PIPE)
    try:
        watcher = Watcher(process)
        yield watcher
        watcher.finish()
    finally:
        process.kill()
        process.wait()


def test_a_server_that_dies_and_comes_back() -> None:
    url = "?decode=hardware&name=front&timeout_s=10"
    with RtspServer("--codec", "mjpeg") as server, watching(server.url() + url) as watcher:
        first = watcher.wait(lambda said: said["frame"] is not None)
        assert first["frame"] == ["nv12", [240, 320, 3], "front", server.url() + url]
        server.die()
        watcher.wait(lambda said: said["state"] == "lost")
        server.start()
        watcher.wait(lambda said: said["state"] == "live" and said["reconnects"] >= 1)


def test_a_stall() -> None:
    with RtspServer("--codec", "mjpeg") as server, watching(server.url() + "?decode=hardware&timeout_s=1") as watcher:
        watcher.wait(lambda said: said["frame"] is not None)
        server.tell("stall")
        lost = watcher.wait(lambda said: said["state"] == "lost")
        assert "gave no picture for 1 s" in lost["error"]
        server.tell("resume")
        watcher.wait(lambda said: said["state"] == "live" and said["reconnects"] >= 1)


def test_a_change_of_resolution() -> None:
    with RtspServer("--codec", "mjpeg") as server, watching(server.url() + "?decode=hardware&timeout_s=3") as watcher:
        watcher.wait(lambda said: said["frame"] is not None and said["frame"][1] == [240, 320, 3])
        server.tell("size 192x144")
        watcher.wait(lambda said: said["frame"] is not None and said["frame"][1] == [144, 192, 3])


@pytest.mark.parametrize("auth", [[], ["--digest"]], ids=["basic", "digest"])
def test_passwords_open_and_are_told_to_nobody(auth: list[str]) -> None:
    escaped = quote(PASSWORD, safe="")
    with RtspServer("--codec", "mjpeg", "--user", "jane", "--password", PASSWORD, *auth) as server:
        with watching(server.url(userinfo=f"jane:{escaped}@") + "?decode=hardware") as watcher:
            watcher.wait(lambda said: said["frame"] is not None)
            server.die()
            watcher.wait(lambda said: said["state"] == "lost")
        shown = json.dumps(watcher.said) + "".join(watcher.errors)
        assert "rtsp://***@127.0.0.1" in shown
        assert PASSWORD not in shown
        assert escaped not in shown
