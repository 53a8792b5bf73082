"""The whole run: frames from sources through a detector into sinks."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotateOptions, annotate
from edge_mrcnn.runtime.detector import Detector, PendingDetections
from edge_mrcnn.runtime.metrics import LatencyRecorder, Percentiles
from edge_mrcnn.runtime.sinks import Sink, open_sink
from edge_mrcnn.runtime.sources import Source, open_source

logger = logging.getLogger(__name__)

_POLL_S = 0.2
"""How long a thread waits before it looks whether the run is over."""


@dataclass(frozen=True)
class RunOptions:
    """How a run goes."""

    threshold: float = 0.5
    """Detections with a lower score are dropped."""

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

    fps: float | None = None
    """Frames per second of videos written; the first source's when not given, 30 where it has none."""

    strict: bool = False
    """Stop at the first picture that cannot be read, rather than skip it with a warning."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A field is out of range; the message names it.
        """
        for name in ("threshold", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"RunOptions.{name} must be from 0 to 1, got {getattr(self, name)}")
        for name, least in (("max_frames", 1), ("batch", 1), ("threads", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"RunOptions.{name} must be at least {least}, got {value}")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"RunOptions.fps must be positive, got {self.fps}")


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes:
        model: Name of the network.
        backend: Who ran it where, such as `onnxruntime-cpu`.
        frames: Frames processed.
        seconds: From the first frame asked for to the last one written.
        fps: Frames per second over all of that.
        latency_ms: Milliseconds per frame of each stage: `pre`, `infer`, `post`, `detect` (their sum) and `sinks`
            (drawing and writing). With a GPU, whose work overlaps the sinks', `infer` is what was still waited for.
        detections: Detections by class name.
        skipped: Pictures that could not be read.
        outputs: URIs of the sinks.
        interrupted: Ctrl-C ended the run; files are finished all the same.
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
        rows += [f"wrote {uri}" for uri in self.outputs]
        return rows


def run_pipeline(
    detector: Detector | str | Path,
    sources: Sequence[Source | str | Path],
    sinks: Sequence[Sink | str | Path] = (),
    options: RunOptions | None = None,
) -> RunSummary:
    """Take every frame of the sources, one source after the other, through a detector into the sinks.

    The next frames are read while the network runs; on a GPU, which works on its own, the network also runs while the
    frames before are drawn and written. Frames are annotated only where a sink wants pictures, once for
    all sinks. Ctrl-C ends the run with its files finished. On a terminal a progress bar is shown.

    Args:
        detector: A detector, which keeps its own threshold, batch and threads, or a model to open with those of the
            options.
        sources: Sources or their URIs. What is opened here is closed here.
        sinks: Sinks or their URIs. Open ones are left open: the caller finishes them.
        options: How the run goes.

    Returns:
        What was done.

    Raises:
        EngineError: The network cannot run.
        StreamError: A source cannot be read or a sink cannot be written; files begun here are removed, except that
            those of a camera that breaks off are finished first.
        ValueError: There is no source, or a URI is unknown.

    Example:
        >>> summary = run_pipeline("model.onnx", ["clip.mp4"], ["out.mp4"])  # doctest: +SKIP
        >>> print(f"{summary.frames} frames, {summary.fps:.1f} fps")  # doctest: +SKIP
    """
    options = options or RunOptions()
    if not sources:
        raise ValueError("a run needs at least one source, such as photo.jpg, clip.mp4 or test://640x480?frames=30")
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_as_source(source, options)) for source in sources]
        if isinstance(detector, (str, Path)):
            detector = stack.enter_context(
                Detector(detector, threshold=options.threshold, batch=options.batch, threads=options.threads)
            )
        fps = options.fps or next((source.fps for source in opened if source.fps), None)
        targets = [stack.enter_context(_as_sink(sink, detector, fps, options)) for sink in sinks]
        run = _Run(detector, opened, targets, options)
        try:
            run.loop()
        except KeyboardInterrupt:
            run.interrupted = True
            logger.warning("interrupted: finishing the files")
        except StreamError:
            if run.camera_lost:  # what was recorded up to here is worth keeping
                stack.close()
            raise
        return run.summary()


class _Run:
    """One run: the state of the loop, and what it has counted."""

    def __init__(
        self, detector: Detector, sources: Sequence[Source], sinks: Sequence[Sink], options: RunOptions
    ) -> None:
        self.interrupted = False
        self.camera_lost = False
        self._detector = detector
        self._sources = sources
        self._sinks = sinks
        self._options = options
        self._annotate = AnnotateOptions(masks=options.masks, mask_threshold=options.mask_threshold)
        self._latency = LatencyRecorder()
        self._counts: Counter[str] = Counter()
        self._frames = self._taken = 0
        self._error: StreamError | None = None
        self._begin = self._end = time.perf_counter()

    def loop(self) -> None:
        self._begin = time.perf_counter()
        live = any(source.live for source in self._sources)
        ahead = 1 if self._detector.overlaps and not live else 0  # of a camera, every frame is wanted at once
        waiting: deque[tuple[list[Frame], PendingDetections]] = deque()
        with _progress(self._total()) as advance, _ReadAhead(self._sources, 2 * self._detector.batch) as frames:
            while not any(sink.wants_stop for sink in self._sinks):
                batch = self._take(frames)
                if batch:
                    waiting.append((batch, self._detector.submit(batch)))
                if not waiting:
                    break
                if not batch or len(waiting) > ahead:
                    advance(self._process(*waiting.popleft()))
        self._end = time.perf_counter()

    def _take(self, frames: _ReadAhead) -> list[Frame]:
        """Frames of the next batch; none at the end, and an error after the last frame before it is written."""
        room = self._detector.batch
        if self._options.max_frames is not None:
            room = min(room, self._options.max_frames - self._taken)
        if self._error is None:
            try:
                batch = frames.take(room)
                self._taken += len(batch)
                return batch
            except StreamError as error:
                self.camera_lost = any(source.live for source in self._sources)
                self._error = error
        if self._frames == self._taken:
            raise self._error
        return []

    def _process(self, batch: list[Frame], pending: PendingDetections) -> int:
        found, timings = pending.result()
        self._latency.add_timings(timings)
        for frame, detections in zip(batch, found, strict=True):
            kept = detections if self._options.masks else replace(detections, mask=None)
            begin = time.perf_counter_ns()
            self._write(frame, kept)
            self._latency.add("sinks", time.perf_counter_ns() - begin)
            self._counts.update(self._name(int(label)) for label in kept.class_id)
            self._frames += 1
            self._end = time.perf_counter()
        return len(batch)

    def _write(self, frame: Frame, detections: Detections) -> None:
        draw = functools.cache(
            lambda: annotate(frame, detections, self._detector.class_names, self._annotate)  # once for all sinks
        )
        for sink in self._sinks:
            sink.write(frame, detections, draw if sink.wants_picture else None)

    def _name(self, label: int) -> str:
        names = self._detector.class_names
        return names[label] if 0 <= label < len(names) else f"class {label}"

    def _total(self) -> int | None:
        lengths = [source.length for source in self._sources]
        total = None if None in lengths else sum(length or 0 for length in lengths)
        limit = self._options.max_frames
        return total if limit is None else limit if total is None else min(total, limit)

    def summary(self) -> RunSummary:
        seconds = self._end - self._begin
        return RunSummary(
            model=self._detector.spec.name,
            backend=self._detector.backend,
            frames=self._frames,
            seconds=seconds,
            fps=self._frames / seconds if self._frames and seconds else 0.0,
            latency_ms=self._latency.summary(),
            detections=dict(self._counts.most_common()),
            skipped=sum(source.skipped for source in self._sources),
            outputs=tuple(sink.uri for sink in self._sinks),
            interrupted=self.interrupted,
        )


class _ReadAhead:
    """Reads sources in a thread, a few frames ahead; what the thread raises is raised by `take`."""

    def __init__(self, sources: Sequence[Source], depth: int) -> None:
        self._sources = sources
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(depth)
        self._over = threading.Event()
        self._end: BaseException | bool = False
        self._thread = threading.Thread(target=self._read, name="edge-mrcnn-read-ahead", daemon=True)

    def take(self, count: int) -> list[Frame]:
        """The next `count` frames, fewer at the end; an error is raised after the last frame before it."""
        frames: list[Frame] = []
        while len(frames) < count and not self._end:
            item = self._queue.get()
            if isinstance(item, Frame):
                frames.append(item)
            else:
                self._end = item or True
        if isinstance(self._end, BaseException) and not frames:
            raise self._end
        return frames

    def _read(self) -> None:
        try:
            for source in self._sources:
                for frame in source:
                    if not self._put(frame):
                        return
            self._put(None)
        except Exception as error:  # carried over to the thread that takes
            self._put(error)

    def _put(self, item: Frame | BaseException | None) -> bool:
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=_POLL_S)
                return True
        return False

    def __enter__(self) -> _ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere; gives what to call with the number of frames done."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=" frames", dynamic_ncols=True) as bar:
        yield bar.update


def _as_source(source: Source | str | Path, options: RunOptions) -> contextlib.AbstractContextManager[Source]:
    if isinstance(source, (str, Path)):
        return open_source(source, strict=options.strict)
    return contextlib.nullcontext(source)


def _as_sink(
    sink: Sink | str | Path, detector: Detector, fps: float | None, options: RunOptions
) -> contextlib.AbstractContextManager[Sink]:
    if isinstance(sink, (str, Path)):
        return open_sink(
            sink, class_names=detector.class_names, fps=fps, rle=options.rle, mask_threshold=options.mask_threshold
        )
    return contextlib.nullcontext(sink)
