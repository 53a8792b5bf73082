"""Video files, written through OpenCV."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture, annotated_picture
from edge_mrcnn.runtime.opencv import quiet
from edge_mrcnn.runtime.sinks.partial import FileSink, PartialFile

logger = logging.getLogger(__name__)

VIDEO_CODECS = {".mp4": ("avc1", "mp4v"), ".mkv": ("avc1", "mp4v"), ".avi": ("XVID", "MJPG")}
"""By suffix, best first: H.264 where OpenCV was built with an encoder, else MPEG-4."""

DEFAULT_FPS = 30.0
"""Of a video whose source has no rate."""

_BACKENDS = ("CAP_FFMPEG", "CAP_GSTREAMER", "CAP_OPENCV_MJPEG")
_LEAST_FREE_BYTES = 8 << 20
_CHECK_EVERY = 16


class VideoSink(FileSink):
    """Writes annotated frames into a video.

    The first frame sets the size, rounded up to even sides; frames of another size are scaled to fit into it whole, on
    black, with a warning.

    Attributes:
        uri: The file's path.
        wants_picture: True.
        wants_stop: False.
        codec: Four letters of the codec in use, empty before the first frame.
    """

    wants_picture = True
    wants_stop = False
    kind: Literal["view", "record"] = "record"
    main_thread = False

    def __init__(self, path: str | Path, *, fps: float | None = None, class_names: tuple[str, ...] = ()) -> None:
        """Choose the file.

        Args:
            path: Ends in `.mp4`, `.mkv` or `.avi`.
            fps: Frames per second, 30 where unknown.
            class_names: For frames that come without an annotated picture.

        Raises:
            StreamError: The place cannot be written.
            ValueError: Another suffix, or a rate that is not positive.
        """
        self.uri = str(path)
        suffix = Path(path).suffix.lower()
        if suffix not in VIDEO_CODECS:
            raise ValueError(f"a video ends in {', '.join(VIDEO_CODECS)}, got {str(path)!r}")
        if fps is not None and fps <= 0:
            raise ValueError(f"fps must be positive, got {fps}")
        self.codec = ""
        self._codecs = VIDEO_CODECS[suffix]
        self._fps = fps or DEFAULT_FPS
        self._class_names = class_names
        self._file: PartialFile | None = PartialFile(path)
        self._writer: Any = None
        self._size = (0, 0)
        self._count = 0
        self._warned = False

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Add a frame.

        Args:
            frame: The frame.
            detections: Its detections.
            annotated: Its annotated picture, or what draws it; drawn here when None.

        Raises:
            StreamError: The sink is closed, no encoder works or the disk is full.
        """
        if self._file is None:
            raise StreamError(f"the video {self.uri} is closed; open a new sink")
        picture = annotated_picture(frame, detections, annotated, self._class_names)
        if self._count % _CHECK_EVERY == 0:
            self._check_space()
        if self._writer is None:
            self._open(picture.shape[1] + picture.shape[1] % 2, picture.shape[0] + picture.shape[0] % 2)
        self._writer.write(cv2.cvtColor(self._fit(picture), cv2.COLOR_RGB2BGR))
        self._count += 1

    def close(self) -> None:
        """Finish the video, check that it can be read and give it its name. A second call does nothing.

        Raises:
            StreamError: The video is damaged, as after a full disk; nothing is left under its name.
        """
        if self._file is None:
            return
        file, self._file = self._file, None
        if self._writer is None:
            file.discard()
            logger.warning("no frame came, so there is no video %s", self.uri)
            return
        self._release()
        readable = _count_frames(file.part)
        if readable < 0.9 * self._count - 1:
            file.discard()
            raise StreamError(
                f"video {self.uri} could not be written whole: {max(readable, 0)} of {self._count} frames can be read; "
                f"check the free space: df -h {file.path.parent}"
            )
        file.commit()

    def discard(self) -> None:
        """Remove what was written so far."""
        self._release()
        if self._file is not None:
            self._file.discard()
            self._file = None

    def __enter__(self) -> VideoSink:
        return self

    def _release(self) -> None:
        if self._writer is not None:
            with quiet():
                self._writer.release()
            self._writer = None

    def _open(self, width: int, height: int) -> None:
        file = self._part()
        with quiet():
            for codec in self._codecs:
                for backend in _BACKENDS:
                    fourcc = cv2.VideoWriter.fourcc(*codec)
                    writer = cv2.VideoWriter(str(file.part), getattr(cv2, backend), fourcc, self._fps, (width, height))
                    if writer.isOpened():
                        self._writer, self.codec, self._size = writer, codec, (width, height)
                        logger.debug("%s: %s, %dx%d, %g fps", self.uri, codec, width, height, self._fps)
                        return
                    writer.release()
        raise StreamError(
            f"OpenCV {cv2.__version__} has no encoder for {self.uri} ({width}x{height}, tried "
            f"{', '.join(self._codecs)}); write pictures instead: --to FOLDER/"
        )

    def _part(self) -> PartialFile:
        if self._file is None:
            raise StreamError(f"the video {self.uri} is closed; open a new sink")
        return self._file

    def _fit(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        width, height = self._size
        if picture.shape[:2] == (height, width):
            return picture
        canvas = np.zeros((height, width, 3), np.uint8)
        scale = min(height / picture.shape[0], width / picture.shape[1])
        if max(height - picture.shape[0], width - picture.shape[1]) <= 1 and scale >= 1:
            pad = (0, height - picture.shape[0], 0, width - picture.shape[1])
            return np.asarray(cv2.copyMakeBorder(picture, *pad, cv2.BORDER_REPLICATE), np.uint8)
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s is %dx%d; frames of another size, such as %dx%d, are scaled to fit into it",
                *(self.uri, width, height, picture.shape[1], picture.shape[0]),
            )
        new_height, new_width = (max(1, round(side * scale)) for side in picture.shape[:2])
        y, x = (height - new_height) // 2, (width - new_width) // 2
        small = cv2.resize(
            picture, (new_width, new_height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        canvas[y : y + new_height, x : x + new_width] = small
        return canvas

    def _check_space(self) -> None:
        """OpenCV does not say when a frame finds no room."""
        folder = self._part().path.parent
        free = shutil.disk_usage(folder).free
        if free < _LEAST_FREE_BYTES:
            raise StreamError(
                f"no space left for {self.uri}: {free / 1e6:.1f} MB free; make room or write elsewhere: df -h {folder}"
            )


def _count_frames(path: Path) -> int:
    """Frames that a finished video says it has; 0 where it cannot be read."""
    if not path.exists() or path.stat().st_size == 0:
        return 0
    with quiet():
        capture = cv2.VideoCapture(str(path))
        readable, _ = capture.read() if capture.isOpened() else (False, None)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT) if readable else 0
        capture.release()
    return int(count)
