"""A slot: everything that one batch under way needs for itself, so that two of them can overlap on the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu.arrays import ArrayView, DeviceArray
from edge_mrcnn.gpu.cuda import Context, Event, Stream
from edge_mrcnn.gpu.execution import Engine, Execution
from edge_mrcnn.gpu.kernels import letterbox, paste_masks
from edge_mrcnn.gpu.launcher import KernelLauncher
from edge_mrcnn.gpu.launches import Launch, Tensor
from edge_mrcnn.gpu.memory import DeviceBuffer
from edge_mrcnn.runtime.preprocess import Geometry
from edge_mrcnn.runtime.trt_buffers import Block, Section, pack
from edge_mrcnn.runtime.trt_graphs import FrameGraphs, GraphSwitch
from edge_mrcnn.runtime.trt_inputs import RawPicture

Array = npt.NDArray[Any]

IMAGES, IMAGE_HW = "images", "image_hw"
"""The network's inputs."""

PASTED = ("masks", "boxes", "scores", "num_detections")
"""The outputs of which instance maps are made."""

MAPS = "instance_maps"
"""What the maps are called among the results."""


class _Closable(Protocol):
    def close(self) -> None: ...


_Resource = TypeVar("_Resource", bound=_Closable)


_Copy: TypeAlias = tuple[Block, int, int]


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
        rows: Pictures in it.
        key: Same work on the same memory; None: not to be captured.
        foreign: Inputs that lie somewhere else than in our blocks.
        uploads: Block, offset and bytes of each copy to the GPU.
        before: Kernels before the network.
        after: Kernels after it.
        downloads: Block, offset and bytes of each copy to the host.
        maps: Where the instance maps lie, if they were asked for.
    """

    binding: _Binding
    rows: int
    key: Hashable | None
    foreign: dict[str, int] = field(default_factory=dict)
    uploads: list[_Copy] = field(default_factory=list)
    before: list[Launch] = field(default_factory=list)
    after: list[Launch] = field(default_factory=list)
    downloads: list[_Copy] = field(default_factory=list)
    maps: list[Section] = field(default_factory=list)


class Slot:
    """A stream with its execution contexts, buffers and CUDA graphs. One batch at a time; the caller sees to that.

    Buffers are made for the largest batch once; only those for pictures and maps grow with the pictures.

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
        self._current: _Work | None = None
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
            self._pixels = self._own(Block(device, 0))
            self._maps = self._own(Block(device, 0))
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
        work = _Work(binding, rows, None if foreign else ("feeds", batch, download), foreign)
        for name, value in feeds.items():
            if not isinstance(value, ArrayView):
                section = binding.inputs[name]
                view = self._inputs.view(section)
                view[:rows] = value
                view[rows:] = view[0]
                work.uploads.append((self._inputs, section.offset, section.nbytes))
        if not foreign:
            work.uploads = [(self._inputs, 0, binding.input_bytes)]
        self._start(work, download)

    def start_pictures(
        self,
        pictures: Sequence[RawPicture],
        geometries: Sequence[Geometry],
        batch: int,
        download: bool,
        paste: float | None = None,
    ) -> None:
        """Give raw pictures to the GPU, letterbox them there and run the network.

        Args:
            pictures: RGB or NV12, checked; those on the GPU are read where they lie.
            geometries: Where each lies on the canvas.
            batch: Rows the engine runs with; those beyond the pictures repeat the first.
            download: Whether the results come to the host.
            paste: Also make instance maps, of the detections that have this score.
        """
        binding, contents = self._binding(batch), [geometry.content_hw for geometry in geometries]
        sources, pixel_bytes = self._stage(pictures)
        work = _Work(binding, len(pictures), ("pictures", batch, download, *sources))
        work.uploads = [(self._pixels, 0, pixel_bytes)] if pixel_bytes else []
        padding = batch - len(pictures)
        work.before = letterbox.launches(
            sources + sources[:1] * padding,
            contents + contents[:1] * padding,
            _tensor(self._inputs, binding.inputs[IMAGES]),
            _tensor(self._inputs, binding.inputs[IMAGE_HW]),
        )
        if paste is not None:
            sections, map_bytes = pack((str(i), picture.hw, "uint16") for i, picture in enumerate(pictures))
            self._maps.reserve(map_bytes, self._graphs.clear)
            work.maps = list(sections.values())
            masks, boxes, scores, count = (_tensor(self._results, binding.outputs[name]) for name in PASTED)
            work.after = paste_masks.launches(
                masks,
                boxes,
                scores,
                count,
                [_tensor(self._maps, section) for section in work.maps],
                contents,
                paste,
            )
            work.downloads = [(self._maps, 0, map_bytes)]
        self._start(work, download)

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

    def read(self) -> dict[str, Any]:
        """Results of the batch that is through, copied out of the memory that the next one overwrites."""
        work = self._started()
        found: dict[str, Any] = {
            name: self._results.view(section)[: work.rows].copy() for name, section in work.binding.outputs.items()
        }
        if work.maps:
            found[MAPS] = [self._maps.view(section).copy() for section in work.maps]
        return found

    def arrays(self, lease: object) -> dict[str, Any]:
        """Results of the batch where they lie on the GPU; the slot must not be used while `lease` lives."""
        work = self._started()

        def array(block: Block, section: Section, shape: tuple[int, ...]) -> DeviceArray:
            return DeviceArray(block.address(section), shape, np.dtype(section.dtype), self.stream, lease)

        found: dict[str, Any] = {
            name: array(self._results, section, (work.rows, *section.shape[1:]))
            for name, section in work.binding.outputs.items()
        }
        if work.maps:
            found[MAPS] = [array(self._maps, section, section.shape) for section in work.maps]
        return found

    def close(self) -> None:
        """Wait for what is under way and give everything back; a second call does nothing."""
        self._closing.close()

    def _start(self, work: _Work, download: bool) -> None:
        binding = work.binding
        work.downloads = [(self._results, 0, binding.output_bytes), *work.downloads] if download else []
        binding.execution.set_shapes(binding.shapes)
        inputs = {name: self._inputs.address(section) for name, section in binding.inputs.items()}
        outputs = {name: self._results.address(section) for name, section in binding.outputs.items()}
        binding.execution.set_addresses({**inputs, **outputs, **work.foreign})
        self._graphs.run(work.key, lambda: self._give(work), lambda: binding.execution.can_be_captured(self.stream))
        self.stream.record(self._done)
        self._current = work

    def _give(self, work: _Work) -> None:
        for block, offset, nbytes in work.uploads:
            block.upload(offset, nbytes, self.stream)
        self._launcher.run(work.before, self.stream.handle)
        work.binding.execution.enqueue(self.stream)
        self._launcher.run(work.after, self.stream.handle)
        for block, offset, nbytes in work.downloads:
            block.download(offset, nbytes, self.stream)

    def _started(self) -> _Work:
        if self._current is None:
            raise EngineError("nothing was started in this slot")
        return self._current

    def _stage(self, pictures: Sequence[RawPicture]) -> tuple[list[letterbox.Picture], int]:
        """Put pictures into pinned memory; where each will lie on the GPU, and the bytes to upload."""
        ours = {str(i): item.pixels for i, item in enumerate(pictures) if isinstance(item.pixels, np.ndarray)}
        sections, nbytes = pack((name, pixels.shape, "uint8") for name, pixels in ours.items())
        self._pixels.reserve(nbytes, self._graphs.clear)
        for name, pixels in ours.items():
            self._pixels.view(sections[name])[:] = pixels
        sources = []
        for index, picture in enumerate(pictures):
            if isinstance(picture.pixels, ArrayView):
                address = picture.pixels.address
            else:
                address = self._pixels.address(sections[str(index)])
            sources.append(letterbox.Picture(address, picture.hw, picture.format))
        return sources, nbytes

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

    def _drop_contexts(self) -> None:
        self._bindings.clear()
        self._shared = self._current = None

    def _own(self, resource: _Resource) -> _Resource:
        self._closing.callback(resource.close)
        return resource


def _tensor(block: Block, section: Section) -> Tensor:
    """A section as a kernel sees it."""
    return Tensor(block.address(section), section.shape, section.dtype)
