"""`GstreamerCapture`: frames in NV12 out of a GStreamer pipeline, by way of OpenCV in a process of its own.

Every Jetson's OpenCV has GStreamer in it; pip's has not.
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources import gstreamer_child
from edge_mrcnn.runtime.sources.gstreamer_child import REPLY

_OPEN_S = 20.0
"""How long a pipeline may take to start: a Jetson takes seconds for a camera's first picture."""

_CLOSE_S = 3.0
"""How long a pipeline may take to stop, so that its camera is free for the next one."""

_JETSON_ELEMENTS = ("nvarguscamerasrc", "nvv4l2decoder", "nvvidconv")

_SET_PIPE_SIZE, _PIPE_BYTES = 1031, 1 << 20
"""Linux's F_SETPIPE_SZ, which Python names from 3.10 on but not everywhere, and as much as anybody may ask for."""


class GstreamerCapture:
    """A pipeline in a process of its own.

    Attributes:
        fps: Frames per second as the pipeline says, None where it does not.
        damaged: 0: decoders in GStreamer do not tell.
    """

    damaged = 0

    def __init__(self, pipeline: str, shown: str, timeout_s: float) -> None:
        """Start the pipeline.

        Args:
            pipeline: Ends in an appsink that gets NV12.
            shown: What errors call it, without credentials.
            timeout_s: How long `read` waits.

        Raises:
            StreamError: OpenCV has no GStreamer, GStreamer lacks an element, or the pipeline does not start.
        """
        require_gstreamer()
        check_elements(pipeline, shown)
        self._shown, self._timeout_s = shown, timeout_s
        self._closed = False
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(gstreamer_child.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is the program's
            )
            try:
                self.fps = self._open(pipeline)
            except StreamError as error:
                self.close()
                said.seek(0)
                raise StreamError(f"{error}{_reason(said.read().decode(errors='replace'))}") from None
            except BaseException:
                self.close()
                raise

    def read(self) -> Frame:
        """The next frame, in NV12, stamped by the host.

        Raises:
            StreamError: The pipeline is closed, has ended or gave nothing in time, or its pictures have odd sides.
        """
        if self._closed:
            raise StreamError(f"{self._shown} is closed; open it again")
        late = f"{self._shown} gave no picture for {self._timeout_s:g} s"
        self._ask(b"\n")
        more, _, captured_ns, rows, width = REPLY.unpack(self._receive(REPLY.size, self._timeout_s, late))
        if not more:
            raise StreamError(f"the pipeline of {self._shown} has ended")
        pixels = np.frombuffer(self._receive(rows * width, self._timeout_s, late), np.uint8).reshape(rows, width)
        height = (2 * rows + 1) // 3
        if width % 2 or height % 2:
            raise StreamError(
                f"{self._shown} gives pictures of {width} x {height}, but NV12 needs even sides; end the pipeline with "
                f"videoscale ! video/x-raw,width={width // 2 * 2},height={height // 2 * 2}"
            )
        stamp_ns = time.time_ns() - (time.monotonic_ns() - captured_ns)
        return Frame(pixels, captured_ns=captured_ns, stamp_ns=stamp_ns, pixel_format="nv12")

    def close(self) -> None:
        """Stop the pipeline, and end its process where that hangs. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _open(self, pipeline: str) -> float | None:
        """Send the pipeline; its rate when it runs."""
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # only faster
            fcntl.fcntl(self._process.stdout, _SET_PIPE_SIZE, _PIPE_BYTES)
        self._ask(pipeline.replace("\n", " ").encode() + b"\n")
        late = f"{self._shown} did not start within {_OPEN_S:g} s"
        opened, fps, *_ = REPLY.unpack(self._receive(REPLY.size, _OPEN_S, late))
        if not opened:
            raise StreamError(f"GStreamer cannot start {self._shown}")
        return fps or None

    def _ask(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it does not answer either
            self._process.stdin.write(line)

    def _receive(self, count: int, timeout_s: float, late: str) -> bytearray:
        """So many bytes.

        Raises:
            StreamError: The process ended, or nothing came for too long; then with the message given.
        """
        pipe: Any = self._process.stdout
        received = bytearray(count)
        left = memoryview(received)
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        while left:
            if not ready.poll(1000 * timeout_s):
                raise StreamError(late)
            got = pipe.readinto(left)
            if not got:
                raise StreamError(f"the process that runs {self._shown} in GStreamer has died")
            left = left[got:]
        return received


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


def _reason(said: str) -> str:
    """What GStreamer said about it, as OpenCV logs that."""
    found = re.findall(r"module (\w+) reported: ([^\n]+)", said)
    if found:
        return f": {found[0][0]} says: {found[0][1].strip()}"
    return "; gst-launch-1.0 shows more"
