"""What PyAV and OpenCV make of the same RTSP camera: time to open, latency, and what is noticed of a stall.

    python benchmarks/capture_libraries.py [--events 20] [--stall 12]

The camera is GStreamer's RTSP server of the tests, on this machine. `open`: until the library has connected. `after a
pause`: the camera holds its pictures back and goes on; until the first frame is in hand, the camera's own delay
included. `behind the stamp`: from the sender's stamp to the frame, which OpenCV does not give. `stall`: until the
library says that nothing comes; OpenCV's own limit is 30 s, here it is asked for 5 s as PyAV is. `wrong password`: what
the program is told. Writes `benchmarks/results/capture_libraries.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.opencv import quiet
from edge_mrcnn.runtime.sources.network import NetworkCapture
from tests.faults.servers import RtspServer

RESULTS = Path(__file__).parent / "results" / "capture_libraries.json"
FPS = 30
TIMEOUT_S = 5.0


class Pyav:
    """As the runtime reads network cameras."""

    def __init__(self, url: str) -> None:
        self._capture = NetworkCapture(url, TIMEOUT_S)
        self.late_ms: list[float] = []

    def read(self) -> bool:  # noqa: D102
        try:
            frame = self._capture.read()
        except StreamError:
            return False
        if frame.stamp_source == "sender":
            self.late_ms.append((time.time_ns() - frame.stamp_ns) / 1e6)
        return True

    def close(self) -> None:  # noqa: D102
        self._capture.close()


class OpenCV:
    """As most programs read them."""

    late_ms: tuple[float, ...] = ()

    def __init__(self, url: str) -> None:
        import cv2

        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(TIMEOUT_S * 1e3), cv2.CAP_PROP_READ_TIMEOUT_MSEC]
        with quiet():
            self._capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, [*limits, int(TIMEOUT_S * 1e3)])
        if not self._capture.isOpened():
            raise StreamError("isOpened() is False")

    def read(self) -> bool:  # noqa: D102
        return bool(self._capture.read()[0])

    def close(self) -> None:  # noqa: D102
        self._capture.release()


class Reader:
    """Reads in a thread and notes when frames come."""

    def __init__(self, capture: Pyav | OpenCV) -> None:
        self._capture = capture
        self.last = time.monotonic()
        self.ended_at: float | None = None
        self._over = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._over and self._capture.read():
            self.last = time.monotonic()
        self.ended_at = time.monotonic()

    def stop(self) -> None:  # noqa: D102
        self._over = True
        self._thread.join()
        self._capture.close()


def measure_pauses(server: RtspServer, reader: Reader, events: int) -> list[float]:
    """Milliseconds from the end of each pause to the first frame in hand."""
    found = []
    for _ in range(events):
        time.sleep(0.3)
        server.tell("stall")
        time.sleep(0.4)
        before = reader.last
        begin = time.monotonic()
        server.tell("resume")
        while reader.last == before:
            time.sleep(0.0005)
        found.append((reader.last - begin) * 1e3)
    return found


def measure(make: Callable[[str], Pyav | OpenCV], codec: str, events: int, stall_s: float) -> dict[str, Any]:
    with RtspServer("--codec", codec, "--fps", str(FPS), "--size", "640x480") as server:
        opens = []
        for _ in range(3):
            begin = time.monotonic()
            capture = make(server.url())
            opens.append(time.monotonic() - begin)
            capture.close()
        capture = make(server.url())
        reader = Reader(capture)
        time.sleep(8)  # RTCP's first report comes within seconds
        late_ms = list(capture.late_ms)[-60:]
        pauses = measure_pauses(server, reader, events)
        begin = time.monotonic()
        server.tell("stall")
        while reader.ended_at is None and time.monotonic() < begin + stall_s:
            time.sleep(0.05)
        noticed_s = None if reader.ended_at is None else reader.ended_at - begin
        server.tell("resume")
        reader.stop()
    return {
        "open_s": statistics.median(opens),
        "after_a_pause_ms": statistics.median(pauses),
        "behind_the_stamp_ms": statistics.median(late_ms) if late_ms else None,
        "stall_noticed_s": noticed_s,
    }


def wrong_password(make: Callable[[str], Pyav | OpenCV]) -> str:
    with RtspServer("--user", "jane", "--password", "secret") as server:
        try:
            make(server.url(userinfo="jane:wrong@"))
        except StreamError as error:
            return str(error)
    return "nothing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--stall", type=float, default=12.0)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name, make in (("pyav", Pyav), ("opencv", OpenCV)):
        found[name] = {codec: measure(make, codec, options.events, options.stall) for codec in ("h264", "mjpeg")}
        found[name]["wrong_password"] = wrong_password(make)
        print(name, json.dumps(found[name], indent=2))
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
