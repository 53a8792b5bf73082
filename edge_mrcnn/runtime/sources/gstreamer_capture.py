"""`GstreamerCapture`: frames in NV12 out of a GStreamer pipeline, by way of OpenCV.

Every Jetson's OpenCV has GStreamer in it; pip's has not. What OpenCV does not do is give up on a pipeline that stalls,
so it is called in a thread of its own, which can be left behind.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import queue
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import cv2

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.opencv import quiet
from edge_mrcnn.runtime.sources.live import Capture

logger = logging.getLogger(__name__)

OPEN_S = 15.0
"""How long a pipeline may take to start: a Jetson takes seconds for a camera's first picture."""

_CLOSE_S = 2.0
"""How long to wait for a pipeline to stop, so that its camera is free for the next one."""

_MOST_LEFT_BEHIND = 3
"""Of one camera, pipelines that hang and are left behind for a new one."""

_JETSON_ELEMENTS = ("nvarguscamerasrc", "nvv4l2decoder", "nvvidconv")

_Result = TypeVar("_Result")


class GstreamerCapture:
    """A pipeline, and the thread in which OpenCV reads it.

    Attributes:
        fps: Frames per second as the pipeline says, None where it does not.
        damaged: 0: decoders in GStreamer do not tell.
    """

    damaged = 0

    def __init__(self, pipeline: str, shown: str, timeout_s: float) -> None:
        """Make the thread; `open` starts the pipeline.

        Args:
            pipeline: Ends in an appsink that gets NV12.
            shown: What errors call it, without credentials.
            timeout_s: How long `read` waits.
        """
        self.fps: float | None = None
        self._pipeline, self._shown, self._timeout_s = pipeline, shown, timeout_s
        self._capture: Any = None
        self._closed = False
        self._thread = _Thread()

    @property
    def hangs(self) -> bool:
        """It was closed, but is still inside GStreamer."""
        return self._closed and self._thread.is_alive()

    def open(self) -> None:
        """Start the pipeline.

        Raises:
            StreamError: It cannot be started, or not in time; the capture is closed then.
        """
        try:
            opened = self._thread.call(self._start, OPEN_S)
        except concurrent.futures.TimeoutError:
            self.close()
            raise StreamError(f"{self._shown} did not start within {OPEN_S:g} s") from None
        if not opened:
            self.close()
            raise StreamError(
                f"GStreamer cannot start {self._shown}: there is no such camera, file or server, it is in use, or it "
                "does not give the format, size and rate asked for; GST_DEBUG=2 in the environment shows more"
            )

    def read(self) -> Frame:
        """The next frame, in NV12, stamped by the host.

        Raises:
            StreamError: The pipeline is closed, has ended or gave nothing in time, or its pictures have odd sides.
        """
        if self._closed:
            raise StreamError(f"{self._shown} is closed; open it again")
        try:
            frame = self._thread.call(self._read, self._timeout_s)
        except concurrent.futures.TimeoutError:
            raise StreamError(f"{self._shown} gave no picture for {self._timeout_s:g} s") from None
        if frame is None:
            raise StreamError(f"the pipeline of {self._shown} has ended")
        return frame

    def close(self) -> None:
        """Stop the pipeline. Where GStreamer does not return, its thread is left behind. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._thread.call(self._stop, _CLOSE_S)
        except concurrent.futures.TimeoutError:
            logger.warning("%s hangs inside GStreamer: its thread is left behind", self._shown)
        self._thread.finish()

    def _start(self) -> bool:
        with quiet():
            self._capture = cv2.VideoCapture(self._pipeline, cv2.CAP_GSTREAMER)
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = rate if math.isfinite(rate) and rate > 0 else None
        return bool(self._capture.isOpened())

    def _read(self) -> Frame | None:
        try:
            with quiet():
                more, pixels = self._capture.read()
        except cv2.error as error:
            raise StreamError(f"OpenCV cannot take a picture of {self._shown}: {error.err}") from None
        captured_ns, stamp_ns = time.monotonic_ns(), time.time_ns()
        if not more:
            return None
        rows, width = pixels.shape
        height = (2 * rows + 1) // 3  # of the picture; OpenCV's property stays what it was at first
        if width % 2 or height % 2:
            raise StreamError(
                f"{self._shown} gives pictures of {width} x {height}, but NV12 needs even sides; end the pipeline with "
                f"videoscale ! video/x-raw,width={width // 2 * 2},height={height // 2 * 2}"
            )
        return Frame(pixels, captured_ns=captured_ns, stamp_ns=stamp_ns, pixel_format="nv12")

    def _stop(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class _Thread(threading.Thread):
    """Makes calls that may never return, one after the other."""

    def __init__(self) -> None:
        super().__init__(name="edge-mrcnn-gstreamer", daemon=True)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.start()

    def call(self, job: Callable[[], _Result], timeout_s: float) -> _Result:
        """What `job` returns. It goes on behind a `concurrent.futures.TimeoutError`."""
        future: concurrent.futures.Future[_Result] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(job())
            except Exception as error:  # the caller's
                future.set_exception(error)

        self._jobs.put(run)
        return future.result(timeout_s)

    def finish(self) -> None:
        """End after the calls made so far."""
        self._jobs.put(None)

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def repeated_captures(pipeline: str, shown: str, timeout_s: float) -> Callable[[], Capture]:
    """What starts a pipeline, again and again, for `LiveSource`.

    A pipeline that hangs inside GStreamer is left behind for a new one, but only so many times: however long a camera
    is stalled, threads and descriptors stay few. When one of them comes to its end, a new one may be started again.

    Args:
        pipeline: Ends in an appsink that gets NV12.
        shown: What errors call it, without credentials.
        timeout_s: A stall this long counts as lost.
    """
    started: list[GstreamerCapture] = []

    def start() -> Capture:
        require_gstreamer()
        started[:] = [capture for capture in started if capture.hangs]
        if len(started) >= _MOST_LEFT_BEHIND:
            raise StreamError(
                f"{shown} still hangs inside GStreamer; restart what it reads from, of a Jetson's camera: "
                "sudo systemctl restart nvargus-daemon"
            )
        check_elements(pipeline, shown)
        capture = GstreamerCapture(pipeline, shown, timeout_s)
        started.append(capture)
        capture.open()
        return capture

    return start


def require_gstreamer() -> None:
    """Check that OpenCV has GStreamer.

    Raises:
        StreamError: It has not; the message says which one has.
    """
    if not re.search(r"GStreamer:\s*YES", cv2.getBuildInformation()):
        raise StreamError(
            f"OpenCV {cv2.__version__} here is without GStreamer, as pip's always is; use the system's in its place, "
            "which is JetPack's on a Jetson, elsewhere sudo apt-get install python3-opencv: in a virtual environment "
            "made with --system-site-packages, after pip uninstall opencv-python opencv-python-headless"
        )


def check_elements(pipeline: str, shown: str) -> None:
    """Refuse what GStreamer has no element for: OpenCV runs the rest of such a pipeline and waits for ever.

    Raises:
        StreamError: An element is missing; the message says what to install.
    """
    missing = [name for name in elements(pipeline) if not _exists(name)]
    if not missing:
        return
    if any(name in _JETSON_ELEMENTS for name in missing):
        how = "it comes with JetPack (sudo apt-get install nvidia-l4t-gstreamer) and works on a Jetson alone"
    else:
        how = "sudo apt-get install gstreamer1.0-plugins-good gstreamer1.0-plugins-bad, or the package that has it"
    raise StreamError(f"GStreamer has no element {', '.join(missing)}, which {shown} takes; {how}")


def elements(pipeline: str) -> list[str]:
    """Names of a pipeline's elements, without caps filters.

    Example:
        >>> elements('filesrc location="a ! b.mp4" ! decodebin ! video/x-raw,format=NV12 ! appsink')
        ['filesrc', 'decodebin', 'appsink']
    """
    parts = re.sub(r'"(?:[^"\\]|\\.)*"', "", pipeline).split("!")
    first_words = [part.split()[0] for part in parts if part.strip()]
    return [word for word in first_words if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", word)]


def _exists(element: str) -> bool:
    """Whether GStreamer has an element; true where it cannot be asked."""
    tool = shutil.which("gst-inspect-1.0")
    return tool is None or subprocess.run([tool, "--exists", element], check=False, capture_output=True).returncode == 0
