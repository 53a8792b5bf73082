"""How far the keypoints that a model finds are from the true ones, in pixels of the picture.

    python benchmarks/keypoint_errors.py samples/tabletop_keypoints/model.onnx data/keypoints/val [--threads 1]

A detection counts with the object of its class that it covers best, from IoU 0.5 on, the surest first and each object
once. AP says how many things are found well; this says what a robot that reaches for the found ones may expect.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn import Detections, Detector
from edge_mrcnn.evaluation.agreement import box_iou
from edge_mrcnn.evaluation.dataset import LabelledSet

MIN_IOU = 0.5
STATES = {1: "hidden", 2: "seen"}
"""What COCO's visibility says of a labelled keypoint."""

Errors = dict[tuple[str, str], list[float]]
"""Distances by keypoint and state, pixels."""


def match(
    found: Detections, truth: Sequence[Mapping[str, Any]], categories: Mapping[int, int]
) -> list[tuple[int, int]]:
    """Pairs (detection, object) of one picture."""
    boxes = np.array([row["bbox"] for row in truth], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    iou = box_iou(found.xyxy, boxes)
    pairs: list[tuple[int, int]] = []
    free = np.ones(len(truth), bool)
    for row in np.argsort(-found.score, kind="stable"):
        same = np.array([one["category_id"] == categories.get(int(found.class_id[row])) for one in truth], bool)
        worth = np.where(free & same, iou[row], 0.0)
        if len(worth) and worth.max() >= MIN_IOU:
            pairs.append((int(row), int(worth.argmax())))
            free[worth.argmax()] = False
    return pairs


def add_errors(errors: Errors, found: npt.NDArray[np.float32], true: Sequence[float], names: Sequence[str]) -> None:
    """Add the distances of one thing's keypoints `(K, 3)` to those labelled in `true`, COCO's 3 K numbers."""
    for name, (x, y, _), (true_x, true_y, visibility) in zip(names, found, np.reshape(true, (-1, 3)), strict=True):
        if visibility:
            distance = float(np.hypot(x - true_x, y - true_y))
            errors.setdefault((name, STATES[int(visibility)]), []).append(distance)


def measure(detector: Detector, data: Path) -> tuple[Errors, int, int]:
    """Errors of a detector on a set; the number of objects with keypoints found, and of all such objects."""
    spec = detector.spec
    labelled = LabelledSet.read(data, spec.class_names, "equal", None, spec.keypoint_names)
    rows: dict[int, list[Mapping[str, Any]]] = {}
    for row in labelled.truth["annotations"]:
        rows.setdefault(row["image_id"], []).append(row)
    errors: Errors = {}
    hits = total = 0
    for image, frame in labelled.frames():
        truth, found = rows.get(image["id"], []), detector(frame)
        total += sum(any(row["keypoints"][2::3]) for row in truth)
        if found.keypoints is None:
            continue
        for row, column in match(found, truth, labelled.categories):
            hits += any(truth[column]["keypoints"][2::3])
            add_errors(errors, found.keypoints[row], truth[column]["keypoints"], spec.keypoint_names)
    return errors, hits, total


def lines(errors: Errors, names: Sequence[str]) -> list[str]:
    """A table: number, median and 90th percentile of each keypoint, seen and hidden."""
    rows = [f"{'keypoint':<12}{'state':<8}{'number':>8}{'median px':>11}{'90 % px':>9}"]
    for name in (*names, "all"):
        for state in ("seen", "hidden"):
            own = [each for (key, other), each in errors.items() if other == state and name in (key, "all")]
            values = np.concatenate(own) if own else np.zeros(0)
            if len(values):
                tail = f"{np.median(values):>11.1f}{np.percentile(values, 90):>9.1f}"
                rows.append(f"{name:<12}{state:<8}{len(values):>8}{tail}")
    return rows


def main() -> None:
    """Print the table, and with --json write the distances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="folder with annotations.json, or that file")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score of a detection")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = options.data / "annotations.json" if options.data.is_dir() else options.data
    with Detector(options.model, threshold=options.threshold, threads=options.threads) as detector:
        errors, hits, total = measure(detector, data)
        sys.stdout.write("\n".join([*lines(errors, detector.spec.keypoint_names), f"{hits} of {total} things found\n"]))
    if options.json:
        content = {f"{name}, {state}": np.round(values, 2).tolist() for (name, state), values in errors.items()}
        options.json.write_text(json.dumps(content))


if __name__ == "__main__":
    main()
