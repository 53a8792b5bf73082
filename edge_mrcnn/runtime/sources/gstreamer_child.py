"""A process that runs one GStreamer pipeline in OpenCV, for `GstreamerCapture`; started as a script.

OpenCV hangs in some pipelines that cannot start, and leaves threads and descriptors of others behind: a process can be
ended, and everything goes with it. It gets the pipeline on its standard input, then an empty line for each picture that
is wanted, and ends when that input does.
"""

from __future__ import annotations

import io
import os
import queue
import struct
import sys
import threading
import time
from typing import Any

REPLY = struct.Struct("<?dqII")
"""Answers begin with it: whether there is a picture (the first time: whether the pipeline runs), frames per second (0:
unknown), when it was received (monotonic clock, nanoseconds), and its rows and bytes a row; the picture follows."""

_RELEASE_S = 1.5
"""How long the pipeline may take to stop by itself."""


def main() -> None:
    """Answer until the input ends."""
    replies = io.FileIO(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not come between the pictures
    import cv2

    pipeline = sys.stdin.buffer.readline().decode().rstrip("\n")
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(wanted,), daemon=True).start()
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    opened = capture.isOpened()
    fps = capture.get(cv2.CAP_PROP_FPS)
    replies.write(REPLY.pack(opened, fps if 0 < fps < float("inf") else 0, 0, 0, 0))
    if opened:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # only why a pipeline does not start is of interest
    try:
        while wanted.get():
            _answer(replies, *capture.read())
    except BrokenPipeError:  # nobody listens any more
        pass
    finally:
        capture.release()


def _answer(replies: io.FileIO, more: bool, pixels: Any) -> None:
    if not more:
        replies.write(REPLY.pack(False, 0, 0, 0, 0))
        return
    replies.write(REPLY.pack(True, 0, time.monotonic_ns(), *pixels.shape))
    view = pixels.data.cast("B")
    while view:
        view = view[replies.write(view) :]


def _listen(wanted: queue.SimpleQueue[bool]) -> None:
    """Pass wishes on; end the process when there will be no more, wherever it hangs."""
    while sys.stdin.buffer.readline():
        wanted.put(True)
    wanted.put(False)
    time.sleep(_RELEASE_S)
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    finally:
        os._exit(0)  # whatever OpenCV would still wait for
