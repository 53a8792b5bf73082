"""Tracking on generated clips: IDF1, MOTA and switches, what a perfect tracker would reach, and the time a frame takes.

    python benchmarks/tracking.py [--seeds 210-219] [--seconds 8] [--fps 15] [--clips data/tracking] [--json FILE_OR_-]

Clips are rendered where they are missing (15 s each; needs `pip install 'edge-mrcnn[tabletop]'`). The tracker was tuned
on seeds 100 to 111; 200 to 209 judged its first version, 210 to 219 this one. A track counts where its box has an IoU
of at least 0.5 with that of the visible part of an object; every annotated object counts, down to 8 % visible, and
detections without a number count as nothing.

Perfect trackers tell the detector's misses from the tracker's mistakes. They know the truth: all detections of one
object get one number, and what matches no object gets a number of its own (`all numbered`) or none
(`matches numbered`).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import motmetrics
import numpy as np
import numpy.typing as npt

from edge_mrcnn import Detections, Detector, Tracker, TrackerOptions
from edge_mrcnn.runtime.tracker_assignment import assign, pairwise_iou

MODEL = Path(__file__).parents[1] / "samples" / "tabletop" / "model.onnx"
THRESHOLD, WEAK = 0.5, 0.1
MIN_IOU = 0.5
METRICS = ["idf1", "idp", "idr", "mota", "num_switches", "num_false_positives", "num_misses", "num_objects"]

Boxes = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Things:
    """The objects of a frame, or what a tracker numbered.

    Attributes:
        xyxy: `(N, 4)`, pixels.
        number: `(N,)`.
        visible: `(N,)`: pixels seen, as a share of the most in any frame of the clip; 1 for what a tracker numbers.
    """

    xyxy: Boxes
    number: Numbers
    visible: Boxes

    def __getitem__(self, rows: npt.NDArray[np.bool_]) -> Things:
        return Things(self.xyxy[rows], self.number[rows], self.visible[rows])


def read_truth(folder: Path) -> list[Things]:
    """The objects of each frame of a clip."""
    document = json.loads((folder / "annotations.json").read_text())
    most: dict[int, float] = {}
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in document["images"]}
    for entry in document["annotations"]:
        by_image[entry["image_id"]].append(entry)
        most[entry["track_id"]] = max(most.get(entry["track_id"], 0), entry["area"])
    frames = []
    for image in sorted(document["images"], key=lambda image: image["frame_index"]):
        entries = by_image[image["id"]]
        boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        numbers = np.array([entry["track_id"] for entry in entries], np.int64)
        visible = np.array([entry["area"] / most[entry["track_id"]] for entry in entries], np.float64)
        frames.append(Things(boxes, numbers, visible))
    return frames


def overlaps(truth: Things, found: Things) -> tuple[Boxes, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """IoU of each pair, and the rows and columns of the best pairing above `MIN_IOU`."""
    iou = pairwise_iou(truth.xyxy, found.xyxy)
    return iou, *assign(1 - iou, 1 - MIN_IOU)


def track(frames: Sequence[Detections], fps: float, options: TrackerOptions) -> list[Things]:
    """What the tracker numbers, frame by frame."""
    tracker, numbered = Tracker(options), []
    for index, detections in enumerate(frames):
        found = tracker.update(detections, round(index / fps * 1e9))
        numbered.append(as_things(found, np.asarray(found.track_id, np.int64)))
    return numbered


def as_things(detections: Detections, numbers: Numbers) -> Things:
    """The detections that have a number."""
    return Things(detections.xyxy.astype(np.float64), numbers, np.ones(len(numbers)))[numbers > 0]


def number_perfectly(truth: Sequence[Things], frames: Sequence[Detections], number_all: bool) -> list[Things]:
    """What a tracker that knows the truth numbers, with or without what matches no object."""
    numbered, last = [], 1_000_000
    for objects, detections in zip(truth, frames, strict=True):
        numbers = np.zeros(len(detections), np.int64)
        _, rows, columns = overlaps(objects, as_things(detections, np.ones(len(detections), np.int64)))
        numbers[columns] = objects.number[rows]
        others = np.flatnonzero(numbers == 0) if number_all else np.zeros(0, np.intp)
        numbers[others] = last + np.arange(len(others))
        last += len(others)
        numbered.append(as_things(detections, numbers))
    return numbered


def score(truth: Sequence[Things], numbered: Sequence[Things], min_visible: float = 0.0) -> dict[str, float]:
    """The metrics of one clip; objects less visible than `min_visible` count neither as missed nor as found."""
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for objects, found in zip(truth, numbered, strict=True):
        _, rows, columns = overlaps(objects, found)
        asked, counted = objects.visible >= min_visible, np.ones(len(found.number), bool)
        counted[columns[~asked[rows]]] = False
        objects, found = objects[asked], found[counted]
        distance = 1 - pairwise_iou(objects.xyxy, found.xyxy)
        accumulator.update(objects.number, found.number, np.where(distance <= 1 - MIN_IOU, distance, np.nan))
    values = motmetrics.metrics.create().compute(accumulator, metrics=METRICS, return_dataframe=False)
    return {name: round(float(values[name]), 4) for name in METRICS}


def summarise(clips: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of the shares and sums of the counts over clips; the worst IDF1."""
    values = {name: np.array([clip[name] for clip in clips]) for name in METRICS}
    result = {name: round(float(found.mean()), 4) for name, found in values.items() if not name.startswith("num_")}
    result["idf1_min"] = float(values["idf1"].min())
    return result | {name: int(found.sum()) for name, found in values.items() if name.startswith("num_")}


def detect(folder: Path, detector: Detector) -> list[Detections]:
    """All that the network gives with a score of at least `WEAK`, frame by frame."""
    paths = sorted((folder / "images").glob("*.jpg"))
    return [detector(np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8)) for path in paths]


def measure_clips(folders: dict[int, Path], fps: float) -> dict[str, Any]:
    """Every way to number the detections of every clip."""
    ways: dict[str, list[dict[str, float]]] = {}
    with Detector(MODEL, threshold=WEAK) as detector:
        for seed, folder in folders.items():
            truth, weak = read_truth(folder), detect(folder, detector)
            sure = [found[found.score >= THRESHOLD] for found in weak]
            with_weak = track(weak, fps, TrackerOptions(start_score=THRESHOLD))
            rows = {
                "tracker, weak detections continue tracks": score(truth, with_weak),
                "the same, objects at least half visible": score(truth, with_weak, 0.5),
                "tracker, confident detections only": score(truth, track(sure, fps, TrackerOptions())),
                "perfect, confident detections, all numbered": score(truth, number_perfectly(truth, sure, True)),
                "perfect, confident detections, matches numbered": score(truth, number_perfectly(truth, sure, False)),
                "perfect, weak detections too, matches numbered": score(truth, number_perfectly(truth, weak, False)),
            }
            for name, found in rows.items():
                ways.setdefault(name, []).append({"seed": seed, **found})
            print(f"seed {seed}: IDF1 {next(iter(rows.values()))['idf1']:.3f}", file=sys.stderr, flush=True)
    return {name: {"mean": summarise(clips), "clips": clips} for name, clips in ways.items()}


def moving_things(count: int, frames: int, seed: int = 0) -> list[Detections]:
    """Things of 40 to 160 px that cross a 1080p picture and bounce off its edges, with round masks and shaky boxes."""
    rng = np.random.default_rng(seed)
    room = np.array([1920.0, 1080.0])
    place, speed, half = (
        rng.uniform(0, 1, (count, 2)) * room,
        rng.normal(0, 6, (count, 2)),
        rng.uniform(20, 80, (count, 2)),
    )
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    masks = np.broadcast_to((x**2 + y**2 <= 1).astype(np.float32), (count, 28, 28))
    classes = rng.integers(1, 11, count).astype(np.int32)
    result = []
    for _ in range(frames):
        place = place + speed
        speed = np.where((place < 0) | (place > room), -speed, speed)
        boxes = np.concatenate([place - half, place + half], axis=1) + rng.normal(0, 1.5, (count, 4))
        scores = rng.uniform(0.4, 1, count).astype(np.float32)
        result.append(Detections(boxes.astype(np.float32), scores, classes, (1080, 1920), masks))
    return result


def time_frames(count: int, frames: int = 1000) -> dict[str, float]:
    """Milliseconds that one update takes, on the thread that calls it."""
    tracker, wall, cpu = Tracker(), [], []
    for index, detections in enumerate(moving_things(count, frames)):
        start, start_cpu = time.perf_counter(), time.thread_time()
        tracker.update(detections, index * 33_333_333)
        wall.append((time.perf_counter() - start) * 1e3)
        cpu.append((time.thread_time() - start_cpu) * 1e3)
    result: dict[str, float] = {"things": count}
    for name, taken in (("wall", wall), ("cpu", cpu)):
        for share in (50, 95):
            result[f"{name}_p{share}_ms"] = round(float(np.percentile(taken[30:], share)), 3)
    return result


def make_clips(
    root: Path, seeds: Sequence[int], seconds: float, fps: float, write: Callable[..., None]
) -> dict[int, Path]:
    """The clips' folders, rendered where they are missing."""
    folders = {seed: root / f"{seconds:g}s_{fps:g}fps" / str(seed) for seed in seeds}
    for seed, folder in folders.items():
        if not (folder / "annotations.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            write(folder, seed, seconds, fps)
    return folders


def show(report: dict[str, Any]) -> str:
    """The report as a table."""
    lines = [f"{'':50}{'IDF1':>7}{'worst':>7}{'IDP':>7}{'IDR':>7}{'MOTA':>7}{'switches':>10}"]
    for name, found in report["ways"].items():
        mean = found["mean"]
        shares = "".join(f"{mean[key]:7.3f}" for key in ("idf1", "idf1_min", "idp", "idr", "mota"))
        lines.append(f"{name:50}{shares}{mean['num_switches']:10d}")
    lines += [
        f"{row['things']} things: {row['wall_p50_ms']} ms a frame, p95 {row['wall_p95_ms']} ms; of the CPU "
        f"{row['cpu_p50_ms']} and {row['cpu_p95_ms']} ms"
        for row in report["time"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="210-219", help="first and last")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--fps", type=float, default=15.0)
    parser.add_argument("--clips", type=Path, default=Path("data/tracking"), help="folder of the clips")
    parser.add_argument("--json", metavar="FILE_OR_-")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    from edge_mrcnn.training.tabletop.clip_writer import write_clip

    seeds = range(int(first), int(last or first) + 1)
    folders = make_clips(arguments.clips, seeds, arguments.seconds, arguments.fps, write_clip)
    timed = [time_frames(count) for count in (20, 100)]
    report = {
        "model": MODEL.name,
        "backend": "onnxruntime-cpu",
        "machine": platform.machine(),
        "seeds": list(seeds),
        "seconds": arguments.seconds,
        "fps": arguments.fps,
        "threshold": THRESHOLD,
        "weak_threshold": WEAK,
        "min_iou": MIN_IOU,
        "time": timed,
        "ways": measure_clips(folders, arguments.fps),
    }
    if arguments.json == "-":
        json.dump(report, sys.stdout, indent=1)
        return
    print(show(report))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
