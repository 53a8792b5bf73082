"""compute-sanitizer's memcheck and racecheck over a small run of every kernel."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.gpu_check import pictures
from benchmarks.gpu_check.cases import CASES
from benchmarks.gpu_check.correctness import VARIANTS, run_op
from benchmarks.gpu_check.device import GpuMemory, Launcher, find_tool, open_gpu
from benchmarks.gpu_check.isolation import ROOT, Emit, Skipped

FOUND_SOMETHING = 99
CASES_PER_OP = 8


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
    for run in _runs():
        with GpuMemory(launcher, guard_bytes=0) as gpu:
            run(gpu)
        runs += 1
    sys.stdout.write(f"ran {runs} plans\n")
    return 0


def _runs() -> Iterator[Callable[[GpuMemory], object]]:
    """What to run: of each op the first cases in every type and layout, and the kernels around the network."""
    for op, make in CASES.items():
        small = itertools.islice((case for case in make() if case.gold), CASES_PER_OP)
        for case, (dtype, layout, output_layout) in itertools.product(small, VARIANTS[op]):
            yield functools.partial(run_op, case=case.cast(dtype), layout=layout, output_layout=output_layout)
    if importlib.util.find_spec("cv2") is None:  # which knows how a picture fits on a canvas
        return
    for _, picture, pixel_format, canvas_hw in pictures.letterbox_cases():
        yield functools.partial(
            pictures.run_letterbox,
            picture=picture,
            pixel_format=pixel_format,
            content=canvas_hw,
            canvas_hw=canvas_hw,
        )
    for _, found in pictures.paste_cases():
        yield functools.partial(pictures.run_paste, case=found)


if __name__ == "__main__":
    sys.exit(main())
