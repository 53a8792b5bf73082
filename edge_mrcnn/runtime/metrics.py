"""How long things take: nanoseconds in, percentiles out."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Timings:
    """What one call of a detector took, in nanoseconds, for all its frames together.

    Attributes:
        pre_ns: Letterboxing; where the GPU does that, handing the pictures over.
        infer_ns: The network; with a GPU also copies there and back, and letterboxing.
        post_ns: Boxes back to the picture, filtering.
        frames: Frames in the call.
    """

    pre_ns: int
    infer_ns: int
    post_ns: int
    frames: int = 1

    def __add__(self, other: Timings) -> Timings:
        """Of both calls together."""
        return Timings(
            self.pre_ns + other.pre_ns,
            self.infer_ns + other.infer_ns,
            self.post_ns + other.post_ns,
            self.frames + other.frames,
        )

    @property
    def total_ns(self) -> int:
        """All stages together."""
        return self.pre_ns + self.infer_ns + self.post_ns


@dataclass(frozen=True)
class Percentiles:
    """Latency of one stage in milliseconds per frame; all zero when nothing was recorded.

    Attributes:
        count: Samples that the figures stand on.
        mean: Arithmetic mean.
        p50: Median.
        p95: 95 % of the samples took at most this.
    """

    count: int
    mean: float
    p50: float
    p95: float


@dataclass(frozen=True)
class CameraStatus:
    """How one camera of a run is doing.

    Attributes:
        name: Of the camera, unique in the run.
        uri: Where its frames come from, without credentials.
        state: `connecting`, `live`, `lost` or `ended`.
        frames_in: Frames received.
        frames_out: Frames that reached every sink that records.
        dropped: Frames that nobody took in time, by the camera's `drop` policy.
        damaged: Pictures or packets that could not be decoded.
        reconnects: Connections made after the first.
        fps: Frames out per second, over the last few seconds.
        latency_ms: From receipt by the host to the last sink, over the last few seconds.
        counts: Detections by class in the newest frame.
        image_hw: Height and width of the newest frame, None before the first.
        error: Why it was lost last; empty when it never was.
    """

    name: str
    uri: str
    state: str
    frames_in: int
    frames_out: int
    dropped: int
    damaged: int
    reconnects: int
    fps: float
    latency_ms: Percentiles
    counts: dict[str, int]
    image_hw: tuple[int, int] | None
    error: str


@dataclass(frozen=True)
class SinkStatus:
    """How one sink of a run is doing.

    Attributes:
        uri: Of the sink, without credentials.
        kind: `view`, which drops frames it is too slow for, or `record`, which the run waits for.
        written: Frames written.
        dropped: Frames a view was too slow for.
        error: Why it failed; empty while it works.
    """

    uri: str
    kind: str
    written: int
    dropped: int
    error: str


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment: what the terminal, the JSON line, the web page and Prometheus show.

    Attributes:
        model: Name of the network.
        backend: Who runs it where.
        uptime_s: Since the run began.
        fps: Frames out per second of all cameras together, over the last few seconds.
        cameras: In the order of the sources.
        sinks: In the order given.
        stages_ms: Milliseconds a frame of each stage over the last few seconds: `wait` (from receipt to the network's
            turn), `pre`, `infer`, `post`, `track`, `sinks` and `total` (receipt to the last sink).
        healthy: Every camera is live or ended, and no sink failed.
    """

    model: str
    backend: str
    uptime_s: float
    fps: float
    cameras: tuple[CameraStatus, ...]
    sinks: tuple[SinkStatus, ...]
    stages_ms: dict[str, Percentiles]
    healthy: bool

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))


class LatencyRecorder:
    """Collects latencies by stage; memory stays bounded however long it runs.

    Example:
        >>> recorder = LatencyRecorder()
        >>> for milliseconds in (1, 2, 3):
        ...     recorder.add("infer", milliseconds * 1_000_000)
        >>> recorder.percentiles("infer").p50
        2.0
    """

    def __init__(self, window: int = 10_000) -> None:
        """Keep the last `window` samples of each stage."""
        self._window = window
        self._samples: dict[str, deque[float]] = {}

    def add(self, stage: str, duration_ns: float) -> None:
        """Record one duration in nanoseconds."""
        self._samples.setdefault(stage, deque(maxlen=self._window)).append(duration_ns)

    def add_timings(self, timings: Timings) -> None:
        """Record a detector's call as `pre`, `infer`, `post` and `detect` (their sum), per frame."""
        count = max(timings.frames, 1)
        self.add("pre", timings.pre_ns / count)
        self.add("infer", timings.infer_ns / count)
        self.add("post", timings.post_ns / count)
        self.add("detect", timings.total_ns / count)

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages in the order in which they were first recorded."""
        return tuple(self._samples)

    def percentiles(self, stage: str) -> Percentiles:
        """Figures of one stage, in milliseconds."""
        samples = np.array(self._samples.get(stage, ()), np.float64) / 1e6
        if not len(samples):
            return Percentiles(0, 0.0, 0.0, 0.0)
        p50, p95 = np.percentile(samples, (50, 95))
        return Percentiles(len(samples), float(samples.mean()), float(p50), float(p95))

    def summary(self) -> dict[str, Percentiles]:
        """Figures of every stage, in milliseconds."""
        return {stage: self.percentiles(stage) for stage in self.stages}
