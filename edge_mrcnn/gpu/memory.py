"""Memory of the GPU, pinned memory of the host, and asynchronous copies: the other half of `cuda.py`, same rules."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import cuda


class _Memory(cuda.Owned):
    """Memory of `nbytes`; none is allocated for 0, and the address is then 0."""

    def __init__(self, context: cuda.Context, nbytes: int) -> None:
        if nbytes < 0:
            raise ValueError(f"nbytes must be at least 0, got {nbytes}")
        self.nbytes = nbytes
        super().__init__(context, self._allocate(context) if nbytes else 0)

    @property
    def address(self) -> int:
        """Of the first byte."""
        return self.handle

    def _allocate(self, context: cuda.Context) -> int:
        raise NotImplementedError

    def _out_of_memory(self, status: Any) -> bool:
        return int(status) == int(cuda.driver().CUresult.CUDA_ERROR_OUT_OF_MEMORY)


class DeviceBuffer(_Memory):
    """Memory of the GPU, aligned to 256 bytes, not initialised."""

    def _allocate(self, context: cuda.Context) -> int:
        with context.activate():
            result = cuda.driver().cuMemAlloc(self.nbytes)
            if self._out_of_memory(result[0]):
                free, total = cuda.check(cuda.driver().cuMemGetInfo(), "ask for the GPU's memory")
                raise EngineError(
                    f"the GPU is out of memory: {mib(self.nbytes)} asked for, {mib(free)} of {mib(total)} free; close "
                    "other programs, build the engine with a smaller --batch or --size, or take a smaller model"
                )
            return int(cuda.check(result, f"allocate {mib(self.nbytes)} on the GPU"))

    def _free(self, handle: int) -> None:
        if handle:
            with self.context.activate():
                cuda.check(cuda.driver().cuMemFree(handle), "free memory of the GPU")


class PinnedBuffer(_Memory):
    """Memory of the host that the GPU copies from and to without a detour; not initialised."""

    def view(self, dtype: DTypeLike, shape: Sequence[int], offset: int = 0) -> NDArray[Any]:
        """An array over the memory, valid until this is closed.

        Raises:
            ValueError: It would reach beyond the end.
        """
        array_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if offset < 0 or offset + array_bytes > self.nbytes:
            raise ValueError(f"{np.dtype(dtype)} {tuple(shape)} at byte {offset} does not fit in {self.nbytes} bytes")
        if array_bytes == 0:
            return np.empty(shape, dtype)
        memory: Any = (ctypes.c_ubyte * array_bytes).from_address(self.address + offset)
        array: NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)
        return array

    def _allocate(self, context: cuda.Context) -> int:
        with context.activate():
            result = cuda.driver().cuMemHostAlloc(self.nbytes, 0)
            if self._out_of_memory(result[0]):
                raise EngineError(
                    f"the host has no {mib(self.nbytes)} of memory to pin; close other programs, or give the container "
                    "more memory"
                )
            return int(cuda.check(result, f"pin {mib(self.nbytes)} of memory"))

    def _free(self, handle: int) -> None:
        if handle:
            with self.context.activate():
                cuda.check(cuda.driver().cuMemFreeHost(handle), "free pinned memory")


def copy_to_device(destination: int, source: int, nbytes: int, stream: cuda.Stream) -> None:
    """Copy from the host's memory, both given by address; pinned memory must not change until the stream is there."""
    cuda.check(cuda.driver().cuMemcpyHtoDAsync(destination, source, nbytes, stream.handle), "copy to the GPU")


def copy_to_host(destination: int, source: int, nbytes: int, stream: cuda.Stream) -> None:
    """Copy to the host's memory, both given by address; the bytes are there once the stream is."""
    cuda.check(cuda.driver().cuMemcpyDtoHAsync(destination, source, nbytes, stream.handle), "copy from the GPU")


def copy_on_device(destination: int, source: int, nbytes: int, stream: cuda.Stream) -> None:
    """Copy within the GPU's memory, both given by address."""
    cuda.check(cuda.driver().cuMemcpyDtoDAsync(destination, source, nbytes, stream.handle), "copy on the GPU")


def fill(address: int, value: int, nbytes: int, stream: cuda.Stream) -> None:
    """Set each byte of the GPU's memory from `address` on to `value` (0 to 255)."""
    cuda.check(cuda.driver().cuMemsetD8Async(address, value, nbytes, stream.handle), "fill memory of the GPU")


def mib(nbytes: int) -> str:
    """A number of bytes in text."""
    return f"{nbytes / (1 << 20):.1f} MiB"
