"""Video files and cameras of this machine, through OpenCV."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.opencv import quiet

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
    """

    live = False
    skipped = 0

    def __init__(self, path: str | Path) -> None:
        """Open a video file.

        Raises:
            StreamError: The file is missing, empty or no video that OpenCV can decode.
        """
        self.uri = str(path)
        self._capture: Any = _open_file(Path(path))
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
            rgb: Any = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            yield Frame(rgb, source=self.uri, index=index, stamp_ns=position_ns, stamp_source="file")
            index += 1
        self._check_end(index)

    def _position_ns(self, index: int, before_ns: int) -> int:
        """Position of the frame just read; by the rate where the container's time stands still."""
        milliseconds = self._capture.get(cv2.CAP_PROP_POS_MSEC)
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


class DeviceSource:
    """A camera at `/dev/videoN` (V4L2); frames are stamped by the host when they arrive.

    Attributes:
        uri: The device's path.
        fps: Frames per second as the camera says, None where it does not.
        length: None: a camera has no end.
        live: True.
        skipped: 0.
    """

    length: int | None = None
    live = True
    skipped = 0

    def __init__(
        self,
        path: str | Path,
        *,
        width: int | None = None,
        height: int | None = None,
        fps: float | None = None,
        fourcc: str | None = None,
    ) -> None:
        """Open a camera.

        Args:
            path: Such as `/dev/video0`.
            width: Width to ask for in pixels.
            height: Height to ask for in pixels.
            fps: Rate to ask for; cameras choose the nearest they have.
            fourcc: Pixel format to ask for, such as `MJPG`, which many USB cameras need for their full rate.

        Raises:
            StreamError: There is no such device, it is in use, or it gives no picture.
        """
        self.uri = str(path)
        self._capture: Any = _open_device(self.uri)
        wishes = {
            cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*fourcc) if fourcc else None,
            cv2.CAP_PROP_FRAME_WIDTH: width,
            cv2.CAP_PROP_FRAME_HEIGHT: height,
            cv2.CAP_PROP_FPS: fps,
            cv2.CAP_PROP_BUFFERSIZE: 1,  # the newest frame rather than a queue of old ones
        }
        for key, value in wishes.items():
            if value is not None:
                self._capture.set(key, value)
        self.fps = _positive(self._capture.get(cv2.CAP_PROP_FPS))

    def __iter__(self) -> Iterator[Frame]:
        """Read until the loop is left.

        Raises:
            StreamError: The source is closed or the camera gives no more pictures.
        """
        index = 0
        while True:
            if self._capture is None:
                raise StreamError(f"the camera {self.uri} is closed; open it again: open_source({self.uri!r})")
            with quiet():
                more, image = self._capture.read()
            if not more:
                raise StreamError(
                    f"camera {self.uri} gave no picture after {index} frames; check the cable, and that no other "
                    "program uses it: fuser -v " + self.uri
                )
            rgb: Any = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            yield Frame(rgb, source=self.uri, index=index)
            index += 1

    def close(self) -> None:
        """Free the camera. A second call does nothing."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def __enter__(self) -> DeviceSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_file(path: Path) -> Any:
    if not path.exists():
        raise StreamError(f"there is no file {path}; check the path")
    if path.stat().st_size == 0:
        raise StreamError(f"video {path} is empty (0 bytes); copy or record it again")
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


def _open_device(path: str) -> Any:
    if not Path(path).exists():
        present = sorted(str(device) for device in Path("/dev").glob("video*"))
        raise StreamError(f"there is no camera {path}; cameras here: {', '.join(present) or 'none'}")
    with quiet():
        capture = cv2.VideoCapture(path, cv2.CAP_V4L2)
    if not capture.isOpened():
        capture.release()
        raise StreamError(
            f"camera {path} cannot be opened; it may be in use (fuser -v {path}), closed to you (add yourself to the "
            "group video), or a device that gives no pictures (v4l2-ctl --list-devices)"
        )
    return capture


def _positive(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None


def _convert(path: object) -> str:
    return f"ffmpeg -i {path} -c:v libx264 -pix_fmt yuv420p converted.mp4"
