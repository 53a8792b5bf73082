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

import edge_mrcnn
from edge_mrcnn import device
from edge_mrcnn.compiler.build_options import BuildOptions, BuildResult, parse_batch
from edge_mrcnn.compiler.build_worker import WEIGHTED_LAYERS, Job
from edge_mrcnn.compiler.cpu_model import build_cpu_model
from edge_mrcnn.compiler.engine_files import EngineCache, default_cache_folder, publish, unfinished
from edge_mrcnn.compiler.precision import LayerPrecision, requested_table
from edge_mrcnn.compiler.preparation import load_model, prepare_model
from edge_mrcnn.compiler.realised import UNKNOWN, check_realised, find_wider
from edge_mrcnn.compiler.worker_process import run_worker
from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import tensorrt_api
from edge_mrcnn.gpu.target import CPU, CURRENT, Flavour, Target, parse_target
from edge_mrcnn.ops import DOMAIN
from edge_mrcnn.sidecar import (
    EngineSidecar,
    LayerInfo,
    PrecisionShare,
    RecipeRecord,
    TensorInfo,
    plugins_hash,
    tabulate,
)
from edge_mrcnn.spec import ModelSpec

__all__ = ["BuildOptions", "BuildResult", "build_engine", "load_model", "parse_batch", "resolve_target"]

_log = logging.getLogger(__name__)


def build_engine(model: Path, options: BuildOptions | None = None, output_dir: Path | None = None) -> BuildResult:
    """Build an engine, or take over the same one built before; with target `cpu`, an ONNX file of integer kernels.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        options: How to build it.
        output_dir: Where `<model>.<target>.<precision>.engine` (`.onnx` with target `cpu`) and `.json` go; by default
            beside the model.

    Raises:
        CalibrationError: int8 was asked for and the ranges are missing, damaged, incomplete or of another model.
        EngineError: This machine cannot build for the target, the build failed, what was built is not in the precision
            asked for, or it cannot be written.
        ExportError: The file is no ONNX file, or not one of ours.
        PluginError: A custom op is not as its contract says.
        ValueError: A layer to keep is not in the model.
    """
    started, options = time.monotonic(), options or BuildOptions()
    model = Path(model)
    folder = Path(output_dir) if output_dir else model.parent
    if options.target == CPU:
        return build_cpu_model(model, options, folder)
    plan = _plan(model, options, resolve_target(options.target))
    key = plan.key()
    engine = folder / f"{model.stem}.{plan.target.slug}.{options.precision}.engine"
    cache = EngineCache(options.cache_dir or default_cache_folder(), options.cache_limit_gib)
    sidecar = None if options.force else _find_built(engine, key, cache)
    memory = None
    if cached := sidecar is not None:
        _log.info("%s had been built before and is taken over", engine)
    else:
        sidecar, memory = _build(engine, plan)
        cache.keep(key, engine, sidecar)
    seconds = time.monotonic() - started
    return BuildResult.of(engine, sidecar, seconds, cached=cached, peak_memory_bytes=memory)


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


def count_plugins(model: onnx.ModelProto) -> dict[str, int]:
    """Number of nodes of each custom op."""
    return dict(Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN))


def _plan(model: Path, options: BuildOptions, target: Target) -> _Plan:
    """Read the model and run the passes; of the models in memory only the last one's bytes stay."""
    prepared = prepare_model(model, options, "tensorrt")
    return _Plan(
        options,
        target,
        prepared.onnx_sha256,
        prepared.spec,
        prepared.model.SerializeToString(deterministic=True),
        count_plugins(prepared.model),
        prepared.layers,
        prepared.record,
    )


@dataclass(frozen=True)
class _Plan:
    """Everything about a build that is settled before TensorRT is started."""

    options: BuildOptions
    target: Target
    onnx_sha256: str
    spec: ModelSpec
    bound: bytes
    plugins: dict[str, int]
    layers: tuple[LayerPrecision, ...]
    record: RecipeRecord

    @property
    def gpu(self) -> device.Gpu | None:
        return next(iter(device.find_gpus()), None) if self.target.current else None

    def key(self) -> str:
        """Hash of all that makes a difference to the engine."""
        parts = {
            "onnx": self.onnx_sha256,
            "bound": hashlib.sha256(self.bound).hexdigest(),
            "precision": self.options.precision,
            "recipe": dataclasses.asdict(self.record),  # the sidecar names the ranges, whatever they round to
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
            layers=self._describe_layers(built),
            onnx_sha256=self.onnx_sha256,
            engine_sha256=built["sha256"],
            plugins_sha256=plugins_hash(),
            build_key=self.key(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            recipe=self.record,
            requested=requested_table(self.layers),
            realised=self._tabulate_realised(built["realised"]),
        )

    def weighted(self, realised: dict[str, str]) -> tuple[LayerInfo, ...]:
        """The weighted layers by their ONNX names, with what the engine realised of them."""
        return tuple(
            LayerInfo(layer.name, layer.op, layer.precision, realised.get(layer.name), layer.macs)
            for layer in self.layers
        )

    def _describe_layers(self, built: dict[str, Any]) -> tuple[LayerInfo, ...]:
        """The layers that TensorRT's parser made, those with weights with their work."""
        macs = {layer.name: layer.macs for layer in self.layers}
        realised = built["realised"] or {}
        layers = (LayerInfo(**layer) for layer in built["layers"])
        return tuple(
            dataclasses.replace(layer, macs=macs.get(layer.name), realised=realised.get(layer.name))
            if layer.type in WEIGHTED_LAYERS
            else layer
            for layer in layers
        )

    def _tabulate_realised(self, realised: dict[str, str] | None) -> tuple[PrecisionShare, ...] | None:
        """Work by precision as the engine has it; None where no engine could be looked into."""
        if realised is None:
            return None
        return tabulate((realised.get(layer.name, UNKNOWN), layer.macs) for layer in self.layers)


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
            weighted={layer.name: layer.precision for layer in plan.layers},
        )
        built = run_worker(job, plan.target.flavour, Path(folder), plan.options.timeout_s)
        if built["realised"] is not None:
            _check_realised(plan.weighted(built["realised"]))
        sidecar = plan.sidecar(built)
        publish(part, engine, sidecar)
    return sidecar, built["peak_memory_bytes"]


def _check_realised(layers: tuple[LayerInfo, ...]) -> None:
    """Check that the engine is in the precision asked for; say which layers are not, and how much is not known."""
    check_realised(layers)
    total = sum(layer.macs or 0 for layer in layers)
    if wider := find_wider(layers):
        share = sum(layer.macs or 0 for layer in wider) / total
        names = ", ".join(f"{layer.name} ({layer.realised})" for layer in wider)
        _log.warning("TensorRT computes %.1f %% of the work in more bits than asked for: %s", 100 * share, names)
    if unknown := [layer for layer in layers if layer.realised is None]:
        share = sum(layer.macs or 0 for layer in unknown) / total
        _log.warning("the engine inspector tells nothing of %d layers, %.1f %% of the work", len(unknown), 100 * share)


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
