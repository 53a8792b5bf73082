"""A stand-in for TensorRT's Python module on the stand-in driver: an engine is an ONNX file that ONNX Runtime executes.

It offers what running an engine takes and nothing else. The rules of TensorRT that are easy to break and hard to notice
are checked, and what breaks them is added to the driver's violations: graphs replayed after their context was changed,
contexts that share memory and run at a time, a first run under capture, contexts destroyed with work under way.
"""

from __future__ import annotations

import enum
import json
import types
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_mrcnn.ops import DOMAIN, OPS, VERSION
from edge_mrcnn.runtime.runners import OrtRunner
from tests.gpu.fake_driver import FakeDriver

Shape = tuple[int, ...]

ACTIVATION_BYTES = 4096
CACHE_MAGIC = b"a runtime cache of TensorRT-RTX: "


class DataType(enum.Enum):
    FLOAT = "float32"
    INT32 = "int32"
    UINT8 = "uint8"


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1


class ILogger:
    def __init__(self) -> None:
        """TensorRT wants it called."""


class Severity(enum.Enum):
    ERROR = 1
    INFO = 3


def serialise_engine(onnx: Path, rows: Mapping[str, Sequence[int]], batch: tuple[int, int, int]) -> bytes:
    """What stands for an engine.

    Args:
        onnx: The network; its batch is dynamic.
        rows: Shape of each output without the batch, to which what ONNX Runtime gives is padded with zeros.
        batch: Smallest, optimal and largest.
    """
    return json.dumps({"onnx": str(onnx), "rows": {k: list(v) for k, v in rows.items()}, "batch": batch}).encode()


class FakeTensorRt(types.SimpleNamespace):
    """The module.

    Args:
        driver: Where memory and streams are.
        flavour: `rtx` or `tensorrt`.
        version: What it says it is.
        capturable: What `is_stream_capturable` says.
    """

    DataType, TensorIOMode, ILogger = DataType, TensorIOMode, ILogger
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, driver: FakeDriver, flavour: str, version: str, capturable: bool = True) -> None:
        super().__init__(driver=driver, flavour=flavour, capturable=capturable, __version__=version)
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.fail_next: str | None = None
        if flavour == "rtx":
            self.CudaGraphStrategy = CudaGraphStrategy
            self.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(self, logger)

    def get_plugin_registry(self) -> Any:
        """A registry that has all plugins already, as with the C++ library."""
        creators = [
            types.SimpleNamespace(name=name, plugin_version=VERSION, plugin_namespace=DOMAIN, api_language=None)
            for name in OPS
        ]
        return types.SimpleNamespace(all_creators=creators, get_creator=lambda name, version, namespace: creators[0])

    def failed(self, logger: Any, what: str) -> bool:
        """Whether a step was told to fail; then it has complained, as TensorRT does, in the log."""
        if self.fail_next != what:
            return False
        self.fail_next = None
        logger.log(Severity.ERROR, f"[{what}] failed on purpose")
        return True


class Runtime:
    engine_host_code_allowed: bool | None = None

    def __init__(self, module: FakeTensorRt, logger: Any) -> None:
        self._module, self._logger = module, logger
        module.alive.add(self)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if self.engine_host_code_allowed is not False:
            self._module.driver.violations.append("host code in engines is allowed")
        try:
            description = json.loads(bytes(serialized_engine))
        except ValueError:
            self._logger.log(Severity.ERROR, "Magic tag does not match")
            return None
        if self._module.failed(self._logger, "deserialize") or self._module.failed(self._logger, "out of memory"):
            return None
        return ICudaEngine(self._module, self._logger, description)


class ICudaEngine:
    def __init__(self, module: FakeTensorRt, logger: Any, description: dict[str, Any]) -> None:
        self._module, self._logger, self._batch = module, logger, description["batch"]
        self._network = OrtRunner(description["onnx"], threads=1)
        self._rows = {name: tuple(shape) for name, shape in description["rows"].items()}
        spec = self._network.spec
        self._inputs: dict[str, Shape] = {"images": (*spec.input_hw, 3), "image_hw": (2,)}
        module.alive.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._rows)

    @property
    def device_memory_size_v2(self) -> int:
        return ACTIVATION_BYTES

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._rows][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return {"images": DataType.UINT8, "num_detections": DataType.INT32, "labels": DataType.INT32}.get(
            name, DataType.FLOAT
        )

    def get_tensor_shape(self, name: str) -> Shape:
        fixed = self._batch[0] if self._batch[0] == self._batch[2] else -1
        return (fixed, *{**self._inputs, **self._rows}[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]:
        assert profile_index == 0
        return [(batch, *self._inputs[name]) for batch in self._batch]

    def create_runtime_config(self) -> IRuntimeConfig:
        assert self._module.flavour == "rtx"
        return IRuntimeConfig(self._module)

    def create_execution_context(self, argument: Any = None) -> IExecutionContext | None:
        if self._module.failed(self._logger, "create_execution_context"):
            return None
        if isinstance(argument, IRuntimeConfig):
            return RtxExecutionContext(self, argument._strategy, argument)
        return IExecutionContext(self, argument, None)


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def __init__(self, module: FakeTensorRt) -> None:
        self._cache: IRuntimeCache | None = None
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        module.alive.add(self)

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class IRuntimeCache:
    def __init__(self) -> None:
        self._kernels: set[str] = set()

    def serialize(self) -> memoryview:
        return memoryview(CACHE_MAGIC + ",".join(sorted(self._kernels)).encode())

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(CACHE_MAGIC):
            return False
        self._kernels = set(blob[len(CACHE_MAGIC) :].decode().split(","))
        return True


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: Any, config: IRuntimeConfig | None) -> None:
        self._engine, self._module, self._driver = engine, engine._module, engine._module.driver
        self._config = config
        self._managed = strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._memory: int | None = None
        self._version = 0
        self._warm: set[Shape] = set()
        self._queue: list[int] = []  # the streams of the runs that are not through
        self._module.alive.add(self)

    def __del__(self) -> None:
        if self._queue:
            self._driver.violations.append("an execution context is destroyed with work under way")

    def set_device_memory(self, memory: int, size: int) -> None:
        if not self._managed or size < ACTIVATION_BYTES or memory % 256:
            self._driver.violations.append("a context gets memory that it does not manage, too little, or misaligned")
        self._memory = memory
        self._version += 1

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        if not smallest[0] <= shape[0] <= largest[0] or tuple(shape[1:]) != largest[1:]:
            return False
        self._shapes[name] = tuple(shape)
        self._version += 1
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        return self._shapes.get(name) or (self._shapes["images"][0], *self._engine._rows[name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        self._version += 1
        return memory % 4 == 0

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, shape = self._engine, self._shapes.get("images", ())
        captured = self._driver.capture_of(stream_handle) is not None
        ready = set(self._addresses) == {*engine._inputs, *engine._rows} and len(self._shapes) == len(engine._inputs)
        ready = ready and (self._memory is not None or not self._managed)
        if self._module.failed(engine._logger, "execute"):
            return False
        if not ready:
            engine._logger.log(Severity.ERROR, "an address, a shape or memory is missing")
            return False
        if captured and not self._may_be_captured(shape):
            return False
        self._warm.add(shape)
        if self._config is not None and self._config._cache is not None:
            self._config._cache._kernels.add(f"batch {shape[0]}")
        self._enqueue(stream_handle, captured)
        return True

    def _may_be_captured(self, shape: Shape) -> bool:
        """TensorRT prepares in the first run of a shape what cannot be captured."""
        if shape not in self._warm:
            self._driver.device.break_captures("the first run of a shape")
            return False
        if self._config is not None and self._config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE:
            self._driver.device.break_captures("an engine that captures itself")
            return False
        return self._module.flavour == "tensorrt" or bool(self._module.capturable)

    def _enqueue(self, stream: int, captured: bool) -> None:
        """Two pieces of work, so that what runs between them shows: read inputs and mark the memory; write results."""
        addresses, shapes = dict(self._addresses), dict(self._shapes)
        memory, version, inputs = self._memory, self._version, {}
        token = np.random.default_rng(id(self) % 1000 + version).integers(0, 256, ACTIVATION_BYTES, dtype=np.uint8)

        def begin() -> None:
            if captured and version != self._version:
                self._driver.violations.append("a graph runs whose context was changed after the capture")
            if any(other != stream for other in self._queue):
                self._driver.violations.append("a context runs on two streams at a time")
            self._queue.append(stream)
            if memory is not None:
                self._driver.device_view(memory, ACTIVATION_BYTES)[:] = token
            for name, shape in shapes.items():
                inputs[name] = self._read(name, addresses[name], shape)

        def end() -> None:
            self._queue.remove(stream)
            if memory is not None and (self._driver.device_view(memory, ACTIVATION_BYTES) != token).any():
                self._driver.violations.append("two contexts that share their memory ran at a time")
            for name, value in self._engine._network.infer(inputs).items():
                self._write(name, addresses[name], value)

        self._driver.enqueue(stream, "engine begins", begin)
        self._driver.enqueue(stream, "engine ends", end)

    def _read(self, name: str, address: int, shape: Shape) -> np.ndarray:
        dtype = np.dtype(self._engine.get_tensor_dtype(name).value)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return self._driver.device_view(address, nbytes).view(dtype).reshape(shape).copy()

    def _write(self, name: str, address: int, value: np.ndarray) -> None:
        full = np.zeros((len(value), *self._engine._rows[name]), self._engine.get_tensor_dtype(name).value)
        full[tuple(slice(0, length) for length in value.shape)] = value
        self._driver.device_view(address, full.nbytes)[:] = full.reshape(-1).view(np.uint8)


class RtxExecutionContext(IExecutionContext):
    """TensorRT-RTX's has one more question."""

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self._module.capturable)
