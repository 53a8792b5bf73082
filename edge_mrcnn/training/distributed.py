"""Training in several processes, started by `torchrun`; one process is the same with a size of 1."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.utils.data import Sampler

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other: the first one validates while the others wait."""


@dataclass(frozen=True)
class World:
    """The processes of a training.

    Attributes:
        rank: Number of this process; 0 validates, logs and saves.
        size: Number of processes.
        device: Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    @contextlib.contextmanager
    def join(cls, device: str = "auto") -> Iterator[World]:
        """Join the processes that `torchrun` started, or be alone.

        Args:
            device: `cpu`, `cuda`, or `auto`: the GPU if there is one.
        """
        size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        chosen = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
        if size == 1:
            yield cls(0, 1, chosen)
            return
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
        try:
            yield cls(distributed.get_rank(), size, chosen)
        finally:
            distributed.destroy_process_group()

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.size > 1:
            distributed.barrier()


class EpochSampler(Sampler[list[int]]):
    """Batches of indices in an order that depends on seed and epoch only; each process takes its share.

    The order is filled up from its start, so that every process has equally many full batches.
    """

    def __init__(self, count: int, batch_size: int, seed: int, world: World) -> None:
        """Sample from `count` pictures."""
        self.count, self.batch_size, self.seed, self.world = count, batch_size, seed, world
        self.epoch = 0

    def __len__(self) -> int:
        """Batches of an epoch, on each process."""
        return -(-self.count // (self.batch_size * self.world.size))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        total = len(self) * self.batch_size * self.world.size
        order = (order * (total // self.count + 1))[:total]
        mine = order[self.world.rank :: self.world.size]
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size]
