"""Runs code in a Python whose OpenCV has GStreamer, such as Debian's; pip's OpenCV has not."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.faults.servers import SYSTEM_PYTHON

ROOT = Path(__file__).parents[2]
_ASK = "import cv2, re, sys; sys.exit(not re.search(r'GStreamer:\\s*YES', cv2.getBuildInformation()))"


@functools.cache
def _find() -> str | None:
    for candidate in (sys.executable, SYSTEM_PYTHON):
        found = shutil.which(candidate)
        if found and subprocess.run([found, "-c", _ASK], capture_output=True, check=False).returncode == 0:
            return found
    return None


def start_child(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start it; skips the test where there is no such Python."""
    python = _find()
    if python is None:
        pytest.skip("no OpenCV with GStreamer: apt-get install python3-opencv")
    return subprocess.Popen(
        [python, "-c", textwrap.dedent(code), *arguments],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_child(code: str, *arguments: str) -> tuple[Any, str]:
    """What it printed, which is JSON, and its stderr."""
    process = start_child(code, *arguments)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(out), errors
