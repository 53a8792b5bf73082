"""compute-sanitizer's memcheck and racecheck over a small run of every kernel."""

from __future__ import annotations

import itertools
import logging
import re
import subprocess
import sys

from benchmarks.gpu_check.cases import CASES
from benchmarks.gpu_check.correctness import VARIANTS, run_op
from benchmarks.gpu_check.device import GpuMemory, Launcher, find_tool, open_gpu
from benchmarks.gpu_check.isolation import ROOT, Emit, Skipped

FOUND_SOMETHING = 99
CASES_PER_OP = 8

_log = logging.getLogger(__name__)


def memcheck(emit: Emit) -> None:
    """Accesses beyond arrays, and misaligned ones."""
    _sanitize("memcheck", emit)


def racecheck(emit: Emit) -> None:
    """Hazards between the threads of a block in shared memory."""
    _sanitize("racecheck", emit)


def _sanitize(tool: str, emit: Emit) -> None:
    sanitizer = find_tool("compute-sanitizer")
    if sanitizer is None:
        raise Skipped("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_SOMETHING), sys.executable, "-m", __name__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    emit({"tool": tool, "ok": done.returncode == 0, "detail": summarise(done.stdout + done.stderr)})


def summarise(output: str) -> str:
    """The tool's summary and its first complaints, without the marks it puts before each line."""
    lines = [re.sub(r"^=+\s*", "", line).strip() for line in output.splitlines()]
    summary = [line for line in lines if "SUMMARY" in line or line.startswith("ran ")]
    complaints = [line for line in lines if line and line not in summary and "COMPUTE-SANITIZER" not in line]
    return "; ".join(
        [*summary, *(complaints[:4] if not any("0 errors" in s or "0 hazards" in s for s in summary) else [])]
    )


def main() -> int:
    """Run each op a few times, without guards around the arrays and without torch: both would hide things."""
    launcher = Launcher(open_gpu())
    runs = 0
    for op, make in CASES.items():
        small = (case for case in make() if case.gold)
        for case, variant in itertools.product(itertools.islice(small, CASES_PER_OP), VARIANTS[op]):
            dtype, layout, output_layout = variant
            with GpuMemory(launcher, guard_bytes=0) as gpu:
                run_op(gpu, case.cast(dtype), layout, output_layout)
            runs += 1
    sys.stdout.write(f"ran {runs} plans\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
