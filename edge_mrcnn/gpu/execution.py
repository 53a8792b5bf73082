"""An engine on the GPU and how it is executed: the place that knows in what TensorRT and TensorRT-RTX differ at that.

- TensorRT: the caller captures a CUDA graph. What is captured holds only as long as the execution context's shapes,
  addresses and memory stay as they were, so each batch size has a context of its own. Contexts of one stream run one
  after the other and share their memory.
- TensorRT-RTX compiles kernels when a shape is first seen, keeps them in a runtime cache, and captures the engine by
  itself. It can be captured from outside instead, where its context says so.

Sources: "CUDA Graphs" in https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/optimization.html,
https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu.cuda import Stream
from edge_mrcnn.gpu.runtime_cache import RuntimeCacheFile
from edge_mrcnn.gpu.tensorrt_api import TensorRtApi, describe

_log = logging.getLogger(__name__)

Graphs = Literal["auto", "frame", "off"]
"""What is captured in CUDA graphs: by TensorRT the whole frame, by TensorRT-RTX the engine (`auto`), the whole frame by
either (`frame`), or nothing (`off`)."""

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"}

_KEPT_MESSAGES = 3

_MORE_MEMORY = "close other programs on the GPU, or build the engine with a smaller --batch"


class _Messages:
    """TensorRT's messages.

    There is one logger for each TensorRT in the process, and for good: the first that TensorRT is given also gets what
    belongs to no object of its own, whenever that is.
    """

    def __init__(self, api: TensorRtApi) -> None:
        self.errors: deque[str] = deque(maxlen=_KEPT_MESSAGES)
        self.logger = api.make_logger(self._note)

    def _note(self, severity: str, text: str) -> None:
        if severity in ("error", "internal_error"):
            self.errors.append(text)
            _log.error("TensorRT: %s", text)
        else:
            _log.debug("TensorRT %s: %s", severity, text)


_messages: dict[type, _Messages] = {}
"""By TensorRT's class of loggers."""


@dataclass(frozen=True)
class EngineTensor:
    """An input or output of an engine.

    Attributes:
        name: As the ONNX file calls it.
        dtype: NumPy's name of the type.
        is_input: Whether it is an input.
        shape: A dimension that is fixed only at run time is -1.
        batch: Smallest and largest first dimension; (0, 0) for outputs.
    """

    name: str
    dtype: str
    is_input: bool
    shape: tuple[int, ...]
    batch: tuple[int, int] = (0, 0)


class Engine:
    """A deserialised engine.

    Attributes:
        flavour: Which TensorRT runs it.
        tensors: Its inputs and outputs, in its order.
        graphs: Whether the caller captures CUDA graphs: contexts then take their memory from the caller.
        memory_bytes: Memory that the caller gives each of those contexts; 0 for contexts that allocate their own.
    """

    def __init__(
        self, api: TensorRtApi, data: bytes, graphs: Graphs = "auto", cache: RuntimeCacheFile | None = None
    ) -> None:
        """Deserialise an engine, with the GPU's context active and its plugins registered.

        Args:
            api: The TensorRT that built it.
            data: The serialised engine.
            graphs: What is captured.
            cache: Where TensorRT-RTX keeps the kernels that it compiles.

        Raises:
            EngineError: TensorRT refuses it.
        """
        self._api, self.flavour = api, api.flavour
        kind = api.module.ILogger
        self._messages = _messages.get(kind) or _messages.setdefault(kind, _Messages(api))
        self.graphs = graphs == "frame" or (graphs == "auto" and api.flavour == "tensorrt")
        runtime = self._runtime = api.module.Runtime(self._messages.logger)
        runtime.engine_host_code_allowed = False  # an engine may bring machine code of its own; ours never does
        engine = self._engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(f"{describe(api.flavour)} {api.version} cannot load the engine: {self.last_messages()}")
        self.tensors = tuple(self._describe(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors))
        self.memory_bytes = int(engine.device_memory_size_v2) if self.graphs else 0
        self._cache, self._cache_file = None, cache
        self._compiled: set[Hashable] = set()
        self._kept: set[Hashable] = set()
        self._config = self._configure(graphs) if api.flavour == "rtx" else None

    @property
    def inputs(self) -> tuple[EngineTensor, ...]:
        """The inputs, in the engine's order."""
        return tuple(item for item in self.tensors if item.is_input)

    @property
    def outputs(self) -> tuple[EngineTensor, ...]:
        """The outputs, in the engine's order."""
        return tuple(item for item in self.tensors if not item.is_input)

    def create_context(self, memory: int, shapes: Mapping[str, tuple[int, ...]]) -> Execution:
        """Make a context for given shapes.

        Args:
            memory: Address of `memory_bytes` of the GPU's memory, which contexts may share that never run at a time.
            shapes: Of each input.

        Raises:
            EngineError: TensorRT cannot make it (out of memory, most often) or does not take the shapes.
        """
        argument = self._config
        if argument is None and self.graphs:
            argument = self._api.module.ExecutionContextAllocationStrategy.USER_MANAGED
        engine = self._engine
        context = engine.create_execution_context() if argument is None else engine.create_execution_context(argument)
        if context is None:
            raise EngineError(f"{describe(self._api.flavour)} cannot make an execution context: {self.last_messages()}")
        if self.memory_bytes:
            context.set_device_memory(memory, self.memory_bytes)
        return Execution(self, context, shapes)

    def save_cache(self) -> None:
        """Keep what TensorRT-RTX has compiled, once after the first run of each shape; nothing with TensorRT."""
        if self._cache is not None and self._cache_file is not None and self._compiled > self._kept:
            self._kept = set(self._compiled)
            self._cache_file.write(bytes(memoryview(self._cache.serialize())))

    def note_run(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Remember that shapes have been run, for which TensorRT-RTX may have compiled kernels."""
        self._compiled.add(tuple(shapes.values()))

    def last_messages(self) -> str:
        """What TensorRT has complained about since this was asked last; it reports errors through its log alone."""
        messages = list(self._messages.errors)
        self._messages.errors.clear()
        text = "; ".join(messages) or "it does not say why"
        return f"{text}; {_MORE_MEMORY}" if "memory" in text.lower() else text

    def close(self) -> None:
        """Give the engine back; its contexts must be gone."""
        self._config = self._cache = self._engine = self._runtime = None

    def _describe(self, name: str) -> EngineTensor:
        engine, trt = self._engine, self._api.module
        kind = str(engine.get_tensor_dtype(name).name)
        dtype, shape = _DTYPES.get(kind, kind.lower()), tuple(engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT:
            return EngineTensor(name, dtype, False, shape)
        if -1 not in shape:  # built without a profile
            return EngineTensor(name, dtype, True, shape, (shape[0], shape[0]))
        smallest, _, largest = engine.get_tensor_profile_shape(name, 0)
        return EngineTensor(name, dtype, True, (shape[0], *tuple(largest)[1:]), (smallest[0], largest[0]))

    def _configure(self, graphs: Graphs) -> Any:
        """TensorRT-RTX's settings for all contexts of this engine."""
        trt = self._api.module
        config = self._engine.create_runtime_config()
        if graphs == "auto":
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        # A network here has a handful of shapes, one per batch size: compile each once, so that the second frame is as
        # fast as the thousandth, rather than exchange kernels under way.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self.graphs:
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        cache = self._cache = config.create_runtime_cache()
        kept = self._cache_file.read() if self._cache_file is not None else None
        if kept is not None and not cache.deserialize(kept):
            _log.info("TensorRT-RTX does not take the runtime cache; kernels are compiled anew")
        config.set_runtime_cache(cache)
        return config


class Execution:
    """An execution context whose input shapes are set.

    Attributes:
        shapes: Of every input and output.
    """

    def __init__(self, owner: Engine, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._owner, self._context = owner, context
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.set_shapes(shapes)

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set the shape of each input; captured graphs of this context are void after a change.

        Raises:
            EngineError: TensorRT does not take them.
        """
        if all(self.shapes.get(name) == shape for name, shape in shapes.items()):
            return
        context = self._context
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"TensorRT does not take {name} {shape}: {self._owner.last_messages()}")
        found = {item.name: tuple(context.get_tensor_shape(item.name)) for item in self._owner.outputs}
        if unknown := [name for name, shape in found.items() if any(length < 0 for length in shape)]:
            raise EngineError(
                f"the shape of the engine's outputs {', '.join(unknown)} depends on data, which no network of ours "
                "does; build the engine with: edge-mrcnn build model.onnx"
            )
        self.shapes = {**shapes, **found}

    def set_addresses(self, addresses: Mapping[str, int]) -> None:
        """Say where inputs and outputs lie on the GPU; captured graphs of this context are void after a change.

        Raises:
            EngineError: TensorRT does not take one.
        """
        for name, address in addresses.items():
            if self._addresses.get(name) == address:
                continue
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"TensorRT does not take the memory for {name}: {self._owner.last_messages()}")
            self._addresses[name] = address

    def enqueue(self, stream: Stream) -> None:
        """Give the network's work to a stream.

        Raises:
            EngineError: TensorRT refuses.
        """
        if not self._context.execute_async_v3(stream.handle):
            raise EngineError(f"TensorRT cannot run the engine: {self._owner.last_messages()}")
        self._owner.note_run(self.shapes)

    def can_be_captured(self, stream: Stream) -> bool:
        """Whether `enqueue` may be captured from a stream; call it once without, before."""
        if not self._owner.graphs:
            return False
        return self._owner.flavour == "tensorrt" or bool(self._context.is_stream_capturable(stream.handle))
