"""`TrtRunner`: runs engines of TensorRT 10.3 to 11 and of TensorRT-RTX on an NVIDIA GPU, by way of cuda-python."""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import cuda, tensorrt_api
from edge_mrcnn.gpu.arrays import ArrayView
from edge_mrcnn.gpu.execution import Engine, Graphs
from edge_mrcnn.gpu.kernels import letterbox, paste_masks
from edge_mrcnn.gpu.launcher import KernelLauncher
from edge_mrcnn.gpu.plugins import register_plugins
from edge_mrcnn.gpu.target import Flavour
from edge_mrcnn.runtime.engine_checks import check_engine, engine_flavour
from edge_mrcnn.runtime.preprocess import Geometry, fit
from edge_mrcnn.runtime.trt_graphs import GraphSwitch
from edge_mrcnn.runtime.trt_inputs import take_feeds, take_pictures
from edge_mrcnn.runtime.trt_opening import (
    backend_name,
    cache_file,
    check_inputs,
    check_maps,
    describe_gpu,
    open_gpu,
    read_engine,
)
from edge_mrcnn.runtime.trt_pending import Pending
from edge_mrcnn.runtime.trt_slot import Slot
from edge_mrcnn.sidecar import EngineSidecar
from edge_mrcnn.spec import ModelSpec

_log = logging.getLogger(__name__)

_creators: list[Any] = []
"""Plugin creators registered in this process; TensorRT's registry refers to them and does not own them."""


@dataclass(frozen=True)
class _Flight:
    """A batch under way: where, for whom, and what must stay alive until it is through."""

    slot: Slot
    pending: weakref.ref[Pending]
    download: bool
    inputs: Any = field(repr=False)


class _Lease:
    """Lives as long as results on the GPU are used; the slot is free again when it goes."""


class TrtRunner:
    """Runs an engine on an NVIDIA GPU.

    `infer` takes the network's inputs, as `OrtRunner` does; `infer_pictures` takes pictures of any size and
    letterboxes them on the GPU. `submit` and `submit_pictures` do the same without waiting: with two slots, the copies
    of one batch overlap the work of the other. NumPy arrays go through pinned memory; arrays on the GPU (torch, CuPy,
    PyCUDA, anything with DLPack or `__cuda_array_interface__`) are read where they lie, after the work that makes them,
    and must stay unchanged until the result is there. Threads may share a runner.

    Example:
        >>> with TrtRunner("model.rtx.fp16.engine") as runner:  # doctest: +SKIP
        ...     outputs, geometries = runner.infer_pictures([frame])
    """

    def __init__(
        self,
        path: str | Path,
        *,
        spec: ModelSpec | None = None,
        flavour: Flavour = "tensorrt",
        gpu: int = 0,
        slots: int = 2,
        graphs: Graphs = "auto",
        paste: float | None = None,
    ) -> None:
        """Open an engine.

        Args:
            path: An engine made by `edge-mrcnn build`, with its sidecar beside it.
            spec: What the network is and expects. Giving it asks for an engine without sidecar: nothing is checked,
                and TensorRT's own refusals are all there is. An engine is code; know where it comes from.
            flavour: Which TensorRT built it; asked only with `spec`.
            gpu: Ordinal of the GPU, as CUDA counts.
            slots: Most batches under way at a time. Each takes memory of its own, when it is first needed.
            graphs: What is captured in CUDA graphs.
            paste: Calls with pictures also give `instance_maps`, made on the GPU: for each picture `(h, w)` uint16, row
                + 1 of the detection that a pixel belongs to, 0 for none, of the detections that have this score.

        Raises:
            EngineError: The engine or its sidecar is missing, it was built for another TensorRT, GPU or version of
                this package, what it needs is not installed, or the GPU is out of memory.
            PluginError: The plugins cannot be registered.
            ValueError: `slots` is not positive, `paste` is no score, or the network gives no masks to paste.
        """
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        if paste is not None and not 0 <= paste <= 1:
            raise ValueError(f"paste must be None or from 0 to 1, got {paste}")
        self.path = Path(path)
        self._slot_count, self._ordinal, self._paste = slots, gpu, paste
        self._lock = threading.RLock()
        self._idle: deque[Slot] = deque()
        self._slots: list[Slot] = []
        self._flights: deque[_Flight] = deque()
        self._closing = contextlib.ExitStack()
        self._closed = False
        sidecar = None
        if spec is None:
            sidecar = EngineSidecar.load_for(self.path)
            spec, flavour = sidecar.spec, engine_flavour(sidecar)
        self._spec, self._api = spec, tensorrt_api.load(flavour)
        self._device = open_gpu(self.path, gpu)
        self._give_back = weakref.finalize(self, _give_back, self._device, self._closing, self.path)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with self._device.activate():
                self._open(sidecar, graphs)
            undo.pop_all()

    def _open(self, sidecar: EngineSidecar | None, graphs: Graphs) -> None:
        gpu = describe_gpu(self._device)
        if sidecar is not None:
            check_engine(sidecar, self._api.version, gpu)
        self._backend = backend_name(self._api, gpu, sidecar)
        self._launcher = KernelLauncher(self._device)
        self._closing.callback(self._launcher.close)
        _creators.extend(register_plugins(self._api))
        cache = cache_file(self._api, gpu, self.path, sidecar)
        self._engine: Engine = Engine(self._api, read_engine(self.path), graphs, cache)
        self._closing.callback(self._engine.close)
        self._closing.callback(self._engine.save_cache)
        check_inputs(self.path, self._engine)
        if self._paste is not None:
            check_maps(self.path, self._engine)
        self._switch = GraphSwitch(self._engine.graphs)
        self._idle.append(self._make_slot())

    @property
    def spec(self) -> ModelSpec:
        """What the network is and expects."""
        return self._spec

    @property
    def backend(self) -> str:
        """Who executes it where, such as `tensorrt-rtx-1.7.1 sm_89 fp16`."""
        return self._backend

    @property
    def max_batch(self) -> int:
        """Most pictures in one call, which the engine was built for."""
        return self._engine.inputs[0].batch[1]

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the network once and wait for it.

        Args:
            feeds: Every input by name: `images (B, H, W, 3)` uint8 RGB, `image_hw (B, 2)` float32; NumPy arrays or
                arrays on the GPU.

        Returns:
            Every output by name, NumPy arrays with B rows.

        Raises:
            EngineError: The runner is closed or the network fails.
            TypeError: An input has another type.
            ValueError: An input is missing, unknown or of another shape, or there are more pictures than the engine
                was built for.
        """
        return self.submit(feeds).result()

    def infer_pictures(self, pictures: Sequence[Any]) -> tuple[dict[str, Any], tuple[Geometry, ...]]:
        """Letterbox pictures on the GPU, run the network and wait for it.

        Args:
            pictures: Of any sizes: `Frame`s, whose NV12 is converted on the GPU, or `(h, w, 3)` uint8 RGB, NumPy arrays
                or arrays on the GPU.

        Returns:
            Every output by name, NumPy arrays with a row for each picture, with `paste` also `instance_maps`, and where
            each picture lies on the canvas.

        Raises:
            EngineError: The runner is closed or the network fails.
            TypeError: A picture is not uint8.
            ValueError: A picture is not `(h, w, 3)`, or there are none, or more than the engine was built for.
        """
        pending = self.submit_pictures(pictures)
        return pending.result(), pending.geometries

    def submit(self, feeds: Mapping[str, Any], *, on_device: bool = False) -> Pending:
        """Begin to run the network; returns before it is through, unless all slots are taken: then one is waited for.

        Args:
            feeds: As for `infer`. NumPy arrays may be changed afterwards, arrays on the GPU only after the result.
            on_device: Leave the results on the GPU, as `DeviceArray`s. Their slot is not used again before all of them
                are gone.

        Returns:
            What gives the results.

        Raises:
            EngineError: As `infer`, or results on the GPU occupy all slots.
            TypeError: As `infer`.
            ValueError: As `infer`.
        """

        def start(slot: Slot) -> tuple[Pending, Any]:
            taken, rows = take_feeds(feeds, self._engine.inputs, slot.stream, self._ordinal)
            batch = self._batch_for(rows, any(isinstance(value, ArrayView) for value in taken.values()))
            slot.start_feeds(taken, rows, batch, not on_device)
            return Pending(self), taken

        return self._begin(start, not on_device)

    def submit_pictures(self, pictures: Sequence[Any], *, on_device: bool = False) -> Pending:
        """Begin to letterbox pictures and to run the network on them; returns before it is through, as `submit`.

        Args:
            pictures: As for `infer_pictures`. Frames and NumPy arrays may be changed afterwards, arrays on the GPU only
                after the result.
            on_device: Leave the results on the GPU, as for `submit`.

        Returns:
            What gives the results; its `geometries` say where each picture lies on the canvas.

        Raises:
            EngineError: As `infer_pictures`, or results on the GPU occupy all slots.
            TypeError: As `infer_pictures`.
            ValueError: As `infer_pictures`.
        """

        def start(slot: Slot) -> tuple[Pending, Any]:
            self._launcher.load([letterbox.SOURCE, *([] if self._paste is None else [paste_masks.SOURCE])])
            taken = take_pictures(pictures, slot.stream, self._ordinal)
            batch = self._batch_for(len(taken))
            geometries = tuple(fit(picture.hw, self._spec.input_hw) for picture in taken)
            slot.start_pictures(taken, geometries, batch, not on_device, self._paste)
            return Pending(self, geometries), taken

        return self._begin(start, not on_device)

    def settle(self, pending: Pending) -> None:
        """Fetch the results of a batch, after those of the ones before it. `Pending.result` calls this."""
        with self._active():
            while not pending.settled:
                self._finish_oldest()

    def is_done(self, pending: Pending) -> bool:
        """Whether a batch is through on the GPU. `Pending.done` calls this."""
        with self._active():
            flights = [flight for flight in self._flights if flight.pending() is pending]
            return not flights or flights[0].slot.is_done()

    def close(self) -> None:
        """Wait for what is under way, fetch its results and give everything back. A second call does nothing.

        What cannot be given back, after an error of the GPU, is noted in the log. A runner that is forgotten gives
        everything back all the same, and one that is open when the program ends.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                with self._device.activate():
                    while self._flights:
                        self._finish_oldest()
            except EngineError as error:
                _log.warning("%s: what was under way is lost: %s", self.path, str(error))
            finally:
                self._give_back()

    def __enter__(self) -> TrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._spec.name}, {self._backend}"
        return f"TrtRunner({str(self.path)!r}, {state})"

    # ------------------------------------------------------------------------------------------------------- internal
    @contextlib.contextmanager
    def _active(self) -> Iterator[None]:
        """One thread at a time, with the GPU's context, while the runner is open."""
        with self._lock:
            if self._closed:
                raise EngineError(f"the runner of {self.path} is closed; open a new one: TrtRunner({str(self.path)!r})")
            with self._device.activate():
                yield

    def _begin(self, start: Callable[[Slot], tuple[Pending, Any]], download: bool) -> Pending:
        with self._active():
            slot = self._take_slot()
            try:
                pending, inputs = start(slot)
            except BaseException:
                slot.settle()
                self._idle.appendleft(slot)
                raise
            self._flights.append(_Flight(slot, weakref.ref(pending), download, inputs))
            return pending

    def _take_slot(self) -> Slot:
        """A slot that nothing is under way in: the one used last, a new one, or the one that is free next."""
        while not self._idle and self._flights and len(self._slots) == self._slot_count:
            self._finish_oldest()
        if self._idle:
            return self._idle.popleft()
        if len(self._slots) < self._slot_count:
            return self._make_slot()
        raise EngineError(
            f"results that were left on the GPU occupy all {self._slot_count} slots; drop those that are no longer "
            "needed, or open the runner with more: TrtRunner(..., slots=4)"
        )

    def _make_slot(self) -> Slot:
        slot = Slot(self._device, self._engine, self._launcher, self._switch)
        self._closing.callback(slot.close)
        self._slots.append(slot)
        return slot

    def _finish_oldest(self) -> None:
        flight = self._flights[0]
        pending, slot = flight.pending(), flight.slot
        lease = None
        try:
            slot.wait()
            self._engine.save_cache()
            if pending is not None and flight.download:
                pending.resolve(slot.read())
            elif pending is not None:
                lease = _Lease()
                pending.resolve(slot.arrays(lease))
        except EngineError as error:
            if pending is None:
                _log.warning("a batch that nobody waits for failed: %s", error)
            else:
                pending.reject(error)
        self._flights.popleft()
        if lease is None:
            self._idle.appendleft(slot)
        else:
            weakref.finalize(lease, self._idle.append, slot)

    def _batch_for(self, rows: int, exact: bool = False) -> int:
        """Rows the engine runs with; one built for a fixed batch runs padded with fewer pictures.

        Args:
            rows: Pictures given.
            exact: They cannot be padded: the inputs lie in memory that is not ours.

        Raises:
            ValueError: There are none, too many, or too few where they cannot be padded.
        """
        smallest, largest = self._engine.inputs[0].batch
        if not 1 <= rows <= largest:
            raise ValueError(
                f"one call takes 1 to {largest} pictures, for which {self.path.name} was built, got {rows}; for more: "
                f"edge-mrcnn build model.onnx --batch {smallest},{smallest},{max(rows, largest)}"
            )
        if exact and rows < smallest:
            raise ValueError(
                f"inputs on the GPU must have the {smallest} pictures at least that {self.path.name} was built for, "
                f"got {rows}"
            )
        return max(rows, smallest)


def _give_back(device: cuda.Context, closing: contextlib.ExitStack, path: Path) -> None:
    """Close what a runner holds, in the order that CUDA and TensorRT want, as far as it goes."""
    try:
        with device, device.activate():
            closing.close()
    except EngineError as error:
        _log.warning("%s could not be closed properly: %s", path, str(error))
