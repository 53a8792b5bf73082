"""Memory, threads and descriptors of this process over time, and how much they grow."""

from __future__ import annotations

import os
import re
import threading
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edge_mrcnn.errors import StreamError

_STATUS = Path("/proc/self/status")
_PERIOD_S = 1.0
LONGEST_WARM_UP_S = 120.0


@dataclass(frozen=True)
class Growth:
    """How a quantity changed after the warm-up.

    Attributes:
        first: Median of the first third.
        last: Median of the last third.
        percent: What `last` is above `first`, in per cent of it.
        per_hour: Slope of the straight line through all samples.
    """

    first: float
    last: float
    percent: float
    per_hour: float


@dataclass(frozen=True)
class VitalSigns:
    """What a process held while it ran.

    Attributes:
        samples: Samples after the warm-up.
        warm_up_s: What was left out at the beginning.
        memory_mb: Resident memory in 10^6 bytes.
        threads: Threads.
        descriptors: Open files and sockets.
        memory_mb_by_minute: Median of each minute from the start on, the warm-up too: where the curve bends tells a
            leak from a cache that fills.
    """

    samples: int
    warm_up_s: float
    memory_mb: Growth
    threads: Growth
    descriptors: Growth
    memory_mb_by_minute: tuple[float, ...]


class Vitals:
    """Samples this process once a second while a `with` block lasts, in a thread of its own."""

    def __init__(self) -> None:
        """Check that the system tells.

        Raises:
            StreamError: There is no /proc.
        """
        if not _STATUS.exists():
            raise StreamError("a soak measures memory, threads and descriptors through /proc: run it on Linux")
        self._rows = array("d")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="edge-mrcnn-vitals", daemon=True)

    def _sample(self) -> None:
        while not self._over.wait(_PERIOD_S):
            self._rows.extend((time.monotonic(), *read_vitals()))

    def measure(self) -> VitalSigns:
        """What was seen after the warm-up: a fifth of the time, at most two minutes.

        Raises:
            StreamError: It was too short to say anything.
        """
        rows = np.array(self._rows, np.float64).reshape(-1, 4)
        if len(rows) < 6:
            raise StreamError(f"the soak ended after {len(rows)} s, too early to say anything about growth")
        minutes = medians_by_minute(rows[:, 0] - rows[0, 0], rows[:, 1])
        warm_up_s = min(LONGEST_WARM_UP_S, (rows[-1, 0] - rows[0, 0]) / 5)
        rows = rows[rows[:, 0] - rows[0, 0] >= warm_up_s]
        memory, threads, descriptors = (measure_growth(rows[:, 0], rows[:, column]) for column in (1, 2, 3))
        return VitalSigns(len(rows), round(float(warm_up_s), 1), memory, threads, descriptors, minutes)

    def __enter__(self) -> Vitals:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()


def read_vitals() -> tuple[float, int, int]:
    """Resident memory in 10^6 bytes, threads and descriptors of this process, now."""
    status = _STATUS.read_text()
    memory = re.search(r"^VmRSS:\s*(\d+) kB", status, re.MULTILINE)
    threads = re.search(r"^Threads:\s*(\d+)", status, re.MULTILINE)
    assert memory is not None
    assert threads is not None
    return int(memory[1]) * 1024 / 1e6, int(threads[1]), len(os.listdir("/proc/self/fd")) - 1  # one lists them


def medians_by_minute(times_s: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    """The median of each minute, the last one perhaps a part of one.

    Example:
        >>> medians_by_minute(np.array([0.0, 20.0, 40.0, 61.0]), np.array([1.0, 2.0, 9.0, 4.0]))
        (2.0, 4.0)
    """
    minute = times_s // 60
    return tuple(round(float(np.median(values[minute == each])), 1) for each in np.unique(minute))


def measure_growth(times_s: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> Growth:
    """How values grow over time.

    Example:
        >>> measure_growth(np.arange(9.0), np.array([100.0, 100, 100, 101, 101, 101, 102, 102, 102]))
        Growth(first=100.0, last=102.0, percent=2.0, per_hour=1080.0)
    """
    third = max(len(values) // 3, 1)
    first, last = float(np.median(values[:third])), float(np.median(values[-third:]))
    slope = np.polyfit(times_s - times_s[0], values, 1)[0] if len(values) > 1 else 0.0
    percent = 100 * (last / first - 1) if first else 0.0
    return Growth(round(first, 2), round(last, 2), round(percent, 3), round(float(slope) * 3600, 3))
