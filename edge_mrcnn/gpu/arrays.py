"""Arrays of other libraries on the GPU, taken without a copy, and our own handed out in the same way.

PyCUDA, CuPy, Numba, torch and JAX show their arrays through `__cuda_array_interface__` or DLPack. Both say where the
array lies and what work must be done before it may be read. cuda.core has a view that reads both, but orders streams
behind the driver calls that tests can stand in for, and takes the interface in version 3 only; this is small.

Sources: https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html,
https://dmlc.github.io/dlpack/latest/c_api.html, https://data-apis.org/array-api/latest/ (`__dlpack__`).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.gpu.cuda import Stream

_LEGACY = 1
"""Handle of the legacy default stream, in both protocols and in the driver."""

_CPU, _CUDA, _MANAGED = 1, 2, 13
"""DLPack's device types: kDLCPU, kDLCUDA, kDLCUDAManaged."""

_KINDS = {0: "i", 1: "u", 2: "f", 4: "V", 5: "c", 6: "b"}
"""DLPack's type codes and NumPy's kinds; bfloat16 (4) is none of NumPy's."""

Shape = Sequence[int | None]
"""Expected lengths; None for any."""


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("ordinal", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """`DLTensor`, with which an unversioned capsule's `DLManagedTensor` begins."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """`DLManagedTensorVersioned`."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


@dataclass(frozen=True)
class ArrayView:
    """Somebody else's array on the GPU.

    Attributes:
        address: Of its first element.
        shape: Its lengths.
        dtype: NumPy's type.
        contiguous: Whether it lies row by row without gaps.
        owner: What keeps the memory alive: hold it until the GPU has read the array.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    contiguous: bool
    owner: Any = field(repr=False)


@dataclass(frozen=True)
class DeviceArray:
    """An array of ours on the GPU, for `torch.as_tensor`, `cupy.asarray`, `numba.cuda.as_cuda_array` and the like.

    Attributes:
        address: Of its first element; the memory is the runner's.
        shape: Its lengths.
        dtype: NumPy's type.
        stream: Whose work writes it; whoever takes the array waits for that stream by itself.
        owner: What keeps the memory from being written anew.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: Stream = field(repr=False)
    owner: Any = field(default=None, repr=False)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3, with the stream on which the array is written."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, True),
            "strides": None,
            "stream": self.stream.handle,
            "version": 3,
        }


def is_gpu_array(value: Any) -> bool:
    """Whether a value shows itself as an array on a GPU."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        return int(value.__dlpack_device__()[0]) in (_CUDA, _MANAGED)
    return getattr(value, "__cuda_array_interface__", None) is not None


def view_array(value: Any, stream: Stream, name: str, dtype: str, shape: Shape, ordinal: int = 0) -> ArrayView:
    """See where an array lies, and let a stream wait for the work that makes it.

    Call with the stream's context active. DLPack is asked first: torch shows no stream in its
    `__cuda_array_interface__`, but orders streams itself in `__dlpack__`.

    Args:
        value: Has `__dlpack__` or `__cuda_array_interface__`.
        stream: Will read the array; it waits for the producer's work, the host does not.
        name: Of the argument, for errors.
        dtype: The type it must have.
        shape: The lengths it must have.
        ordinal: The GPU it must be on.

    Raises:
        TypeError: It is no array on a GPU, or of another type.
        ValueError: It is on another GPU, of another shape, or has gaps.
    """
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        view = _from_dlpack(value, stream, name, ordinal)
    elif isinstance(interface := getattr(value, "__cuda_array_interface__", None), Mapping):
        view = _from_interface(value, interface, stream, name)
    else:
        raise TypeError(
            f"{name} must be an array on the GPU, with DLPack or __cuda_array_interface__, got "
            f"{type(value).__name__}; give what is in the CPU's memory as a NumPy array"
        )
    check_array(name, view, dtype, shape)
    if not view.contiguous:
        raise ValueError(
            f"{name} {view.shape} has gaps between its rows or another order of axes; make it contiguous first "
            "(torch: .contiguous(), CuPy: cupy.ascontiguousarray)"
        )
    return view


def check_array(name: str, found: npt.NDArray[Any] | ArrayView, dtype: str, shape: Shape) -> None:
    """Check an array's type and shape.

    Args:
        name: Of the argument.
        found: The array.
        dtype: NumPy's name of the type expected.
        shape: The lengths expected.

    Raises:
        TypeError: It is of another type.
        ValueError: It is of another shape.
    """
    if found.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {found.dtype} {found.shape}")
    fits = len(shape) == len(found.shape) and all(a in (None, b) for a, b in zip(shape, found.shape, strict=True))
    if not fits:
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} must have shape ({expected}), got {found.shape}")


def _from_interface(value: Any, interface: Mapping[str, Any], stream: Stream, name: str) -> ArrayView:
    shape = tuple(int(length) for length in interface["shape"])
    dtype = np.dtype(interface["typestr"])
    if interface.get("mask") is not None:
        raise ValueError(f"{name} is a masked array; give one without a mask")
    _wait_for(interface, stream, name)
    strides = interface.get("strides")
    return ArrayView(int(interface["data"][0]), shape, dtype, _is_contiguous(shape, strides, dtype.itemsize), value)


def _wait_for(interface: Mapping[str, Any], stream: Stream, name: str) -> None:
    """Let the stream wait for the one that makes the array.

    No stream should mean that nothing need be waited for, but PyCUDA says it of arrays that the default stream is still
    writing, and version 2 knows no streams at all. So then the default stream is waited for, with it all streams that
    wait for it; where it is idle that costs a microsecond.
    """
    producer = interface.get("stream") if int(interface["version"]) >= 3 else None
    if producer is None:
        producer = _LEGACY
    elif int(producer) == 0:
        raise ValueError(f"{name}: stream 0 is ambiguous in __cuda_array_interface__; the default streams are 1 and 2")
    if int(producer) != stream.handle:
        with Stream(stream.context, int(producer)).record() as event:  # the driver keeps it until it was waited for
            stream.wait(event)


def _from_dlpack(value: Any, stream: Stream, name: str, ordinal: int) -> ArrayView:
    kind, device = (int(number) for number in value.__dlpack_device__())
    if kind not in (_CUDA, _MANAGED):
        where = "the CPU's memory" if kind == _CPU else f"the memory of a device of DLPack's type {kind}"
        raise TypeError(
            f"{name} is in {where}, not on an NVIDIA GPU; give a NumPy array, or move it there (torch: .cuda())"
        )
    if kind == _CUDA and device != ordinal:
        raise ValueError(f"{name} is on GPU {device}, the runner on GPU {ordinal}; move it there")
    try:
        capsule = value.__dlpack__(stream=stream.handle, max_version=(1, 0))
    except TypeError:  # from before DLPack 1.0
        capsule = value.__dlpack__(stream=stream.handle)
    tensor = _read_capsule(capsule)
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    dtype = _dtype_of(tensor.dtype)
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    # A capsule that nobody consumed frees the tensor when it goes itself, so to hold it is to hold the tensor.
    return ArrayView(
        (tensor.data or 0) + tensor.byte_offset, shape, dtype, _is_contiguous(shape, strides, 1), (capsule, value)
    )


def _read_capsule(capsule: Any) -> _Tensor:
    """The tensor described in a capsule, which must live as long as the result."""
    is_valid, pointer = ctypes.pythonapi.PyCapsule_IsValid, ctypes.pythonapi.PyCapsule_GetPointer
    is_valid.argtypes, is_valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
    pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    if is_valid(capsule, b"dltensor_versioned"):
        versioned: _Tensor = _Versioned.from_address(pointer(capsule, b"dltensor_versioned")).tensor
        return versioned
    return _Tensor.from_address(pointer(capsule, b"dltensor"))


def _dtype_of(described: _DataType) -> np.dtype[Any]:
    kind, size = _KINDS.get(described.code), described.bits // 8
    if kind is None or described.lanes != 1 or described.bits % 8:
        return np.dtype("V1")  # nothing that we take
    return np.dtype(bool) if kind == "b" else np.dtype(f"{kind}{size}")


def _is_contiguous(shape: Sequence[int], strides: Sequence[int] | None, item: int) -> bool:
    """Whether rows follow each other without gaps; axes of length 1 may have any stride."""
    if strides is None or math.prod(shape) == 0:
        return True
    step = item
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True
