"""Sinks: a URI is the whole configuration of where results go.

| URI | what is written |
|---|---|
| `out.mp4`, `out.mkv`, `out.avi` | a video of annotated frames |
| `out/` | annotated pictures, one a frame |
| `out.jpg`, `out.png` | the annotated picture of one frame |
| `out.jsonl` | one line of JSON a frame |
| `window://` | a window; q or Esc ends the run |

A file appears under its name only when it is whole. When an exception passes through the `with` block the file is
removed; after Ctrl-C it is finished and kept.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture, annotated_picture
from edge_mrcnn.runtime.metrics import RunStatus
from edge_mrcnn.runtime.sinks.json_lines import JsonLinesSink
from edge_mrcnn.runtime.sinks.partial import FileSink, PartialFile, cannot_write
from edge_mrcnn.runtime.sinks.video import VIDEO_CODECS, VideoSink
from edge_mrcnn.runtime.sinks.window import WindowSink

logger = logging.getLogger(__name__)

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_KINDS = "out.mp4 .mkv .avi (video), out/ (pictures), out.jpg .png (one picture), out.jsonl (JSON lines), window://"


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
        fps: Rate of videos in frames per second; 30 where None.
        rle: Write masks into JSON lines, as COCO RLE.
        mask_threshold: A pixel belongs to a mask where its probability is at least this.
        status: Tells how the run is doing, for pages and metrics; None outside a run.
    """

    class_names: tuple[str, ...] = ()
    fps: float | None = None
    rle: bool = False
    mask_threshold: float = 0.5
    status: Callable[[], RunStatus] | None = None


def open_sink(
    uri: str | Path,
    *,
    class_names: tuple[str, ...] = (),
    fps: float | None = None,
    rle: bool = False,
    mask_threshold: float = 0.5,
) -> Sink:
    """Open a video, picture, folder, JSON lines file or window for results.

    Args:
        uri: A path or a URI, as the table above says. A path without a suffix is a folder.
        class_names: `class_names[class_id]`, such as `detector.class_names`.
        fps: Rate of videos in frames per second; 30 where None.
        rle: Write masks into JSON lines, as COCO RLE.
        mask_threshold: A pixel belongs to a mask where its probability is at least this.

    Returns:
        The sink; the caller closes it.

    Raises:
        StreamError: It cannot be written, or there is no screen for a window.
        ValueError: The scheme or the suffix is unknown; the message lists the known ones.

    Example:
        >>> with open_sink("out.jsonl", class_names=detector.class_names) as sink:  # doctest: +SKIP
        ...     for frame in open_source("clip.mp4"):
        ...         sink.write(frame, detector(frame))
    """
    options = SinkOptions(tuple(class_names), fps, rle, mask_threshold)
    text = str(uri)
    scheme, separator, rest = text.partition("://")
    if separator:
        if scheme.lower() not in _SCHEMES:
            raise ValueError(f"unknown sink {text!r}; known: {_KINDS}")
        return _SCHEMES[scheme.lower()](rest, options)
    path = Path(text)
    suffix = path.suffix.lower()
    if text.endswith(("/", os.sep)) or path.is_dir() or not suffix:
        return FolderSink(path, class_names=options.class_names)
    if suffix in VIDEO_CODECS:
        return VideoSink(path, fps=fps, class_names=options.class_names)
    if suffix in _PICTURE_SUFFIXES:
        return PictureSink(path, class_names=options.class_names)
    if suffix == ".jsonl":
        return JsonLinesSink(path, class_names=options.class_names, rle=rle, mask_threshold=mask_threshold)
    raise ValueError(f"unknown sink {text!r}; known: {_KINDS}")


class PictureSink(FileSink):
    """The annotated picture of one frame.

    Attributes:
        uri: The file's path.
        wants_picture: True.
        wants_stop: False.
    """

    wants_picture = True
    wants_stop = False
    kind: Literal["view", "record"] = "record"
    main_thread = False

    def __init__(self, path: str | Path, *, class_names: tuple[str, ...] = ()) -> None:
        """Choose the file.

        Raises:
            StreamError: The place cannot be written.
        """
        self.uri = str(path)
        self._class_names = class_names
        self._file: PartialFile | None = PartialFile(path)
        self._written = False

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Write the picture.

        Raises:
            StreamError: The sink is closed, has a picture already or cannot be written.
        """
        if self._file is None:
            raise StreamError(f"{self.uri} is closed; open a new sink")
        if self._written:
            raise StreamError(
                f"{self.uri} holds one picture, but a second frame came; write a folder or a video instead: "
                f"--to {Path(self.uri).with_suffix('')}/"
            )
        _encode(annotated_picture(frame, detections, annotated, self._class_names), self._file)
        self._written = True

    def close(self) -> None:
        """Give the picture its name. A second call does nothing."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if self._written:
            file.commit()
        else:
            file.discard()
            logger.warning("no frame came, so there is no picture %s", self.uri)

    def discard(self) -> None:
        """Remove what was written so far."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def __enter__(self) -> PictureSink:
        return self


class FolderSink:
    """Annotated pictures in a folder, as JPEG: `photo.jpg` for `photo.png`, `clip_000012.jpg` for a frame of a video.

    Attributes:
        uri: The folder's path.
        wants_picture: True.
        wants_stop: False.
    """

    wants_picture = True
    wants_stop = False
    kind: Literal["view", "record"] = "record"
    main_thread = False

    def __init__(self, path: str | Path, *, class_names: tuple[str, ...] = ()) -> None:
        """Make the folder.

        Raises:
            StreamError: It cannot be made.
        """
        self.uri = str(path)
        self._path = Path(path)
        self._class_names = class_names
        self._used: set[str] = set()
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Write one picture.

        Raises:
            StreamError: It cannot be written.
        """
        file = PartialFile(self._path / f"{self._name(frame)}.jpg")
        try:
            _encode(annotated_picture(frame, detections, annotated, self._class_names), file)
        except StreamError:
            file.discard()
            raise
        file.commit()

    def _name(self, frame: Frame) -> str:
        """A name that says which frame it is, and that no frame of this run has yet."""
        source = Path(frame.source.partition("://")[2].partition("?")[0] or frame.source)
        stem = source.stem or "frame"
        if source.suffix.lower() not in _PICTURE_SUFFIXES:
            stem = f"{stem}_{frame.index:06d}"
        name, number = stem, 1
        while name in self._used:
            number += 1
            name = f"{stem}_{number}"
        self._used.add(name)
        return name

    def close(self) -> None:
        """Nothing to finish: every picture is whole."""

    def __enter__(self) -> FolderSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _encode(picture: npt.NDArray[np.uint8], file: PartialFile) -> None:
    """Write a picture into a part in the format of its suffix."""
    suffix = file.path.suffix.lower()
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix in (".jpg", ".jpeg") else []
    encoded, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    if not encoded:
        raise StreamError(f"OpenCV cannot encode {file.path}; choose another suffix, such as .png")
    try:
        file.part.write_bytes(data.tobytes())
    except OSError as error:
        raise cannot_write(file.path, error) from error


def _open_window(rest: str, options: SinkOptions) -> Sink:
    return WindowSink(rest, class_names=options.class_names)


_SCHEMES: dict[str, Callable[[str, SinkOptions], Sink]] = {"window": _open_window}
"""What opens each scheme, given what follows `://` and the options."""
