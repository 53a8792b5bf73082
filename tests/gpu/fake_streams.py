"""Streams, events and graphs of the stand-in driver, and the constants of `cuda.bindings.driver` that are used."""
# ruff: noqa: N801, N802, N815

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Any

from tests.gpu.fake_device import Device, Event, FaultError, Graph, Op, Stream, Ticket


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NOT_INITIALIZED = 3
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_INTEGRATED = 18
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


ENUMS = (CUresult, CUstreamCaptureMode, CUdevice_attribute)

OK = CUresult.CUDA_SUCCESS
Status = tuple[Any, ...]


class FakeStreams:
    """The calls about order; `FakeDriver` has the rest."""

    device: Device
    graphs_launched = 0
    _handles: Iterator[int]
    _objects: dict[int, Any]

    @property
    def violations(self) -> list[str]:
        """Rules of CUDA that were broken."""
        return self.device.violations

    # ----------------------------------------------------------------------------------------------- streams, events
    def cuStreamCreate(self, flags: int) -> Status:
        handle = next(self._handles)
        self._objects[handle] = self.device.streams[handle] = Stream(handle)
        return OK, handle

    def cuStreamDestroy(self, stream: int) -> Status:
        found = self._objects.pop(int(stream), None)
        if not isinstance(found, Stream):
            return self._misuse("a stream is destroyed that is not there")
        if found.queue:
            self.violations.append(f"a stream is destroyed with work on it: {[op.name for op in found.queue]}")
            self.device.run_until(lambda: not found.queue)
        del self.device.streams[int(stream)]
        return (OK,)

    def cuStreamSynchronize(self, stream: int) -> Status:
        if self._forbidden("cuStreamSynchronize"):
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        found = self._stream(stream)
        self.device.run_until(lambda: not found.queue)
        return (OK,)

    def cuStreamQuery(self, stream: int) -> Status:
        if self._forbidden("cuStreamQuery"):
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        return (CUresult.CUDA_ERROR_NOT_READY if self._stream(stream).queue else OK,)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> Status:
        found, source = self._stream(stream), self._event(event)
        if found.capture is not None and source.ticket is not None and not source.captured:
            self.device.break_captures("a captured stream waits for an event from outside")
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION,)
        if source.ticket is not None:  # one that was never recorded is waited for by nobody
            self.device.put(found, Op("wait", lambda: None, source.ticket))
        return (OK,)

    def cuEventCreate(self, flags: int) -> Status:
        handle = next(self._handles)
        self._objects[handle] = Event()
        return OK, handle

    def cuEventDestroy(self, event: int) -> Status:
        if not isinstance(self._objects.pop(int(event), None), Event):
            return self._misuse("an event is destroyed that is not there")
        return (OK,)

    def cuEventRecord(self, event: int, stream: int) -> Status:
        found, source = self._event(event), self._stream(stream)
        found.ticket = ticket = Ticket()
        found.captured = source.capture is not None

        def mark() -> None:
            ticket.done = True

        return self._put(stream, "record", mark)

    def cuEventSynchronize(self, event: int) -> Status:
        found = self._event(event)
        if self._forbidden("cuEventSynchronize"):
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        if found.ticket is not None:
            ticket = found.ticket
            self.device.run_until(lambda: ticket.done)
        return (OK,)

    def cuEventQuery(self, event: int) -> Status:
        found = self._event(event)
        return (OK if found.ticket is None or found.ticket.done else CUresult.CUDA_ERROR_NOT_READY,)

    def cuEventElapsedTime(self, begin: int, end: int) -> Status:
        return OK, 1.0

    # -------------------------------------------------------------------------------------------------------- graphs
    def cuStreamBeginCapture(self, stream: int, mode: int) -> Status:
        found = self._stream(stream)
        if found.handle in (0, 2):
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        if found.capture is not None:
            return self._misuse("a capture begins within a capture")
        found.capture = Graph()
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> Status:
        found = self._stream(stream)
        if found.capture is None:
            return (*self._misuse("a capture ends that never began"), 0)
        graph, found.capture = found.capture, None
        if graph.broken:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 0
        handle = next(self._handles)
        self._objects[handle] = graph
        return OK, handle

    def cuStreamIsCapturing(self, stream: int) -> Status:
        return OK, int(self._stream(stream).capture is not None)

    def cuGraphInstantiate(self, graph: int, flags: int) -> Status:
        handle = next(self._handles)
        self._objects[handle] = Graph(list(self._objects[int(graph)].ops))
        return OK, handle

    def cuGraphLaunch(self, executable: int, stream: int) -> Status:
        graph = self._objects.get(int(executable))
        if not isinstance(graph, Graph):
            return self._misuse("a graph is launched that is not there")
        self.graphs_launched += 1
        for op in graph.ops:
            self._put(stream, f"graph: {op.name}", op.run)
        return (OK,)

    def cuGraphDestroy(self, graph: int) -> Status:
        if not isinstance(self._objects.pop(int(graph), None), Graph):
            return self._misuse("a graph is destroyed that is not there")
        return (OK,)

    cuGraphExecDestroy = cuGraphDestroy

    # ------------------------------------------------------------------------------------------------------ internal
    def _put(self, stream: int, name: str, run: Callable[[], None]) -> Status:
        self.device.put(self._stream(stream), Op(name, run))
        return (OK,)

    def _stream(self, handle: int) -> Stream:
        handle = int(handle)
        if (0 if handle == 1 else handle) not in self.device.streams:
            self.violations.append(f"there is no stream {handle:#x}")
            raise FaultError(f"there is no stream {handle:#x}")
        return self.device.streams[0 if handle == 1 else handle]

    def _event(self, handle: int) -> Event:
        found = self._objects.get(int(handle))
        if not isinstance(found, Event):
            self.violations.append("an event is used that is not there")
            raise FaultError("an event is used that is not there")
        return found

    def _forbidden(self, call: str) -> bool:
        return self.device.break_captures(call)

    def _misuse(self, what: str) -> Status:
        self.violations.append(what)
        return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
