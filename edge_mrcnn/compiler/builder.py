"""From `model.onnx` to an engine with its sidecar: `build_engine`.

The passes run here; TensorRT runs in a process of its own, whose death is an error message and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

import edge_mrcnn
from edge_mrcnn import device
from edge_mrcnn.compiler.build_worker import Job
from edge_mrcnn.compiler.engine_files import EngineCache, default_cache_folder, publish, unfinished
from edge_mrcnn.compiler.passes import PASSES, Precision, run_passes
from edge_mrcnn.compiler.worker_process import run_worker
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.gpu import tensorrt_api
from edge_mrcnn.gpu.target import CURRENT, Flavour, Target, parse_target
from edge_mrcnn.ops import DOMAIN
from edge_mrcnn.sidecar import EngineSidecar, LayerInfo, TensorInfo, hash_file, plugins_hash, sidecar_path
from edge_mrcnn.spec import ModelSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine."""

    precision: Precision = "fp16"
    """What the network computes in; boxes, top-k, softmax and NMS are float32 either way. int8 comes in a later
    version."""

    target: str | None = None
    """TensorRT and GPUs to build for: `rtx` (any RTX GPU from Ampere on), `rtx:sm_86,sm_89`, `rtx:current`, `tensorrt`
    (the full one, for this machine's GPU) or `current`. By default what this machine can do: `tensorrt` where it and a
    GPU are there, else `rtx`."""

    batch: str | tuple[int, int, int] = "1,1,4"
    """Smallest, optimal and largest batch, such as `1,1,4`; `1..4` is the same, `2` is a fixed batch of 2."""

    workspace: float = 0.5
    """Memory TensorRT may use beside the weights: up to 1 a fraction of the GPU's free memory, above 1 MiB."""

    timeout_s: float = 3600.0
    """Longest time the build may take, in seconds."""

    cache_dir: Path | None = None
    """Folder that keeps engines built before; by default `edge_mrcnn/engines` in the user's cache folder."""

    cache_limit_gib: float = 4.0
    """The cache drops the engines not used for longest beyond this size; 0 keeps none."""

    force: bool = False
    """Build even where the same engine is there already."""

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            ValueError: An option has a value it cannot have.
        """
        if self.precision not in PASSES:
            later = "int8 comes in a later version, " if str(self.precision) == "int8" else ""
            raise ValueError(f"precision {self.precision!r}: {later}one of {', '.join(PASSES)} is expected")
        if self.target not in (None, CURRENT):
            parse_target(str(self.target))
        parse_batch(self.batch)
        for name in ("workspace", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.cache_limit_gib >= 0:
            raise ValueError(f"cache_limit_gib must be 0 or more, got {self.cache_limit_gib}")


@dataclass(frozen=True)
class BuildResult:
    """What a build gave.

    Attributes:
        engine: The engine.
        sidecar: Its sidecar.
        cached: True where the same engine had been built before and was taken over.
        seconds: From the call to the end.
        size_bytes: Of the engine.
        target: What it was built for.
        peak_memory_bytes: Of the process that built it; None where it was cached.
    """

    engine: Path
    sidecar: Path
    cached: bool
    seconds: float
    size_bytes: int
    target: str
    peak_memory_bytes: int | None = None


def build_engine(model: Path, options: BuildOptions | None = None, output_dir: Path | None = None) -> BuildResult:
    """Build an engine, or take over the same one built before.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        options: How to build it.
        output_dir: Where `<model>.<target>.<precision>.engine` and `.json` go; by default beside the model.

    Raises:
        EngineError: This machine cannot build for the target, the build failed, or the result cannot be written.
        ExportError: The file is no ONNX file, or not one of ours.
        PluginError: A custom op is not as its contract says.
    """
    started, options = time.monotonic(), options or BuildOptions()
    model = Path(model)
    plan = _plan(model, options, resolve_target(options.target))
    key = plan.key()
    folder = Path(output_dir) if output_dir else model.parent
    engine = folder / f"{model.stem}.{plan.target.slug}.{options.precision}.engine"
    cache = EngineCache(options.cache_dir or default_cache_folder(), options.cache_limit_gib)
    sidecar = None if options.force else _find_built(engine, key, cache)
    memory = None
    if cached := sidecar is not None:
        _log.info("%s had been built before and is taken over", engine)
    else:
        sidecar, memory = _build(engine, plan)
        cache.keep(key, engine, sidecar)
    seconds, size = time.monotonic() - started, engine.stat().st_size
    return BuildResult(engine, sidecar_path(engine), cached, seconds, size, str(plan.target), memory)


def parse_batch(batch: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """Smallest, optimal and largest batch from `1,1,4`, `1..4` or `2`, or from three numbers.

    Raises:
        ValueError: The text has another form, or the sizes do not rise from at least 1.
    """
    try:
        if isinstance(batch, str) and ".." in batch:
            low, high = (int(part) for part in batch.split(".."))
            sizes = [low, low, high]
        else:
            sizes = [int(part) for part in (batch.split(",") if isinstance(batch, str) else batch)]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ValueError(
            f"batch {batch!r} must be three rising numbers such as 1,1,4, or 1..4, or a fixed one such as 2"
        )
    return sizes[0], sizes[1], sizes[2]


def resolve_target(text: str | None = None) -> Target:
    """What to build for on this machine.

    Args:
        text: As `BuildOptions.target`.

    Raises:
        EngineError: This machine lacks the TensorRT or the GPU it takes; the message says what to do instead.
        ValueError: The text is no target.
    """
    gpu = next(iter(device.find_gpus()), None)
    full, rtx = (tensorrt_api.installed_version(flavour) is not None for flavour in ("tensorrt", "rtx"))
    if text in (None, CURRENT):
        target = Target("tensorrt", current=True) if full and gpu else Target("rtx", current=text == CURRENT)
        if text is None and (rtx or full):
            _log.info("building for %s, %s", target, f"with {gpu.name}" if gpu else "without a GPU")
        if not (rtx or full):
            raise EngineError(
                "no TensorRT is installed, so no engine can be built here. On a PC or without a GPU: "
                f"{tensorrt_api.INSTALL['rtx']}. For the full TensorRT: {tensorrt_api.INSTALL['tensorrt']}. "
                "Without any of them, model.onnx runs on the CPU as it is"
            )
    else:
        target = parse_target(str(text))
    if target.flavour == "tensorrt":
        _need_full(full, gpu)
    elif not rtx:
        raise EngineError(f"TensorRT-RTX is not installed; {tensorrt_api.INSTALL['rtx']}")
    elif target.current and gpu is None:
        raise EngineError(
            "target 'current' needs an NVIDIA GPU and this machine shows none. TensorRT-RTX builds without one for "
            "GPUs that you name: --target rtx (any from Ampere on) or --target rtx:sm_86,sm_89"
        )
    return target


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ExportError: It is missing or no ONNX file.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise ExportError(f"there is no file {path}; make it with: edge-mrcnn export MODEL_NAME -o {path}") from error
    except (OSError, DecodeError, ValueError) as error:
        raise ExportError(
            f"{path} is not a readable ONNX file ({error}); export it again: edge-mrcnn export"
        ) from error
    if not model.graph.node:  # an empty file is a valid message of nothing
        raise ExportError(f"{path} holds no network ({path.stat().st_size} bytes); export it again: edge-mrcnn export")
    return model


def count_plugins(model: onnx.ModelProto) -> dict[str, int]:
    """Number of nodes of each custom op."""
    return dict(Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN))


def _plan(model: Path, options: BuildOptions, target: Target) -> _Plan:
    """Read the model and run the passes; of the models in memory only the last one's bytes stay."""
    bound = run_passes(load_model(model), options.precision)
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in bound.metadata_props}, model)
    data = bound.SerializeToString(deterministic=True)
    return _Plan(options, target, hash_file(model), spec, data, count_plugins(bound))


@dataclass(frozen=True)
class _Plan:
    """Everything about a build that is settled before TensorRT is started."""

    options: BuildOptions
    target: Target
    onnx_sha256: str
    spec: ModelSpec
    bound: bytes
    plugins: dict[str, int]

    @property
    def gpu(self) -> device.Gpu | None:
        return next(iter(device.find_gpus()), None) if self.target.current else None

    def key(self) -> str:
        """Hash of all that makes a difference to the engine."""
        parts = {
            "onnx": self.onnx_sha256,
            "bound": hashlib.sha256(self.bound).hexdigest(),
            "precision": self.options.precision,
            "target": str(self.target),
            "batch": parse_batch(self.options.batch),
            "workspace": self.options.workspace,
            "tensorrt": _version(self.target.flavour),
            "plugins": plugins_hash(),
            "gpu": dataclasses.asdict(self.gpu) if self.gpu else None,
            "edge_mrcnn": edge_mrcnn.__version__,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def sidecar(self, built: dict[str, Any]) -> EngineSidecar:
        """The sidecar for what the worker built."""
        return EngineSidecar(
            edge_mrcnn=edge_mrcnn.__version__,
            flavour=self.target.flavour,
            tensorrt=built["tensorrt"],
            target=str(self.target),
            device=self.gpu.name if self.gpu else None,
            capability=self.gpu.sm if self.gpu else None,
            precision=self.options.precision,
            batch=parse_batch(self.options.batch),
            spec=self.spec,
            inputs=_read_tensors(built["inputs"]),
            outputs=_read_tensors(built["outputs"]),
            layers=tuple(LayerInfo(**layer) for layer in built["layers"]),
            onnx_sha256=self.onnx_sha256,
            engine_sha256=built["sha256"],
            plugins_sha256=plugins_hash(),
            build_key=self.key(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )


def _read_tensors(described: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(item["name"], item["dtype"], tuple(item["shape"])) for item in described)


def _build(engine: Path, plan: _Plan) -> tuple[EngineSidecar, int | None]:
    with unfinished(engine) as part, tempfile.TemporaryDirectory(prefix="edge_mrcnn_") as folder:
        bound = Path(folder) / "bound.onnx"
        try:
            bound.write_bytes(plan.bound)
        except OSError as error:
            raise EngineError(f"cannot write to the temporary folder ({error}); set TMPDIR to another") from error
        job = Job(
            onnx=str(bound),
            engine=str(part.absolute()),
            target=str(plan.target),
            precision=plan.options.precision,
            batch=parse_batch(plan.options.batch),
            workspace=plan.options.workspace,
            input_hw=plan.spec.input_hw,
            plugins=plan.plugins,
        )
        built = run_worker(job, plan.target.flavour, Path(folder), plan.options.timeout_s)
        sidecar = plan.sidecar(built)
        publish(part, engine, sidecar)
    return sidecar, built["peak_memory_bytes"]


def _find_built(engine: Path, key: str, cache: EngineCache) -> EngineSidecar | None:
    """The sidecar of the same engine, where it lies at its place already or could be fetched there."""
    try:
        sidecar = EngineSidecar.load_for(engine)
    except EngineError:
        return cache.fetch(key, engine)
    return sidecar if sidecar.build_key == key else cache.fetch(key, engine)


def _need_full(installed: bool, gpu: device.Gpu | None) -> None:
    instead = "Here, build for RTX desktops, which takes no GPU: --target rtx; or run model.onnx on the CPU as it is"
    if gpu is None:
        raise EngineError(
            "the full TensorRT builds on the GPU that the engine is for, and this machine shows no NVIDIA GPU; run "
            f"this command on the Jetson or PC itself. {instead}"
        )
    if not installed:
        raise EngineError(f"TensorRT is not installed; {tensorrt_api.INSTALL['tensorrt']}")


def _version(flavour: Flavour) -> str:
    """Version without loading TensorRT where its package says it, by loading it where not."""
    version = tensorrt_api.installed_version(flavour)
    return tensorrt_api.load(flavour).version if version in (None, "unknown version") else str(version)
