"""Runs the plugins' kernels on a CPU, under sanitizers: the Python side of cuda_on_cpu.hpp.

    kernels = compile_kernels("rpn_proposals/rpn_proposals.cuh", rpn_proposals.Args)  # cached; skips without g++
    with Executor(kernels, seed=3) as gpu:  # a process of its own, 30 ms: one for each run is cheap
        scores = gpu.array(numpy_array, layout="hwc8")  # "linear" unless said
        out = gpu.empty((1, 1000, 4), "float32")  # all bits set: NaN, -1
        workspace = gpu.workspace(rpn_proposals.workspace_bytes(...))  # garbage too; its address, 0 for no bytes
        gpu.run(rpn_proposals.launches(attributes, [scores.tensor], [out.tensor], workspace))
        result = out.read()

        # The same through the C++ launcher: `args` are those of a launch of the plan.
        launched = gpu.launch_host(args, "float16")  # list[Launched], comparable with Launched.of(launch)
        bytes_ = gpu.workspace_bytes(args)

Every array has its own memory of exactly its size. What a kernel does wrong (an access beyond an array or beyond the
shared memory that the launch asks for, undefined behaviour, a barrier that not all threads of the block reach) raises
`KernelError` with the report, and the process is gone. The seed decides the order of threads and blocks: results must
not depend on it.

    compile_kernels(..., check="races")  # the same with another program: missing barriers, blocks that share elements

raises `KernelError` where two threads touch a byte, one of them stores, and nothing orders the two; whatever the order
in which they ran, so one seed will do.

`compile_kernels` also holds the ctypes structure to the C++ one: size, and offset and size of every field, also of
structures within. The C++ structure is named after the file: rpn_proposals.cuh has RpnProposalsArgs. A launcher is
`launch_<op>(Args, DataType, cudaStream_t)` or without the DataType, the workspace's size `<op>_workspace(Args const&)`,
both in the folder's launch.hpp; where there is none, the kernels alone are compiled.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.gpu.launches import Launch, Layout, Tensor, round_up
from tests.plugins.kernel_programs import Kernels, compile_kernels

__all__ = ["Array", "Executor", "KernelError", "Kernels", "Launched", "compile_kernels"]

TIMEOUT_S = 120.0
"""A request that takes longer hangs."""

DTYPES = {"float32": 0, "float16": 1}
"""`edge_mrcnn::DataType` by NumPy's name."""


class KernelError(AssertionError):
    """A kernel, or the launcher, did something wrong; the text is the report."""


@dataclass(frozen=True)
class Launched:
    """What a launch says but for its arguments.

    Attributes:
        kernel: Its `extern "C"` name.
        grid: Blocks along x, y, z.
        block: Threads of a block.
        shared_bytes: Dynamic shared memory of a block.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int

    @classmethod
    def of(cls, launch: Launch) -> Launched:
        """Of a launch of a plan."""
        return cls(launch.kernel, launch.grid, launch.block, launch.shared_bytes)


@dataclass(frozen=True)
class Array:
    """An array in the executor's memory.

    Attributes:
        gpu: The executor.
        tensor: As a plan takes it.
    """

    gpu: Executor
    tensor: Tensor

    @property
    def address(self) -> int:
        """Of the first element."""
        return self.tensor.address

    def read(self) -> npt.NDArray[Any]:
        """The values, `(B, C, H, W)` whatever the layout."""
        stored = _stored_shape(self.tensor.shape, self.tensor.layout)
        dtype = np.dtype(self.tensor.dtype)
        content = self.gpu.read(self.address, int(np.prod(stored)) * dtype.itemsize)
        array = np.frombuffer(content, dtype).reshape(stored)
        if self.tensor.layout == "hwc8":
            array = array[..., : self.tensor.shape[1]].transpose(0, 3, 1, 2)
        return np.ascontiguousarray(array)


def _stored_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    if layout == "linear":
        return shape
    batch, channels, height, width = shape
    return batch, height, width, round_up(channels, 8)


class Executor:
    """A process that holds arrays and runs kernels on them.

    Args:
        kernels: What it can run.
        seed: Decides in which order threads and blocks run.
    """

    def __init__(self, kernels: Kernels, seed: int = 0) -> None:
        self.kernels = kernels
        self._report = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the executor
        self._process = subprocess.Popen(
            [str(kernels.program), str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._report
        )

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; its arrays are gone."""
        self._process.kill()
        self._process.communicate()
        self._report.close()

    def array(self, values: npt.ArrayLike, layout: Layout = "linear") -> Array:
        """A copy of the values; the padding of `hwc8` is garbage."""
        values = np.asarray(values)
        stored = values
        if layout == "hwc8":
            stored = _garbage(_stored_shape(values.shape, layout), values.dtype)
            stored[..., : values.shape[1]] = values.transpose(0, 2, 3, 1)
        return self._allocate(stored.tobytes(), values.shape, values.dtype, layout)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike, layout: Layout = "linear") -> Array:
        """An array of garbage: all bits set."""
        content = _garbage(_stored_shape(shape, layout), dtype).tobytes()
        return self._allocate(content, shape, np.dtype(dtype), layout)

    def workspace(self, size: int) -> int:
        """Address of that many bytes of garbage; 0 for none."""
        return self.empty((size,), "uint8").address if size else 0

    def run(self, launches: Sequence[Launch]) -> None:
        """Run a plan.

        Raises:
            KernelError: Something is wrong with a kernel or a launch.
        """
        for launch in launches:
            assert launch.source == self.kernels.source, f"{launch.source} was not compiled"
            words = (launch.kernel, *launch.grid, launch.block, launch.shared_bytes)
            self._request("run", words, self._bytes_of(launch.args))

    def launch_host(self, args: ctypes.Structure, dtype: str) -> list[Launched]:
        """Run the C++ launcher; returns what it launched.

        Raises:
            KernelError: Something is wrong with a kernel, or the launcher returns an error.
        """
        log = self._request("launch", (DTYPES[dtype],), self._bytes_of(args)).decode()
        lines = [line.split() for line in log.splitlines()]
        return [Launched(name, (int(x), int(y), int(z)), int(block), int(n)) for name, x, y, z, block, n in lines]

    def workspace_bytes(self, args: ctypes.Structure) -> int:
        """What the C++ launcher's function for the workspace returns."""
        return int(self._request("workspace", (), self._bytes_of(args)))

    def read(self, address: int, size: int) -> bytes:
        """Bytes of the executor's memory."""
        return self._request("read", (address, size))

    def _allocate(self, content: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], layout: Layout) -> Array:
        return Array(self, Tensor(int(self._request("allocate", (), content)), shape, dtype.name, layout))

    def _bytes_of(self, args: ctypes.Structure) -> bytes:
        assert ctypes.sizeof(args) == self.kernels.args_bytes, f"not the structure of {self.kernels.source}"
        return bytes(args)

    def _request(self, command: str, words: Sequence[object], content: bytes = b"") -> bytes:
        """What the driver answers."""
        requests, replies = self._process.stdin, self._process.stdout
        if requests is None or replies is None or requests.closed:
            raise ValueError("the executor is closed")
        watch = threading.Timer(TIMEOUT_S, self._process.kill)
        watch.start()
        try:
            requests.write(" ".join(map(str, (command, len(content), *words))).encode() + b"\n" + content)
            requests.flush()
            status, _, rest = replies.readline().decode().strip().partition(" ")
            if status == "ok":
                return replies.read(int(rest))
        except BrokenPipeError:
            status = rest = ""
        finally:
            watch.cancel()
        raise KernelError(rest if status == "error" else self._last_words())

    def _last_words(self) -> str:
        """Report of a process that has ended."""
        code = self._process.wait()
        self._report.seek(0)
        report = self._report.read().decode(errors="replace")
        if code == -signal.SIGKILL:
            report += f"killed after {TIMEOUT_S:.0f} s: a thread waits in a loop for what never comes"
        return report or f"the process ended with {code}"


def _garbage(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """All bits set: NaN, -1."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.full(size, 0xFF, np.uint8).view(dtype).reshape(shape)
