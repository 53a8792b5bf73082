"""What ROS messages and MCAP files cost: 1080p, 20 objects, one camera.

    python benchmarks/ros_messages.py [--runs 60]

Prints medians in milliseconds on one core, and what a frame takes on the disk. The picture is a soft one, the masks are
ellipses.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_mrcnn import Detections, Frame
from edge_mrcnn.runtime.ros.messages import MessageOptions, to_messages
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sinks.mcap import McapSink

HEIGHT, WIDTH, OBJECTS = 1080, 1920, 20
NAMES = tuple(f"class {number}" for number in range(80))


def make_scene() -> tuple[Frame, Frame, Detections]:
    """A frame, the same with depth, and detections."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, [WIDTH - 250, HEIGHT - 250], (OBJECTS, 2))
    xyxy = np.hstack([corner, corner + rng.uniform(60, 250, (OBJECTS, 2))]).astype(np.float32)
    mask = np.zeros((28, 28), np.float32)
    cv2.circle(mask, (14, 14), 12, 1.0, -1)
    scores, labels = rng.uniform(0.5, 1, OBJECTS), rng.integers(0, 80, OBJECTS)
    detections = Detections(xyxy, scores, labels, (HEIGHT, WIDTH), mask=np.stack([mask] * OBJECTS))
    picture: Any = cv2.resize(
        rng.integers(0, 255, (68, 120, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    matrix = np.array([[1400.0, 0, 960], [0, 1400.0, 540], [0, 0, 1]])
    depth = rng.uniform(1, 3, (HEIGHT, WIDTH)).astype(np.float32)
    return Frame(picture), Frame(picture, depth_m=depth, intrinsics=matrix), detections


def median_ms(run: Callable[[], object], runs: int) -> float:
    run()
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    runs = parser.parse_args().runs
    cv2.setNumThreads(1)
    frame, deep, detections = make_scene()
    boxes = MessageOptions(image="none", instance_map=False)
    cases: dict[str, tuple[Frame, MessageOptions]] = {
        "boxes": (frame, boxes),
        "boxes and boxes in space": (deep, boxes),
        "boxes and instance map": (frame, MessageOptions(image="none")),
        "boxes, instance map, raw picture": (frame, MessageOptions(image="raw")),
        "boxes, instance map, JPEG": (frame, MessageOptions()),
    }
    for name, (given, options) in cases.items():
        print(f"{name:40} {median_ms(lambda g=given, o=options: to_messages(g, detections, NAMES, o), runs):6.2f} ms")
    with tempfile.TemporaryDirectory() as folder:
        for image in ("none", "compressed", "raw"):
            path = Path(folder) / f"{image}.mcap"
            with McapSink(f"mcap://{path}?image={image}", SinkOptions(class_names=NAMES)) as sink:
                taken = median_ms(lambda s=sink: s.write(frame, detections), runs)
            print(f"MCAP, image={image:28} {taken:6.2f} ms {path.stat().st_size / (runs + 1) / 1e3:8.0f} kB a frame")


if __name__ == "__main__":
    main()
