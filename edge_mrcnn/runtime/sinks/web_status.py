"""What the page says about a run: its status, how long each camera has been so, and the last two minutes."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import edge_mrcnn
from edge_mrcnn.detections import Detections
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.metrics import CameraStatus, Percentiles, RunStatus
from edge_mrcnn.runtime.palette import color_of

logger = logging.getLogger(__name__)

SAMPLE_S = 1.0
"""Between two looks at the run."""

_HISTORY = 120
"""Samples in the curves of rate and latency."""

_WINDOW_S = 5.0
"""Rates and latencies are over this long; a camera that sends nothing for as long is lost."""


@dataclass
class _Seen:
    """What came of one camera: newest (arrival, latency in ms) last."""

    uri: str = ""
    image_hw: tuple[int, int] | None = None
    frames: int = 0
    arrivals: deque[tuple[float, float]] = field(default_factory=deque)
    last: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)


class SeenCameras:
    """A run as one sink sees it, for sinks used outside a run: nothing is known of what never arrived."""

    def __init__(self, class_names: Sequence[str]) -> None:
        """Nothing was seen yet."""
        self._class_names = class_names
        self._begin = time.monotonic()
        self._cameras: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def add(self, camera: str, frame: Frame, detections: Detections) -> None:
        """Note a frame that came."""
        now = time.monotonic()
        labels = Counter(detections.class_id.tolist())
        with self._lock:
            seen = self._cameras.setdefault(camera, _Seen())
            seen.uri, seen.image_hw, seen.frames, seen.last = frame.source, frame.image_hw, seen.frames + 1, now
            seen.counts = {self._name(label): labels[label] for label in sorted(labels)}
            seen.arrivals.append((now, now * 1e3 - frame.captured_ns / 1e6))
            while seen.arrivals[0][0] < now - _WINDOW_S:
                seen.arrivals.popleft()

    def status(self) -> RunStatus:
        """What was seen."""
        now = time.monotonic()
        with self._lock:
            cameras = tuple(self._camera(name, seen, now) for name, seen in self._cameras.items())
        healthy = all(camera.state == "live" for camera in cameras)
        fps = sum(camera.fps for camera in cameras)
        return RunStatus("", "", now - self._begin, fps, cameras, (), {}, healthy)

    def _camera(self, name: str, seen: _Seen, now: float) -> CameraStatus:
        recent = [entry for entry in seen.arrivals if entry[0] >= now - _WINDOW_S]
        latency = Percentiles(0, 0.0, 0.0, 0.0)
        fps = 0.0
        if recent:
            samples = np.array([entry[1] for entry in recent])
            p50, p95 = np.percentile(samples, (50, 95))
            latency = Percentiles(len(samples), float(samples.mean()), float(p50), float(p95))
            fps = (len(recent) - 1) / max(recent[-1][0] - recent[0][0], 1e-3) if len(recent) > 1 else 0.0
        live = now - seen.last < _WINDOW_S
        return CameraStatus(
            name, seen.uri, "live" if live else "lost", seen.frames, seen.frames, 0, 0, 0, fps, latency, seen.counts,
            seen.image_hw, "" if live else f"no frame came for {_WINDOW_S:.0f} s",
        )  # fmt: skip

    def _name(self, label: int) -> str:
        return self._class_names[label] if 0 <= label < len(self._class_names) else f"class {label}"


@dataclass
class _Track:
    """What the board remembers of one camera."""

    state: str
    since: float
    fps: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))


class StatusBoard:
    """Looks at the run once a second, for all viewers. Belongs to the event loop's thread.

    Attributes:
        run: The newest status.
    """

    def __init__(self, status: Callable[[], RunStatus], class_names: Sequence[str]) -> None:
        """Look for the first time."""
        self._status = status
        self._colors = {name: "#{:02x}{:02x}{:02x}".format(*color_of(label)) for label, name in enumerate(class_names)}
        self._tracks: dict[str, _Track] = {}
        self._changed = asyncio.Event()
        self._failed = False
        self.run = status()
        self._remember()

    async def keep(self) -> None:
        """Look again every second, for ever."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            try:
                self.run = self._status()
            except Exception:  # the page outlives it, and shows the last status
                if not self._failed:
                    logger.exception("the run does not tell its status; the page shows the last one")
                self._failed = True
                continue
            self._remember()
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def change(self) -> None:
        """Wait for the next look."""
        await self._changed.wait()

    def to_json(self, viewers: int) -> str:
        """The run and the last two minutes as one line of JSON; `docs/live.md` describes it.

        Args:
            viewers: How many are watching.
        """
        content: dict[str, Any] = asdict(self.run)
        now = time.monotonic()
        for camera in content["cameras"]:
            track = self._tracks[camera["name"]]
            camera["since_s"] = round(now - track.since, 1)
            camera["history"] = {"fps": list(track.fps), "latency_ms": list(track.latency_ms)}
        content |= {"colors": self._colors, "viewers": viewers, "version": edge_mrcnn.__version__}
        content["problems"] = self.problems()
        return json.dumps(content, separators=(",", ":"))

    def problems(self) -> list[str]:
        """What keeps the run from being healthy, a sentence each."""
        found = []
        for camera in self.run.cameras:
            if camera.state not in ("live", "ended"):
                since = time.monotonic() - self._tracks[camera.name].since
                why = f": {camera.error}" if camera.error else ""
                found.append(f"camera {camera.name} is {camera.state} for {since:.0f} s{why}")
        found += [f"sink {sink.uri} failed: {sink.error}" for sink in self.run.sinks if sink.error]
        if not found and not self.run.healthy:
            found.append("the run is not healthy")
        return found

    def _remember(self) -> None:
        now = time.monotonic()
        for camera in self.run.cameras:
            track = self._tracks.setdefault(camera.name, _Track(camera.state, now))
            if camera.state != track.state:
                track.state, track.since = camera.state, now
            track.fps.append(round(camera.fps, 1))
            track.latency_ms.append(round(camera.latency_ms.p50, 1))
