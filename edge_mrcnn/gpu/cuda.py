"""A thin typed layer over `cuda.bindings.driver`: context, streams, events, modules, graphs.

`memory.py` has the memory, `launcher.py` the launches, by the same rules.

Every call is one of the driver's, and every failure an `EngineError` that says what was attempted, how it failed and
what to do. Each owner has `close()`, is a context manager, and may be closed twice. Nothing is freed behind one's back,
and nothing waits for the GPU unless it says so: what a stream still uses must not be closed.

The driver wants a current context on the calling thread. What makes or frees something sees to that itself; around the
rest (copies, launches, events, graphs), which happens per frame, the caller puts one `with context.activate():`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

from edge_mrcnn.errors import EngineError

INSTALL = (
    "pip install 'edge-mrcnn[gpu-cu13]', or 'edge-mrcnn[gpu-cu12]' where the driver is of CUDA 12 (JetPack 6); "
    "edge-mrcnn doctor says which"
)

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, nor that one for it
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING

_REMEDIES = {
    "CUDA_ERROR_NO_DEVICE": "no GPU is visible: see CUDA_VISIBLE_DEVICES and nvidia-smi",
    "CUDA_ERROR_INVALID_DEVICE": "count the GPUs with edge-mrcnn doctor",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated while loaded: restart the machine",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "the kernels were compiled for another GPU: empty the kernel cache, "
    "~/.cache/edge_mrcnn/kernels",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": f"NVRTC is newer than the driver: {INSTALL}",
    "CUDA_ERROR_INVALID_CONTEXT": "the calling thread has no current context: put the call in "
    "`with context.activate():`",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "the kernel needs more registers or shared memory than this GPU has",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "something in the graph cannot be captured: run without the CUDA graph",
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": "something in the graph cannot be captured: run without the CUDA graph",
}
_BROKEN = {
    "CUDA_ERROR_ILLEGAL_ADDRESS",
    "CUDA_ERROR_LAUNCH_FAILED",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_ASSERT",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION",
    "CUDA_ERROR_MISALIGNED_ADDRESS",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE",
    "CUDA_ERROR_INVALID_PC",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
}
"""After one of these every call on the context fails."""

_T = TypeVar("_T", bound="_Owner")


@functools.cache
def driver() -> Any:
    """The module `cuda.bindings.driver`, initialised; nothing else in the project imports it.

    Raises:
        EngineError: It is not installed, or there is no NVIDIA driver or no GPU.
    """
    try:
        module = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise EngineError(f"cuda-bindings is not installed ({error}); {INSTALL}") from error
    try:
        result = module.cuInit(0)
    except Exception as error:  # cuda-pathfinder's, where libcuda is missing; its type is no part of the API
        raise EngineError(
            f"the NVIDIA driver does not load ({error}); install it, or run model.onnx on the CPU instead"
        ) from error
    if int(result[0]) != 0:
        raise EngineError(f"the NVIDIA driver does not start: {_describe(module, result[0])}")
    return module


def check(result: Sequence[Any], doing: str) -> Any:
    """Unpack what a call of the driver returned.

    Args:
        result: Status and values.
        doing: What the call was for, as in `cannot <doing>`.

    Returns:
        None, the one value, or a tuple of them.

    Raises:
        EngineError: The call, or work on the GPU before it, failed.
    """
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"cannot {doing}: {_describe(driver(), status)}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def _describe(module: Any, status: Any) -> str:
    """Name and text of an error, and what to do about it."""
    name, text = (_text(call(status)) for call in (module.cuGetErrorName, module.cuGetErrorString))
    if name in _BROKEN:
        remedy = "; the GPU's state is lost, start the program again; to find the cause: compute-sanitizer python ..."
    else:
        remedy = f"; {_REMEDIES[name]}" if name in _REMEDIES else ""
    return f"{name} ({text}){remedy}"


def _text(result: Sequence[Any]) -> str:
    return result[1].decode() if int(result[0]) == 0 and result[1] else "an error that the driver does not know"


class _Owner:
    """Something of the driver's that must be given back: a handle, and how to."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    @property
    def handle(self) -> int:
        """The driver's handle, or the address of memory.

        Raises:
            EngineError: It was closed.
        """
        if self._handle is None:
            raise EngineError(f"this {type(self).__name__} is closed; make a new one")
        return self._handle

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._handle is None

    def close(self) -> None:
        """Give it back to the driver; a second time does nothing."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._free(handle)

    def _free(self, handle: int) -> None:
        raise NotImplementedError

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hidden = () if error is None else (EngineError,)  # lest it hide the reason
        with contextlib.suppress(*hidden):
            self.close()


class Context(_Owner):
    """The primary context of a GPU, the one that torch, CuPy, PyCUDA's `autoprimaryctx` and the CUDA runtime use.

    So arrays of theirs can be read, and their current context is left as it was.

    Attributes:
        primary: False where `current` found another one.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._device = check(driver().cuDeviceGet(ordinal), f"find GPU {ordinal}")
        self.primary = True
        super().__init__(int(check(driver().cuDevicePrimaryCtxRetain(self._device), f"open GPU {ordinal}")))

    @classmethod
    def current(cls) -> Context:
        """The context of the calling thread, whoever made it.

        The primary one stays open until this is closed; of another, its maker decides, and closing this does nothing.

        Raises:
            EngineError: The thread has none.
        """
        doing = "find the thread's CUDA context"
        found = cls.__new__(cls)
        found._device = check(driver().cuCtxGetDevice(), doing)
        handle = int(check(driver().cuCtxGetCurrent(), doing))
        _, active = check(driver().cuDevicePrimaryCtxGetState(found._device), doing)
        found.primary = bool(active) and int(check(driver().cuDevicePrimaryCtxRetain(found._device), doing)) == handle
        if active and not found.primary:
            check(driver().cuDevicePrimaryCtxRelease(found._device), doing)
        _Owner.__init__(found, handle)
        return found

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability."""
        names = driver().CUdevice_attribute
        return (
            self._attribute(names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            self._attribute(names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        )

    @property
    def architecture(self) -> str:
        """Compute capability as compilers spell it, such as `sm_87`."""
        return "sm_{}{}".format(*self.capability)

    @property
    def integrated(self) -> bool:
        """Whether the GPU shares the host's memory, as on a Jetson."""
        return bool(self._attribute(driver().CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED))

    @property
    def name(self) -> str:
        """Name of the GPU."""
        text: bytes = check(driver().cuDeviceGetName(256, self._device), "read the GPU's name")
        return text.split(b"\0")[0].decode(errors="replace")

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Make it the calling thread's current context in the block, and restore the one before."""
        check(driver().cuCtxPushCurrent(self.handle), "use the GPU's context")
        try:
            yield
        finally:
            driver().cuCtxPopCurrent()  # not checked, lest it hide what went wrong in the block

    def memory(self) -> tuple[int, int]:
        """Free and total memory of the GPU in bytes."""
        with self.activate():
            free, total = check(driver().cuMemGetInfo(), "ask for the GPU's memory")
        return int(free), int(total)

    def _attribute(self, attribute: Any) -> int:
        return int(check(driver().cuDeviceGetAttribute(attribute, self._device), "ask for a property of the GPU"))

    def _free(self, handle: int) -> None:
        if self.primary:
            check(driver().cuDevicePrimaryCtxRelease(self._device), "close the GPU's context")


class Owned(_Owner):
    """What lives in a context."""

    def __init__(self, context: Context, handle: int) -> None:
        self.context = context
        super().__init__(handle)


class Stream(Owned):
    """A stream, its work in order; it does not wait for the default stream.

    Args:
        context: Where it lives.
        handle: A stream of somebody else's (torch, TensorRT), not closed with this one.
    """

    def __init__(self, context: Context, handle: int | None = None) -> None:
        self._borrowed = handle is not None
        if handle is None:
            with context.activate():
                handle = int(check(driver().cuStreamCreate(_NON_BLOCKING), "make a stream"))
        super().__init__(context, handle)

    def synchronize(self) -> None:
        """Wait until all of its work is done; errors of kernels show here."""
        check(driver().cuStreamSynchronize(self.handle), "finish the work on the GPU")

    def wait(self, event: Event) -> None:
        """Let work given from now on start after the event; the host does not wait."""
        check(driver().cuStreamWaitEvent(self.handle, event.handle, 0), "let a stream wait")

    def record(self, event: Event | None = None) -> Event:
        """Mark this point in the stream.

        Args:
            event: Used again; a new one is made where this is None.
        """
        event = event or Event(self.context)
        check(driver().cuEventRecord(event.handle, self.handle), "record an event")
        return event

    def _free(self, handle: int) -> None:
        if not self._borrowed:
            with self.context.activate():
                check(driver().cuStreamDestroy(handle), "close a stream")


class Event(Owned):
    """A point in a stream.

    Args:
        context: Where it lives.
        timing: Whether it notes the time, which costs a little.
    """

    def __init__(self, context: Context, timing: bool = False) -> None:
        with context.activate():
            handle = check(driver().cuEventCreate(0 if timing else _DISABLE_TIMING), "make an event")
        super().__init__(context, int(handle))

    def synchronize(self) -> None:
        """Wait until the stream has come to it."""
        check(driver().cuEventSynchronize(self.handle), "finish the work on the GPU")

    def query(self) -> bool:
        """Whether the stream has come to it."""
        result = driver().cuEventQuery(self.handle)
        if int(result[0]) == int(driver().CUresult.CUDA_ERROR_NOT_READY):
            return False
        check(result, "finish the work on the GPU")
        return True

    def elapsed_ms(self, since: Event) -> float:
        """Milliseconds from an earlier event to this one; both made with `timing` and reached."""
        return float(check(driver().cuEventElapsedTime(since.handle, self.handle), "measure time on the GPU"))

    def _free(self, handle: int) -> None:
        with self.context.activate():
            check(driver().cuEventDestroy(handle), "close an event")


class Module(Owned):
    """Kernels compiled for the context's GPU.

    Args:
        context: Where they will run.
        binary: A cubin, or PTX that the driver compiles.
    """

    def __init__(self, context: Context, binary: bytes) -> None:
        with context.activate():
            handle = check(driver().cuModuleLoadData(binary), "load kernels onto the GPU")
        super().__init__(context, int(handle))
        self._kernels: dict[str, int] = {}

    def kernel(self, name: str) -> int:
        """Handle of an `extern "C"` kernel, which is asked for once; not during a capture."""
        if name not in self._kernels:
            with self.context.activate():
                found = check(driver().cuModuleGetFunction(self.handle, name.encode()), f"find the kernel {name}")
            self._kernels[name] = int(found)
        return self._kernels[name]

    def _free(self, handle: int) -> None:
        self._kernels.clear()
        with self.context.activate():
            check(driver().cuModuleUnload(handle), "unload kernels")


class Graph(Owned):
    """Work captured from a stream, launched again in one call. `capture` makes it."""

    @classmethod
    @contextlib.contextmanager
    def capture(cls, stream: Stream) -> Iterator[Graph]:
        """Record what the block gives to the stream instead of running it.

        Only calls of this thread that cannot be captured are refused; other threads may go on using the GPU. The
        graph can be launched after the block. An error in the block ends the capture and goes on.

        Raises:
            EngineError: Something in the block cannot be captured.
        """
        mode = driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        captured = cls(stream.context, 0)
        with stream.context.activate():
            check(driver().cuStreamBeginCapture(stream.handle, mode), "capture a CUDA graph")
            try:
                yield captured
            except BaseException:
                status, graph = driver().cuStreamEndCapture(stream.handle)
                if int(status) == 0 and int(graph):
                    driver().cuGraphDestroy(graph)
                captured._handle = None
                raise
            graph = check(driver().cuStreamEndCapture(stream.handle), "capture a CUDA graph")
            try:
                captured._handle = int(check(driver().cuGraphInstantiate(graph, 0), "make a CUDA graph ready"))
            finally:
                check(driver().cuGraphDestroy(graph), "discard the graph's description")

    def launch(self, stream: Stream) -> None:
        """Give all of its work to the stream."""
        check(driver().cuGraphLaunch(self.handle, stream.handle), "launch a CUDA graph")

    def _free(self, handle: int) -> None:
        if handle:
            with self.context.activate():
                check(driver().cuGraphExecDestroy(handle), "close a CUDA graph")
