"""How long things take: nanoseconds in, percentiles out."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt


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
        error: Why it failed, or that it hangs; empty while it works.
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
        healthy: Every live source is live or ended, no sink failed or hangs, and the network gave a result in the last
            30 s, if a camera gives frames. Files that wait for their turn are well.
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


@dataclass(frozen=True)
class CameraSummary:
    """What came of one camera in a whole run.

    Attributes:
        name: Of the camera, unique in the run.
        uri: Where its frames came from, without credentials.
        frames_in: Frames received.
        frames_out: Frames that reached every sink that records.
        dropped: Frames that nobody took in time, by the camera's `drop` policy.
        damaged: Pictures or packets that could not be decoded.
        reconnects: Connections made after the first.
    """

    name: str
    uri: str
    frames_in: int
    frames_out: int
    dropped: int
    damaged: int
    reconnects: int


STAGES = ("wait", "pre", "infer", "post", "track", "sinks", "total")
"""What a frame goes through: it waits for its turn, is letterboxed, goes through the network, its boxes are taken back
to the picture and numbered, it is drawn and written. `total` is the time from receipt to the last sink: more than the
sum where frames of a batch wait for each other."""


class LatencyLog:
    """What the last frames took, stage by stage. Memory is the same from the first frame on, however long it runs.

    Example:
        >>> log = LatencyLog()
        >>> for milliseconds in (1, 2, 3):
        ...     log.add(0, done_ns=0, stages_ns=[milliseconds * 1_000_000] * 7)
        >>> log.percentiles()["infer"].p50
        2.0
    """

    def __init__(self, window: int = 10_000) -> None:
        """Keep the last `window` frames."""
        self._rows = np.zeros((window, 2 + len(STAGES)), np.int64)
        self._rows.fill(0)  # so that its pages are there from the start
        self._count = 0
        self._lock = threading.Lock()

    def add(self, camera: int, done_ns: int, stages_ns: Sequence[int]) -> None:
        """Record a frame of a camera, with the time when it was done, monotonic clock, and that of each stage."""
        with self._lock:
            self._rows[self._count % len(self._rows)] = (camera, done_ns, *stages_ns)
            self._count += 1

    def since(self, begin_ns: int) -> npt.NDArray[np.int64]:
        """Rows `(N, 2 + stages)` of the frames done since `begin_ns`: camera, when it was done, and each stage."""
        with self._lock:
            rows = self._rows[: self._count]
            return rows[rows[:, 1] >= begin_ns]

    def percentiles(self, begin_ns: int = 0) -> dict[str, Percentiles]:
        """Figures of every stage, in milliseconds, of the frames done since `begin_ns`; empty when there were none."""
        rows = self.since(begin_ns)
        return {stage: percentiles(rows[:, 2 + column]) for column, stage in enumerate(STAGES)} if len(rows) else {}


def percentiles(durations_ns: npt.ArrayLike) -> Percentiles:
    """Figures of durations in nanoseconds, in milliseconds."""
    samples = np.asarray(durations_ns, np.float64) / 1e6
    if not len(samples):
        return Percentiles(0, 0.0, 0.0, 0.0)
    p50, p95 = np.percentile(samples, (50, 95))
    return Percentiles(len(samples), float(samples.mean()), float(p50), float(p95))
