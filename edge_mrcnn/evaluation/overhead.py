"""What the pipeline itself costs a frame: everything but decoding, the network, drawing and encoding.

A real run of a camera of 1920x1080 on one core. Frames are prepared beforehand, a `PreparedRunner` in the network's
place gives 20 prepared detections, and the results go into JSON lines and to a view that draws nothing. What remains,
and is counted: the reading lane, batches, letterboxing, boxes, masks and keypoints, tracking, queues, metrics, JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.evaluation.bench import Picture, sample_pictures
from edge_mrcnn.evaluation.machine import Machine, describe_machine
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.metrics import Percentiles
from edge_mrcnn.runtime.pipeline import RunOptions, RunSummary, run_pipeline
from edge_mrcnn.runtime.preprocess import letterbox
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth
from edge_mrcnn.runtime.sources.replay import Replay
from edge_mrcnn.spec import ModelSpec

HW = (1080, 1920)
OBJECTS = 20
FPS = 60.0
FRAMES, WARMUP = 300, 30
MOST_MS = 5.0
"""What the pipeline may cost a frame."""


@dataclass(frozen=True)
class OverheadResult:
    """What the pipeline itself costs a frame.

    Attributes:
        image_hw: Height and width of the frames.
        input_hw: Of the network's input, to which they are letterboxed.
        objects: Detections in each frame.
        frames: Frames measured, at `fps`.
        fps: Frames per second of the camera.
        dropped: Frames that the camera gave in vain.
        cores: 1, or all cores where the system cannot keep a process on one.
        cpu_ms: Processor time of the whole process a frame, all threads together.
        rle_cpu_ms: The same with masks written into the JSON lines as COCO RLE.
        letterbox_ms: Of `cpu_ms`, letterboxing alone: the floor.
        stages_ms: Wall time of each stage; `total` is from receipt to the last sink.
        machine: Where it was measured.
    """

    image_hw: tuple[int, int]
    input_hw: tuple[int, int]
    objects: int
    frames: int
    fps: float
    dropped: int
    cores: int
    cpu_ms: float
    rle_cpu_ms: float
    letterbox_ms: float
    stages_ms: dict[str, Percentiles]
    machine: Machine

    def to_json(self) -> str:
        """The result as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def lines(self) -> list[str]:
        """The result as lines of text."""
        cores = "one core" if self.cores == 1 else f"{self.cores} cores"
        stages = [f"{name:<8}{one.p50:9.2f}{one.p95:9.2f}" for name, one in self.stages_ms.items()]
        return [
            f"pipeline alone, {self.image_hw[1]}x{self.image_hw[0]} to {self.input_hw[1]}x{self.input_hw[0]}, "
            f"{self.objects} objects, {self.frames} frames at {self.fps:g} fps on {cores}, {self.dropped} dropped",
            f"{self.cpu_ms:.2f} ms of processor time a frame (at most {MOST_MS:g} wanted), of which letterboxing "
            f"{self.letterbox_ms:.2f}; {self.rle_cpu_ms:.2f} with masks as RLE",
            f"{'ms':<8}{'p50':>9}{'p95':>9}",
            *stages,
            "left out: decoding (prepared frames), the network (prepared detections), drawing and encoding (JSON lines "
            "and a view that draws nothing)",
            self.machine.line(),
        ]


class PreparedRunner:
    """In the network's place: gives prepared detections, things that move over the picture, and times itself.

    Attributes:
        spec: Of the network whose place it takes.
        backend: Says what it is.
        max_batch: No limit.
        cpu_ns: Processor time spent in here.
    """

    backend = "prepared-detections"
    max_batch = None

    def __init__(self, spec: ModelSpec, objects: int = OBJECTS, seed: int = 0) -> None:
        """Prepare a hundred frames' outputs.

        Args:
            spec: Gives the size of the input, the classes and the heads.
            objects: Detections in each frame.
            seed: Chooses the things and their ways.
        """
        self.spec = spec
        self.cpu_ns = 0
        self._calls = 0
        rng = np.random.default_rng(seed)
        height, width = spec.input_hw
        size = rng.uniform(0.05, 0.15, (objects, 2)) * min(spec.input_hw)
        start = rng.uniform(0, 1, (objects, 2)) * ((width, height) - size)
        speed = rng.uniform(-0.002, 0.002, (objects, 2)) * min(spec.input_hw)
        corner = np.clip(start + speed * np.arange(100)[:, None, None], 0, (width, height) - size)
        self._boxes = np.concatenate([corner, corner + size], axis=2).astype(np.float32)
        self._scores = np.sort(rng.uniform(0.6, 1, objects))[::-1].astype(np.float32)
        self._labels = rng.integers(1, max(len(spec.class_names), 2), objects).astype(np.int32)
        self._heads: dict[str, npt.NDArray[np.float32]] = {}
        if spec.mask_size:
            disc = 1 / (1 + np.exp(8 * (_squared_radius(spec.mask_size) - 0.7)))
            self._heads["masks"] = np.broadcast_to(disc, (1, objects, *disc.shape)).astype(np.float32)
        if spec.keypoint_names:
            peak = 12 * np.exp(-8 * _squared_radius(spec.keypoint_size))
            shape = (1, objects, len(spec.keypoint_names), *peak.shape)
            self._heads["keypoint_logits"] = np.broadcast_to(peak, shape).astype(np.float32)

    def infer(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The next frame's outputs; batches of one."""
        begin = time.thread_time_ns()
        turn = self._calls % (2 * len(self._boxes))  # there and back again: nothing jumps
        self._calls += 1
        outputs = {
            "num_detections": np.array([len(self._scores)], np.int32),
            "boxes": self._boxes[None, min(turn, 2 * len(self._boxes) - 1 - turn)],
            "scores": self._scores[None],
            "labels": self._labels[None],
            **self._heads,
        }
        self.cpu_ns += time.thread_time_ns() - begin
        return outputs

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> PreparedRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _squared_radius(side: int) -> npt.NDArray[np.float64]:
    """`(side, side)` squared distance from the middle, 1 in the middle of an edge."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return np.asarray(x**2 + y**2)


class _PreparedFrames:
    """A source of pictures that are in memory; `Replay` makes a camera of it."""

    uri = name = "prepared"
    live = False
    skipped = 0
    drop: Drop = "auto"
    health = SourceHealth()

    def __init__(self, pictures: list[Picture], length: int) -> None:
        self._pictures = pictures
        self.length: int | None = length
        self.fps: float | None = FPS

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.length or 0):
            stamp_ns = round(index * 1e9 / FPS)
            picture = self._pictures[index % len(self._pictures)]
            yield Frame(picture, "prepared", index, stamp_ns=stamp_ns, stamp_source="file", camera=self.name)

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> _PreparedFrames:
        return self

    def __exit__(self, *_: object) -> None: ...


class _Look:
    """A view that takes the picture and draws nothing."""

    uri = "look://"
    wants_picture = wants_stop = main_thread = False
    kind: Literal["view", "record"] = "view"

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        assert frame.image.shape[:2] == detections.image_hw

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> _Look:
        return self

    def __exit__(self, *_: object) -> None: ...


def measure_overhead(spec: ModelSpec, frames: int | None = None) -> OverheadResult:
    """Measure what the pipeline itself costs a frame.

    Args:
        spec: Of the network whose input the frames are letterboxed to; the network itself does not run.
        frames: Frames to measure, after some for warm-up; 300 when not given.
    """
    machine = describe_machine()
    pictures = sample_pictures(HW)
    with _one_core() as cores, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.jsonl"
        _run(spec, pictures, WARMUP, path, rle=True)
        cpu_ms, summary = _run(spec, pictures, frames or FRAMES, path, rle=False)
        rle_cpu_ms, _ = _run(spec, pictures, frames or FRAMES, path, rle=True)
        letterbox_ms = _time_letterbox(pictures, spec.input_hw)
    return OverheadResult(
        image_hw=HW,
        input_hw=spec.input_hw,
        objects=OBJECTS,
        frames=summary.frames,
        fps=FPS,
        dropped=summary.cameras[0].dropped,
        cores=cores,
        cpu_ms=round(cpu_ms, 3),
        rle_cpu_ms=round(rle_cpu_ms, 3),
        letterbox_ms=round(letterbox_ms, 3),
        stages_ms=summary.latency_ms,
        machine=machine,
    )


def _run(spec: ModelSpec, pictures: list[Picture], frames: int, path: Path, *, rle: bool) -> tuple[float, RunSummary]:
    """One run: processor time a frame in milliseconds, without the prepared network's."""
    runner = PreparedRunner(spec)
    with Replay(lambda: _PreparedFrames(pictures, frames)) as camera:
        begin = time.process_time_ns()
        summary = run_pipeline(Detector(runner), [camera], [path, _Look()], RunOptions(rle=rle, status="off"))
        cpu_ns = time.process_time_ns() - begin - runner.cpu_ns
    return cpu_ns / 1e6 / summary.frames, summary


def _time_letterbox(pictures: list[Picture], input_hw: tuple[int, int]) -> float:
    """Processor time of letterboxing one picture in milliseconds, median."""
    canvas = np.zeros((*input_hw, 3), np.uint8)
    times = []
    for index in range(40):
        begin = time.process_time_ns()
        letterbox(pictures[index % len(pictures)], input_hw, canvas)
        times.append((time.process_time_ns() - begin) / 1e6)
    return statistics.median(times)


@contextlib.contextmanager
def _one_core() -> Iterator[int]:
    """Keep this thread, those that it starts, and OpenCV on one core in the block."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()
    try:
        if cores:
            os.sched_setaffinity(0, {max(cores)})
        yield 1 if cores else os.cpu_count() or 1
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        cv2.setNumThreads(threads)
