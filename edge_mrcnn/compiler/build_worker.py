"""The process that builds an engine: `python -m edge_mrcnn.compiler.build_worker job.json`.

TensorRT aborts, is killed for its memory or hangs as a whole process, so it has one of its own. What it has to say goes
to the parent as JSON lines on standard output; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from edge_mrcnn import device
from edge_mrcnn.compiler.realised import read_realised
from edge_mrcnn.errors import EdgeMrcnnError, EngineError, PluginError
from edge_mrcnn.gpu import plugins, tensorrt_api
from edge_mrcnn.gpu.target import parse_target
from edge_mrcnn.sidecar import LayerInfo, TensorInfo

PLUGIN_LAYER = "PLUGIN_V3"

WEIGHTED_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")

RESHAPES = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE")
"""What TensorRT fuses a dequantisation across."""

MIB = 1 << 20

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


@dataclasses.dataclass(frozen=True)
class Job:
    """What the parent asks for.

    Attributes:
        onnx: The model to parse, passes done.
        engine: File to write; it exists already and is empty.
        target: As `parse_target` reads it.
        precision: `fp32`, `fp16` or `int8`, as it was asked for.
        batch: Smallest, optimal and largest.
        workspace: Up to 1 a fraction of the GPU's free memory, above it MiB.
        input_hw: Canvas `(H, W)`, for inputs whose sides the model leaves open.
        plugins: Number of nodes of each custom op.
        weighted: Precision that the model asks for, by name of each node with weights.
    """

    onnx: str
    engine: str
    target: str
    precision: str
    batch: tuple[int, int, int]
    workspace: float
    input_hw: tuple[int, int]
    plugins: dict[str, int]
    weighted: dict[str, str]


class Reporter:
    """Sends events to the parent, a line of JSON each."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._last: str | None = None

    def send(self, event: str, **fields: Any) -> None:
        """Send one event."""
        with self._lock:
            self._stream.write(json.dumps({"event": event, **fields}) + "\n")
            self._stream.flush()

    def log(self, severity: str, text: str) -> None:
        """Pass TensorRT's messages on, except its small talk."""
        if severity not in ("verbose", "info"):
            self.send("log", severity=severity, text=text)

    def progress(self, phase: str, parent: str | None, done: int, steps: int) -> None:
        """Pass on each step of the build and the beginning of each phase below it."""
        if parent is None or phase != self._last:
            self.send("progress", phase=phase, top=parent is None, done=done, steps=steps)
            self._last = phase


def build(job: Job, report: Reporter) -> dict[str, Any]:
    """Parse, check and build; the engine is in `job.engine` afterwards.

    Returns:
        What the sidecar needs to know and only TensorRT does.

    Raises:
        EngineError: TensorRT refused, or would not honour the precision.
        PluginError: A custom op did not become a plugin layer.
        OSError: The engine cannot be written.
    """
    target = parse_target(job.target)
    api = tensorrt_api.load(target.flavour)
    logger = api.make_logger(report.log)
    creators = plugins.register_plugins(api)
    builder = api.module.Builder(logger)
    network = api.create_network(builder)
    _parse(api, network, logger, job.onnx)
    layers = list_layers(network)
    check_layers(layers, job)
    config = builder.create_builder_config()
    api.set_targets(config, target)
    api.configure(config, _workspace_bytes(job.workspace))
    _add_profile(builder, config, network, job)
    monitor = config.progress_monitor = api.make_progress_monitor(report.progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError("TensorRT could not build the engine")
    realised = read_realised(_inspect(api, logger, plan), job.weighted) if target.current else None
    size, digest = _write(plan, Path(job.engine))
    tensors = {
        "inputs": [_describe(network.get_input(i)) for i in range(network.num_inputs)],
        "outputs": [_describe(network.get_output(i)) for i in range(network.num_outputs)],
    }
    del monitor, creators
    return {
        "tensorrt": api.version,
        "layers": [dataclasses.asdict(layer) for layer in layers],
        "realised": realised,
        **{side: [dataclasses.asdict(tensor) for tensor in found] for side, found in tensors.items()},
        "size": size,
        "sha256": digest,
        "peak_memory_bytes": _peak_memory(),
    }


def list_layers(network: Any) -> list[LayerInfo]:
    """The layers of a parsed network with the type each computes in.

    The network is typed as if 8-bit numbers were never multiplied: what goes into a layer has been dequantised.
    TensorRT fuses that into the layer, so one whose operands both come from DEQUANTIZE computes in int8.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    dequantised = _find_dequantised(layers)
    return [LayerInfo(layer.name, layer.type.name, _requested(layer, dequantised)) for layer in layers]


def check_layers(layers: list[LayerInfo], job: Job) -> None:
    """Check that every custom op became a plugin and that the weighted layers have the precision asked for.

    Raises:
        EngineError: A weighted layer has another type, or is not there.
        PluginError: There are fewer plugin layers than custom ops.
    """
    found = sum(layer.type == PLUGIN_LAYER for layer in layers)
    if found != sum(job.plugins.values()):
        wanted = ", ".join(f"{count} {name}" for name, count in job.plugins.items())
        raise PluginError(
            f"the model has {wanted}, TensorRT made {found} plugin layers of them; its parser took something else for "
            "them: look for function bodies or plugins of the same name"
        )
    weighted = [layer for layer in layers if layer.type in WEIGHTED_LAYERS]
    wrong = [layer for layer in weighted if layer.requested != job.weighted.get(layer.name, layer.requested)]
    if wrong:
        counts = Counter(layer.requested for layer in wrong)
        names = ", ".join(f"{layer.name!r} ({job.weighted[layer.name]})" for layer in wrong[:3])
        raise EngineError(
            f"{job.precision} was asked for, but TensorRT's parser makes {len(wrong)} weighted layers of another type "
            f"({dict(counts)}): {names}{', ...' if len(wrong) > 3 else ''}; nothing is built rather than something else"
        )
    # Counted too, as a layer's name is TensorRT's to change.
    missing = Counter(job.weighted.values()) - Counter(layer.requested for layer in weighted)
    if missing:
        raise EngineError(
            f"{job.precision} was asked for, but of the weighted layers TensorRT's parser made {dict(missing)} too "
            "few; nothing is built rather than something else"
        )


def _find_dequantised(layers: list[Any]) -> set[str]:
    """Names of the tensors that come from 8-bit ones, as they are or in another shape."""
    found: set[str] = set()
    for layer in layers:
        kind = layer.type.name
        if (kind == "DEQUANTIZE" and layer.get_input(0).dtype.name == "INT8") or (
            kind in RESHAPES and layer.get_input(0).name in found
        ):
            found.add(layer.get_output(0).name)
    return found


def _requested(layer: Any, dequantised: set[str]) -> str:
    if layer.type.name in WEIGHTED_LAYERS and layer.num_inputs > 1:
        operands = [layer.get_input(index) for index in range(2)]
        if all(tensor is not None and tensor.name in dequantised for tensor in operands):
            return "int8"
    return _dtype_name(_typical_tensor(layer).dtype)


def _inspect(api: tensorrt_api.TensorRtApi, logger: Any, plan: Any) -> str:
    """What the engine inspector says of an engine for this machine's GPU, as JSON.

    Raises:
        EngineError: The engine that was just built cannot be loaded.
    """
    runtime = api.module.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError("TensorRT cannot load the engine that it has just built, so its precision cannot be told")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(api.module.LayerInformationFormat.JSON))


def _parse(api: tensorrt_api.TensorRtApi, network: Any, logger: Any, path: str) -> None:
    parser = api.module.OnnxParser(network, logger)
    if parser.parse_from_file(path):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    text = "; ".join(f"{error.desc()} (node {error.node_name()!r}, {error.node_operator()})" for error in errors[:3])
    raise EngineError(f"TensorRT's parser refuses the model: {text or 'it does not say why'}")


def _typical_tensor(layer: Any) -> Any:
    """The tensor whose type is the layer's: what a weighted layer multiplies, a plugin's features, else the result."""
    kind = layer.type.name
    if kind in WEIGHTED_LAYERS:
        return layer.get_input(0)
    return layer.get_input(layer.num_inputs - 1) if kind == PLUGIN_LAYER else layer.get_output(0)


def _add_profile(builder: Any, config: Any, network: Any, job: Job) -> None:
    """One optimisation profile over the batch; canvas sides that the model leaves open are the spec's."""
    profile = builder.create_optimization_profile()
    dynamic = False
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = list(tensor.shape)
        if shape[0] not in (-1, job.batch[0]) or (shape[0] != -1 and job.batch[0] != job.batch[2]):
            raise EngineError(
                f"input {tensor.name} has a fixed batch of {shape[0]}, asked for {job.batch}; build it with --batch "
                f"{shape[0]}, or export it again with a dynamic batch"
            )
        sides = [side if dim == -1 else dim for dim, side in zip(shape[1:], (*job.input_hw, 3), strict=False)]
        dynamic = dynamic or -1 in shape
        profile.set_shape(tensor.name, *((size, *sides) for size in job.batch))
    if dynamic:
        config.add_optimization_profile(profile)


def _workspace_bytes(workspace: float) -> int | None:
    """Limit of the workspace in bytes; None where it is a fraction and there is no GPU to take it of."""
    if workspace > 1:
        return int(workspace * MIB)
    free = device.free_memory()
    return None if free is None else int(workspace * free)


def _write(plan: Any, path: Path) -> tuple[int, str]:
    data = memoryview(plan)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return data.nbytes, hashlib.sha256(data).hexdigest()


def _describe(tensor: Any) -> TensorInfo:
    return TensorInfo(tensor.name, _dtype_name(tensor.dtype), tuple(tensor.shape))


def _dtype_name(dtype: Any) -> str:
    name = str(dtype.name)
    return _DTYPES.get(name, name.lower())


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _end_with_parent(engine: Path) -> None:
    """End at once when the parent is gone, leaving no half engine: it holds the other end of our standard input."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin: its lock would abort the interpreter at its end
            pass
        engine.unlink(missing_ok=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(path: str) -> int:
    """Do the job in a file; returns the exit status, 0 or 1."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    report = Reporter(stream)
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    job = Job(**fields | {"batch": tuple(fields["batch"]), "input_hw": tuple(fields["input_hw"])})
    _end_with_parent(Path(job.engine))
    try:
        result = build(job, report)
    except EdgeMrcnnError as error:
        report.send("error", kind=type(error).__name__, text=str(error))
        return 1
    except OSError as error:
        report.send("error", kind="OSError", text=str(error), errno=error.errno)
        return 1
    report.send("done", **result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
