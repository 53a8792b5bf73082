"""A run's status as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from edge_mrcnn.runtime.metrics import CameraStatus, Percentiles, RunStatus

_CAMERA_COUNTERS: tuple[tuple[str, str, Callable[[CameraStatus], float]], ...] = (
    ("frames_received", "Frames received.", lambda camera: camera.frames_in),
    ("frames", "Frames that reached every sink that records.", lambda camera: camera.frames_out),
    ("frames_dropped", "Frames that nobody took in time.", lambda camera: camera.dropped),
    ("frames_damaged", "Pictures or packets that could not be decoded.", lambda camera: camera.damaged),
    ("reconnects", "Connections made after the first.", lambda camera: camera.reconnects),
)
_STATES = ("connecting", "live", "lost", "ended")
_PREFIX = "edge_mrcnn"


class RunCollector:
    """Turns a status into metrics each time they are collected."""

    def __init__(self, status: Callable[[], RunStatus], viewers: Callable[[], int]) -> None:
        """Remember whom to ask.

        Args:
            status: Gives the run's status.
            viewers: Gives the number of those who watch the page or a stream.
        """
        self._status = status
        self._viewers = viewers

    def collect(self) -> Iterable[Any]:
        """Every metric of the run as it is now."""
        run = self._status()
        yield from self._collect_run(run)
        yield from _collect_cameras(run)
        yield from _collect_sinks(run)

    def _collect_run(self, run: RunStatus) -> Iterable[Any]:
        info = _gauge("info", "What runs where; always 1.", ("model", "backend"))
        info.add_metric((run.model, run.backend), 1)
        yield info
        for name, text, value in (
            ("uptime_seconds", "Since the run began.", run.uptime_s),
            ("healthy", "1 while every camera is live or ended and no sink failed.", run.healthy),
            ("viewers", "Pages and streams that are open.", self._viewers()),
        ):
            gauge = _gauge(name, text)
            gauge.add_metric((), value)
            yield gauge
        stages = _gauge("stage_seconds", "Time a frame spends in a stage, last few seconds.", ("stage", "quantile"))
        for stage, found in run.stages_ms.items():
            _add_quantiles(stages, (stage,), found)
        yield stages


def exposition(collector: RunCollector) -> tuple[str, bytes]:
    """What `/metrics` answers: its content type and its text, with the process's memory, CPU time and descriptors."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry()
    registry.register(cast(Any, collector))
    ProcessCollector(registry=registry)
    return CONTENT_TYPE_LATEST, generate_latest(registry)


def _collect_cameras(run: RunStatus) -> Iterable[Any]:
    for name, text, value in _CAMERA_COUNTERS:
        counter = _counter(name, text, ("camera",))
        for camera in run.cameras:
            counter.add_metric((camera.name,), value(camera))
        yield counter
    state = _gauge("camera_state", "1 for the state that the camera is in.", ("camera", "state"))
    rate = _gauge("frames_per_second", "Frames out, last few seconds.", ("camera",))
    latency = _gauge("latency_seconds", "From receipt to the last sink, last few seconds.", ("camera", "quantile"))
    found = _gauge("detections", "Detections in the newest frame.", ("camera", "class"))
    for camera in run.cameras:
        for word in _STATES:
            state.add_metric((camera.name, word), camera.state == word)
        rate.add_metric((camera.name,), camera.fps)
        _add_quantiles(latency, (camera.name,), camera.latency_ms)
        for label, count in camera.counts.items():
            found.add_metric((camera.name, label), count)
    yield from (state, rate, latency, found)


def _collect_sinks(run: RunStatus) -> Iterable[Any]:
    labels = ("sink", "kind")
    written = _counter("sink_frames", "Frames written.", labels)
    dropped = _counter("sink_frames_dropped", "Frames a view was too slow for.", labels)
    failed = _gauge("sink_failed", "1 after the sink failed.", labels)
    for sink in run.sinks:
        written.add_metric((sink.uri, sink.kind), sink.written)
        dropped.add_metric((sink.uri, sink.kind), sink.dropped)
        failed.add_metric((sink.uri, sink.kind), bool(sink.error))
    yield from (written, dropped, failed)


def _add_quantiles(gauge: Any, labels: tuple[str, ...], found: Percentiles) -> None:
    if found.count:  # no figure is better than a wrong one
        gauge.add_metric((*labels, "0.5"), round(found.p50 / 1e3, 6))
        gauge.add_metric((*labels, "0.95"), round(found.p95 / 1e3, 6))


def _gauge(name: str, text: str, labels: tuple[str, ...] = ()) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)


def _counter(name: str, text: str, labels: tuple[str, ...]) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)
