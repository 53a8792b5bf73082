"""Arrays of others: both protocols, their streams, and everything that is refused."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge_mrcnn.gpu import cuda
from edge_mrcnn.gpu.arrays import DeviceArray, _Tensor, is_gpu_array, view_array
from edge_mrcnn.gpu.cuda import Context, Stream
from edge_mrcnn.gpu.memory import DeviceBuffer, fill
from tests.gpu.fake_driver import FakeDriver

SEEDS = range(12)
CUDA, MANAGED, CPU = 2, 13, 1


@pytest.fixture(params=SEEDS)
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(request.param)
    monkeypatch.setattr(cuda, "driver", lambda: fake)
    return fake


@pytest.fixture
def context(driver: FakeDriver) -> Iterator[Context]:
    with Context() as context, context.activate():
        yield context
    driver.finish()


@pytest.fixture
def stream(context: Context) -> Iterator[Stream]:
    with Stream(context) as stream:
        yield stream
        stream.synchronize()


class Interface:
    """What shows itself through `__cuda_array_interface__`."""

    def __init__(self, **fields: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": (2, 3),
            "typestr": "<f4",
            "data": (0x7000, False),
            "version": 3,
            **fields,
        }


class DlPack:
    """What shows itself through DLPack, as libraries before version 1.0 do."""

    def __init__(self, address: int, kind: int = CUDA, ordinal: int = 0, **fields: Any) -> None:
        self.address, self.kind, self.ordinal = address, kind, ordinal
        self.fields = {"shape": (2, 3), "strides": None, "dtype": (2, 32, 1), "byte_offset": 0, **fields}
        self.streams: list[int] = []
        self.deleted: list[bool] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.ordinal

    def __dlpack__(self, *, stream: int) -> object:
        self.streams.append(stream)
        shape, strides = self.fields["shape"], self.fields["strides"]
        tensor = _Tensor()
        tensor.data, tensor.ndim, tensor.byte_offset = self.address, len(shape), self.fields["byte_offset"]
        tensor.device.type, tensor.device.ordinal = self.kind, self.ordinal
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = self.fields["dtype"]
        self._lengths = (ctypes.c_int64 * len(shape))(*shape)
        tensor.shape = self._lengths
        if strides is not None:
            self._strides = (ctypes.c_int64 * len(strides))(*strides)
            tensor.strides = self._strides
        self._tensor = tensor
        self._destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda capsule: self.deleted.append(True))
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), ctypes.py_object
        return new(ctypes.addressof(tensor), b"dltensor", ctypes.cast(self._destructor, ctypes.c_void_p))


def view(value: Any, stream: Stream, dtype: str = "float32", shape: Any = (None, 3)) -> Any:
    return view_array(value, stream, "rois", dtype, shape)


def test_where_an_interface_lies(stream: Stream) -> None:
    found = view(owner := Interface(), stream)
    assert (found.address, found.shape, found.dtype, found.owner) == (0x7000, (2, 3), np.float32, owner)


def test_where_a_dlpack_tensor_lies(stream: Stream) -> None:
    producer = DlPack(0x7000, byte_offset=24)
    found = view(producer, stream)
    assert (found.address, found.shape, found.dtype) == (0x7018, (2, 3), np.float32)
    assert producer.streams == [stream.handle]  # the producer lets our stream wait


def test_a_dlpack_tensor_is_held_as_long_as_the_view(stream: Stream) -> None:
    producer = DlPack(0x7000)
    found = view(producer, stream)
    gc.collect()
    assert producer.deleted == []
    del found
    gc.collect()
    assert producer.deleted == [True]


def test_the_owner_is_held_as_long_as_the_view(stream: Stream) -> None:
    owner = Interface()
    alive = weakref.ref(owner)
    found = view(owner, stream)
    del owner
    assert alive() is not None
    del found
    assert alive() is None


def read_on(ours: Stream, context: Context, producer: Stream | None, **fields: Any) -> list[int]:
    """What our stream reads of an array that the producer's stream fills with 7."""
    with DeviceBuffer(context, 4) as source, DeviceBuffer(context, 4) as target:
        fill(source.address, 7, 4, producer or ours)
        found = view(
            Interface(shape=(1, 4), typestr="|u1", data=(source.address, True), **fields), ours, "uint8", (1, 4)
        )
        cuda.check(cuda.driver().cuMemcpyDtoDAsync(target.address, found.address, 4, ours.handle), "copy")
        ours.synchronize()
        read = list(cuda.driver().device_view(target.address, 4))
        if producer is not None:
            producer.synchronize()
    return read


STREAMS = [
    # handle of the producer's stream, fields that name it
    (1, {"stream": 1}),  # legacy default
    (2, {"stream": 2}),  # per-thread default
    (1, {"version": 2}),  # knows no streams: the default one
    (1, {"stream": None}),  # as PyCUDA says, whose kernels run on the default one
    (1, {}),
]


@pytest.mark.parametrize(("handle", "fields"), STREAMS)
def test_a_default_stream_is_waited_for(context: Context, stream: Stream, handle: int, fields: dict[str, Any]) -> None:
    assert read_on(stream, context, Stream(context, handle), **fields) == [7] * 4


def test_the_producers_stream_is_waited_for(context: Context, stream: Stream) -> None:
    with Stream(context) as producer:
        assert read_on(stream, context, producer, stream=producer.handle) == [7] * 4


def test_our_own_stream_needs_no_wait(context: Context, stream: Stream) -> None:
    assert read_on(stream, context, None, stream=stream.handle) == [7] * 4


def test_another_stream_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some order of work shows it where the array names another stream than the one that writes it."""
    seen = set()
    for seed in SEEDS:
        fake = FakeDriver(seed)
        monkeypatch.setattr(cuda, "driver", lambda fake=fake: fake)
        with Context() as context, context.activate(), Stream(context) as ours, Stream(context) as producer:
            seen.add(read_on(ours, context, producer, stream=2)[0])
    assert seen == {7, 0xCD}


def test_contiguous_in_disguise(stream: Stream) -> None:
    assert view(Interface(shape=(1, 3), strides=(999, 4)), stream).contiguous  # an axis of length 1 has any stride
    assert view(Interface(shape=(0, 3), strides=(999, 999)), stream).contiguous
    assert view(Interface(strides=(12, 4)), stream).contiguous
    assert view(DlPack(0x7000, strides=(3, 1)), stream).contiguous
    assert view(DlPack(0x7000, kind=MANAGED, ordinal=0), stream).contiguous


REFUSED = [
    # what is given, error, what is said
    (Interface(typestr="<f8"), TypeError, r"rois must be float32, got float64 \(2, 3\)"),
    (Interface(shape=(2, 4)), ValueError, r"rois must have shape \(any, 3\), got \(2, 4\)"),
    (Interface(shape=(6,)), ValueError, r"rois must have shape \(any, 3\), got \(6,\)"),
    (Interface(strides=(24, 4)), ValueError, r"rois \(2, 3\) has gaps .*contiguous"),
    (Interface(strides=(4, 8)), ValueError, "another order of axes"),
    (Interface(mask=Interface()), ValueError, "rois is a masked array"),
    (Interface(stream=0), ValueError, "stream 0 is ambiguous"),
    (DlPack(0x7000, dtype=(2, 64, 1)), TypeError, "rois must be float32, got float64"),
    (DlPack(0x7000, dtype=(2, 16, 1)), TypeError, "got float16"),
    (DlPack(0x7000, dtype=(4, 16, 1)), TypeError, "rois must be float32, got "),  # bfloat16
    (DlPack(0x7000, dtype=(2, 32, 4)), TypeError, "rois must be float32, got "),  # vectors of 4
    (DlPack(0x7000, strides=(6, 1)), ValueError, "has gaps"),
    (DlPack(0x7000, kind=CPU), TypeError, r"rois is in the CPU's memory, .*NumPy array.*\.cuda\(\)"),
    (DlPack(0x7000, kind=10), TypeError, "device of DLPack's type 10"),  # ROCm
    (DlPack(0x7000, ordinal=1), ValueError, "rois is on GPU 1, the runner on GPU 0"),
    (np.zeros((2, 3), np.float32), TypeError, "rois is in the CPU's memory"),
    ([1, 2, 3], TypeError, "must be an array on the GPU, .* got list; .* NumPy array"),
]


@pytest.mark.parametrize(("value", "error", "message"), REFUSED, ids=range(len(REFUSED)))
@pytest.mark.parametrize("driver", [0], indirect=True)
def test_what_does_not_fit_is_refused(stream: Stream, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        view(value, stream)


def test_what_is_on_a_gpu() -> None:
    assert is_gpu_array(Interface())
    assert is_gpu_array(DlPack(0x7000))
    assert is_gpu_array(DlPack(0x7000, kind=MANAGED))
    assert not is_gpu_array(DlPack(0x7000, kind=CPU))
    assert not is_gpu_array(np.zeros(3))
    assert not is_gpu_array([1.0])


def test_torch_on_the_cpu_is_no_gpu_array(stream: Stream) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert not is_gpu_array(torch.zeros(2, 3))
    with pytest.raises(TypeError, match="in the CPU's memory"):
        view(torch.zeros(2, 3), stream)


def test_versioned_capsules_of_real_libraries() -> None:
    """NumPy's capsules are of the same layout whatever the device."""
    from edge_mrcnn.gpu.arrays import _read_capsule

    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for options in ({}, {"max_version": (1, 0)}):
        try:
            capsule = array.__dlpack__(**options)
        except TypeError:  # NumPy before 2.1
            continue
        tensor = _read_capsule(capsule)
        assert tensor.data + tensor.byte_offset == array.ctypes.data
        assert [tensor.shape[i] for i in range(tensor.ndim)] == [2, 3, 4]
        assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (0, 16, 1)


def test_our_arrays_are_taken_by_our_own_rules(context: Context, stream: Stream) -> None:
    with Stream(context) as consumer:
        ours = DeviceArray(0x7000, (2, 3), np.dtype(np.float32), stream)
        assert is_gpu_array(ours)
        interface = ours.__cuda_array_interface__
        assert interface["version"] == 3
        assert interface["stream"] == stream.handle
        assert interface["data"] == (0x7000, True)  # read only
        assert view(ours, consumer).address == 0x7000
        consumer.synchronize()
