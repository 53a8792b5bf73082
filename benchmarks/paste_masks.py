"""Full-size masks of one 1080p frame: edge_mrcnn side by side with torchvision, in one run, on one thread by default.

    python benchmarks/paste_masks.py [--detections 100] [--threads 1] [--repeats 10] [--json FILE_OR_-]

Both sides get the same float32 patches and boxes and end with the same thing, boolean masks `(N, H, W)`. "Touched" adds
reading every byte of the result once, because a fresh array's empty pages cost nothing until somebody looks at them.
"Same buffer" writes into an array that is kept from frame to frame.
Boxes have log-uniform sides from 16 px to half of the image, about as mixed as COCO's; `--large` makes all of them a
third of the image's area and more.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from edge_mrcnn.runtime.paste import encode_rle, paste_instance_map, paste_masks

IMAGE_HW = (1080, 1920)


def make_scene(count: int, large: bool, seed: int = 0) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Smooth blobs as a network gives them: patches `(N, 28, 28)` and boxes `(N, 4)`, float32, xyxy in pixels."""
    rng = np.random.default_rng(seed)
    height, width = IMAGE_HW
    low = np.array([width, height]) * (0.55 if large else 0) + (0 if large else 16)
    high = np.array([width, height]) * (1.0 if large else 0.5)
    sides = np.exp(rng.uniform(np.log(low), np.log(high), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    noise = rng.standard_normal((count, 28, 28)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(patch, (0, 0), 4) for patch in noise]) * 12
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    return (1 / (1 + np.exp(-(smooth + 3 - 5 * (x**2 + y**2))))).astype(np.float32), boxes


def clock(work: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Time the contenders in rounds, A B C A B C, so that what else the machine does meets all of them alike.

    Returns:
        By contender: median and minimum of the time on the wall and median of the CPU's time, in milliseconds.
    """
    wall: dict[str, list[float]] = {name: [] for name in work}
    cpu: dict[str, list[float]] = {name: [] for name in work}
    for round_number in range(repeats + 1):
        for name, call in work.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            call()
            if round_number:  # the first round warms up
                wall[name].append((time.perf_counter() - start) * 1e3)
                cpu[name].append((time.process_time() - start_cpu) * 1e3)
    return {
        name: {
            "median_ms": round(float(np.median(wall[name])), 2),
            "min_ms": round(min(wall[name]), 2),
            "cpu_ms": round(float(np.median(cpu[name])), 2),
        }
        for name in work
    }


def intersection_over_union(ours: npt.NDArray[np.bool_], theirs: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """IoU of each pair of masks; 1 where both are empty."""
    pairs = list(zip(ours, theirs, strict=True))
    union = np.array([np.count_nonzero(a | b) for a, b in pairs])
    return np.where(union, np.array([np.count_nonzero(a & b) for a, b in pairs]) / np.maximum(union, 1), 1.0)


def measure(count: int, large: bool, repeats: int) -> dict[str, Any]:
    """Run both sides on the same scene.

    Returns:
        Times of each contender, ratios to torchvision, and the IoU of the masks.
    """
    patches, boxes = make_scene(count, large)
    tensors = torch.from_numpy(patches)[:, None], torch.from_numpy(boxes)

    def torchvision_masks() -> npt.NDArray[np.bool_]:
        return (paste_masks_in_image(*tensors, IMAGE_HW)[:, 0] >= 0.5).numpy()

    def our_masks() -> npt.NDArray[np.bool_]:
        return paste_masks(patches, boxes, IMAGE_HW)

    buffer = np.zeros((count, *IMAGE_HW), np.bool_)
    contenders: dict[str, Callable[[], Any]] = {
        "torchvision masks": torchvision_masks,
        "edge_mrcnn masks": our_masks,
        "edge_mrcnn masks, same buffer": lambda: paste_masks(patches, boxes, IMAGE_HW, out=buffer),
        "torchvision masks, touched": lambda: np.count_nonzero(torchvision_masks()),
        "edge_mrcnn masks, touched": lambda: np.count_nonzero(our_masks()),
        "edge_mrcnn instance map": lambda: paste_instance_map(patches, boxes, IMAGE_HW),
        "edge_mrcnn RLE": lambda: encode_rle(patches, boxes, IMAGE_HW),
    }
    rows = clock(contenders, repeats)
    iou = intersection_over_union(our_masks(), torchvision_masks())
    return {
        "scene": "large boxes" if large else "mixed boxes",
        "mean_box_area": round(float(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).mean())),
        "rows": rows,
        "ratio": ratio(rows, ""),
        "ratio_touched": ratio(rows, ", touched"),
        "iou_min": float(iou.min()),
        "iou_mean": float(iou.mean()),
    }


def ratio(rows: dict[str, dict[str, float]], suffix: str) -> float:
    """How many times faster edge_mrcnn's masks are, by the CPU's time."""
    return round(rows[f"torchvision masks{suffix}"]["cpu_ms"] / rows[f"edge_mrcnn masks{suffix}"]["cpu_ms"], 1)


def show(result: dict[str, Any]) -> str:
    """A result as a table."""
    lines = [
        f"{result['scene']}, mean area {result['mean_box_area']} px",
        f"{'':30}{'median ms':>12}{'min ms':>10}{'CPU ms':>10}",
    ]
    lines += [
        f"{name:30}{row['median_ms']:12.2f}{row['min_ms']:10.2f}{row['cpu_ms']:10.2f}"
        for name, row in result["rows"].items()
    ]
    lines.append(f"masks: {result['ratio']} times as fast as torchvision, touched {result['ratio_touched']} times")
    lines.append(f"IoU with torchvision's masks: min {result['iou_min']:.6f}, mean {result['iou_mean']:.6f}\n")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="of torch and of OpenCV alike")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", metavar="FILE_OR_-")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    scenes = [measure(arguments.detections, large, arguments.repeats) for large in (False, True)]
    report = {
        "image_hw": IMAGE_HW,
        "detections": arguments.detections,
        "threads": arguments.threads,
        "versions": {"opencv": cv2.__version__, "torch": torch.__version__, "numpy": np.__version__},
        "scenes": scenes,
    }
    if arguments.json == "-":
        json.dump(report, sys.stdout, indent=1)
        return
    print(f"{arguments.detections} detections at 1080p, {arguments.threads} thread(s), {report['versions']}\n")
    print("\n".join(show(scene) for scene in scenes))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
