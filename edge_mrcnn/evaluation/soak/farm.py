"""The cameras of a soak, in processes of their own, and how they are made to misbehave."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO

from edge_mrcnn.errors import StreamError
from edge_mrcnn.evaluation.soak.faults import Fault

logger = logging.getLogger(__name__)

SYSTEM_PYTHON = "/usr/bin/python3"
_HAS_RTSP = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


class CameraFarm:
    """Cameras over HTTP, and one over RTSP where GStreamer's server is installed.

    Attributes:
        uris: Of the cameras.
        has_rtsp: Whether the last of them comes over RTSP.
    """

    def __init__(self, cameras: int, fps: float, show: str, timeout_s: float) -> None:
        """Start the processes.

        Raises:
            StreamError: They cannot serve, as when there is nothing to show.
        """
        program = [sys.executable, "-m", "edge_mrcnn.evaluation.soak.camera_server"]
        self._http = _start([*program, "--cameras", str(cameras), "--fps", str(fps), "--show", show])
        ports = json.loads(_first_line(self._http))
        options = f"timeout_s={timeout_s}"
        self.uris = [f"http://127.0.0.1:{port}/?name=http{at}&{options}" for at, port in enumerate(ports)]
        self._rtsp = RtspCamera(fps) if has_rtsp_server() else None
        self.has_rtsp = self._rtsp is not None
        if self._rtsp is not None:
            self.uris.append(f"rtsp://127.0.0.1:{self._rtsp.port}/live?name=rtsp&{options}")

    def misbehave(self, fault: Fault) -> None:
        """Begin a fault of a camera."""
        if self._rtsp is not None and fault.kind.startswith("rtsp-"):
            self._rtsp.misbehave(fault)
            return
        name = "stall" if fault.kind == "hiccup" else fault.kind
        assert self._http.stdin is not None
        self._http.stdin.write(json.dumps({"camera": fault.camera, "fault": name, "seconds": fault.seconds}) + "\n")
        self._http.stdin.flush()

    def tend(self) -> None:
        """End what is over; to be called a few times a second.

        Raises:
            StreamError: The cameras ended by themselves.
        """
        if self._http.poll() is not None:
            raise StreamError(f"the soak's cameras ended with code {self._http.returncode}: a bug; run with --debug")
        if self._rtsp is not None:
            self._rtsp.tend()

    def close(self) -> None:
        """End the processes."""
        _end(self._http)
        if self._rtsp is not None:
            self._rtsp.close()

    def __enter__(self) -> CameraFarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RtspCamera:
    """GStreamer's RTSP server, which is stopped or killed.

    Attributes:
        port: Where it listens, also after it was killed.
    """

    def __init__(self, fps: float) -> None:
        """Start it."""
        self._fps = fps
        self._process = self._start(0)
        self.port = int(_first_line(self._process))
        self._dead_until: float | None = None
        self._stalled_until: float | None = None

    def misbehave(self, fault: Fault) -> None:
        """Kill it or stop it, for the time of the fault."""
        if self._dead_until is not None or self._stalled_until is not None:
            return  # one thing after the other
        until = time.monotonic() + fault.seconds
        if fault.kind == "rtsp-die":
            self._process.kill()
            _end(self._process)
            self._dead_until = until
        else:
            self._process.send_signal(signal.SIGSTOP)
            self._stalled_until = until

    def tend(self) -> None:
        """Bring it back when its time has come."""
        now = time.monotonic()
        if self._dead_until is not None and now >= self._dead_until:
            self._dead_until = None
            self._process = self._start(self.port)
        if self._stalled_until is not None and now >= self._stalled_until:
            self._stalled_until = None
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGCONT)
        _end(self._process)

    def _start(self, port: int) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("rtsp_server.py")
        return _start([SYSTEM_PYTHON, str(script), str(port), str(self._fps)])


def has_rtsp_server() -> bool:
    """Whether the system's Python can serve RTSP through GStreamer."""
    if not os.access(SYSTEM_PYTHON, os.X_OK):
        return False
    return subprocess.run([SYSTEM_PYTHON, "-c", _HAS_RTSP], capture_output=True, check=False).returncode == 0


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise StreamError(f"the soak's cameras could not start (code {process.wait()}); the reason stands above")
    return line


def _end(process: subprocess.Popen[str]) -> None:
    """Close its input, which ends it, and wait; kill it when it does not."""
    pipes: list[IO[str] | None] = [process.stdin, process.stdout]
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in pipes:
        if pipe is not None:
            pipe.close()
