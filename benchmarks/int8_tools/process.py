"""Runs a step of the comparison in a process of its own: time, peak memory, and whatever it said before it failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""What a step found; plain data. `error` is in it where the step failed."""

ROOT = Path(__file__).parents[2]

MIB = 1 << 20


def run_step(
    module: str,
    job: Row,
    python: str = sys.executable,
    *,
    environment: Mapping[str, str] | None = None,
    limit_s: float = 3600,
) -> Row:
    """Run `module` with a job; never raises for what it does.

    Args:
        module: Dotted name; calls `serve` when it is run.
        job: Plain data.
        python: Interpreter.
        environment: Added to this process's.
        limit_s: Seconds after which it is ended.
    """
    with tempfile.TemporaryDirectory() as name:
        given, found, log = Path(name, "job.json"), Path(name, "row.json"), Path(name, "log.txt")
        given.write_text(json.dumps(job), encoding="utf-8")
        command = [python, "-m", module, str(given), str(found)]
        with log.open("wb") as output:
            try:
                code: int | None = subprocess.run(
                    command,
                    cwd=ROOT,
                    env={**os.environ, **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=limit_s,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
        if found.exists():
            row: Row = json.loads(found.read_text(encoding="utf-8"))
            return row
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        ended = f"was ended after {limit_s:g} s" if code is None else f"ended with status {code}"
        return {"error": f"the process {ended}: {''.join(last) or 'it printed nothing'}"}


def serve(step: Callable[[Row], Row]) -> None:
    """The other side of `run_step`: do the job, write down what came of it."""
    given, found = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        row = step(json.loads(given.read_text(encoding="utf-8")))
    except Exception as error:  # whatever a tool raises is what its user sees
        traceback.print_exc()
        row = {"error": f"{type(error).__name__}: {error}"}
    part = found.with_suffix(".part")
    part.write_text(json.dumps({**row, "peak_mib": peak_mib()}), encoding="utf-8")
    part.replace(found)


def peak_mib() -> int | None:
    """Most memory this process has had resident, in MiB; None where the system does not tell.

    Not `ru_maxrss`: a child's begins with its parent's.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), None)
