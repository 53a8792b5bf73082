"""Times calls on the GPU: as they are launched, and captured in a CUDA graph."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from typing import Any

_log = logging.getLogger(__name__)

Call = Callable[[], Any]
"""Gives work to the current stream of torch."""

WARM_UP = 8
RUNS = 60
GRAPH_CALLS = 20
HEAD_START_CYCLES = 400_000
"""The GPU spins so long before each timed call, so that the host has given all of it before it starts. Where the call
itself waits for the GPU, the waiting shows."""


class GpuClock:
    """Medians of times between CUDA events.

    Args:
        torch: The module, with a GPU.
    """

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def plain_us(self, calls: Sequence[Call]) -> float:
        """Microseconds of a call, launched anew each time; the calls take turns."""
        cuda = self.torch.cuda
        for i in range(max(WARM_UP, len(calls))):
            calls[i % len(calls)]()
        cuda.synchronize()
        pairs = []
        for i in range(RUNS):
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            cuda._sleep(HEAD_START_CYCLES)
            begin.record()
            calls[i % len(calls)]()
            end.record()
            pairs.append((begin, end))
        cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) * 1e3

    def graph_us(self, calls: Sequence[Call]) -> float:
        """Microseconds of a call within a CUDA graph that holds at least 20, in turns."""
        cuda = self.torch.cuda
        count = max(GRAPH_CALLS, len(calls))
        graph = cuda.CUDAGraph()
        cuda.synchronize()
        with cuda.graph(graph):
            for i in range(count):
                calls[i % len(calls)]()
        for _ in range(3):
            graph.replay()
        pairs = []
        for _ in range(RUNS):
            begin, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            pairs.append((begin, end))
        cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in pairs) * 1e3 / count

    def count_launches(self, call: Call) -> tuple[int, int] | None:
        """Kernels that a call launches, and copies and fills; None where the profiler does not work."""
        profiler = self.torch.profiler
        call()
        self.torch.cuda.synchronize()
        try:
            with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
                call()
                self.torch.cuda.synchronize()
            names = [event.name for event in profile.events() if event.device_type.name == "CUDA"]
        except RuntimeError as error:  # no access to the profiling library
            _log.warning("launches are not counted: %s", error)
            return None
        copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
        return (len(names) - copies, copies) if names else None
