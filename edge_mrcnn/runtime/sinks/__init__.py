"""Sinks: a URI is the whole configuration of where results go.

| URI | what is written |
|---|---|
| `out.mkv`, `out.mp4` | a video of annotated frames, at their own pace |
| `out.jsonl` | one line of JSON a frame; masks too with `rle` |
| `out.mcap`, `mcap:///path/out.mcap?image=raw` | ROS 2 messages in an MCAP file, for Foxglove, rviz and `ros2 bag` |
| `out/` | annotated pictures, one a frame; a path without a suffix is a folder too |
| `out.jpg`, `out.png` | the annotated picture of one frame |
| `window://TITLE` | a window; q or Esc ends the run |
| `mjpeg://127.0.0.1:8080` | a page with every camera, JSON, and metrics for Prometheus |
| `ros2://` | ROS 2 messages, live |

Files take options as `file:///path/out.mkv?segment_s=3600`: `fps` (of videos), `segment_s` (a new file this often;
videos and JSON lines), `rle` and `mask_threshold` (of JSON lines). Names may hold the time, as `strftime` writes it:
`rec_%Y%m%d_%H%M%S.mkv`. With several cameras a video becomes one file each: `out.front.mkv`, `out.rear.mkv`.

Videos, JSON lines and MCAP are streams: they stand under their name from the first frame on, can be read at any moment
and are kept whatever ends the run, `kill -9` and a full disk included. A picture appears when it is whole.

Others can add sinks: `register_sink`, or an entry point in the group `edge_mrcnn.sinks`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, cast
from urllib.parse import unquote, urlsplit

from edge_mrcnn.detections import KEYPOINT_SCORE, Detections
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture, AnnotateOptions
from edge_mrcnn.runtime.metrics import RunStatus
from edge_mrcnn.runtime.uri import as_flag, redact, take_options

ENTRY_POINTS = "edge_mrcnn.sinks"
"""Group of the entry points by which installed packages add sinks; an entry's name is what `register_sink` takes."""


class Sink(Protocol):
    """Where results go: a context manager that takes frames with their detections.

    Attributes:
        uri: What was opened.
        wants_picture: Whether `write` looks at the annotated picture, so that nobody draws in vain.
        wants_stop: The person who watches has had enough.
        kind: `record`: every frame counts, the run waits for it. `view`: it shows what is newest, and misses frames.
        main_thread: `write` must be called from the main thread, as windows want it.
    """

    @property
    def kind(self) -> Literal["view", "record"]:
        """Whether the run waits for it."""

    @property
    def main_thread(self) -> bool:
        """Whether it works in the main thread only."""

    @property
    def uri(self) -> str:
        """What was opened."""

    @property
    def wants_picture(self) -> bool:
        """Whether `write` looks at the annotated picture."""

    @property
    def wants_stop(self) -> bool:
        """The person who watches has had enough."""

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Take one frame.

        Args:
            frame: The frame.
            detections: Its detections.
            annotated: Its annotated picture, `(H, W, 3)` uint8 RGB, or what draws it; a sink that needs one draws it
                itself when None.

        Raises:
            StreamError: It cannot be written.
        """

    def close(self) -> None:
        """Finish and give back everything. A second call does nothing.

        Raises:
            StreamError: What was written is not whole.
        """

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class SinkOptions:
    """What sinks need to know besides the URI.

    Attributes:
        class_names: `class_names[class_id]`.
        fps: Constant rate of videos in frames per second. When None, frames are shown at their own pace, and at 30 a
            second where they have none, as those of a folder.
        rle: Write masks into JSON lines, as COCO RLE.
        mask_threshold: A pixel belongs to a mask where its probability is at least this.
        status: Tells how the run is doing, for pages and metrics; None outside a run.
        segment_s: Begin a new file after this many seconds; never when None.
        keypoint_names: Name of each keypoint; empty where there are none.
        skeleton: Pairs of keypoints to draw a line between.
        keypoint_threshold: Keypoints with a lower score are neither drawn nor sent.
    """

    class_names: tuple[str, ...] = ()
    fps: float | None = None
    rle: bool = False
    mask_threshold: float = 0.5
    status: Callable[[], RunStatus] | None = None
    segment_s: float | None = None
    keypoint_names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    keypoint_threshold: float = KEYPOINT_SCORE

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A field is out of range; the message names it.
        """
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps of a video must be positive, got {self.fps}")
        for name in ("mask_threshold", "keypoint_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.segment_s is not None and self.segment_s < 1:
            raise ValueError(f"segment_s must be at least 1, got {self.segment_s}")

    @property
    def look(self) -> AnnotateOptions:
        """How a sink draws that was given no annotated picture."""
        return AnnotateOptions(
            mask_threshold=self.mask_threshold, keypoint_threshold=self.keypoint_threshold, skeleton=self.skeleton
        )


Opener = Callable[[str, SinkOptions], Sink]
"""Opens a sink, given the whole URI, or the path of a file, and the options."""


def open_sink(
    uri: str | Path,
    *,
    class_names: tuple[str, ...] = (),
    fps: float | None = None,
    rle: bool = False,
    mask_threshold: float = 0.5,
    status: Callable[[], RunStatus] | None = None,
    keypoint_names: tuple[str, ...] = (),
    skeleton: tuple[tuple[int, int], ...] = (),
    keypoint_threshold: float = KEYPOINT_SCORE,
) -> Sink:
    """Open a video, picture, folder, JSON lines file, window or page for results.

    Args:
        uri: A path or a URI, as the table above says. A path without a suffix is a folder.
        class_names: `class_names[class_id]`, such as `detector.class_names`.
        fps: Constant rate of videos in frames per second; the frames' own pace when None.
        rle: Write masks into JSON lines, as COCO RLE.
        mask_threshold: A pixel belongs to a mask where its probability is at least this.
        status: Tells how the run is doing, for pages and metrics, and how many cameras there are.
        keypoint_names: Name of each keypoint, such as `detector.spec.keypoint_names`.
        skeleton: Pairs of keypoints to draw a line between, such as `detector.spec.skeleton`.
        keypoint_threshold: Keypoints with a lower score are neither drawn nor sent.

    Returns:
        The sink; the caller closes it.

    Raises:
        StreamError: It cannot be written, there is no screen for a window, or a package is missing.
        ValueError: The scheme, the suffix, an option or a value is unknown; the message lists the known ones.

    Example:
        >>> with open_sink("out.jsonl", class_names=detector.class_names) as sink:  # doctest: +SKIP
        ...     for frame in open_source("clip.mp4"):
        ...         sink.write(frame, detector(frame))
    """
    options = SinkOptions(
        tuple(class_names),
        fps,
        rle,
        mask_threshold,
        status,
        keypoint_names=tuple(keypoint_names),
        skeleton=tuple(skeleton),
        keypoint_threshold=keypoint_threshold,
    )
    text = str(uri)
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() != "file":
        return _opener(scheme.lower(), text)(text, options)
    if separator:
        text, taken = take_options(text, _FILE_OPTIONS)
        parts = urlsplit(text)
        text, options = unquote(parts.netloc + parts.path), replace(options, **taken)
    suffix = Path(text).suffix.lower()
    if text.endswith(("/", os.sep)) or Path(text).is_dir() or not suffix:
        return _opener("/", text)(text, options)
    return _opener(suffix, text)(text, options)


def register_sink(kind: str, opener: Opener) -> None:
    """Add a kind of sink, or replace one.

    Args:
        kind: A scheme such as `mqtt`, or the suffix of a file such as `.csv`.
        opener: What opens it, given the URI or path and the options.

    Example:
        >>> register_sink(".csv", lambda path, options: CsvSink(path))  # doctest: +SKIP
        >>> open_sink("out.csv")  # doctest: +SKIP
    """
    _OPENERS[kind.lower()] = opener


def _opener(kind: str, uri: str) -> Opener:
    """What opens a scheme or suffix, imported now.

    Raises:
        ValueError: Nothing is known to open it.
    """
    found = _OPENERS.get(kind)
    if found is None:
        others = {entry.name.lower(): entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}
        if kind not in others:
            hint = _INSTEAD_OF.get(kind, "")
            raise ValueError(f"unknown sink {redact(uri)!r}; {hint}known: {', '.join([_KINDS, *sorted(others)])}")
        return cast(Opener, others[kind].load())
    if callable(found):
        return found
    module, _, name = found.partition(":")
    return cast(Opener, getattr(importlib.import_module(f"{__name__}.{module}"), name))


_OPENERS: dict[str, Opener | str] = {
    "/": "pictures:FolderSink",
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp"), "pictures:PictureSink"),
    ".mkv": "video:VideoSink",
    ".mp4": "video:VideoSink",
    ".jsonl": "json_lines:JsonLinesSink",
    ".mcap": "mcap:McapSink",
    "mcap": "mcap:McapSink",
    "window": "window:WindowSink",
    "mjpeg": "web:WebSink",
    "ros2": "ros2:Ros2Sink",
}
"""What opens each scheme, suffix and folders; ours are imported when they are asked for."""

_KINDS = (
    "out.mkv .mp4 (video), out.jsonl (JSON lines), out.mcap (ROS messages), out/ (pictures), out.jpg .png (one "
    "picture), window://, mjpeg://127.0.0.1:8080, ros2://"
)
_INSTEAD_OF = {".avi": "AVI knows no times of frames and breaks when a run is killed: take .mkv; "}
_FILE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "fps": float,
    "segment_s": float,
    "rle": as_flag,
    "mask_threshold": float,
}
