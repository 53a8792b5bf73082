"""A GPU's memory and queues on the host, behind the stand-in driver: everything runs as late as CUDA allows, or early.

Work that is put on a stream runs only when something waits for it, or by chance before. Streams run in their own order,
heed events, and take turns otherwise by a seed. So what a real GPU forgives on most days is seen here: a missing wait
computes from old data, a host buffer that is read too early holds its poison, freed memory is a fault.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

POISON, FREED = 0xCD, 0xDD
FIRST_ADDRESS, ALIGNMENT, GUARD = 0x7_0000_0000, 512, 4096


class FaultError(Exception):
    """A kernel or a copy touched memory that is not there."""


@dataclass
class Block:
    """An allocation. Device addresses are made up; those of pinned memory are the host's own."""

    address: int
    data: np.ndarray
    freed: bool = False


class Memory:
    """Device memory, whose addresses are never given twice, and pinned host memory."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.device: dict[int, Block] = {}
        self.pinned: dict[int, Block] = {}
        self._next = FIRST_ADDRESS

    @property
    def used(self) -> int:
        return sum(block.data.nbytes for block in self.device.values() if not block.freed)

    def allocate(self, nbytes: int) -> Block | None:
        """Poisoned device memory, or None where it is out."""
        if self.used + nbytes > self.limit:
            return None
        block = Block(self._next, np.full(nbytes, POISON, np.uint8))
        self._next += -(-nbytes // ALIGNMENT) * ALIGNMENT + GUARD
        self.device[block.address] = block
        return block

    def allocate_pinned(self, nbytes: int) -> Block:
        data = np.full(nbytes, POISON, np.uint8)
        block = Block(data.ctypes.data, data)
        self.pinned[block.address] = block
        return block

    def free(self, blocks: dict[int, Block], address: int) -> bool:
        """Mark a block as freed and spoil what it held; False where there is none, or no longer."""
        block = blocks.get(address)
        if block is None or block.freed:
            return False
        block.freed = True
        block.data[:] = FREED
        return True

    def device_view(self, address: int, nbytes: int) -> np.ndarray:
        """Bytes of device memory.

        Raises:
            FaultError: They are not within one allocation, or it has been freed.
        """
        return self._view(self.device, address, nbytes, "device")

    def pinned_view(self, address: int, nbytes: int) -> np.ndarray:
        """Bytes of pinned host memory.

        Raises:
            FaultError: They are not within one allocation, or it has been freed.
        """
        return self._view(self.pinned, address, nbytes, "pinned host")

    def is_pinned(self, address: int) -> bool:
        return any(b.address <= address < b.address + max(b.data.nbytes, 1) for b in self.pinned.values())

    def _view(self, blocks: dict[int, Block], address: int, nbytes: int, kind: str) -> np.ndarray:
        for block in blocks.values():
            start = address - block.address
            if start >= 0 and start + nbytes <= block.data.nbytes:
                if block.freed:
                    raise FaultError(f"{nbytes} bytes of {kind} memory at {address:#x} are used after they were freed")
                return block.data[start : start + nbytes]
        raise FaultError(f"{nbytes} bytes at {address:#x} are not within any {kind} memory")

    def leaks(self) -> list[str]:
        return [
            f"{block.data.nbytes} bytes of {kind} memory"
            for kind, blocks in (("device", self.device), ("pinned", self.pinned))
            for block in blocks.values()
            if not block.freed
        ]


@dataclass
class Ticket:
    """One recording of an event."""

    done: bool = False


@dataclass
class Event:
    """An event; what waits for it waits for the ticket of its latest recording at that time."""

    ticket: Ticket | None = None
    captured: bool = False


@dataclass
class Op:
    """A piece of work in a queue; `after` must be done before."""

    name: str
    run: Callable[[], None]
    after: Ticket | None = None

    @property
    def ready(self) -> bool:
        return self.after is None or self.after.done


@dataclass
class Graph:
    """Captured work: a graph of one stream is a line."""

    ops: list[Op] = field(default_factory=list)
    broken: str | None = None


@dataclass
class Stream:
    """A queue; while it is captured, work goes to the graph instead."""

    handle: int
    queue: deque[Op] = field(default_factory=deque)
    capture: Graph | None = None


class Device:
    """Memory, streams and the dice that decide what runs next.

    Args:
        seed: Decides the order of streams, and how early work runs when nothing waits for it: never, now and then, or
            at once.
        memory_limit: Bytes of device memory.
    """

    def __init__(self, seed: int = 0, memory_limit: int = 1 << 30) -> None:
        self._dice = random.Random(seed)
        self.eagerness = self._dice.choice((0.0, 0.3, 1.0))
        self.memory = Memory(memory_limit)
        self.streams: dict[int, Stream] = {0: Stream(0), 2: Stream(2)}  # legacy and per-thread default stream
        self.violations: list[str] = []
        self.fault: str | None = None
        self.executed: list[str] = []

    def put(self, stream: Stream, op: Op) -> None:
        """Put work on a stream, or into the graph that is captured from it."""
        if stream.capture is not None:
            stream.capture.ops.append(op)
            return
        stream.queue.append(op)
        while self._dice.random() < self.eagerness and self.step():
            pass

    def step(self) -> bool:
        """Run one piece of work of any stream whose turn it may be; False where there is none."""
        ready = [stream for stream in self.streams.values() if stream.queue and stream.queue[0].ready]
        if not ready:
            return False
        op = self._dice.choice(ready).queue.popleft()
        self.executed.append(op.name)
        if self.fault is None:
            try:
                op.run()
            except FaultError as fault:  # as on a GPU: the context is lost, every later call says so
                self.fault = f"{op.name}: {fault}"
                self.violations.append(self.fault)
        return True

    def run_until(self, done: Callable[[], bool]) -> None:
        """Run whatever comes until something is done."""
        while not done():
            if not self.step():
                if self.fault is None:
                    self.violations.append("deadlock: something waits for work that was never put on a stream")
                return

    def drain(self) -> None:
        """Run everything."""
        self.run_until(lambda: not any(stream.queue for stream in self.streams.values()))

    def break_captures(self, reason: str) -> bool:
        """Spoil every capture under way, as a call that is forbidden meanwhile does; whether there was one."""
        graphs = [stream.capture for stream in self.streams.values() if stream.capture is not None]
        for graph in graphs:
            graph.broken = graph.broken or reason
            self.violations.append(f"during capture: {reason}")
        return bool(graphs)
