"""The soak itself: a real run over cameras that misbehave, watched from the side."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import av

from edge_mrcnn.evaluation.machine import describe_machine
from edge_mrcnn.evaluation.soak.awkward import BlockingSink, DeafClients, find_free_port
from edge_mrcnn.evaluation.soak.farm import CameraFarm
from edge_mrcnn.evaluation.soak.faults import Fault, plan_faults
from edge_mrcnn.evaluation.soak.options import SoakOptions
from edge_mrcnn.evaluation.soak.report import SoakReport
from edge_mrcnn.evaluation.soak.vitals import Vitals, VitalSigns
from edge_mrcnn.runtime.metrics import CameraSummary, Percentiles
from edge_mrcnn.runtime.pipeline import RunOptions, RunSummary, run_pipeline
from edge_mrcnn.runtime.sinks import Sink

PATTERN = "test://640x480?frames=24"
LONGEST_SEGMENT_S = 60.0
PATIENCE_S = 10.0
"""How long a camera may still take to come back when the soak is over."""
_LOOK_S = 0.1
_COME_AND_GO = 4
"""Medians of threads and descriptors may differ by this many, as connections come and go; a leak of one a fault gives
hundreds in twenty minutes."""


def soak(model: str | Path, options: SoakOptions | None = None) -> SoakReport:
    """Run for a long time while cameras, clients and sinks misbehave.

    Several cameras over HTTP, and one over RTSP where GStreamer's server is there, come from child processes. The run
    writes video, JSON lines and MCAP, serves the live page, and has a record and a view that block now and then.
    Faults come by a seeded plan. Call it from the main thread.

    Args:
        model: model.onnx or engine.
        options: How it goes.

    Returns:
        What was found; `problems` is empty when no limit was broken.

    Raises:
        StreamError: The run itself failed, or there is no /proc.

    Example:
        >>> report = soak("model.onnx", SoakOptions(minutes=20))  # doctest: +SKIP
        >>> report.problems  # doctest: +SKIP
        ()
    """
    options = options or SoakOptions()
    with contextlib.ExitStack() as stack:
        folder = Path(options.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-mrcnn-soak-")))
        farm = stack.enter_context(CameraFarm(options.cameras, options.fps, options.show or PATTERN, options.timeout_s))
        vitals = stack.enter_context(Vitals())
        chaos = Chaos(farm, options)
        sinks: list[Sink | str] = [
            *name_recordings(folder, options),
            f"mjpeg://127.0.0.1:{chaos.port}",
            *chaos.sinks.values(),
        ]
        stop = threading.Event()
        with chaos.going_on(stop):
            summary = run_pipeline(model, farm.uris, sinks, _run_options(options), stop=stop)
        recorded = {**count_recordings(folder), "block-record": chaos.sinks["block-record"].frames}
        return _make_report(summary, vitals.measure(), recorded, chaos, options)


def _run_options(options: SoakOptions) -> RunOptions:
    return RunOptions(threads=options.threads, status="line" if sys.stderr.isatty() else "off")


class Chaos:
    """Carries out the plan of faults, and ends the soak.

    Attributes:
        port: For the live page.
        sinks: Those that block.
        injected: Faults so far, by kind.
        ill: What the page said in the end, when every fault was over; empty when all was well.
    """

    def __init__(self, farm: CameraFarm, options: SoakOptions) -> None:
        """Make the plan."""
        self.port = find_free_port()
        self.sinks = {"block-record": BlockingSink("record"), "block-view": BlockingSink("view")}
        self.injected: Counter[str] = Counter()
        self.ill = ""
        self._farm = farm
        self._clients = DeafClients(self.port, "http0")
        self._soak_s = 60 * options.minutes
        self._plan = plan_faults(
            options.seed, self._soak_s, options.cameras, timeout_s=options.timeout_s, rtsp=farm.has_rtsp
        )

    @contextlib.contextmanager
    def going_on(self, stop: threading.Event) -> Iterator[None]:
        """Inject the faults while the block lasts, and set `stop` when the soak is over.

        Raises:
            StreamError: The cameras ended by themselves.
        """
        errors: list[Exception] = []
        over = threading.Event()

        def work() -> None:
            try:
                self._inject(over)
            except Exception as error:  # carried over to the thread that waits
                errors.append(error)
            stop.set()

        thread = threading.Thread(target=work, name="edge-mrcnn-chaos", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._clients.close()
        if errors:
            raise errors[0]

    def _inject(self, over: threading.Event) -> None:
        begin = time.monotonic()
        plan = iter(self._plan)
        fault = next(plan, None)
        while (elapsed_s := time.monotonic() - begin) < self._soak_s and not over.wait(_LOOK_S):
            while fault is not None and elapsed_s >= fault.at_s:
                self._begin(fault)
                fault = next(plan, None)
            self._clients.tend()
            self._farm.tend()
        end = time.monotonic() + PATIENCE_S
        while (ill := ask_health(self.port)) and time.monotonic() < end and not over.wait(_LOOK_S):
            self._farm.tend()
        self.ill = ill

    def _begin(self, fault: Fault) -> None:
        self.injected[fault.kind] += 1
        if fault.kind in self.sinks:
            self.sinks[fault.kind].block(fault.seconds)
        elif fault.kind == "deaf":
            self._clients.listen_never(fault.seconds)
        elif fault.kind == "rude":
            self._clients.break_off()
        else:
            self._farm.misbehave(fault)


def ask_health(port: int) -> str:
    """What the page says is wrong; empty when it says that all is well."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=PATIENCE_S):
            return ""
    except HTTPError as error:
        with error:
            return f"not well in the end: {error.read().decode().strip()}"
    except OSError as error:
        return f"the page did not answer in the end: {error}"


def name_recordings(folder: Path, options: SoakOptions) -> list[str]:
    """Recordings, cut into segments as whoever records for long would do it: the index of a file grows with it."""
    segment_s = max(min(LONGEST_SEGMENT_S, 60 * options.minutes / 3), 1)
    base = f"{quote(str(folder.resolve()))}/soak"
    return [
        f"file://{base}.mkv?segment_s={segment_s}",
        f"file://{base}.jsonl?segment_s={segment_s}",
        f"mcap://{base}.mcap?segment_s={segment_s}",
    ]


def count_recordings(folder: Path) -> dict[str, dict[str, int]]:
    """Frames of each camera that can be read back, by the recording's suffix."""
    from mcap.reader import make_reader

    found: dict[str, Counter[str]] = {"mkv": Counter(), "jsonl": Counter(), "mcap": Counter()}
    for path in folder.glob("soak_*.jsonl"):
        with path.open(encoding="utf-8") as stream:
            found["jsonl"].update(json.loads(line)["camera"] for line in stream)
    for path in folder.glob("soak_*.mcap"):
        with path.open("rb") as binary:
            topics = [channel.topic for _, channel, _ in make_reader(binary).iter_messages()]
        found["mcap"].update(topic.split("/")[2] for topic in topics if topic.endswith("/detections"))
    for path in folder.glob("soak_*.mkv"):
        with av.open(str(path)) as container:
            camera = path.suffixes[0][1:].partition("_")[0]  # a second segment of the same second has a number
            found["mkv"][camera] += sum(1 for packet in container.demux(video=0) if packet.size)
    return {name: dict(counts) for name, counts in found.items()}


def _make_report(
    summary: RunSummary,
    vitals: VitalSigns,
    recorded: dict[str, dict[str, int]],
    chaos: Chaos,
    options: SoakOptions,
) -> SoakReport:
    lost = sum(one.frames_in - one.frames_out - one.dropped for one in summary.cameras)
    return SoakReport(
        model=summary.model,
        backend=summary.backend,
        seconds=round(summary.seconds, 1),
        cameras=summary.cameras,
        sinks=summary.sinks,
        lost=lost,
        recorded=recorded,
        faults=dict(chaos.injected),
        latency_ms=summary.latency_ms.get("total", Percentiles(0, 0.0, 0.0, 0.0)),
        vitals=vitals,
        machine=describe_machine(),
        problems=(*find_problems(summary, vitals, recorded, options), *([chaos.ill] if chaos.ill else [])),
    )


def find_problems(
    summary: RunSummary, vitals: VitalSigns, recorded: dict[str, dict[str, int]], options: SoakOptions
) -> Iterator[str]:
    """Limits that were broken, in words."""
    for camera in summary.cameras:
        yield from _find_camera_problems(camera, recorded)
    for sink in summary.sinks:
        if sink.error:
            yield f"{sink.uri} failed: {sink.error}"
    if vitals.memory_mb.percent >= options.most_growth_percent:
        yield f"memory grew by {vitals.memory_mb.percent} %, {vitals.memory_mb.per_hour:+.1f} MB an hour"
    for name, growth in (("threads", vitals.threads), ("descriptors", vitals.descriptors)):
        if growth.last - growth.first > _COME_AND_GO:
            yield f"{name} grew from {growth.first:g} to {growth.last:g}"


def _find_camera_problems(camera: CameraSummary, recorded: dict[str, dict[str, int]]) -> Iterator[str]:
    lost = camera.frames_in - camera.frames_out - camera.dropped
    if lost:
        yield f"{camera.name}: {lost} frames were lost"
    if not camera.frames_out:
        yield f"{camera.name}: no frame came out"
    for name, counts in recorded.items():
        if counts.get(camera.name, 0) != camera.frames_out:
            yield f"{camera.name}: {name} holds {counts.get(camera.name, 0)} of {camera.frames_out} frames"
