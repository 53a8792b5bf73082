"""The stand-in driver is as unforgiving as CUDA may be, and says and takes what the real module does."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Iterator

import numpy as np
import pytest

from tests.gpu import fake_tensorrt
from tests.gpu.fake_driver import FakeDriver
from tests.gpu.fake_streams import ENUMS, OK, CUresult

SEEDS = range(12)
THREAD_LOCAL = 1


class CopyArgs(ctypes.Structure):
    _fields_ = (("source", ctypes.c_void_p), ("target", ctypes.c_void_p), ("count", ctypes.c_int))


def copy_kernel(driver: FakeDriver, args: CopyArgs) -> None:
    driver.device_view(args.target, args.count)[:] = driver.device_view(args.source, args.count)


def open_driver(seed: int = 0) -> FakeDriver:
    driver = FakeDriver(seed, {"copy": (copy_kernel, CopyArgs)}, memory_limit=1 << 16)
    driver.cuDevicePrimaryCtxRetain(0)
    driver.cuCtxPushCurrent(0xC0)
    return driver


@pytest.fixture(params=SEEDS)
def driver(request: pytest.FixtureRequest) -> Iterator[FakeDriver]:
    return open_driver(request.param)


def give(driver: FakeDriver, call: str, *arguments: object) -> int:
    status, *values = getattr(driver, call)(*arguments)
    assert status == OK, status
    return values[0] if values else 0


def pinned(driver: FakeDriver, count: int, value: int | None = None) -> tuple[int, np.ndarray]:
    address = give(driver, "cuMemHostAlloc", count, 0)
    view = np.frombuffer((ctypes.c_ubyte * count).from_address(address), np.uint8)
    if value is not None:
        view[:] = value
    return address, view


def launch_copy(driver: FakeDriver, source: int, target: int, count: int, stream: int) -> None:
    function = give(driver, "cuModuleGetFunction", 0, b"copy")
    args = CopyArgs(source, target, count)
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(args))
    give(driver, "cuLaunchKernel", function, 1, 1, 1, 32, 1, 1, 0, stream, ctypes.addressof(pointers), 0)
    args.count = 0  # the driver has copied it


def test_work_in_one_stream_is_in_order(driver: FakeDriver) -> None:
    stream = give(driver, "cuStreamCreate", 1)
    (source, _), (target, result) = pinned(driver, 8, 7), pinned(driver, 8)
    a, b = give(driver, "cuMemAlloc", 8), give(driver, "cuMemAlloc", 8)
    give(driver, "cuMemcpyHtoDAsync", a, source, 8, stream)
    launch_copy(driver, a, b, 8, stream)
    give(driver, "cuMemsetD8Async", b, 1, 4, stream)
    give(driver, "cuMemcpyDtoHAsync", target, b, 8, stream)
    give(driver, "cuStreamSynchronize", stream)
    assert result.tolist() == [1] * 4 + [7] * 4
    assert driver.launched == ["copy"]
    for call, handle in (("cuMemFree", a), ("cuMemFree", b), ("cuMemFreeHost", source), ("cuMemFreeHost", target)):
        give(driver, call, handle)
    give(driver, "cuStreamDestroy", stream)
    give(driver, "cuDevicePrimaryCtxRelease", 0)
    driver.finish()


def results_over_seeds(wait: bool, synchronise: bool) -> set[int]:
    """What arrives when a second stream copies down what a first one copies up, and how long the host waits."""
    seen = set()
    for seed in SEEDS:
        driver = open_driver(seed)
        up, down = give(driver, "cuStreamCreate", 1), give(driver, "cuStreamCreate", 1)
        (source, _), (target, result) = pinned(driver, 8, 7), pinned(driver, 8)
        buffer, event = give(driver, "cuMemAlloc", 8), give(driver, "cuEventCreate", 2)
        give(driver, "cuMemcpyHtoDAsync", buffer, source, 8, up)
        give(driver, "cuEventRecord", event, up)
        if wait:
            give(driver, "cuStreamWaitEvent", down, event, 0)
        give(driver, "cuMemcpyDtoHAsync", target, buffer, 8, down)
        if synchronise:
            give(driver, "cuStreamSynchronize", down)
        seen.add(int(result[0]))
    return seen


def test_streams_heed_events() -> None:
    assert results_over_seeds(wait=True, synchronise=True) == {7}


def test_a_missing_wait_shows() -> None:
    assert results_over_seeds(wait=False, synchronise=True) == {7, 0xCD}
    assert results_over_seeds(wait=True, synchronise=False) == {7, 0xCD}


def test_an_upload_reads_the_host_when_it_runs() -> None:
    seen = set()
    for seed in SEEDS:
        driver = open_driver(seed)
        stream, buffer = give(driver, "cuStreamCreate", 1), give(driver, "cuMemAlloc", 8)
        source, view = pinned(driver, 8, 7)
        give(driver, "cuMemcpyHtoDAsync", buffer, source, 8, stream)
        view[:] = 9  # too early
        give(driver, "cuStreamSynchronize", stream)
        seen.add(int(driver.device_view(buffer, 8)[0]))
    assert seen == {7, 9}


def test_an_event_is_waited_for_as_it_was_recorded(driver: FakeDriver) -> None:
    stream, event = give(driver, "cuStreamCreate", 1), give(driver, "cuEventCreate", 2)
    buffer = give(driver, "cuMemAlloc", 8)
    assert driver.cuEventQuery(event) == (OK,)  # never recorded
    give(driver, "cuMemsetD8Async", buffer, 5, 8, stream)
    give(driver, "cuEventRecord", event, stream)
    give(driver, "cuEventSynchronize", event)
    assert driver.device_view(buffer, 8).tolist() == [5] * 8
    assert driver.cuEventQuery(event) == (OK,)


def test_graphs_replay_what_was_captured_and_no_more() -> None:
    driver = open_driver(3)
    stream, buffer = give(driver, "cuStreamCreate", 1), give(driver, "cuMemAlloc", 8)
    source, view = pinned(driver, 8, 1)
    give(driver, "cuStreamBeginCapture", stream, THREAD_LOCAL)
    give(driver, "cuMemcpyHtoDAsync", buffer, source, 8, stream)
    graph = give(driver, "cuStreamEndCapture", stream)
    executable = give(driver, "cuGraphInstantiate", graph, 0)
    give(driver, "cuGraphDestroy", graph)
    give(driver, "cuStreamSynchronize", stream)
    assert driver.device_view(buffer, 8).tolist() == [0xCD] * 8  # captured is not run
    for value in (2, 3):
        view[:] = value
        give(driver, "cuGraphLaunch", executable, stream)
        give(driver, "cuStreamSynchronize", stream)
        assert driver.device_view(buffer, 8).tolist() == [value] * 8
    give(driver, "cuMemFree", buffer)
    give(driver, "cuGraphLaunch", executable, stream)
    assert driver.cuStreamSynchronize(stream) == (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)
    assert driver.cuEventCreate(0)[0] == CUresult.CUDA_ERROR_ILLEGAL_ADDRESS  # for good
    with pytest.raises(AssertionError, match="used after they were freed"):
        driver.finish()


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("cuStreamSynchronize", ["stream"]),
        ("cuCtxSynchronize", []),
        ("cuEventSynchronize", ["event"]),
        ("cuMemAlloc", [8]),
        ("cuMemHostAlloc", [8, 0]),
        ("cuMemFree", ["buffer"]),
    ],
)
def test_what_a_capture_forbids_breaks_it(call: str, arguments: list[object]) -> None:
    driver = open_driver()
    names = {
        "stream": give(driver, "cuStreamCreate", 1),
        "event": give(driver, "cuEventCreate", 2),
        "buffer": give(driver, "cuMemAlloc", 8),
    }
    give(driver, "cuStreamBeginCapture", names["stream"], THREAD_LOCAL)
    status = getattr(driver, call)(*(names.get(str(argument), argument) for argument in arguments))[0]
    assert status == CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    assert driver.cuStreamEndCapture(names["stream"])[0] == CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    assert driver.violations == [f"during capture: {call}"]


def test_a_captured_stream_does_not_wait_for_others() -> None:
    driver = open_driver()
    inner, outer = give(driver, "cuStreamCreate", 1), give(driver, "cuStreamCreate", 1)
    event = give(driver, "cuEventCreate", 2)
    give(driver, "cuEventRecord", event, outer)
    give(driver, "cuStreamBeginCapture", inner, THREAD_LOCAL)
    assert driver.cuStreamWaitEvent(inner, event, 0) == (CUresult.CUDA_ERROR_STREAM_CAPTURE_ISOLATION,)


MISTAKES = [
    # what is done, what is said
    (lambda d: d.cuMemFree(0x1234), "nothing is allocated at 0x1234"),
    (lambda d: [d.cuMemFree(a) for a in [give(d, "cuMemAlloc", 8)] * 2], "a second free"),
    (lambda d: d.cuStreamDestroy(0x1234), "a stream is destroyed that is not there"),
    (lambda d: d.cuGraphLaunch(0x1234, 0), "a graph is launched that is not there"),
    (lambda d: d.cuMemsetD8Async(give(d, "cuMemAlloc", 8) + 4, 0, 8, 0), "not within any device memory"),
    (lambda d: d.cuMemcpyHtoDAsync(give(d, "cuMemAlloc", 8), np.zeros(8).ctypes.data, 8, 0), "is not pinned"),
    (lambda d: [d.cuCtxPopCurrent(), d.cuMemAlloc(8)], "cuMemAlloc without a current context"),
    (lambda d: [d.cuDevicePrimaryCtxRelease(0)] * 1 + [d.cuDevicePrimaryCtxRelease(0)], "released more often"),
    (lambda d: give(d, "cuMemAlloc", 8), "not given back.*8 bytes of device memory"),
    (lambda d: give(d, "cuEventCreate", 2), "not given back.*Event"),
    (lambda d: None, "retained 1 times more than released"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_reported(mistake: object, message: str) -> None:
    driver = open_driver()
    mistake(driver)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=message):
        driver.finish()


def test_memory_ends() -> None:
    driver = open_driver()
    assert driver.cuMemAlloc(1 << 17)[0] == CUresult.CUDA_ERROR_OUT_OF_MEMORY
    assert give(driver, "cuMemAlloc", 1 << 16)
    assert driver.cuMemGetInfo() == (OK, 0, 1 << 16)


def test_it_says_what_the_real_module_says() -> None:
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for enumeration in ENUMS:
        for member in enumeration:
            assert int(getattr(getattr(real, enumeration.__name__), member.name)) == member.value
    calls = [name for name in dir(FakeDriver) if name.startswith("cu")]
    assert len(calls) > 35
    for name in calls:
        expected = inspect.signature(getattr(FakeDriver, name)).parameters
        signature = real.__dict__[name].__doc__.split("\n")[0]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        count = len([part for part in inside.split(",") if part.strip()])
        assert len(expected) - 1 == count or "*rest" in str(expected.values()), signature


FACES = {
    "Runtime": fake_tensorrt.Runtime,
    "ICudaEngine": fake_tensorrt.ICudaEngine,
    "IRuntimeConfig": fake_tensorrt.IRuntimeConfig,
    "IRuntimeCache": fake_tensorrt.IRuntimeCache,
    "IExecutionContext": fake_tensorrt.RtxExecutionContext,
    "ExecutionContextAllocationStrategy": fake_tensorrt.ExecutionContextAllocationStrategy,
    "CudaGraphStrategy": fake_tensorrt.CudaGraphStrategy,
    "DynamicShapesKernelSpecializationStrategy": fake_tensorrt.DynamicShapesKernelSpecializationStrategy,
    "TensorIOMode": fake_tensorrt.TensorIOMode,
    "DataType": fake_tensorrt.DataType,
}


@pytest.mark.parametrize("name", FACES)
def test_tensorrt_has_what_its_stand_in_has(name: str, rtx: None) -> None:
    import tensorrt_rtx

    offered = {attribute for kind in FACES[name].__mro__[:-1] for attribute in vars(kind) if attribute[0] != "_"}
    offered -= {attribute for kind in FACES[name].__mro__ for attribute in ("name", "value") if kind.__name__ == "Enum"}
    assert offered
    assert {attribute for attribute in offered if not hasattr(getattr(tensorrt_rtx, name), attribute)} == set()
