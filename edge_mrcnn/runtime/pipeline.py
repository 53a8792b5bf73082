"""The whole run: frames from sources through a detector into sinks."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import get_args

from edge_mrcnn.detections import KEYPOINT_SCORE, Detections
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotateOptions, Picture, annotate
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.flow.batcher import Batcher
from edge_mrcnn.runtime.flow.display import Show, display
from edge_mrcnn.runtime.flow.heap import give_memory_back
from edge_mrcnn.runtime.flow.monitor import Monitor, count_names
from edge_mrcnn.runtime.flow.network import NetworkThread
from edge_mrcnn.runtime.flow.outlet import Outlet
from edge_mrcnn.runtime.flow.signals import catch_signals
from edge_mrcnn.runtime.flow.supervisor import OnSinkError, Supervisor
from edge_mrcnn.runtime.metrics import CameraSummary, Percentiles, SinkStatus
from edge_mrcnn.runtime.sinks import Sink, open_sink
from edge_mrcnn.runtime.sources import Source, open_source
from edge_mrcnn.runtime.tracker import WEAK_SCORE
from edge_mrcnn.runtime.uri import camera_name, redact
from edge_mrcnn.spec import ModelSpec


@dataclass(frozen=True)
class RunOptions:
    """How a run goes."""

    threshold: float = 0.5
    """Detections with a lower score are dropped, but for those that continue a track, down to 0.1."""

    max_frames: int | None = None
    """Stop after this many frames; all of them when not given."""

    batch: int = 1
    """Frames in one run of the network. More raises the throughput of a GPU, hardly that of a CPU."""

    threads: int = 0
    """CPU threads of the network; 0 for one per core."""

    mask_threshold: float = 0.5
    """A pixel belongs to a mask where its probability is at least this."""

    masks: bool = True
    """Draw masks and keep them for the records; without, boxes are drawn."""

    rle: bool = False
    """Write masks into JSON lines, as COCO RLE."""

    keypoint_threshold: float = KEYPOINT_SCORE
    """Keypoints with a lower score are neither drawn nor sent."""

    fps: float | None = None
    """Constant rate of videos written, in frames per second; the frames' own pace when not given."""

    strict: bool = False
    """Stop at the first picture that cannot be read, rather than skip it with a warning."""

    track: bool | None = None
    """Number what is seen, the same number for the same thing from frame to frame; by default in videos and of
    cameras, not in pictures."""

    on_sink_error: OnSinkError = "stop"
    """What becomes of the run when a sink that records fails, as on a full disk. A window or page that fails never
    ends it, unless no other sink is left."""

    status: Show = "auto"
    """What is shown on stderr each second: `line`, `json` or nothing (`off`). `auto`: of cameras a line on a terminal
    and JSON elsewhere; of files a progress bar on a terminal and nothing elsewhere."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A field is out of range; the message names it.
        """
        for name in ("threshold", "mask_threshold", "keypoint_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"RunOptions.{name} must be from 0 to 1, got {getattr(self, name)}")
        for name, least in (("max_frames", 1), ("batch", 1), ("threads", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"RunOptions.{name} must be at least {least}, got {value}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"RunOptions.fps must be positive, got {self.fps}")
        for name, kind in (("on_sink_error", OnSinkError), ("status", Show)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"RunOptions.{name} must be {' or '.join(get_args(kind))}, got {getattr(self, name)!r}"
                )


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        model: Name of the network.
        backend: Who ran it where, such as `onnxruntime-cpu`.
        frames: Frames processed.
        seconds: From the first frame asked for to the last one written.
        fps: Frames per second over all of that.
        latency_ms: Milliseconds per frame of each stage of the last 10 000 frames: `wait` (from receipt to the
            network's turn), `pre`, `infer`, `post`, `track`, `sinks` (drawing and writing) and `total` (from receipt to
            the last sink). With a GPU, whose work overlaps with other stages, `infer` is what was still waited for.
        detections: Detections by class name.
        skipped: Pictures that could not be read.
        outputs: URIs of the sinks.
        interrupted: A signal or the caller ended the run; files are finished all the same.
        cameras: What came of each camera, in the order of the sources.
        sinks: What came of each sink.
    """

    model: str
    backend: str
    frames: int = 0
    seconds: float = 0.0
    fps: float = 0.0
    latency_ms: dict[str, Percentiles] = field(default_factory=dict)
    detections: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    outputs: tuple[str, ...] = ()
    interrupted: bool = False
    cameras: tuple[CameraSummary, ...] = ()
    sinks: tuple[SinkStatus, ...] = ()

    def to_json(self) -> str:
        """The summary as indented JSON."""
        return json.dumps(asdict(self), indent=2)

    def lines(self) -> list[str]:
        """The summary as lines of text."""
        end = ", interrupted" if self.interrupted else ""
        skipped = f", {self.skipped} pictures skipped" if self.skipped else ""
        rows = [f"{self.frames} frames in {self.seconds:.1f} s, {self.fps:.1f} fps, {self.backend}{skipped}{end}"]
        if self.latency_ms:
            rows.append(f"{'ms a frame':<12}{'p50':>8}{'p95':>8}")
            rows += [f"{stage:<12}{found.p50:8.1f}{found.p95:8.1f}" for stage, found in self.latency_ms.items()]
        if self.detections:
            rows.append("found: " + ", ".join(f"{count} {name}" for name, count in self.detections.items()))
        if any(camera.dropped or camera.reconnects or camera.damaged for camera in self.cameras):
            rows.append(f"{'camera':<20}{'in':>9}{'out':>9}{'dropped':>9}{'damaged':>9}{'reconnects':>12}")
            rows += [
                f"{one.name:<20}{one.frames_in:9}{one.frames_out:9}{one.dropped:9}{one.damaged:9}{one.reconnects:12}"
                for one in self.cameras
            ]
        return rows + [_tell_sink(sink) for sink in self.sinks]


def run_pipeline(
    detector: Detector | str | Path,
    sources: Sequence[Source | str | Path],
    sinks: Sequence[Sink | str | Path] = (),
    options: RunOptions | None = None,
    *,
    stop: threading.Event | None = None,
) -> RunSummary:
    """Take frames of the sources through a detector into the sinks, until the sources end or somebody ends the run.

    Live sources are read all at once, and of each the newest frame is taken; files come one after the other, frame by
    frame. Reading, the network and each sink have threads of their own. Sinks that record get every frame, and when one
    is too slow everything waits for it, so that cameras drop frames; views miss frames instead. A frame is annotated
    only where a sink wants pictures, once for all sinks.

    SIGINT (Ctrl-C), SIGTERM, `stop`, or a person who closes a window end the run as the end of the files does: what was
    read is written, files are finished. A second signal ends the process at once. Handlers are installed in the main
    thread only, and for the time of the run.

    Args:
        detector: A detector, which keeps its own threshold, batch and threads, or a model to open with those of the
            options.
        sources: Sources or their URIs. What is opened here is closed here.
        sinks: Sinks or their URIs. Open ones are left open: the caller finishes them.
        options: How the run goes.
        stop: Ends the run when it is set, from any thread.

    Returns:
        What was done.

    Raises:
        EngineError: The network cannot run.
        StreamError: A source cannot be opened, a file cannot be read to its end, or a sink that records cannot be
            written. What was read before is written first, and recordings are kept. A camera that is lost raises
            nothing: it is connected to again, for ever.
        ValueError: There is no source, a URI is unknown, or two sinks have the same one.

    Example:
        >>> summary = run_pipeline("model.onnx", ["clip.mp4"], ["out.mkv"])  # doctest: +SKIP
        >>> print(f"{summary.frames} frames, {summary.fps:.1f} fps")  # doctest: +SKIP
    """
    options = options or RunOptions()
    if not sources:
        raise ValueError("a run needs at least one source, such as photo.jpg, clip.mp4 or test://640x480?frames=30")
    _refuse_repeated(sinks)
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_as_source(source, options)) for source in sources]
        if isinstance(detector, (str, Path)):
            weakest = min(options.threshold, WEAK_SCORE)  # weak ones may continue a track
            detector = stack.enter_context(
                Detector(detector, threshold=weakest, batch=options.batch, threads=options.threads)
            )
        else:
            options = replace(options, threshold=detector.threshold or 0.0)
        names = unique_names([source.name for source in opened])
        monitor = Monitor(detector, opened, names)
        wake = threading.Event()
        caught = stack.enter_context(catch_signals())  # before the sinks: they are closed in peace
        for sink in sinks:
            stack.enter_context(_outlet(sink, detector.spec, monitor, wake, options))
        tracked = frozenset(name for source, name in zip(opened, names, strict=True) if _is_tracked(source, options))
        supervisor = _assemble(detector, Batcher(opened, names), monitor, tracked, wake, options)
        begin = time.perf_counter()
        live = any(source.live for source in opened)
        total = _total(opened, options.max_frames)
        with give_memory_back(), display(options.status, monitor, live=live, total=total) as tick:
            supervisor.run(caught, stop, tick)
        return _summary(monitor, opened, time.perf_counter() - begin, supervisor.interrupted)


def unique_names(names: Sequence[str]) -> list[str]:
    """Names of cameras that are fit for files and topics, each only once.

    Example:
        >>> unique_names(["front", "Front", "rear"])
        ['front', 'front_2', 'rear']
    """
    used: set[str] = set()
    found = []
    for name in names:
        base = unique = camera_name(name)
        number = 1
        while unique in used:
            number += 1
            unique = f"{base}_{number}"
        used.add(unique)
        found.append(unique)
    return found


def _assemble(
    detector: Detector,
    batcher: Batcher,
    monitor: Monitor,
    tracked: frozenset[str],
    wake: threading.Event,
    options: RunOptions,
) -> Supervisor:
    """Connect the parts of a run."""
    look = AnnotateOptions(
        masks=options.masks,
        mask_threshold=options.mask_threshold,
        keypoint_threshold=options.keypoint_threshold,
        skeleton=detector.spec.skeleton,
    )

    def draw(frame: Frame, detections: Detections) -> Picture:
        return annotate(frame, detections, detector.class_names, look)

    monitor.watch(batcher.lanes)
    network = NetworkThread(
        detector,
        batcher,
        monitor.deliver,
        draw=draw,
        masks=options.masks,
        max_frames=options.max_frames,
        tracked=tracked,
        threshold=options.threshold,
        wake=wake,
    )
    return Supervisor(batcher, network, monitor.outlets, wake, options.on_sink_error)


def _refuse_repeated(sinks: Sequence[Sink | str | Path]) -> None:
    """Two sinks that write the same file would spoil it."""
    uris = [str(sink) for sink in sinks if isinstance(sink, (str, Path))]
    repeated = {redact(uri) for uri in uris if uris.count(uri) > 1}
    if repeated:
        raise ValueError(f"each sink once, please: {', '.join(sorted(repeated))} was given twice")


def _outlet(
    sink: Sink | str | Path, spec: ModelSpec, monitor: Monitor, wake: threading.Event, options: RunOptions
) -> Outlet:
    own = isinstance(sink, (str, Path))
    if isinstance(sink, (str, Path)):
        sink = open_sink(
            sink,
            class_names=spec.class_names,
            fps=options.fps,
            rle=options.rle,
            mask_threshold=options.mask_threshold,
            status=monitor.status,
            keypoint_names=spec.keypoint_names,
            skeleton=spec.skeleton,
            keypoint_threshold=options.keypoint_threshold,
        )
    outlet = Outlet(sink, own, monitor.settle, wake)
    monitor.outlets.append(outlet)
    return outlet


def _as_source(source: Source | str | Path, options: RunOptions) -> contextlib.AbstractContextManager[Source]:
    if isinstance(source, (str, Path)):
        return open_source(source, strict=options.strict)
    return contextlib.nullcontext(source)


def _is_tracked(source: Source, options: RunOptions) -> bool:
    """Whether detections are numbered; pictures one by one have nothing to follow."""
    return options.track if options.track is not None else source.live or source.fps is not None


def _total(sources: Sequence[Source], limit: int | None) -> int | None:
    """Frames to come, None where that is unknown."""
    lengths = [source.length for source in sources]
    total = None if None in lengths else sum(length or 0 for length in lengths)
    return total if limit is None else limit if total is None else min(total, limit)


def _summary(monitor: Monitor, sources: Sequence[Source], seconds: float, interrupted: bool) -> RunSummary:
    status = monitor.status()
    return RunSummary(
        model=status.model,
        backend=status.backend,
        frames=monitor.frames,
        seconds=seconds,
        fps=monitor.frames / seconds if monitor.frames and seconds else 0.0,
        latency_ms=monitor.latency.percentiles(),
        detections=count_names(monitor.found, monitor.class_names),
        skipped=sum(source.skipped for source in sources),
        outputs=tuple(sink.uri for sink in monitor.sinks()),
        interrupted=interrupted,
        cameras=monitor.cameras(),
        sinks=monitor.sinks(),
    )


def _tell_sink(sink: SinkStatus) -> str:
    if sink.kind == "record":
        return f"wrote {sink.uri}" + (f", until it failed: {sink.error}" if sink.error else "")
    missed = f", {sink.dropped} missed" if sink.dropped else ""
    return f"showed {sink.written} frames on {sink.uri}{missed}" + (
        f", until it failed: {sink.error}" if sink.error else ""
    )
