"""Cameras of this machine: `/dev/videoN`, through OpenCV's V4L2."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.opencv import quiet
from edge_mrcnn.runtime.sources.live import LIVE_OPTIONS, TIMEOUT_S, LiveSource
from edge_mrcnn.runtime.uri import camera_name, take_options

_OLDEST_STAMP_NS = 2_000_000_000
"""A picture cannot have waited longer in the driver: an older stamp is of another clock."""


def open_camera(uri: str) -> LiveSource:
    """Open a camera of this machine.

    Args:
        uri: `/dev/video0` or `v4l2:///dev/video0?width=1280&height=720&fps=30&fourcc=MJPG`. Cameras choose the nearest
            they have; many USB cameras reach their full rate with `MJPG` only.

    Raises:
        StreamError: There is no such device, it is in use, or it gives no picture.
        ValueError: An option is unknown or its value cannot be converted.
    """
    kinds: dict[str, Any] = {**LIVE_OPTIONS, "width": int, "height": int, "fps": float, "fourcc": _fourcc}
    rest, options = take_options(uri, kinds) if "://" in uri else (uri, {})
    path = unquote(rest.partition("://")[2] or rest)
    timeout_s = options.pop("timeout_s", TIMEOUT_S)
    name = options.pop("name", None) or camera_name(Path(path).name)
    live = {key: options.pop(key) for key in ("frame_id", "drop") if key in options}
    return LiveSource(uri, lambda: CameraCapture(path, timeout_s, **options), name=name, **live)


class CameraCapture:
    """One connection to a camera at `/dev/videoN`; unplugging it ends it.

    Frames are stamped by the kernel when the driver has one (`device`), else by the host.

    Attributes:
        fps: Frames per second as the camera says, None where it does not.
        damaged: 0; OpenCV passes over pictures that it cannot decode without a word.
    """

    damaged = 0

    def __init__(
        self,
        path: str,
        timeout_s: float = TIMEOUT_S,
        *,
        width: int | None = None,
        height: int | None = None,
        fps: float | None = None,
        fourcc: str | None = None,
    ) -> None:
        """Open a camera.

        Args:
            path: Such as `/dev/video0`.
            timeout_s: How long to wait for a picture. OpenCV knows one such time for all cameras of a process, in
                whole seconds: that of the first.
            width: Width to ask for in pixels.
            height: Height to ask for in pixels.
            fps: Rate to ask for.
            fourcc: Pixel format to ask for, such as `MJPG`.

        Raises:
            StreamError: There is no such device, it is in use, or it gives no picture.
        """
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(math.ceil(timeout_s)))
        self._path = path
        self._capture: Any = _open_device(path)
        wishes = {
            cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*fourcc) if fourcc else None,
            cv2.CAP_PROP_FRAME_WIDTH: width,
            cv2.CAP_PROP_FRAME_HEIGHT: height,
            cv2.CAP_PROP_FPS: fps,
        }
        for key, value in wishes.items():
            if value is not None:
                self._capture.set(key, value)
        found = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = found if math.isfinite(found) and found > 0 else None

    def read(self) -> Frame:
        """The next picture.

        Raises:
            StreamError: It gave none in time, was unplugged, or is closed.
        """
        if self._capture is None:
            raise StreamError(f"camera {self._path} is closed; open it again")
        with quiet():
            more, image = self._capture.read()
        if not more:
            raise StreamError(
                f"camera {self._path} gives no picture; check the cable, and that no other program uses it: "
                f"fuser -v {self._path}"
            )
        captured_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        age_ns = _age_ns(self._capture.get(cv2.CAP_PROP_POS_MSEC), captured_ns)
        rgb: Any = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        if age_ns is None:
            return Frame(rgb, captured_ns=captured_ns, stamp_ns=wall_ns)
        return Frame(rgb, captured_ns=captured_ns, stamp_ns=wall_ns - age_ns, stamp_source="device")

    def close(self) -> None:
        """Free the camera. A second call does nothing."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def _age_ns(position_ms: float, now_ns: int) -> int | None:
    """How long ago the kernel stamped a picture; None where the stamp is not of the monotonic clock."""
    if not math.isfinite(position_ms) or position_ms <= 0:
        return None
    age_ns = now_ns - round(position_ms * 1e6)
    return age_ns if 0 <= age_ns < _OLDEST_STAMP_NS else None


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


def _fourcc(text: str) -> str:
    """Four letters, such as MJPG."""
    if len(text) != 4:
        raise ValueError(f"a pixel format has four letters, such as MJPG, got {text!r}")
    return text
