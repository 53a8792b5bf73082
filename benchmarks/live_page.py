"""Time what the live page costs a run: `write`, and a core's time with viewers that paint all they get.

    python benchmarks/live_page.py [--seconds 5] [--fps 30]

Prints a line of JSON for each number of viewers of one 1080p camera whose frames are drawn already. The viewers run in
a process of their own, so their time does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time

import numpy as np

from edge_mrcnn import Detections, Frame
from edge_mrcnn.evaluation.machine import usable_cores
from edge_mrcnn.runtime.sinks.web import WebSink

HW = (1080, 1920)
OBJECTS = 20
VIEWERS = (0, 1, 4, 16)


async def view(url: str, viewers: int, seconds: float) -> list[int]:
    """Pictures that each viewer got."""
    import aiohttp

    async def watch(session: aiohttp.ClientSession) -> int:
        pictures, end = 0, time.monotonic() + seconds
        async with session.ws_connect(f"{url}live") as live:
            await live.send_json({"watch": ["front"]})
            while time.monotonic() < end:
                if (await live.receive(timeout=10)).type == aiohttp.WSMsgType.BINARY:
                    pictures += 1
                    await live.send_json({"painted": "front"})
        return pictures

    async with aiohttp.ClientSession() as session:
        return list(await asyncio.gather(*(watch(session) for _ in range(viewers))))


def picture() -> Frame:
    """Noise in soft blocks, about as hard for a JPEG as a room."""
    blocks = np.random.default_rng(0).integers(0, 255, (HW[0] // 8, HW[1] // 8, 3), np.uint8)
    return Frame(np.kron(blocks, np.ones((8, 8, 1), np.uint8)), camera="front")


def measure(viewers: int, seconds: float, fps: float) -> dict[str, float | int]:
    """One row."""
    frame = picture()
    found = Detections(np.tile([[8.0, 8, 90, 90]], (OBJECTS, 1)), np.full(OBJECTS, 0.9), np.arange(OBJECTS) % 8 + 1, HW)
    with WebSink("mjpeg://127.0.0.1:0") as sink:
        sink.write(frame, found, frame.image)
        time.sleep(1.5)  # until the page knows of the camera
        command = [sys.executable, __file__, "--view", sink.url, str(viewers), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
            while viewers and not sink.wants_picture:
                time.sleep(0.01)
            writes, cpu, begin = [], time.process_time(), time.monotonic()
            while (now := time.monotonic()) < begin + seconds:
                start = time.perf_counter()
                sink.write(frame, found, frame.image)
                writes.append((time.perf_counter() - start) * 1e6)
                time.sleep(max(0.0, now + 1 / fps - time.monotonic()))
            cpu = time.process_time() - cpu
            assert clients.stdout is not None
            pictures = json.loads(clients.stdout.read())
    return {
        "viewers": viewers,
        "frames": len(writes),
        "pictures_least": min(pictures, default=0),
        "write_us_p50": round(statistics.median(writes), 1),
        "write_us_p95": round(sorted(writes)[int(0.95 * len(writes))], 1),
        "core_percent": round(100 * cpu / seconds, 1),
        "cores": usable_cores(),
    }


def main() -> None:
    """Measure and print, or be the viewers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--view", nargs=3, metavar=("URL", "VIEWERS", "SECONDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.view:
        url, viewers, seconds = arguments.view
        print(json.dumps(asyncio.run(view(url, int(viewers), float(seconds)))))
        return
    for viewers in VIEWERS:
        print(json.dumps(measure(viewers, arguments.seconds, arguments.fps)), flush=True)


if __name__ == "__main__":
    main()
