"""The parent's side of a build: starts the worker, shows its progress, makes an answer of every way it can end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from edge_mrcnn import errors
from edge_mrcnn.compiler.build_worker import Job
from edge_mrcnn.errors import EdgeMrcnnError, EngineError
from edge_mrcnn.gpu import library, tensorrt_api
from edge_mrcnn.gpu.target import Flavour

_log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "edge_mrcnn.compiler.build_worker")

GRACE_S = 5.0
"""How long a worker that was asked to end may take."""

LOG_LINES = 12
"""Lines of the worker's log that an error repeats."""

_MEMORY = re.compile(r"out ?of ?memory|could not find any implementation|bad_alloc|insufficient memory", re.I)
"""How TensorRT says that memory is short. Source: its developer guide's error messages, and users' reports."""

LESS_MEMORY = "close other programs, or lower --batch, the input size or --workspace"


def run_worker(job: Job, flavour: Flavour, folder: Path, timeout_s: float) -> dict[str, Any]:
    """Build in a process of its own.

    Args:
        job: What to build.
        flavour: Whose libraries it needs.
        folder: An empty folder for what the worker needs; the caller removes it.
        timeout_s: Longest time in seconds.

    Returns:
        What `build_worker.build` gives.

    Raises:
        EngineError: The build failed, crashed, was killed or took too long; the message repeats the log and says
            what to do.
        PluginError: A custom op did not become a plugin layer.
    """
    (folder / "job.json").write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    stderr_path = folder / "stderr.txt"
    conversation = _Conversation(job)
    with stderr_path.open("wb") as stderr, _start(folder, flavour, stderr) as process, conversation.bar():
        deadline = time.monotonic() + timeout_s
        try:
            conversation.listen(process, deadline)
            process.wait(max(0.1, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            _stop(process)
            raise EngineError(
                f"building took longer than {timeout_s:g} s and was ended; give it more time with --timeout-s"
            ) from error
        except BaseException:  # Ctrl-C too: no worker outlives this
            _stop(process)
            raise
    if conversation.result is not None and process.returncode == 0:
        return conversation.result
    log = [*conversation.log, *stderr_path.read_text(encoding="utf-8", errors="replace").splitlines()]
    raise _explain(process.returncode, conversation.error, log)


class _Conversation:
    """What the worker has said so far."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.result: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.log: deque[str] = deque(maxlen=200)
        self._bar: Any = None

    @contextlib.contextmanager
    def bar(self) -> Iterator[None]:
        """A progress bar on a terminal, nothing elsewhere."""
        if not sys.stderr.isatty():
            yield
            return
        from tqdm import tqdm

        with tqdm(total=0, desc="Building engine", unit="step", leave=False) as self._bar:
            yield

    def listen(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        """Take in what the worker says until it says no more.

        Raises:
            TimeoutError: The deadline passed.
        """
        lines: queue.Queue[bytes | None] = queue.Queue()
        assert process.stdout is not None
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError from None
            if line is None:
                return
            self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        if kind == "log":
            self.log.append(event["text"])
            _log.debug("TensorRT %s: %s", event["severity"], event["text"])
        elif kind == "progress":
            self._show(event)
        elif kind == "error":
            self.error = event
        elif kind == "done":
            self.result = event

    def _show(self, event: dict[str, Any]) -> None:
        if self._bar is None:
            return
        if event["top"]:
            self._bar.total, self._bar.n = event["steps"], event["done"]
        else:
            self._bar.set_postfix_str(event["phase"], refresh=False)
        self._bar.refresh()


def _start(folder: Path, flavour: Flavour, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    libraries = folder / "lib"
    libraries.mkdir()
    tensorrt_api.link_libraries(flavour, libraries)
    package_root = str(Path(errors.__file__).resolve().parents[1])
    environment = (
        os.environ
        | library.absolute_variable()
        | {
            "LD_LIBRARY_PATH": _prepend(str(libraries), "LD_LIBRARY_PATH"),
            "PYTHONPATH": _prepend(package_root, "PYTHONPATH"),
        }
    )
    return subprocess.Popen(
        [*COMMAND, str(folder / "job.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=folder,  # python -m looks for modules in the working directory first
        env=environment,
        start_new_session=True,  # so that Ctrl-C reaches us alone, and we end the worker
    )


def _prepend(path: str, variable: str) -> str:
    return os.pathsep.join(filter(None, (path, os.environ.get(variable))))


def _pump(stream: IO[bytes], lines: queue.Queue[bytes | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _explain(status: int, error: dict[str, Any] | None, log: list[str]) -> EdgeMrcnnError:
    """The error for a worker that gave no result."""
    told = [line for line in log if line.strip()][-LOG_LINES:]
    said = "\n  ".join(["", "TensorRT's log:", *told]) if told else ""
    if error is not None and error["kind"] == "OSError":
        return EngineError(
            f"cannot write the engine ({error['text']}); free some space, or write elsewhere with -o DIR"
        )
    remedy = LESS_MEMORY if _MEMORY.search(said) else "run it again with --debug for all of the log"
    if error is not None:
        kind = getattr(errors, error["kind"], EngineError)
        short = f"; TensorRT ran out of memory: {LESS_MEMORY}" if _MEMORY.search(said) else ""
        return kind(f"{error['text']}{short}{said}")  # type: ignore[no-any-return]
    if status == -signal.SIGKILL:
        return EngineError(
            f"the process that builds the engine was killed, most likely for lack of memory; {LESS_MEMORY}{said}"
        )
    if status < 0:
        return EngineError(f"TensorRT crashed while building ({signal.Signals(-status).name}); {remedy}{said}")
    return EngineError(f"building ended with status {status} and no result; {remedy}{said}")
