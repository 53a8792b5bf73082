"""Runners: one network, arrays in and arrays out, whatever executes it.

`open_runner` chooses by the file's suffix. Nothing ever falls back to another backend on its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy.typing as npt

from edge_mrcnn import device
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.frame import Frame
from edge_mrcnn.spec import ModelSpec

if TYPE_CHECKING:
    from edge_mrcnn.runtime.preprocess import Geometry

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

EXACT = {"session.x64quantprecision": "1"}
"""For x86 CPUs with AVX2 or AVX-512 but without VNNI: in ONNX Runtime's fastest kernels sums of two products of bytes
overflow there, and int8 loses accuracy unseen. This takes slower kernels."""

_EXPORT = "make it with: edge-mrcnn export MODEL_NAME --weights FILE -o model.onnx"


class Runner(Protocol):
    """Executes one network.

    Attributes:
        spec: What the network is and expects.
        backend: Who executes it where, such as `onnxruntime-cpu`; every reported figure names it.
        max_batch: Most pictures in one call, None where there is no limit.
    """

    @property
    def spec(self) -> ModelSpec:
        """What the network is and expects."""

    @property
    def backend(self) -> str:
        """Who executes it where."""

    @property
    def max_batch(self) -> int | None:
        """Most pictures in one call, None where there is no limit."""

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the network once.

        Args:
            feeds: Every input by name: `images (B, H, W, 3)` uint8 RGB, `image_hw (B, 2)` float32.

        Returns:
            Every output by name.

        Raises:
            EngineError: The runner is closed or the network fails.
            ValueError: An input is missing or unknown.
        """

    def close(self) -> None:
        """Give back what the network holds. A second call does nothing."""

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PendingOutputs(Protocol):
    """A batch under way.

    Attributes:
        geometries: Where each picture lies on the canvas.
    """

    @property
    def geometries(self) -> tuple[Geometry, ...]:
        """Where each picture lies on the canvas."""

    def result(self) -> dict[str, Array]:
        """Wait for the outputs.

        Raises:
            EngineError: The network failed.
        """


@runtime_checkable
class PictureRunner(Protocol):
    """A runner that letterboxes pictures itself, on the GPU, and does not wait for the network."""

    def submit_pictures(self, pictures: Sequence[Array | Frame]) -> PendingOutputs:
        """Begin to run the network on pictures.

        Args:
            pictures: `Frame`s, RGB or NV12, or `(h, w, 3)` uint8 RGB each, of any sizes.

        Raises:
            EngineError: The runner is closed or the network fails.
            ValueError: There are more pictures than the runner takes.
        """


class OrtRunner:
    """Runs `model.onnx` in ONNX Runtime on the CPU.

    Example:
        >>> with OrtRunner("model.onnx") as runner:  # doctest: +SKIP
        ...     outputs = runner.infer({"images": images, "image_hw": image_hw})
    """

    backend = "onnxruntime-cpu"

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        *,
        content: bytes | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Load a network.

        Args:
            path: An ONNX file made by `edge-mrcnn export`.
            threads: CPU threads of one call; None or 0 for one per core.
            content: A model that is in memory only; `path` is then what it was made from, for messages.
            config: Entries of ONNX Runtime's session configuration.

        Raises:
            EngineError: The file is missing or unreadable, ONNX Runtime is not installed or cannot run the network.
            ExportError: The file is empty, damaged, no ONNX file or not one of ours.
            ValueError: `threads` is negative.
        """
        if threads is not None and threads < 0:
            raise ValueError(f"threads must be 0 (one per core) or more, got {threads}")
        self.path = Path(path)
        if content is None:
            _check_file(self.path)
        self._session = _open_session(self.path, threads or 0, content, config or {})
        self._spec = ModelSpec.from_metadata(self._session.get_modelmeta().custom_metadata_map, self.path)
        inputs = self._session.get_inputs()
        self._inputs = tuple(item.name for item in inputs)
        self._outputs = tuple(item.name for item in self._session.get_outputs())
        batch = inputs[0].shape[0] if inputs and inputs[0].shape else None
        self._max_batch = batch if isinstance(batch, int) else None

    @property
    def spec(self) -> ModelSpec:
        """What the network is and expects."""
        return self._spec

    @property
    def max_batch(self) -> int | None:
        """Most pictures in one call, None where there is no limit."""
        return self._max_batch

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._outputs

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the network once.

        Args:
            feeds: Every input by name: `images (B, H, W, 3)` uint8 RGB, `image_hw (B, 2)` float32.

        Returns:
            Every output by name.

        Raises:
            EngineError: The runner is closed or the network fails.
            ValueError: An input is missing or unknown.
        """
        if self._session is None:
            raise EngineError(f"the runner of {self.path} is closed; open a new one: OrtRunner({str(self.path)!r})")
        if set(feeds) != set(self._inputs):
            raise ValueError(
                f"the inputs of the network are {', '.join(self._inputs)}, got {', '.join(feeds) or 'none'}"
            )
        try:
            results = self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # its exceptions have no base but Exception
            given = {name: f"{value.dtype} {value.shape}" for name, value in feeds.items()}
            height, width = self._spec.input_hw
            raise EngineError(
                f"ONNX Runtime cannot run {self.path} on {given}: {_first_line(error)}; the network takes images uint8 "
                f"(B, {height}, {width}, 3) and image_hw float32 (B, 2)"
            ) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Give back the network's memory. A second call does nothing."""
        self._session = None

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._session is None else self._spec.name
        return f"OrtRunner({str(self.path)!r}, {state})"


def open_runner(path: str | Path, threads: int | None = None) -> Runner:
    """Open a network by its file's suffix: `.onnx` runs on the CPU in ONNX Runtime, `.engine` on a GPU in TensorRT.

    Args:
        path: `model.onnx`, or an engine with its sidecar beside it.
        threads: CPU threads of one call; None or 0 for one per core. Engines have no use for it.

    Returns:
        The runner; the caller closes it.

    Raises:
        EngineError: The file is missing, or cannot be run here: what is needed is not installed, or an engine was built
            for another device or version.
        ExportError: The file is not a network of ours.
        PluginError: An engine's plugins cannot be had.
        ValueError: The suffix is neither `.onnx` nor `.engine`.

    Example:
        >>> with open_runner("model.onnx") as runner:  # doctest: +SKIP
        ...     print(runner.spec.class_names)
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OrtRunner(path, threads)
    if suffix == ".engine":
        from edge_mrcnn.runtime.trt_runner import TrtRunner  # a CPU-only device needs nothing of it

        return TrtRunner(path)
    raise ValueError(f"{path} is neither a model.onnx nor an .engine; {_EXPORT}")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise EngineError(f"{path} is a folder, not a model; give the .onnx file in it")
    if not path.exists():
        raise EngineError(f"there is no model {path}; check the path, or {_EXPORT}")
    if path.stat().st_size == 0:
        raise ExportError(f"{path} is empty (0 bytes): the copy or the export was cut short; {_EXPORT}")


def _open_session(path: Path, threads: int, content: bytes | None, config: Mapping[str, str]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"running {path} needs ONNX Runtime ({error}); install it with: pip install 'edge-mrcnn[cpu]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: it warns about its own optimiser
    exact = {} if device.integer_dot_products() else EXACT
    for key, value in {**exact, **config}.items():
        options.add_session_config_entry(key, value)
    try:
        return onnxruntime.InferenceSession(
            str(path) if content is None else content, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no base but Exception
        if type(error).__name__ in ("InvalidProtobuf", "NoModel"):
            raise ExportError(f"{path} is damaged or no ONNX file ({_first_line(error)}); {_EXPORT}") from error
        raise EngineError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}; a newer one may "
            f"(pip install --upgrade onnxruntime), or {_EXPORT}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
