"""Annotated pictures: one, or a folder of them."""

from __future__ import annotations

import logging
from pathlib import Path
from types import TracebackType
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture, annotated_picture
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sinks.partial import PartialFile, cannot_write
from edge_mrcnn.runtime.sources.pictures import PICTURE_SUFFIXES

logger = logging.getLogger(__name__)


class PictureSink:
    """The annotated picture of one frame: finished when the `with` block ends well, removed when it does not.

    An interrupted run (Ctrl-C, termination) counts as ended well.

    Attributes:
        uri: The file's path.
        wants_picture: True.
        wants_stop: False.
    """

    wants_picture = True
    wants_stop = False
    kind: Literal["view", "record"] = "record"
    main_thread = False

    def __init__(self, path: str | Path, options: SinkOptions | None = None) -> None:
        """Choose the file.

        Raises:
            StreamError: The place cannot be written.
        """
        self.uri = str(path)
        self._options = options or SinkOptions()
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
        _encode(
            annotated_picture(frame, detections, annotated, self._options.class_names, self._options.look), self._file
        )
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, (KeyboardInterrupt, SystemExit)):
            self.close()
        else:
            self.discard()


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

    def __init__(self, path: str | Path, options: SinkOptions | None = None) -> None:
        """Make the folder.

        Raises:
            StreamError: It cannot be made.
        """
        self.uri = str(path)
        self._path = Path(path)
        self._options = options or SinkOptions()
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._used: dict[str, int] = {}

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Write one picture.

        Raises:
            StreamError: It cannot be written.
        """
        file = PartialFile(self._path / f"{self._name(frame)}.jpg")
        try:
            _encode(
                annotated_picture(frame, detections, annotated, self._options.class_names, self._options.look), file
            )
        except StreamError:
            file.discard()
            raise
        file.commit()

    def _name(self, frame: Frame) -> str:
        """A name that says which frame it is, and that no frame of this run has yet."""
        source = Path(frame.source.partition("://")[2].partition("?")[0] or frame.source)
        if source.suffix.lower() not in PICTURE_SUFFIXES:
            # Numbers grow within a camera, so that its name and number are enough, and nothing needs remembering.
            return f"{frame.camera or source.stem or 'frame'}_{frame.index:06d}"
        number = self._used[source.stem] = self._used.get(source.stem, 0) + 1
        return source.stem if number == 1 else f"{source.stem}_{number}"

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
