"""Where the tensors of a batch lie: packed one after the other, on the GPU and as a mirror in pinned host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.gpu.cuda import Context, Stream
from edge_mrcnn.gpu.launches import ALIGNMENT, round_up
from edge_mrcnn.gpu.memory import DeviceBuffer, PinnedBuffer, copy_to_device, copy_to_host

_GROWTH = 1 << 20
"""Bytes by which a block grows, so that a slightly larger picture seldom needs more."""


@dataclass(frozen=True)
class Section:
    """A tensor's place in a block.

    Attributes:
        offset: Of its first byte.
        shape: Its lengths.
        dtype: NumPy's name of its type.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def pack(tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> tuple[dict[str, Section], int]:
    """Lay tensors out one after the other.

    Args:
        tensors: Name, shape and type of each.

    Returns:
        The place of each, and the bytes that they take together.
    """
    sections: dict[str, Section] = {}
    end = 0
    for name, shape, dtype in tensors:
        section = sections[name] = Section(end, shape, dtype)
        end = round_up(section.offset + section.nbytes, ALIGNMENT)
    return sections, end


class Block:
    """Memory of the GPU and as much pinned memory of the host, between which one copy carries everything.

    Args:
        context: Of the GPU.
        nbytes: Size of each.
    """

    def __init__(self, context: Context, nbytes: int) -> None:
        self._context, self.nbytes = context, 0
        self._device, self._pinned = DeviceBuffer(context, 0), PinnedBuffer(context, 0)
        self._allocate(nbytes)

    def reserve(self, nbytes: int, before: Callable[[], None]) -> None:
        """Make it larger where it is too small; what it held is lost, and its addresses change.

        Args:
            nbytes: Size needed.
            before: Called before the memory goes, to drop what holds the addresses. Nothing may be using them.

        Raises:
            EngineError: Memory is out; the block is empty then.
        """
        if nbytes > self.nbytes:
            before()
            self.close()
            self._allocate(round_up(nbytes, _GROWTH))

    def address(self, section: Section) -> int:
        """Where a tensor lies on the GPU."""
        return self._device.address + section.offset

    def view(self, section: Section) -> npt.NDArray[Any]:
        """The tensor in pinned memory; what is there changes under copies that are under way."""
        return self._pinned.view(section.dtype, section.shape, section.offset)

    def upload(self, offset: int, nbytes: int, stream: Stream) -> None:
        """Copy bytes to the GPU, on a stream."""
        copy_to_device(self._device.address + offset, self._pinned.address + offset, nbytes, stream)

    def download(self, offset: int, nbytes: int, stream: Stream) -> None:
        """Copy bytes from the GPU, on a stream."""
        copy_to_host(self._pinned.address + offset, self._device.address + offset, nbytes, stream)

    def close(self) -> None:
        """Free both; nothing may be using them any more. A second call does nothing."""
        self.nbytes = 0
        try:
            self._device.close()
        finally:
            self._pinned.close()

    def _allocate(self, nbytes: int) -> None:
        self._device = DeviceBuffer(self._context, nbytes)
        try:
            self._pinned = PinnedBuffer(self._context, nbytes)
        except BaseException:
            self._device.close()
            raise
        self.nbytes = nbytes
