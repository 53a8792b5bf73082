"""Video files, through OpenCV."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.opencv import quiet
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth
from edge_mrcnn.runtime.uri import camera_name

logger = logging.getLogger(__name__)

_FILE_BACKENDS = ("CAP_FFMPEG", "CAP_GSTREAMER", "CAP_OPENCV_MJPEG")
"""Never CAP_ANY: it takes `shot_001.txt` for a numbered sequence of pictures."""


class VideoSource:
    """A video file, frame by frame; `Frame.stamp_ns` is the position in the video, from 0.

    Attributes:
        uri: The file's path.
        fps: Frames per second as the file says, None where it does not.
        length: Number of frames as the file says, None where it does not; some files are off by a few.
        live: False.
        skipped: 0; a video ends at the first frame that cannot be decoded.
        name: Of the camera: by the file's name.
        drop: `auto`: frames wait.
        health: How it is doing; where a file is cut short, the frames missing count as damaged.
    """

    live = False
    skipped = 0
    drop: Drop = "auto"

    def __init__(
        self, path: str | Path, name: str | None = None, *, frame_id: str = "", hardware: bool = False
    ) -> None:
        """Open a video file.

        Args:
            path: The file.
            name: Of the camera; made from the file's name when not given.
            frame_id: Name of its coordinate frame.
            hardware: Decode on a Jetson's decoder; frames are NV12 then, and stamped by the file's rate.

        Raises:
            StreamError: The file is missing, empty or no video that OpenCV can decode, or there is no such decoder.
        """
        self.uri = str(path)
        self.name = name or _name(Path(path))
        self.health = SourceHealth()
        self._frame_id = frame_id
        self._by_rate = hardware  # OpenCV gives the position that GStreamer has read ahead to, not the frame's
        _check_file(Path(path))
        self._capture: Any = _open_on_hardware(Path(path)) if hardware else _open_file(Path(path))
        self.fps = _positive(self._capture.get(cv2.CAP_PROP_FPS))
        count = _positive(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = None if count is None else int(count)

    def __iter__(self) -> Iterator[Frame]:
        """Decode to the end, once; a second loop goes on where the first stopped.

        Raises:
            StreamError: The source is closed, or not even the first frame can be decoded.
        """
        index = 0
        position_ns = -1
        while True:
            if self._capture is None:
                raise StreamError(f"the video {self.uri} is closed; open it again: open_source({self.uri!r})")
            with quiet():
                more, image = self._capture.read()
            if not more:
                break
            position_ns = self._position_ns(index, position_ns)
            frame = self._frame(image, index, position_ns)
            index += 1
            self.health = SourceHealth("live", frames=index, image_hw=frame.image_hw)
            yield frame
        self.health = replace(self.health, state="ended")
        self._check_end(index)

    def _frame(self, image: Any, index: int, position_ns: int) -> Frame:
        nv12 = image.ndim == 2
        if nv12 and (image.shape[0] % 3 or image.shape[1] % 2):
            raise StreamError(f"{self.uri} has odd sides, which NV12 cannot have; open it without decode=hardware")
        return Frame(
            image if nv12 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB),
            source=self.uri,
            index=index,
            stamp_ns=position_ns,
            stamp_source="file",
            frame_id=self._frame_id,
            camera=self.name,
            pixel_format="nv12" if nv12 else "rgb",
        )

    def _position_ns(self, index: int, before_ns: int) -> int:
        """Position of the frame just read; by the rate where the container's time stands still."""
        milliseconds = math.nan if self._by_rate else self._capture.get(cv2.CAP_PROP_POS_MSEC)
        position = round(milliseconds * 1e6) if math.isfinite(milliseconds) else -1
        if position > before_ns:
            return position
        return max(before_ns, 0) + round(1e9 / self.fps) if self.fps and index else max(before_ns, 0)

    def _check_end(self, count: int) -> None:
        if count == 0:
            raise StreamError(
                f"video {self.uri} opens, but not one frame can be decoded; convert it: {_convert(self.uri)}"
            )
        if self.length and count < 0.9 * self.length:
            self.health = replace(self.health, damaged=self.length - count)
            logger.warning("%s ended after %d of %d frames: it is cut short or damaged", self.uri, count, self.length)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _name(path: Path) -> str:
    try:
        return camera_name(path.stem)
    except ValueError:  # a name in another script
        return "video"


def _check_file(path: Path) -> None:
    if not path.exists():
        raise StreamError(f"there is no file {path}; check the path")
    if path.stat().st_size == 0:
        raise StreamError(f"video {path} is empty (0 bytes); copy or record it again")


def _open_on_hardware(path: Path) -> Any:
    from edge_mrcnn.runtime.sources import gstreamer, gstreamer_capture

    gstreamer_capture.require_gstreamer()
    pipeline = gstreamer.with_appsink(gstreamer.hardware_pipeline(str(path)), newest=False)
    gstreamer_capture.check_elements(pipeline, str(path))
    with quiet():
        capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise StreamError(
            f"{path} is damaged, or no video that this machine's decoder takes; without decode=hardware the CPU decodes"
        )
    return capture


def _open_file(path: Path) -> Any:
    with quiet():
        for backend in _FILE_BACKENDS:
            capture = cv2.VideoCapture(str(path), getattr(cv2, backend))
            if capture.isOpened():
                return capture
            capture.release()
    raise StreamError(
        f"{path} is damaged, or no video or picture that OpenCV {cv2.__version__} can decode; "
        f"convert it: {_convert(path)}"
    )


def _positive(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None


def _convert(path: object) -> str:
    return f"ffmpeg -i {path} -c:v libx264 -pix_fmt yuv420p converted.mp4"
