"""A stand-in for `cuda.bindings.driver` on the host: the real code above it runs, without a GPU.

Functions take and give what the real module's do: `(CUresult, value...)`. Kernels are Python functions by name. What
breaks CUDA's rules is collected in `FakeDriver.violations`, whether or not the result comes out right.
"""
# ruff: noqa: N802

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from typing import Any

from tests.gpu.fake_device import Device, Graph, Op
from tests.gpu.fake_streams import OK, CUdevice_attribute, CUresult, CUstreamCaptureMode, FakeStreams, Status

Kernel = Callable[["FakeDriver", Any], None]


class FakeDriver(FakeStreams):
    """One GPU with its driver.

    Args:
        seed: Of the order in which work runs.
        kernels: Function and argument structure of each kernel; the function gets the driver and a copy of the
            structure, and reads and writes memory through `device_view`.
        memory_limit: Bytes of device memory.
        capability: Compute capability.
        name: Of the GPU.
    """

    CUresult, CUstreamCaptureMode, CUdevice_attribute = CUresult, CUstreamCaptureMode, CUdevice_attribute

    def __init__(
        self,
        seed: int = 0,
        kernels: dict[str, tuple[Kernel, type[ctypes.Structure]]] | None = None,
        *,
        memory_limit: int = 1 << 30,
        capability: tuple[int, int] = (8, 6),
        name: str = "NVIDIA RTX A2000",
    ) -> None:
        self.device = Device(seed, memory_limit)
        self.kernels = kernels or {}
        self.capability, self.name = capability, name
        self.lock = threading.RLock()
        self.launched: list[str] = []
        self.retained = 0
        self._handles = itertools.count(0x1000, 0x10)
        self._objects: dict[int, Any] = {}
        self._current = threading.local()

    def __getattribute__(self, name: str) -> Any:
        """Calls of the driver run one at a time, and after a fault each of them reports it."""
        value = object.__getattribute__(self, name)
        if not name.startswith("cu") or name in ("cuGetErrorName", "cuGetErrorString"):
            return value

        def call(*arguments: Any) -> Any:
            with self.lock:
                if name not in _WITHOUT_CONTEXT and not self._contexts():
                    self.violations.append(f"{name} without a current context in this thread")
                    return CUresult.CUDA_ERROR_INVALID_CONTEXT, 0
                result = value(*arguments)
                lost = self.device.fault is not None and result[0] == OK and name not in _WITHOUT_CONTEXT
                return (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS, *result[1:]) if lost else result

        return call

    def finish(self, leaks: bool = True) -> None:
        """Run what is left and check that no rule was broken and nothing is left over.

        Raises:
            AssertionError: A rule was broken, or memory, streams, events or graphs were not given back.
        """
        self.device.drain()
        assert not self.violations, self.violations
        if leaks:
            left = [*self.device.memory.leaks(), *(type(item).__name__ for item in self._objects.values())]
            assert not left, f"not given back: {left}"
            assert self.retained == 0, f"the primary context was retained {self.retained} times more than released"

    def device_view(self, address: int, nbytes: int) -> Any:
        """Bytes of device memory, as a kernel sees them."""
        return self.device.memory.device_view(address, nbytes)

    def enqueue(self, stream: int, name: str, run: Callable[[], None]) -> None:
        """Put work of a library on a stream."""
        self.device.put(self._stream(stream), Op(name, run))

    def capture_of(self, stream: int) -> Graph | None:
        """The graph that is captured from a stream, if one is."""
        return self._stream(stream).capture

    # -------------------------------------------------------------------------------------------- device and context
    def cuInit(self, flags: int) -> Status:
        return (OK,)

    def cuDriverGetVersion(self) -> Status:
        return OK, 13000

    def cuDeviceGetCount(self) -> Status:
        return OK, 1

    def cuDeviceGet(self, ordinal: int) -> Status:
        return (OK, 0) if ordinal == 0 else (CUresult.CUDA_ERROR_INVALID_DEVICE, 0)

    def cuDeviceGetName(self, length: int, device: int) -> Status:
        return OK, self.name.encode()[: length - 1].ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> Status:
        attributes = {75: self.capability[0], 76: self.capability[1], 16: 20}
        return OK, attributes.get(int(attribute), 0)

    def cuDeviceTotalMem(self, device: int) -> Status:
        return OK, self.device.memory.limit

    def cuMemGetInfo(self) -> Status:
        memory = self.device.memory
        return OK, memory.limit - memory.used, memory.limit

    def cuDevicePrimaryCtxRetain(self, device: int) -> Status:
        self.retained += 1
        return OK, 0xC0

    def cuDevicePrimaryCtxRelease(self, device: int) -> Status:
        self.retained -= 1
        if self.retained < 0:
            self.violations.append("the primary context was released more often than retained")
        return (OK,)

    def cuCtxPushCurrent(self, context: int) -> Status:
        self._contexts().append(int(context))
        return (OK,)

    def cuCtxPopCurrent(self) -> Status:
        return OK, self._contexts().pop()

    def cuCtxGetCurrent(self) -> Status:
        return OK, (self._contexts() or [0])[-1]

    def cuCtxGetDevice(self) -> Status:
        return OK, 0

    def cuCtxSynchronize(self) -> Status:
        if self._forbidden("cuCtxSynchronize"):
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        self.device.drain()
        return (OK,)

    # -------------------------------------------------------------------------------------------------------- memory
    def cuMemAlloc(self, nbytes: int) -> Status:
        if self._forbidden("cuMemAlloc"):
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0
        if nbytes <= 0:
            return CUresult.CUDA_ERROR_INVALID_VALUE, 0
        block = self.device.memory.allocate(int(nbytes))
        return (OK, block.address) if block else (CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0)

    def cuMemFree(self, address: int) -> Status:
        return self._free(self.device.memory.device, int(address), "cuMemFree")

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> Status:
        if self._forbidden("cuMemHostAlloc"):
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0
        if nbytes <= 0:
            return CUresult.CUDA_ERROR_INVALID_VALUE, 0
        return OK, self.device.memory.allocate_pinned(int(nbytes)).address

    def cuMemFreeHost(self, address: int) -> Status:
        return self._free(self.device.memory.pinned, int(address), "cuMemFreeHost")

    def cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, stream: int) -> Status:
        memory, (target, source, nbytes) = self.device.memory, map(int, (target, source, nbytes))
        if not memory.is_pinned(source):
            self.violations.append(f"copy of {nbytes} bytes from host memory that is not pinned: it does not overlap")
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)

        def copy() -> None:
            memory.device_view(target, nbytes)[:] = memory.pinned_view(source, nbytes)

        return self._put(stream, "copy to device", copy)

    def cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: int) -> Status:
        memory, (target, source, nbytes) = self.device.memory, map(int, (target, source, nbytes))
        if not memory.is_pinned(target):
            self.violations.append(f"copy of {nbytes} bytes to host memory that is not pinned: it does not overlap")
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)

        def copy() -> None:
            memory.pinned_view(target, nbytes)[:] = memory.device_view(source, nbytes)

        return self._put(stream, "copy to host", copy)

    def cuMemcpyDtoDAsync(self, target: int, source: int, nbytes: int, stream: int) -> Status:
        memory, (target, source, nbytes) = self.device.memory, map(int, (target, source, nbytes))

        def copy() -> None:
            memory.device_view(target, nbytes)[:] = memory.device_view(source, nbytes)

        return self._put(stream, "copy on device", copy)

    def cuMemsetD8Async(self, target: int, value: int, count: int, stream: int) -> Status:
        def fill() -> None:
            self.device.memory.device_view(int(target), int(count))[:] = value

        return self._put(stream, "memset", fill)

    # ------------------------------------------------------------------------------------------------------- kernels
    def cuModuleLoadData(self, image: Any) -> Status:
        handle = next(self._handles)
        self._objects[handle] = "module"
        return OK, handle

    def cuModuleUnload(self, module: int) -> Status:
        self._objects.pop(int(module))
        return (OK,)

    def cuModuleGetFunction(self, module: int, name: bytes) -> Status:
        known = list(self.kernels)
        text = name.decode()
        return (OK, known.index(text)) if text in known else (CUresult.CUDA_ERROR_NOT_FOUND, 0)

    def cuLaunchKernel(self, function: int, *rest: Any) -> Status:
        """Grid and block (3 numbers each), shared bytes, stream, address of the addresses of the arguments, extra."""
        *_, stream, parameters, _ = rest
        name = list(self.kernels)[int(function)]
        kernel, structure = self.kernels[name]
        pointer = ctypes.cast(int(parameters), ctypes.POINTER(ctypes.c_void_p))[0]
        arguments = structure.from_buffer_copy(ctypes.string_at(pointer, ctypes.sizeof(structure)))
        self.launched.append(name)
        return self._put(stream, name, lambda: kernel(self, arguments))

    # -------------------------------------------------------------------------------------------------------- errors
    def cuGetErrorName(self, error: int) -> Status:
        return OK, CUresult(error).name.encode()

    def cuGetErrorString(self, error: int) -> Status:
        return OK, CUresult(error).name.removeprefix("CUDA_ERROR_").lower().replace("_", " ").encode()

    # ------------------------------------------------------------------------------------------------------ internal
    def _free(self, blocks: Any, address: int, call: str) -> Status:
        if self._forbidden(call):
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        if not self.device.memory.free(blocks, address):
            return self._misuse(f"{call}: nothing is allocated at {address:#x}; a second free?")
        return (OK,)

    def _contexts(self) -> list[int]:
        """The calling thread's stack of contexts."""
        if not hasattr(self._current, "stack"):
            self._current.stack = []
        stack: list[int] = self._current.stack
        return stack


_WITHOUT_CONTEXT = {
    *("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"),
    *("cuDeviceTotalMem", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"),
    *("cuCtxPushCurrent", "cuCtxPopCurrent", "cuCtxGetCurrent"),
}
"""Calls that need no current context, and that a fault of the context does not concern."""
