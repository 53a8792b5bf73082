"""Keypoints out of heatmaps: edge_mrcnn side by side with torchvision, in one run, on one thread by default.

    python benchmarks/decode_keypoints.py [--detections 20] [--keypoints 17] [--threads 1] [--repeats 10]

Both sides get the same float32 heatmaps `(N, K, 56, 56)` and boxes and end with `(N, K, 3)`. The maps are smooth with
one peak each (`sure`), with four (`unsure`), or white noise, the worst case: there little can be ruled out. Boxes have
log-uniform sides from 16 px to half, or all of them from half to the whole, of a 480 x 640 canvas.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from edge_mrcnn.runtime import keypoints as ours
from edge_mrcnn.runtime.keypoints import decode_keypoints

CANVAS = (480, 640)
SIDE = 56
PEAKS = {"sure": 1, "unsure": 4, "noise": 0}

Array = npt.NDArray[np.float32]


def make_boxes(count: int, large: bool, seed: int = 0) -> Array:
    """`(N, 4)` xyxy in pixels of the canvas."""
    rng = np.random.default_rng(seed)
    whole = np.array(CANVAS[::-1], np.float64)
    low, high = (whole / 2, whole) if large else (np.full(2, 16.0), whole / 2)
    sides = np.exp(rng.uniform(np.log(low), np.log(high), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (whole - sides)
    return np.concatenate([corner, corner + sides], axis=1).astype(np.float32)


def make_heatmaps(count: int, keypoints: int, kind: str, seed: int = 0) -> Array:
    """`(N, K, 56, 56)` logits."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return (4 * rng.standard_normal((count, keypoints, SIDE, SIDE))).astype(np.float32)
    half = rng.standard_normal((count * keypoints, SIDE // 2, SIDE // 2)).astype(np.float32)
    maps = np.stack([cv2.resize(one, (SIDE, SIDE)) for one in half]).reshape(count, keypoints, SIDE, SIDE)
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(PEAKS[kind]):
        center = rng.uniform(4, SIDE - 4, (2, count, keypoints, 1, 1))
        width = rng.uniform(1.5, 4, (count, keypoints, 1, 1))
        height = rng.uniform(7, 12, (count, keypoints, 1, 1))
        maps = maps + height * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * width**2))
    return maps.astype(np.float32)


def clock(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median time of each contender in milliseconds, in rounds, so that a busy machine meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(repeats + 1):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(times[name])) for name in work}


def measure(count: int, keypoints: int, kind: str, large: bool, repeats: int) -> dict[str, Any]:
    """Both contenders on one scene."""
    maps, boxes = make_heatmaps(count, keypoints, kind), make_boxes(count, large)
    tensors = torch.from_numpy(maps), torch.from_numpy(boxes)

    def decode() -> Array:
        ours._axis.cache_clear()  # as if all boxes were new, which in a video they are not
        return decode_keypoints(maps, boxes)

    work: dict[str, Callable[[], Any]] = {"torchvision": lambda: heatmaps_to_keypoints(*tensors), "edge_mrcnn": decode}
    times = clock(work, repeats)
    theirs = heatmaps_to_keypoints(*tensors)[0].numpy()
    off = np.hypot(*(decode_keypoints(maps, boxes)[..., axis] - theirs[..., axis] for axis in (0, 1)))
    return {
        "scene": f"{kind}, {'large' if large else 'mixed'} boxes",
        "torchvision_ms": round(times["torchvision"], 2),
        "edge_mrcnn_ms": round(times["edge_mrcnn"], 2),
        "ratio": round(times["torchvision"] / times["edge_mrcnn"], 1),
        "within_half_px": float((off < 0.5).mean()),
        "within_hundredth_px": float((off < 0.01).mean()),
    }


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, default=20)
    parser.add_argument("--keypoints", type=int, default=17)
    parser.add_argument("--threads", type=int, default=1, help="of torch and of OpenCV alike")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    rows = [
        measure(arguments.detections, arguments.keypoints, kind, large, arguments.repeats)
        for kind in PEAKS
        for large in (False, True)
    ]
    if arguments.json:
        json.dump({**vars(arguments), "rows": rows}, sys.stdout, indent=1)
        return
    print(f"{arguments.detections} detections x {arguments.keypoints} keypoints, {arguments.threads} thread(s)\n")
    print(f"{'':24}{'torchvision ms':>16}{'edge_mrcnn ms':>16}{'times as fast':>15}{'< 0.5 px':>10}{'< 0.01 px':>11}")
    for row in rows:
        print(
            f"{row['scene']:24}{row['torchvision_ms']:16.2f}{row['edge_mrcnn_ms']:16.2f}{row['ratio']:15.1f}"
            f"{row['within_half_px']:10.4f}{row['within_hundredth_px']:11.4f}"
        )


if __name__ == "__main__":
    main()
