"""`--target cpu`: an ONNX file that ONNX Runtime computes in integers, and the proof that it does.

The graph asks for int8 by Q/DQ nodes. ONNX Runtime fuses those into integer kernels where it has one and they stand as
it wants them; where not, it computes in float32 between them and says nothing. So the graph that it runs is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx

import edge_mrcnn
from edge_mrcnn.compiler.build_options import BuildOptions, BuildResult, parse_batch
from edge_mrcnn.compiler.engine_files import ELSEWHERE, publish, unfinished
from edge_mrcnn.compiler.inspector import describe_value
from edge_mrcnn.compiler.precision import LayerPrecision, requested_table
from edge_mrcnn.compiler.preparation import PreparedModel, prepare_model
from edge_mrcnn.compiler.realised import UNKNOWN, check_realised, find_wider
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.gpu.target import CPU
from edge_mrcnn.sidecar import EngineSidecar, LayerInfo, RecipeRecord, hash_file, plugins_hash, tabulate

_log = logging.getLogger(__name__)

METADATA_KEY = "edge_mrcnn.build"
"""Key of the JSON text in the file's `metadata_props` that says what it was made from."""

INTEGER_OPS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"}
)
"""Ops of ONNX Runtime that multiply 8-bit numbers."""

FLOAT_OPS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
"""And those that multiply float32 numbers."""

FUSED = "fused "
"""What ONNX Runtime puts before the name of a layer that it fuses an activation into."""


def build_cpu_model(model: Path, options: BuildOptions, folder: Path) -> BuildResult:
    """Write `<model>.cpu.int8.onnx` and its sidecar; it takes seconds, so nothing is kept in a cache.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        options: With target `cpu` and precision int8.
        folder: Where to.

    Raises:
        CalibrationError: The ranges are missing, damaged, incomplete or of another model.
        EngineError: ONNX Runtime is not installed, cannot load the result or does not compute it in integers; or it
            cannot be written.
        ExportError: The file is no ONNX file, or not one of ours.
        PluginError: A custom op is not as its contract says.
        ValueError: A layer to keep is not in the model.
    """
    started = time.monotonic()
    prepared = prepare_model(model, options, "ort")
    _note_origin(prepared)
    path = folder / f"{model.stem}.{CPU}.{options.precision}.onnx"
    with unfinished(path) as part:
        try:
            part.write_bytes(prepared.model.SerializeToString(deterministic=True))
        except OSError as error:
            raise EngineError(f"cannot write {path} ({error}); {ELSEWHERE}") from error
        layers = _find_realised(part, prepared.layers)
        _check_realised(layers)
        sidecar = _describe(prepared, options, layers, hash_file(part))
        publish(part, path, sidecar)
    return BuildResult.of(path, sidecar, time.monotonic() - started)


def read_runtime_graph(path: Path) -> dict[str, str]:
    """In which precision ONNX Runtime computes the weighted layers of a network on this CPU.

    Args:
        path: An ONNX file.

    Returns:
        `int8` or `float32` by name of the node. What became something else is left out.

    Raises:
        EngineError: ONNX Runtime is not installed or cannot load the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            f"target cpu needs ONNX Runtime ({error}), to see that it computes in integers; install it with: "
            "pip install 'edge-mrcnn[cpu]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="edge_mrcnn_") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimised)
        # All fusions, and not the layouts after them: those rename the layers and change nothing in their precision.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.log_severity_level = 3
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no base but Exception
            raise EngineError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load the int8 graph: {str(error).strip()}; a newer one "
                "may: pip install --upgrade onnxruntime"
            ) from error
        nodes = onnx.load(optimised).graph.node
    kinds = {**dict.fromkeys(INTEGER_OPS, "int8"), **dict.fromkeys(FLOAT_OPS, "float32")}
    return {node.name.removeprefix(FUSED): kinds[node.op_type] for node in nodes if node.op_type in kinds}


def read_origin(text: str, path: object) -> tuple[dict[str, Any], RecipeRecord]:
    """What a file built for a CPU says it was made from.

    Args:
        text: What its metadata hold under `METADATA_KEY`.
        path: Named in the error.

    Returns:
        `edge_mrcnn`, `target`, `precision` and `onnx_sha256` by name, and the recipe.

    Raises:
        ExportError: The text is damaged.
    """
    try:
        origin = json.loads(text)
        plain = {name: str(origin[name]) for name in ("edge_mrcnn", "target", "precision", "onnx_sha256")}
        return plain, RecipeRecord.from_fields(origin["recipe"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ExportError(
            f"the metadata of {path} that say what it was built from are damaged ({error}); build it again: "
            "edge-mrcnn build model.onnx --target cpu --precision int8"
        ) from error


def _find_realised(path: Path, layers: Sequence[LayerPrecision]) -> tuple[LayerInfo, ...]:
    realised = read_runtime_graph(path)
    return tuple(
        LayerInfo(layer.name, layer.op, layer.precision, realised.get(layer.name), layer.macs) for layer in layers
    )


def _check_realised(layers: Sequence[LayerInfo]) -> None:
    """Check that ONNX Runtime computes in integers what it was asked to, and say which layers it does not."""
    if all(layer.realised != "int8" for layer in layers):
        asked = sum(layer.requested == "int8" for layer in layers)
        raise EngineError(
            f"int8 was asked for, but ONNX Runtime computes none of the {asked} int8 layers in integers on this CPU; "
            "model.onnx in float32 runs faster here, or a newer onnxruntime may have the kernels"
        )
    check_realised(layers, by="ONNX Runtime", instead="run model.onnx as it is")
    if wider := find_wider(layers):
        _log.warning(
            "ONNX Runtime computes %d layers in float32 though int8 was asked for: %s",
            len(wider),
            ", ".join(layer.name for layer in wider),
        )


def _note_origin(prepared: PreparedModel) -> None:
    """Write into the file what it was made from, so that it tells so without its sidecar too."""
    origin = {
        "edge_mrcnn": edge_mrcnn.__version__,
        "target": CPU,
        "precision": "int8",
        "onnx_sha256": prepared.onnx_sha256,
        "recipe": dataclasses.asdict(prepared.record),
    }
    entry = prepared.model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(origin)


def _describe(
    prepared: PreparedModel, options: BuildOptions, layers: tuple[LayerInfo, ...], sha256: str
) -> EngineSidecar:
    import onnxruntime

    version = str(onnxruntime.__version__)
    graph = prepared.model.graph
    weights = {weight.name for weight in graph.initializer}
    return EngineSidecar(
        edge_mrcnn=edge_mrcnn.__version__,
        flavour=CPU,
        tensorrt=version,
        target=CPU,
        device=None,
        capability=None,
        precision=options.precision,
        batch=parse_batch(options.batch),
        spec=prepared.spec,
        inputs=tuple(describe_value(value) for value in graph.input if value.name not in weights),
        outputs=tuple(describe_value(value) for value in graph.output),
        layers=layers,
        onnx_sha256=prepared.onnx_sha256,
        engine_sha256=sha256,
        plugins_sha256=plugins_hash(),
        build_key=hashlib.sha256(f"{prepared.onnx_sha256} {sha256} onnxruntime {version}".encode()).hexdigest(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        recipe=prepared.record,
        requested=requested_table(prepared.layers),
        realised=tabulate((layer.realised or UNKNOWN, layer.macs or 0) for layer in layers),
    )
