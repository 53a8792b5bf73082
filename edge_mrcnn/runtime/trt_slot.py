"""A slot: everything that one batch under way needs for itself, so that two of them can overlap on the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu.arrays import ArrayView, DeviceArray
from edge_mrcnn.gpu.cuda import Context, Event, Stream
from edge_mrcnn.gpu.execution import Engine, Execution
from edge_mrcnn.gpu.kernels import letterbox
from edge_mrcnn.gpu.launcher import KernelLauncher
from edge_mrcnn.gpu.launches import Launch, Tensor, round_up
from edge_mrcnn.gpu.memory import DeviceBuffer
from edge_mrcnn.runtime.preprocess import Geometry
from edge_mrcnn.runtime.trt_buffers import Block, Section, pack
from edge_mrcnn.runtime.trt_graphs import FrameGraphs, GraphSwitch

Array = npt.NDArray[Any]

IMAGES, IMAGE_HW = "images", "image_hw"
"""The network's inputs."""

_GROWTH = 1 << 20
"""Bytes by which the memory for pictures grows, so that a slightly larger picture seldom needs more."""


class _Closable(Protocol):
    def close(self) -> None: ...


_Resource = TypeVar("_Resource", bound=_Closable)


@dataclass(frozen=True)
class _Binding:
    """A batch size's context, and where its tensors lie in the blocks."""

    execution: Execution
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, Section]
    outputs: Mapping[str, Section]
    input_bytes: int
    output_bytes: int


@dataclass
class _Work:
    """What a batch gives to the stream.

    Attributes:
        binding: Its context and places.
        download: Whether results are copied to the host.
        key: Same work on the same memory; None: not to be captured.
        uploads: Block, offset and bytes of each copy to the GPU.
        launches: Kernels before the network.
        foreign: Inputs that lie somewhere else than in our blocks.
    """

    binding: _Binding
    download: bool
    key: Hashable | None
    uploads: list[tuple[Block, int, int]] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    foreign: dict[str, int] = field(default_factory=dict)


class Slot:
    """A stream with its execution contexts, buffers and CUDA graphs. One batch at a time; the caller sees to that.

    Buffers are made for the largest batch once; only the one for raw pictures grows with them.

    Args:
        device: The GPU's context, active in every call.
        engine: What is run.
        launcher: Has the kernels around the engine.
        switch: Whether frames are captured.
    """

    def __init__(self, device: Context, engine: Engine, launcher: KernelLauncher, switch: GraphSwitch) -> None:
        self._engine: Engine = engine
        self._device, self._launcher = device, launcher
        self._bindings: dict[tuple[int, bool], _Binding] = {}
        self._shared: Execution | None = None
        self._current: tuple[_Binding, int] | None = None
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.stream = self._own(Stream(device))
            self._done = self._own(Event(device))
            self._memory = self._own(DeviceBuffer(device, engine.memory_bytes))
            self._closing.callback(self._drop_contexts)
            largest = self._binding(engine.inputs[0].batch[1])
            self._inputs = self._own(Block(device, largest.input_bytes))
            self._results = self._own(Block(device, largest.output_bytes))
            self._pixels = Block(device, 0)
            self._closing.callback(lambda: self._pixels.close())
            self._graphs = FrameGraphs(self.stream, switch)
            self._closing.callback(self._graphs.clear)
            self._closing.callback(self.settle)
            undo.pop_all()

    def start_feeds(self, feeds: Mapping[str, Array | ArrayView], rows: int, batch: int, download: bool) -> None:
        """Give the network's inputs to the GPU and run it.

        Args:
            feeds: Every input with `rows` rows, checked; those on the GPU are read where they lie.
            rows: Pictures in it.
            batch: Rows the engine runs with; those beyond `rows` repeat the first.
            download: Whether the results come to the host.
        """
        foreign = {name: value.address for name, value in feeds.items() if isinstance(value, ArrayView)}
        binding = self._binding(batch, bool(foreign))
        work = _Work(binding, download, None if foreign else ("feeds", batch, download), foreign=foreign)
        for name, value in feeds.items():
            if not isinstance(value, ArrayView):
                section = binding.inputs[name]
                view = self._inputs.view(section)
                view[:rows] = value
                view[rows:] = view[0]
                work.uploads.append((self._inputs, section.offset, section.nbytes))
        if not foreign:
            work.uploads = [(self._inputs, 0, binding.input_bytes)]
        self._start(work, rows)

    def start_pictures(
        self, pictures: Sequence[Array | ArrayView], geometries: Sequence[Geometry], batch: int, download: bool
    ) -> None:
        """Give raw pictures to the GPU, letterbox them there and run the network.

        Args:
            pictures: `(h, w, 3)` uint8 RGB each, checked; those on the GPU are read where they lie.
            geometries: Where each lies on the canvas.
            batch: Rows the engine runs with; those beyond the pictures repeat the first.
            download: Whether the results come to the host.
        """
        binding = self._binding(batch)
        sections, total = pack((str(i), p.shape, "uint8") for i, p in enumerate(pictures) if isinstance(p, np.ndarray))
        pixels = self._room_for(total)
        sources = []
        for index, picture in enumerate(pictures):
            if isinstance(picture, ArrayView):
                address = picture.address
            else:
                section = sections[str(index)]
                pixels.view(section)[:] = picture
                address = pixels.address(section)
            sources.append(Tensor(address, picture.shape, "uint8"))
        work = _Work(binding, download, ("pictures", batch, download, *sources))
        work.uploads = [(pixels, 0, total)] if total else []
        contents, padding = [geometry.content_hw for geometry in geometries], batch - len(pictures)
        work.launches = letterbox.launches(
            sources + sources[:1] * padding,
            contents + contents[:1] * padding,
            self._input(binding, IMAGES),
            self._input(binding, IMAGE_HW),
        )
        self._start(work, len(pictures))

    def is_done(self) -> bool:
        """Whether the batch is through."""
        return self._done.query()

    def wait(self) -> None:
        """Wait until the batch is through.

        Raises:
            EngineError: It failed on the GPU.
        """
        self._done.synchronize()

    def settle(self) -> None:
        """Wait for whatever was begun, so that the slot can be used again after an error."""
        with contextlib.suppress(EngineError):
            self.stream.synchronize()

    def read(self) -> dict[str, Array]:
        """Results of the batch that is through, copied out of the memory that the next one overwrites."""
        binding, rows = self._started()
        return {name: self._results.view(section)[:rows].copy() for name, section in binding.outputs.items()}

    def arrays(self, lease: object) -> dict[str, DeviceArray]:
        """Results of the batch where they lie on the GPU; the slot must not be used while `lease` lives."""
        binding, rows = self._started()
        return {
            name: DeviceArray(
                self._results.address(section), (rows, *section.shape[1:]), np.dtype(section.dtype), self.stream, lease
            )
            for name, section in binding.outputs.items()
        }

    def close(self) -> None:
        """Wait for what is under way and give everything back; a second call does nothing."""
        self._closing.close()

    def _start(self, work: _Work, rows: int) -> None:
        binding = work.binding
        binding.execution.set_shapes(binding.shapes)
        inputs = {name: self._inputs.address(section) for name, section in binding.inputs.items()}
        outputs = {name: self._results.address(section) for name, section in binding.outputs.items()}
        binding.execution.set_addresses({**inputs, **outputs, **work.foreign})
        self._graphs.run(work.key, lambda: self._give(work), lambda: binding.execution.can_be_captured(self.stream))
        self.stream.record(self._done)
        self._current = binding, rows

    def _give(self, work: _Work) -> None:
        for block, offset, nbytes in work.uploads:
            block.upload(offset, nbytes, self.stream)
        self._launcher.run(work.launches, self.stream.handle)
        work.binding.execution.enqueue(self.stream)
        if work.download:
            self._results.download(0, work.binding.output_bytes, self.stream)

    def _started(self) -> tuple[_Binding, int]:
        if self._current is None:
            raise EngineError("nothing was started in this slot")
        return self._current

    def _binding(self, batch: int, foreign: bool = False) -> _Binding:
        """The context and places of a batch size.

        Where frames are captured, inputs that lie elsewhere each time have a context of their own, since a change of
        addresses would void the graphs.
        """
        key = batch, foreign
        if key not in self._bindings:
            shapes = {item.name: (batch, *item.shape[1:]) for item in self._engine.inputs}
            execution = self._shared or self._engine.create_context(self._memory.address, shapes)
            if not self._engine.graphs:
                self._shared = execution
            execution.set_shapes(shapes)
            inputs, input_bytes = pack((item.name, shapes[item.name], item.dtype) for item in self._engine.inputs)
            outputs, output_bytes = pack((o.name, execution.shapes[o.name], o.dtype) for o in self._engine.outputs)
            self._bindings[key] = _Binding(execution, shapes, inputs, outputs, input_bytes, output_bytes)
        return self._bindings[key]

    def _input(self, binding: _Binding, name: str) -> Tensor:
        section = binding.inputs[name]
        return Tensor(self._inputs.address(section), section.shape, section.dtype)

    def _room_for(self, nbytes: int) -> Block:
        """The block for raw pictures, made anew where it is too small; the graphs hold the old one's address."""
        if nbytes > self._pixels.nbytes:
            self._graphs.clear()
            self._pixels.close()
            self._pixels = Block(self._device, round_up(nbytes, _GROWTH))
        return self._pixels

    def _drop_contexts(self) -> None:
        self._bindings.clear()
        self._shared = self._current = None

    def _own(self, resource: _Resource) -> _Resource:
        self._closing.callback(resource.close)
        return resource
