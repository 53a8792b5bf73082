"""The GPU as a place where plans run: compiling, loading, poisoned memory, launching."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from benchmarks.gpu_check.cases import Array
from benchmarks.gpu_check.isolation import Skipped
from edge_mrcnn.errors import EdgeMrcnnError, PluginError
from edge_mrcnn.gpu import cuda, memory
from edge_mrcnn.gpu.compile import compile_kernels, kernel_folder
from edge_mrcnn.gpu.launcher import launch_kernel
from edge_mrcnn.gpu.launches import Launch, Layout, Tensor, round_up

GUARD_BYTES = 256
POISON = 0xFF
"""Every byte of outputs and workspaces before a run: NaN as a number, -1 as an index."""


class CheckError(Exception):
    """A kernel wrote where it must not."""


def find_tool(name: str) -> str | None:
    """Path of a tool of the CUDA toolkit, in `PATH` or where toolkits are installed."""
    places = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    folders = [f"{place}/bin" for place in places if place]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def compile_by_nvcc(source: str, architecture: str, flags: Sequence[str] = ()) -> tuple[bytes, str]:
    """A cubin of a kernel file, and what nvcc said.

    Raises:
        PluginError: nvcc is not there or refuses the source.
    """
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise PluginError("nvcc is not installed")
    folder = kernel_folder()
    with tempfile.TemporaryDirectory() as name:
        cubin = Path(name, "kernels.cubin")
        command = [nvcc, "-cubin", f"-arch={architecture}", "-std=c++17", "-lineinfo", "-x", "cu", "-I", str(folder)]
        done = subprocess.run(
            [*command, *flags, "-o", str(cubin), str(folder / source)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PluginError(f"nvcc does not compile {source}:\n{done.stderr[-2000:]}")
        return cubin.read_bytes(), done.stderr


def compile_source(source: str, architecture: str) -> bytes:
    """A binary of a kernel file: by NVRTC as the Python plugins do, or by nvcc where that way is barred.

    The part that builds reports both ways, so none fails unseen.

    Raises:
        PluginError: Neither is there, or the source does not compile.
    """
    try:
        return compile_kernels(source, architecture)
    except (PluginError, AttributeError):  # no cuda.core, no NVRTC, or a cuda.core of before its cache
        if find_tool("nvcc") is None:
            raise
    return compile_by_nvcc(source, architecture)[0]


class Launcher:
    """Loads kernels when they are first used, and launches plans on a stream of anybody's."""

    def __init__(self, context: cuda.Context) -> None:
        self.context = context
        self._modules: dict[str, cuda.Module] = {}

    def run(self, launches: Sequence[Launch], stream: int) -> None:
        """Give launches to a stream, by its handle."""
        with self.context.activate():
            for launch in launches:
                launch_kernel(self._kernel(launch), launch, stream)

    def _kernel(self, launch: Launch) -> int:
        if launch.source not in self._modules:
            binary = compile_source(launch.source, self.context.architecture)
            self._modules[launch.source] = cuda.Module(self.context, binary)
        return self._modules[launch.source].kernel(launch.kernel)


def open_gpu() -> cuda.Context:
    """The first GPU.

    Raises:
        Skipped: There is none, or its driver or cuda-bindings is missing.
    """
    try:
        return cuda.Context()
    except EdgeMrcnnError as error:
        raise Skipped(str(error)) from error


class GpuArray:
    """An array on the GPU, with guarded bytes on both sides."""

    def __init__(self, gpu: GpuMemory, stored: Array, tensor: Tensor) -> None:
        self.gpu, self.tensor, self._stored = gpu, tensor, stored

    def read(self) -> Array:
        """Its values, in the contract's shape whatever the layout."""
        values = np.empty_like(self._stored)
        self.gpu.download(values, self.tensor.address)
        if self.tensor.layout == "hwc8":
            values = values[..., : self.tensor.shape[1]].transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values)


class GpuMemory:
    """Arrays on the GPU for one run of a plan, all freed by `close`.

    Args:
        launcher: Runs the plan.
        guard_bytes: Poisoned bytes on both sides of each array, looked at after each run; 0 leaves it to a
            sanitizer to see accesses beyond.
    """

    def __init__(self, launcher: Launcher, guard_bytes: int = GUARD_BYTES) -> None:
        self.launcher, self.context, self.guard = launcher, launcher.context, guard_bytes
        self.stream = cuda.Stream(self.context)
        self._buffers: list[memory.DeviceBuffer] = []

    def __enter__(self) -> GpuMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:  # after an error of the GPU freeing fails too, and would hide it
            self.close()

    def close(self) -> None:
        """Free all."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()
        self.stream.close()

    def array(self, values: Array, layout: Layout = "linear") -> GpuArray:
        """A copy of the values; the channels that pad `hwc8` are poisoned."""
        stored = _poisoned(values.shape, values.dtype, layout)
        if layout == "hwc8":
            stored[..., : values.shape[1]] = values.transpose(0, 2, 3, 1)
        else:
            stored[...] = values
        return self._place(stored, values.shape, layout)

    def empty(self, shape: tuple[int, ...], dtype: str, layout: Layout = "linear") -> GpuArray:
        """A poisoned array."""
        return self._place(_poisoned(shape, np.dtype(dtype), layout), shape, layout)

    def workspace(self, size: int) -> int:
        """Address of so many poisoned bytes; 0 for none."""
        return self.empty((size,), "uint8").tensor.address if size else 0

    def run(self, launches: list[Launch]) -> None:
        """Run a plan and wait for it.

        Raises:
            CheckError: It wrote beyond an array.
            EngineError: A launch failed.
        """
        self.launcher.run(launches, self.stream.handle)
        with self.context.activate():
            self.stream.synchronize()
        self._check_guards()

    def download(self, values: Array, address: int) -> None:
        """Copy from the GPU into an array."""
        if values.nbytes:
            with memory.PinnedBuffer(self.context, values.nbytes) as pinned, self.context.activate():
                memory.copy_to_host(pinned.address, address, values.nbytes, self.stream)
                self.stream.synchronize()
                values[...] = pinned.view(values.dtype, values.shape)

    def _place(self, stored: Array, shape: tuple[int, ...], layout: Layout) -> GpuArray:
        buffer = memory.DeviceBuffer(self.context, max(stored.nbytes + 2 * self.guard, 1))
        self._buffers.append(buffer)
        address = buffer.address + self.guard
        with self.context.activate():
            memory.fill(buffer.address, POISON, buffer.nbytes, self.stream)
            self.stream.synchronize()
        if stored.nbytes:
            with memory.PinnedBuffer(self.context, stored.nbytes) as pinned, self.context.activate():
                pinned.view(stored.dtype, stored.shape)[...] = stored
                memory.copy_to_device(address, pinned.address, stored.nbytes, self.stream)
                self.stream.synchronize()
        return GpuArray(self, stored, Tensor(address, shape, stored.dtype.name, layout))

    def _check_guards(self) -> None:
        if not self.guard:
            return
        for buffer in self._buffers:
            for start in (buffer.address, buffer.address + buffer.nbytes - self.guard):
                seen = np.zeros(self.guard, np.uint8)
                self.download(seen, start)
                if (seen != POISON).any():
                    raise CheckError(f"a kernel wrote beyond an array of {buffer.nbytes - 2 * self.guard} bytes")


def _poisoned(shape: tuple[int, ...], dtype: np.dtype, layout: Layout) -> Array:
    if layout == "hwc8":
        batch, channels, height, width = shape
        shape = batch, height, width, round_up(channels, 8)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return np.full(size, POISON, np.uint8).view(dtype).reshape(shape)
