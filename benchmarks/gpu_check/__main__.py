"""Check and time the GPU kernels on this machine: `python -m benchmarks.gpu_check`, from the repository's root."""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check import report
from benchmarks.gpu_check.isolation import ROOT, Part, Result, run_part
from benchmarks.gpu_check.parts import LIMIT_S, PARTS
from edge_mrcnn import device

NO_GPU = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns 0 where the kernels are right and nothing failed, 1 otherwise, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="parts whose name begins so (and those called machine)")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder of the results")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for everything")
    options = parser.parse_args(arguments)
    if not device.find_gpus():
        print("gpu-check needs an NVIDIA GPU, and the CUDA driver shows none here; nothing was checked")
        return NO_GPU
    chosen = [part for part in PARTS if part.name.startswith(("machine", options.only or ""))]
    results = run_all(chosen, options.limit, options.output)
    for line in report.summary(results):
        print(line)
    return int(any(_spoils(result) for result in results))


def _spoils(result: Result) -> bool:
    """Whether the check as a whole is not passed: also where the kernels' results were not looked at."""
    return result.status != "done" and (result.status != "skipped" or result.part.startswith("correctness"))


def run_all(parts: Sequence[Part], limit_s: float, folder: Path) -> list[Result]:
    """Run parts one after the other; the report is written anew after each."""
    end = time.monotonic() + limit_s
    date, commit = datetime.date.today().isoformat(), _commit()
    results: list[Result] = []
    for part in parts:
        results.append(run_part(part, end - time.monotonic()))
        result = results[-1]
        print(
            f"{result.part:32} {result.status:10} {result.seconds:6.1f} s  {report.last_line(result.reason)}",
            flush=True,
        )
        base = report.write(results, date, commit, folder)
    print(f"\nwritten: {base}.json and .md")
    return results


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
