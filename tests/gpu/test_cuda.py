"""The layer over the driver, on the stand-in driver: order, ownership, errors."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import cuda, launcher, memory
from edge_mrcnn.gpu.cuda import Context, Event, Graph, Stream
from edge_mrcnn.gpu.memory import DeviceBuffer, PinnedBuffer
from tests.gpu.fake_driver import FakeDriver
from tests.gpu.fake_streams import CUresult

MIB = 1 << 20
_CALL = re.compile(r"cu[A-Z]")


@pytest.fixture(params=range(4))
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(request.param, memory_limit=MIB)
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    return driver


@pytest.fixture
def context(fake: FakeDriver) -> Iterator[Context]:
    """Checks at the end that all is given back and no rule was broken."""
    with Context() as opened:
        yield opened
    fake.finish()


def test_what_a_context_says_of_its_gpu(context: Context, fake: FakeDriver) -> None:
    assert (context.name, context.capability, context.architecture) == ("NVIDIA RTX A2000", (8, 6), "sm_86")
    assert not context.integrated
    with DeviceBuffer(context, 1000):
        assert context.memory() == (MIB - 1000, MIB)


def test_the_context_is_current_in_the_block_only_and_for_its_thread(context: Context, fake: FakeDriver) -> None:
    seen = []
    with context.activate(), context.activate():
        thread = threading.Thread(target=lambda: seen.append(list(fake._contexts())))
        thread.start()
        thread.join()
        seen.append(list(fake._contexts()))
    assert seen == [[], [context.handle] * 2]
    assert fake._contexts() == []
    with pytest.raises(ZeroDivisionError), context.activate():
        raise ZeroDivisionError
    assert fake._contexts() == []


def test_bytes_go_to_the_gpu_and_back_over_two_streams(context: Context) -> None:
    sent = np.arange(300, dtype=np.float32).reshape(100, 3)
    with (
        Stream(context) as upload,
        Stream(context) as download,
        DeviceBuffer(context, sent.nbytes) as first,
        DeviceBuffer(context, sent.nbytes) as second,
        PinnedBuffer(context, 2 * sent.nbytes) as pinned,
        context.activate(),
    ):
        source = pinned.view(np.float32, sent.shape)
        source[:] = sent
        memory.copy_to_device(first.address, pinned.address, first.nbytes, upload)
        memory.copy_on_device(second.address, first.address, first.nbytes, upload)
        memory.fill(second.address + 4, 0, 4, upload)
        with upload.record() as copied:
            download.wait(copied)
            memory.copy_to_host(pinned.address + sent.nbytes, second.address, second.nbytes, download)
            download.synchronize()
        received = pinned.view("float32", sent.shape, offset=sent.nbytes).copy()
    sent[0, 1] = 0
    np.testing.assert_array_equal(received, sent)


def test_an_event_tells_when_the_stream_has_come_to_it(context: Context) -> None:
    with (
        Stream(context) as stream,
        Event(context, timing=True) as start,
        Event(context, timing=True) as end,
        context.activate(),
    ):
        stream.record(start)
        assert stream.record(end) is end
        while not end.query():
            end.synchronize()
        assert end.elapsed_ms(start) >= 0


def test_a_pinned_view_stays_within_its_buffer(context: Context) -> None:
    with PinnedBuffer(context, 64) as buffer:
        buffer.view(np.int32, (4, 4))[:] = 7
        assert buffer.view(np.int16, (2,), offset=62 - 2).tolist() == [7, 0]
        assert buffer.view(np.int32, (0, 4)).shape == (0, 4)
        for shape, offset in (((17,), 0), ((1,), 61), ((1,), -1)):
            with pytest.raises(ValueError, match=r"int32 .* does not fit in 64 bytes"):
                buffer.view(np.int32, shape, offset)
    with pytest.raises(EngineError, match="this PinnedBuffer is closed"):
        buffer.view(np.int32, (1,))


def test_buffers_of_no_bytes_allocate_nothing(context: Context, fake: FakeDriver) -> None:
    with DeviceBuffer(context, 0) as device, PinnedBuffer(context, 0) as pinned:
        assert (device.address, pinned.address) == (0, 0)
        assert not fake.device.memory.device
    with pytest.raises(ValueError, match="nbytes must be at least 0, got -1"):
        DeviceBuffer(context, -1)


def test_running_out_of_memory_is_named_as_such(context: Context) -> None:
    with (
        DeviceBuffer(context, MIB // 2),
        pytest.raises(
            EngineError, match=r"the GPU is out of memory: 0\.8 MiB asked for, 0\.5 MiB of 1\.0 MiB free; .*--batch"
        ),
    ):
        DeviceBuffer(context, 3 * MIB // 4)


def test_the_host_running_out_of_memory_is_named_as_such(
    context: Context, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "cuMemHostAlloc", lambda nbytes, flags: (CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0))
    with pytest.raises(EngineError, match=r"the host has no 8\.0 MiB of memory to pin"):
        PinnedBuffer(context, 8 * MIB)


OWNERS = [Stream, Event, lambda context: DeviceBuffer(context, 16), lambda context: PinnedBuffer(context, 16)]


@pytest.mark.parametrize("make", [*OWNERS, lambda context: cuda.Module(context, b"cubin")])
def test_owners_close_once_from_any_thread_and_are_of_no_use_afterwards(context: Context, make: Any) -> None:
    owner = make(context)
    assert owner.handle
    assert not owner.closed
    thread = threading.Thread(target=owner.close)
    thread.start()
    thread.join()
    owner.close()
    assert owner.closed
    with pytest.raises(EngineError, match=rf"this {type(owner).__name__} is closed; make a new one"):
        _ = owner.handle


def test_a_borrowed_stream_is_left_open(context: Context, fake: FakeDriver) -> None:
    with Stream(context) as own:
        with Stream(context, own.handle) as borrowed:
            assert borrowed.handle == own.handle
        with context.activate():
            own.synchronize()


def test_a_graph_repeats_what_was_captured(context: Context) -> None:
    with (
        Stream(context) as stream,
        DeviceBuffer(context, 8) as device,
        PinnedBuffer(context, 8) as pinned,
        context.activate(),
    ):
        view = pinned.view(np.uint8, (8,))
        with Graph.capture(stream) as graph:
            memory.fill(device.address, 5, 4, stream)
            memory.copy_to_host(pinned.address, device.address, 8, stream)
        with graph:
            for value in (1, 2):
                memory.fill(device.address, value, 8, stream)
                graph.launch(stream)
                stream.synchronize()
                assert view.tolist() == [5] * 4 + [value] * 4


def test_an_error_while_capturing_ends_the_capture(context: Context) -> None:
    with Stream(context) as stream, DeviceBuffer(context, 8) as device, context.activate():
        capture = Graph.capture(stream)
        graph = capture.__enter__()
        memory.fill(device.address, 5, 4, stream)
        assert not capture.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        assert graph.closed
        stream.synchronize()


def test_what_cannot_be_captured_is_named(context: Context, fake: FakeDriver) -> None:
    with (
        Stream(context) as stream,
        context.activate(),
        pytest.raises(EngineError, match=r"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED.*run without the CUDA graph"),
        Graph.capture(stream),
    ):
        stream.synchronize()
    assert fake.violations == ["during capture: cuStreamSynchronize"]
    fake.violations.clear()


def test_after_a_fault_every_call_says_that_the_gpus_state_is_lost(fake: FakeDriver) -> None:
    context = Context()
    with context.activate():
        stream, buffer = Stream(context), DeviceBuffer(context, 16)
        with contextlib.suppress(EngineError):  # of the call itself, where the work is done at once
            memory.fill(buffer.address, 0, 17, stream)
        for call in (stream.synchronize, stream.record, buffer.close):
            with pytest.raises(EngineError, match=r"cannot .*: CUDA_ERROR_ILLEGAL_ADDRESS.*start the program again"):
                call()
    assert "17 bytes" in fake.violations[0]


def test_what_went_wrong_is_not_hidden_by_what_cannot_be_closed_then(fake: FakeDriver) -> None:
    fake.device.fault = "a kernel went astray"
    buffer = DeviceBuffer.__new__(DeviceBuffer)
    cuda.Owned.__init__(buffer, Context(), 16)
    with pytest.raises(ZeroDivisionError), buffer:
        raise ZeroDivisionError
    assert buffer.closed


def test_without_a_current_context_the_remedy_is_given(context: Context, fake: FakeDriver) -> None:
    with Stream(context) as stream:
        with pytest.raises(EngineError, match=r"CUDA_ERROR_INVALID_CONTEXT.*with context\.activate\(\)"):
            stream.synchronize()
        fake.violations.clear()


def test_a_gpu_that_is_not_there(fake: FakeDriver) -> None:
    with pytest.raises(EngineError, match=r"cannot find GPU 3: CUDA_ERROR_INVALID_DEVICE.*edge-mrcnn doctor"):
        Context(3)


def driver_that(monkeypatch: pytest.MonkeyPatch, **calls: Any) -> Any:
    """`cuda.driver` with a module in place of `cuda.bindings.driver`."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", SimpleNamespace(**calls))
    return cuda.driver.__wrapped__


def test_without_cuda_bindings_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(EngineError, match=r"cuda-bindings is not installed.*edge-mrcnn\[gpu-cu13\].*edge-mrcnn doctor"):
        cuda.driver.__wrapped__()


def test_without_a_driver_the_cpu_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(flags: int) -> Any:
        raise RuntimeError("libcuda.so.1 not found")

    with pytest.raises(EngineError, match=r"driver does not load \(libcuda\.so\.1 not found\).*model\.onnx on the CPU"):
        driver_that(monkeypatch, cuInit=init)()


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = driver_that(
        monkeypatch,
        cuInit=lambda flags: (100,),
        cuGetErrorName=lambda error: (0, b"CUDA_ERROR_NO_DEVICE"),
        cuGetErrorString=lambda error: (0, b"no CUDA-capable device is detected"),
    )
    with pytest.raises(EngineError, match=r"CUDA_ERROR_NO_DEVICE \(no CUDA-capable.*\); no GPU is visible.*nvidia-smi"):
        driver()


def test_an_error_that_the_driver_does_not_know(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("cuGetErrorName", "cuGetErrorString"):
        monkeypatch.setattr(fake, call, lambda error: (CUresult.CUDA_ERROR_INVALID_VALUE, None))
    with pytest.raises(EngineError, match="cannot fly: an error that the driver does not know"):
        cuda.check((12345,), "fly")


def driver_calls() -> list[tuple[str, int]]:
    """Each call of the driver in the modules over it, with its number of arguments; -1 where they are unpacked."""
    found = []
    for module in (cuda, memory, launcher):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _CALL.match(node.func.attr):
                unpacked = any(isinstance(argument, ast.Starred) for argument in node.args)
                found.append((node.func.attr, -1 if unpacked else len(node.args)))
    return found


def test_every_call_exists_in_cuda_bindings_with_as_many_arguments() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    calls = driver_calls()
    assert len(calls) > 25
    for name, arguments in calls:
        signature = getattr(driver, name).__doc__.strip().splitlines()[0]
        parameters = signature.partition("(")[2].rpartition(")")[0]
        expected = parameters.count(",") + 1 if parameters.strip() else 0
        assert arguments in (expected, -1), signature


def test_errors_with_a_remedy_exist_in_cuda_bindings() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    for name in {*cuda._REMEDIES, *cuda._BROKEN}:
        assert hasattr(driver.CUresult, name), name
