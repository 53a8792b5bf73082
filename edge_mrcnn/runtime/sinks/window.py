"""A window on the screen, through OpenCV."""

from __future__ import annotations

import os
import socket
import sys
from types import TracebackType
from typing import Literal

import cv2

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture, annotated_picture
from edge_mrcnn.runtime.opencv import quiet
from edge_mrcnn.runtime.sinks import SinkOptions

_ESCAPE = 27


class WindowSink:
    """Shows annotated frames on the screen; q, Esc or closing the window ends the run. Main thread only.

    Attributes:
        uri: `window://` and the title.
        wants_picture: True.
        wants_stop: Whether the person wants to end.
    """

    wants_picture = True
    kind: Literal["view", "record"] = "view"
    main_thread = True

    def __init__(self, uri: str = "window://", options: SinkOptions | None = None) -> None:
        """Open a window; what follows `window://` is its title.

        Raises:
            StreamError: There is no screen, or OpenCV was built without windows.
        """
        self.uri = uri
        self._title = uri.partition("://")[2] or "edge-mrcnn"
        self.wants_stop = False
        self._options = options or SinkOptions()
        _check_screen()
        try:
            with quiet():
                cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
        except cv2.error as error:
            raise StreamError(
                "this OpenCV was built without windows; install opencv-python in place of opencv-python-headless, or "
                "write a file: --to out.mp4"
            ) from error
        self._sized = False

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Show a frame and look whether a key was pressed."""
        picture = annotated_picture(frame, detections, annotated, self._options.class_names, self._options.look)
        if not self._sized:
            cv2.resizeWindow(self._title, picture.shape[1], picture.shape[0])
            self._sized = True
        cv2.imshow(self._title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = cv2.waitKey(1) & 0xFF
        closed = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        self.wants_stop = self.wants_stop or key in (_ESCAPE, ord("q")) or closed

    def close(self) -> None:
        """Close the window. A second call does nothing."""
        if self._title:
            with quiet():
                cv2.destroyAllWindows()
            self._title = ""

    def __enter__(self) -> WindowSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_screen() -> None:
    """Find out whether there is a screen: Qt inside OpenCV ends the whole process when there is none."""
    if sys.platform != "linux":
        return
    display = os.environ.get("DISPLAY", "")
    toolkit = getattr(cv2, "currentUIFramework", str)()
    if not display and os.environ.get("WAYLAND_DISPLAY") and not toolkit.startswith("QT"):
        return
    if not display:
        raise StreamError("there is no screen for a window (DISPLAY is not set); write a file instead: --to out.mp4")
    if not _is_reachable(display):
        raise StreamError(f"no X server answers at DISPLAY={display}; set it right or write a file: --to out.mp4")


def _is_reachable(display: str) -> bool:
    """Whether an X server listens; `:0` is a socket in a folder of its own, `host:10.0` is TCP."""
    host, _, numbers = display.rpartition(":")
    number = numbers.partition(".")[0]
    if not number.isdigit():
        return False
    try:
        if host in ("", "unix"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(f"/tmp/.X11-unix/X{number}")
        else:
            socket.create_connection((host, 6000 + int(number)), timeout=2).close()
    except OSError:
        return False
    return True
