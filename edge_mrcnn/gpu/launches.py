"""The form in which an op says what it runs on the GPU: tensors in, a list of kernel launches out.

Everything is plain data, so that the Python plugin, the runtime, the benchmarks and the tests (which run the same
launches on a CPU) all take it from one place. Each op's module in `edge_mrcnn.gpu.kernels` makes it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

from edge_mrcnn.ops import MAX_LEVELS

Layout = Literal["linear", "hwc8"]

ALIGNMENT = 256
"""Bytes to which each part of a workspace is aligned, as cudaMalloc aligns."""


@dataclass(frozen=True)
class Tensor:
    """A tensor in the GPU's memory.

    Attributes:
        address: Of its first element.
        shape: As the contract gives it, whatever the layout.
        dtype: NumPy's name of the type, such as `float16`.
        layout: `linear`, or `hwc8`: channels last, padded to a multiple of 8 (TensorRT's kHWC8).
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    layout: Layout = "linear"


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        source: File of the kernel below `plugins/`, such as `rpn_proposals/rpn_proposals.cuh`.
        kernel: Its `extern "C"` name.
        grid: Blocks along x, y, z.
        block: Threads of a block, along x.
        args: The kernel's one parameter, passed by value.
        shared_bytes: Dynamic shared memory of a block.
    """

    source: str
    kernel: str
    grid: tuple[int, int, int]
    block: int
    args: ctypes.Structure
    shared_bytes: int = 0


class Map(ctypes.Structure):
    """`edge_mrcnn::Map` of plugins/common/cuda.cuh: where the maps of a batch lie."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("channels", ctypes.c_int),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("channel_stride", ctypes.c_int),
        ("pixel_stride", ctypes.c_int),
        ("picture_stride", ctypes.c_longlong),
    )

    @classmethod
    def of(cls, tensor: Tensor) -> Map:
        """The strides of a tensor `(B, C, H, W)`."""
        _, channels, height, width = tensor.shape
        pixels = height * width
        if tensor.layout == "linear":
            strides = pixels, 1, channels * pixels
        else:
            padded = round_up(channels, 8)
            strides = 1, padded, padded * pixels
        return cls(tensor.address, channels, height, width, *strides)


def maps_of(tensors: list[Tensor]) -> ctypes.Array[Map]:
    """The maps of each level in an array of `MAX_LEVELS`, the rest zero."""
    return (Map * MAX_LEVELS)(*map(Map.of, tensors))


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is not below the number."""
    return -(-number // multiple) * multiple


def ceil_div(number: int, by: int) -> int:
    """Quotient rounded up."""
    return -(-number // by)
