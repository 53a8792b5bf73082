"""Runs a part of the check in a process of its own, and keeps what it reported before it failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
"""One thing found out; plain data."""

Emit = Callable[[Row], None]
"""Takes each row as soon as there is one."""

Status = Literal["done", "failed", "skipped", "timed out", "crashed"]

ROOT = Path(__file__).parents[2]
TAIL_LINES = 12
"""Of a process's output, kept where it fails."""


class Skipped(Exception):  # noqa: N818
    """The part cannot run here; the text says what is absent."""


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: In the report.
        target: `module:function`; the function takes an `Emit` and raises `Skipped` or anything else.
        limit_s: Seconds after which it is ended.
    """

    name: str
    target: str
    limit_s: float


@dataclass(frozen=True)
class Result:
    """What became of a part.

    Attributes:
        part: Its name.
        status: `failed`: it raised, or a row has `ok` false. `crashed`: its process ended otherwise.
        seconds: How long it took.
        rows: What it reported.
        reason: Why it was skipped, or how it failed.
    """

    part: str
    status: Status
    seconds: float
    rows: list[Row] = field(default_factory=list)
    reason: str = ""


def run_part(part: Part, limit_s: float | None = None) -> Result:
    """Run a part; never raises for what the part does.

    Args:
        part: Which.
        limit_s: Less than the part's own limit where less time is left.
    """
    limit_s = part.limit_s if limit_s is None else min(limit_s, part.limit_s)
    if limit_s <= 0:
        return Result(part.name, "skipped", 0.0, reason="no time was left for it")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        rows, log = Path(name, "rows.jsonl"), Path(name, "log.txt")
        rows.touch()
        code = _run_worker(part.target, rows, log, limit_s)
        seconds = round(time.monotonic() - begin, 1)
        whole = rows.read_text().rpartition("\n")[0]  # a process that was killed may have left half a line
        events = [json.loads(line) for line in whole.splitlines()]
        return _conclude(part.name, events, code, seconds, limit_s, _tail(log))


def _run_worker(target: str, rows: Path, log: Path, limit_s: float) -> int | None:
    """Exit status of the worker, None where it was ended at its limit."""
    command = [sys.executable, "-m", "benchmarks.gpu_check.worker", target, str(rows)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # also on Ctrl-C; its children go with it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _conclude(name: str, events: list[Row], code: int | None, seconds: float, limit_s: float, tail: str) -> Result:
    rows = [event["row"] for event in events if "row" in event]
    end = next((event for event in events if "end" in event), None)
    if end is not None:
        bad = sum(row.get("ok") is False for row in rows)
        status, reason = end["end"], end["reason"]
        if status == "done" and bad:
            status, reason = "failed", f"{bad} of {len(rows)} checks failed"
        return Result(name, status, seconds, rows, reason)
    if code is None:
        return Result(name, "timed out", seconds, rows, f"ended after {limit_s:.0f} s; {tail}")
    ended = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
    return Result(name, "crashed", seconds, rows, f"the process ended {ended}; {tail}")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-TAIL_LINES:]
    return "its output ends: " + "\n".join(lines) if lines else "it had printed nothing"
