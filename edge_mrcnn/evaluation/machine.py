"""Which machine and which versions a figure was measured with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = ("numpy", "onnxruntime", "opencv-python", "tensorrt", "tensorrt-rtx", "torch", "torchvision")
"""Packages whose version changes timings."""


@dataclass(frozen=True)
class Machine:
    """The machine a benchmark ran on.

    Attributes:
        cpu: The processor's or the board's name.
        cores: Cores this process may use.
        system: Kernel and architecture.
        python: Version of the interpreter.
        packages: Version by package, of those installed.
        load: Processes that wanted a core in the minute before the benchmark. Well above 0, the times hold as ratios
            only. None where the system does not tell.
    """

    cpu: str
    cores: int
    system: str
    python: str
    packages: dict[str, str]
    load: float | None

    def line(self) -> str:
        """Everything in one line of text."""
        versions = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        load = "" if self.load is None else f", load {self.load:.1f} before"
        return f"{self.cpu}, {self.cores} cores{load}; {self.system}, Python {self.python}; {versions}"


def describe_machine() -> Machine:
    """Describe this machine; no package is imported for it."""
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    for path, key in (("/proc/device-tree/model", ""), ("/proc/cpuinfo", "model name")):
        try:
            lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(key):
                return line.partition(":")[2].strip() if key else line.strip("\0 ")
    return platform.processor() or platform.machine() or "unknown processor"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
