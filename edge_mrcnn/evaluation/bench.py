"""Latency of a detector by stage, alone or against rivals in the same process.

A comparison runs its subjects in rounds, A B A B, on the same pictures with the same number of threads, and takes the
median of the ratios pair by pair: what else the machine does hits both sides of a pair alike.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_mrcnn.evaluation.machine import Machine, describe_machine, usable_cores
from edge_mrcnn.runtime.detector import Detector

logger = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB."""

PAUSE_S = 0.01
"""Between two runs: the last one's threads spin for a while in wait of more work, at the next one's cost."""

STAGES = ("pre", "infer", "post", "total")


@dataclass(frozen=True)
class BenchOptions:
    """How long to measure."""

    runs: int = 20
    """Timed runs of each subject."""

    warmup: int = 3
    """Runs of each subject before them, not counted."""

    threads: int = 0
    """CPU threads of every subject; 0 for all cores this process may use."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A number is too small.
        """
        for name, least in (("runs", 1), ("warmup", 0), ("threads", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"BenchOptions.{name} must be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class StageTimes:
    """Time of each stage of one run, in milliseconds.

    Attributes:
        pre_ms: From the picture to the network's input.
        infer_ms: The network.
        post_ms: From the network's output to boxes and full-size masks.
        detections: Detections found.
    """

    pre_ms: float
    infer_ms: float
    post_ms: float
    detections: int = 0

    @property
    def total_ms(self) -> float:
        """Sum of the stages."""
        return self.pre_ms + self.infer_ms + self.post_ms


class BenchSubject(Protocol):
    """Something that can be timed."""

    @property
    def name(self) -> str:
        """Unique in a comparison."""

    @property
    def backend(self) -> str:
        """What runs the network, such as `onnxruntime cpu`."""

    @property
    def threads(self) -> int:
        """CPU threads it uses."""

    @property
    def includes(self) -> str:
        """What its stages contain, in a sentence."""

    @property
    def pastes_inside(self) -> bool:
        """Whether `infer` contains the pasting of full-size masks, so that it cannot be compared as a network."""

    def run(self, image: Picture) -> StageTimes:
        """Process one picture and time it."""


class DetectorSubject:
    r"""A detector, with the pasting of full-size masks that users of masks pay for.

    Example:
        >>> detector = Detector("model.onnx", threshold=None)  # doctest: +SKIP
        >>> subject = DetectorSubject(detector)  # doctest: +SKIP
        >>> print("\n".join(bench(subject, sample_pictures((480, 640))).lines()))  # doctest: +SKIP
    """

    pastes_inside = False

    def __init__(self, detector: Detector, *, threads: int = 0, name: str | None = None) -> None:
        """Wrap a detector.

        Args:
            detector: Opened with `threshold=None`, to time all that the network gives.
            threads: What the detector was opened with; 0 for all cores.
            name: In tables; the model's when not given.
        """
        self.detector = detector
        self.name = name or detector.spec.name
        self.backend = detector.backend
        heads = (
            (", full-size boolean masks pasted", detector.spec.mask_size),
            (", keypoints", detector.spec.keypoint_names),
        )
        self.includes = f"{detector.stages}; post: boxes" + "".join(text for text, there in heads if there)
        self.threads = threads or usable_cores()

    def run(self, image: Picture) -> StageTimes:
        """Process one picture and time it."""
        (found,), times = self.detector.detect_timed([image])
        start = time.perf_counter_ns()
        if found.mask is not None:
            found.masks()
        pasting_ns = time.perf_counter_ns() - start
        return StageTimes(times.pre_ns / 1e6, times.infer_ns / 1e6, (times.post_ns + pasting_ns) / 1e6, len(found))


@dataclass(frozen=True)
class StageStats:
    """Times of one stage in milliseconds."""

    p50_ms: float
    p95_ms: float
    mean_ms: float


@dataclass(frozen=True)
class BenchResult:
    """Latency of one subject.

    Attributes:
        name: The subject's.
        backend: What runs the network.
        includes: What the stages contain.
        input_hw: Height and width of the pictures.
        threads: CPU threads.
        runs: Timed runs.
        warmup: Runs before them.
        detections: Detections per picture, mean.
        stages: `pre`, `infer`, `post` and `total`.
        fps: Pictures per second, one after the other.
        machine: Where it was measured.
    """

    name: str
    backend: str
    includes: str
    input_hw: tuple[int, int]
    threads: int
    runs: int
    warmup: int
    detections: float
    stages: Mapping[str, StageStats]
    fps: float
    machine: Machine

    def to_json(self) -> str:
        """The result as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def lines(self) -> list[str]:
        """The result as lines of a text table."""
        rows = [f"{'ms':<8}{'p50':>9}{'p95':>9}{'mean':>9}"]
        for name in STAGES:
            stats = self.stages[name]
            rows.append(f"{name:<8}{stats.p50_ms:9.1f}{stats.p95_ms:9.1f}{stats.mean_ms:9.1f}")
        return [
            f"{self.name} on {self.backend}, {self.input_hw[0]}x{self.input_hw[1]}, {self.threads} threads",
            *rows,
            f"{self.fps:.1f} pictures/s; {self.runs} runs after {self.warmup} for warm-up, "
            f"{self.detections:.1f} detections a picture",
            self.includes,
            self.machine.line(),
        ]


@dataclass(frozen=True)
class Ratio:
    """The subject's time divided by a rival's: median of the ratios of each round; below 1 the subject is faster.

    Attributes:
        rival: Name of the rival.
        total: From picture to full-size masks.
        network: Of `infer` alone; None when one side pastes its masks inside the network.
    """

    rival: str
    total: float
    network: float | None


@dataclass(frozen=True)
class Comparison:
    """A subject and its rivals, measured in turn in one process.

    Attributes:
        results: The subject's, then the rivals' in their order.
        ratios: One for each rival.
    """

    results: tuple[BenchResult, ...]
    ratios: tuple[Ratio, ...]

    def to_json(self) -> str:
        """The comparison as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def lines(self) -> list[str]:
        """The comparison as lines of a text table."""
        subject = self.results[0]
        width = max(len(result.name) for result in self.results) + 2
        heads = ("pre", "infer", "post", "total", "p95", "boxes")
        rows = [f"{'p50 in ms':<{width}}" + "".join(f"{head:>9}" for head in heads)]
        for result in self.results:
            times = [result.stages[stage].p50_ms for stage in STAGES] + [result.stages["total"].p95_ms]
            rows.append(f"{result.name:<{width}}" + "".join(f"{value:9.1f}" for value in (*times, result.detections)))
        rows += ["", f"{subject.name} takes, of the time of"]
        for ratio in self.ratios:
            network = "      -" if ratio.network is None else f"{ratio.network:7.2f}"
            rows.append(f"{ratio.rival:<{width}}network {network}   with full-size masks {ratio.total:7.2f}")
        return [
            *rows,
            "",
            *(line for result in self.results for line in (f"{result.name}: {result.backend}", f"  {result.includes}")),
            f"{subject.input_hw[0]}x{subject.input_hw[1]}, {subject.threads} threads, {subject.runs} runs in turn "
            f"after {subject.warmup} for warm-up",
            subject.machine.line(),
        ]


def bench(subject: BenchSubject, pictures: Sequence[Picture], options: BenchOptions | None = None) -> BenchResult:
    """Time one subject.

    Args:
        subject: What to time.
        pictures: Taken in turn; all of one size.
        options: Number of runs.

    Raises:
        ValueError: There are no pictures, or they differ in size.
    """
    return compare(subject, pictures=pictures, options=options).results[0]


def compare(
    subject: BenchSubject, *rivals: BenchSubject, pictures: Sequence[Picture], options: BenchOptions | None = None
) -> Comparison:
    """Time a subject and its rivals in turn: in each round every one of them processes the same picture.

    Args:
        subject: The one the ratios are about.
        rivals: What it is compared with.
        pictures: Taken in turn, one a round; all of one size: the input's, so that all see the same pixels.
        options: Number of rounds.

    Raises:
        ValueError: There are no pictures, they differ in size, or two subjects share a name or use different numbers
            of threads.
    """
    options = options or BenchOptions()
    everyone = (subject, *rivals)
    _check(everyone, pictures)
    machine = describe_machine()
    times: dict[str, list[StageTimes]] = {one.name: [] for one in everyone}
    for round_index in _rounds(options):
        picture = pictures[round_index % len(pictures)]
        for one in everyone:
            time.sleep(PAUSE_S)
            timing = one.run(picture)
            if round_index >= options.warmup:
                times[one.name].append(timing)
    results = tuple(_summarise(one, times[one.name], pictures[0].shape, options, machine) for one in everyone)
    return Comparison(results, tuple(_ratio(subject, rival, times) for rival in rivals))


def sample_pictures(hw: tuple[int, int], count: int = 4, seed: int = 0) -> list[Picture]:
    """Pictures of noisy rectangles, for timing and for networks with random weights.

    Args:
        hw: Height and width in pixels, at least 32 each.
        count: Number of pictures.
        seed: Same seed, same pictures.

    Returns:
        `(H, W, 3)` uint8 each.
    """
    height, width = hw
    pictures = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        canvas = rng.integers(90, 160, 3) + rng.normal(0, 6, (height, width, 3))
        for _ in range(14):
            y, x = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
            patch = canvas[y : y + int(rng.integers(12, height // 2)), x : x + int(rng.integers(12, width // 2))]
            patch[:] = rng.integers(0, 255, 3) + rng.normal(0, 12, patch.shape)
        pictures.append(canvas.clip(0, 255).astype(np.uint8))
    return pictures


def _check(subjects: Sequence[BenchSubject], pictures: Sequence[Picture]) -> None:
    if len({picture.shape for picture in pictures}) != 1:
        raise ValueError(f"pictures must be at least one, all of one size, got {[p.shape for p in pictures][:5]}")
    if len({one.name for one in subjects}) != len(subjects):
        raise ValueError(f"subjects must have different names, got {[one.name for one in subjects]}")
    threads = {one.name: one.threads for one in subjects}
    if len(set(threads.values())) != 1:
        raise ValueError(f"subjects must use the same number of threads, got {threads}")


def _rounds(options: BenchOptions) -> Sequence[int]:
    from tqdm import tqdm

    rounds: Sequence[int] = tqdm(range(options.warmup + options.runs), "measuring", unit=" rounds", disable=None)
    return rounds


def _summarise(
    subject: BenchSubject, times: Sequence[StageTimes], shape: tuple[int, ...], options: BenchOptions, machine: Machine
) -> BenchResult:
    stages = {}
    for name in STAGES:
        values = np.array([getattr(timing, f"{name}_ms") for timing in times])
        p50, p95 = np.percentile(values, (50, 95))
        stages[name] = StageStats(round(float(p50), 3), round(float(p95), 3), round(float(values.mean()), 3))
    mean = statistics.fmean(timing.total_ms for timing in times)
    return BenchResult(
        name=subject.name,
        backend=subject.backend,
        includes=subject.includes,
        input_hw=(shape[0], shape[1]),
        threads=subject.threads,
        runs=len(times),
        warmup=options.warmup,
        detections=round(statistics.fmean(timing.detections for timing in times), 2),
        stages=stages,
        fps=round(1000 / mean, 2) if mean else 0.0,
        machine=machine,
    )


def _ratio(subject: BenchSubject, rival: BenchSubject, times: Mapping[str, Sequence[StageTimes]]) -> Ratio:
    pairs = list(zip(times[subject.name], times[rival.name], strict=True))
    network = None
    if not (subject.pastes_inside or rival.pastes_inside):
        network = round(statistics.median(a.infer_ms / b.infer_ms for a, b in pairs), 4)
    return Ratio(rival.name, round(statistics.median(a.total_ms / b.total_ms for a, b in pairs), 4), network)
