"""OpenCV kept quiet: its own messages are for its developers, ours say what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# FFmpeg inside OpenCV writes to stderr on its own; read once, at the first video. -8 is AV_LOG_QUIET.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2

_SILENT = 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence OpenCV's log inside the block; libraries inside OpenCV that write to stderr themselves are not reached.

    Example:
        >>> with quiet():
        ...     capture = cv2.VideoCapture("missing.mp4")
    """
    logging = getattr(getattr(cv2, "utils", None), "logging", cv2)  # older ones have them in cv2 itself
    if not hasattr(logging, "setLogLevel"):
        yield
        return
    level = logging.getLogLevel()
    logging.setLogLevel(_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
