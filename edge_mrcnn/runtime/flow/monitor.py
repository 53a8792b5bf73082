"""What a run counts, and what it says of itself while it goes on."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.flow.outlet import Outlet
from edge_mrcnn.runtime.flow.result import Result
from edge_mrcnn.runtime.metrics import (
    CameraStatus,
    CameraSummary,
    LatencyLog,
    Percentiles,
    RunStatus,
    SinkStatus,
    percentiles,
)
from edge_mrcnn.runtime.sources import Source
from edge_mrcnn.runtime.sources.lane import Lane
from edge_mrcnn.runtime.sources.live import SourceHealth

WINDOW_S = 5.0
"""Rates and latencies of the status are those of the last seconds."""

_STILL_S = 30.0
"""A run whose cameras give frames and whose network gives no result for longer is not well."""

_FRESH_S = 0.2
"""A status is told again, rather than made anew, for this long: any number of pages may ask."""


class Monitor:
    """Counts what passes, for all threads of a run.

    Attributes:
        latency: What the last frames took.
        found: Detections by class number, of all frames.
        outlets: Of the sinks, in the order given; filled when they are open.
        frames: Frames through the network.
    """

    def __init__(self, detector: Detector, sources: Sequence[Source], names: Sequence[str]) -> None:
        """Begin to count.

        Args:
            detector: Says who runs the network.
            sources: In the order given.
            names: Of their cameras.
        """
        self.latency = LatencyLog()
        self.found: Counter[int] = Counter()
        self.outlets: list[Outlet] = []
        self.frames = 0
        self._detector = detector
        self._cameras = [_Camera(source, name) for source, name in zip(sources, names, strict=True)]
        self._number = {name: number for number, name in enumerate(names)}
        self._lock = threading.Lock()
        self._begin_ns = self._last_ns = time.monotonic_ns()
        self._status: tuple[float, RunStatus] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the network."""
        return self._detector.class_names

    def watch(self, lanes: Sequence[Lane]) -> None:
        """Ask the lanes of live sources, which know what was dropped, how their cameras are."""
        by_source = {id(lane.source): lane for lane in lanes}
        for camera in self._cameras:
            camera.lane = by_source.get(id(camera.source))

    def deliver(self, result: Result) -> None:
        """Count a result and hand it to every sink; waits while one that records has too many."""
        labels = result.detections.class_id
        camera = self._cameras[self._number[result.frame.camera]]
        with self._lock:
            self.found.update(labels.tolist())
            camera.labels, camera.image_hw = labels, result.frame.image_hw
            self.frames += 1
            self._last_ns = result.handed_ns
            result.open = len(self.outlets)
        if not self.outlets:
            self._count_out(result)
        for outlet in sorted(self.outlets, key=lambda outlet: outlet.sink.kind == "record"):
            outlet.put(result)  # views first: they never wait

    def settle(self, result: Result, whole: bool) -> None:
        """A sink is through with a result; not `whole` where a sink that records failed on it."""
        with self._lock:
            result.open -= 1
            result.whole = result.whole and whole
            last = result.open == 0
        if last:
            self._count_out(result)

    def _count_out(self, result: Result) -> None:
        number = self._number[result.frame.camera]
        done_ns = result.written_ns
        sinks_ns = done_ns - result.handed_ns
        total_ns = done_ns - result.frame.captured_ns
        self.latency.add(number, done_ns, (*result.stages_ns, sinks_ns, total_ns))
        if result.whole:
            with self._lock:
                self._cameras[number].out += 1

    def status(self) -> RunStatus:
        """How the run is doing; may be called from any thread, as often as one likes."""
        now = time.monotonic()
        known = self._status
        if known is None or now - known[0] > _FRESH_S:
            known = self._status = now, self._make_status()
        return known[1]

    def _make_status(self) -> RunStatus:
        now_ns = time.monotonic_ns()
        begin_ns = max(now_ns - round(WINDOW_S * 1e9), self._begin_ns)
        seconds = max(now_ns - begin_ns, 1) / 1e9
        rows = self.latency.since(begin_ns)
        cameras = tuple(
            camera.status(self.class_names, rows[rows[:, 0] == number], seconds)
            for number, camera in enumerate(self._cameras)
        )
        sinks = self.sinks()
        return RunStatus(
            model=self._detector.spec.name,
            backend=self._detector.backend,
            uptime_s=round((now_ns - self._begin_ns) / 1e9, 3),
            fps=round(len(rows) / seconds, 2),
            cameras=cameras,
            sinks=sinks,
            stages_ms={stage: _rounded(found) for stage, found in self.latency.percentiles(begin_ns).items()},
            healthy=self._is_healthy(cameras, sinks, now_ns),
        )

    def _is_healthy(self, cameras: Sequence[CameraStatus], sinks: Sequence[SinkStatus], now_ns: int) -> bool:
        live = [status.state for status, camera in zip(cameras, self._cameras, strict=True) if camera.source.live]
        stands_still = "live" in live and now_ns - self._last_ns > _STILL_S * 1e9
        return set(live) <= {"live", "ended"} and not stands_still and not any(sink.error for sink in sinks)

    def sinks(self) -> tuple[SinkStatus, ...]:
        """How each sink is doing."""
        return tuple(
            SinkStatus(outlet.sink.uri, outlet.sink.kind, outlet.written, outlet.dropped, outlet.trouble)
            for outlet in self.outlets
        )

    def cameras(self) -> tuple[CameraSummary, ...]:
        """What came of each camera, when its lane has ended; what is still in there counts as dropped."""
        return tuple(camera.summary() for camera in self._cameras)


class _Camera:
    """What is known of one camera."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.lane: Lane | None = None
        self.out = 0
        self.labels: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self.image_hw: tuple[int, int] | None = None

    @property
    def health(self) -> SourceHealth:
        return (self.lane or self.source).health

    def status(self, class_names: Sequence[str], rows: npt.NDArray[np.int64], seconds: float) -> CameraStatus:
        health = self.health
        return CameraStatus(
            name=self.name,
            uri=self.source.uri,
            state=health.state,
            frames_in=health.frames,
            frames_out=self.out,
            dropped=health.dropped,
            damaged=health.damaged,
            reconnects=health.reconnects,
            fps=round(len(rows) / seconds, 2),
            latency_ms=_rounded(percentiles(rows[:, -1])),
            counts=count_names(Counter(self.labels.tolist()), class_names),
            image_hw=self.image_hw or health.image_hw,
            error=health.error,
        )

    def summary(self) -> CameraSummary:
        left = sum(1 for _ in iter(self.lane.take, None)) if self.lane is not None else 0
        health = self.health
        return CameraSummary(
            name=self.name,
            uri=self.source.uri,
            frames_in=health.frames,
            frames_out=self.out,
            dropped=health.dropped + left,
            damaged=health.damaged,
            reconnects=health.reconnects,
        )


def count_names(found: Counter[int], class_names: Sequence[str]) -> dict[str, int]:
    """Counts by class name, most first."""
    known = len(class_names)
    return {
        class_names[label] if 0 <= label < known else f"class {label}": count for label, count in found.most_common()
    }


def _rounded(found: Percentiles) -> Percentiles:
    """To the microsecond: more digits only make lines long."""
    return Percentiles(found.count, round(found.mean, 3), round(found.p50, 3), round(found.p95, 3))
