"""Builds and runs engines where a TensorRT is that supports the GPU; else writes down what it answers.

An engine is compared with ONNX Runtime on the same pictures, whole frames are timed with and without CUDA graphs, and
the engine itself is asked for its layers: every reformat is a copy that the plugins' formats should have spared, and
work in more bits than asked for is speed that int8 promised. The bundled model's precisions are then set side by side.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_check.cases import Array
from benchmarks.gpu_check.isolation import ROOT, Emit, Row, Skipped
from benchmarks.gpu_check.precisions import RANGES, compare_engines, engine_row, judge_work, time_frames
from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.gpu import tensorrt_api
from edge_mrcnn.gpu.target import Flavour

SAMPLES = ROOT / "samples" / "tabletop"
TARGETS: dict[Flavour, str] = {"tensorrt": "tensorrt", "rtx": "rtx:current"}
PRECISIONS = ("fp32", "fp16", "int8")
NEEDED = ("onnx", "onnx_graphsurgeon", "onnxruntime", "cv2")
PICTURES = 8
SCORE = 0.1
"""Detections from this score on are compared: at the network's own threshold of 0.05 rounding decides."""

SAME_IOU = 0.9
LEAST_MATCHED = {"fp32": 0.98, "fp16": 0.95, "int8": 0.85}
RESNET, RESNET_HW, BUILD_LIMIT_S = "maskrcnn_resnet50_fpn", (480, 640), 90.0


def check_bundled(emit: Emit) -> None:
    """The bundled model in each precision, on its own pictures.

    Raises:
        Skipped: No TensorRT is installed, or something that building needs is not.
    """
    flavours = _require()
    from edge_mrcnn.runtime.sources.pictures import read_picture

    paths = sorted((SAMPLES / "val" / "images").glob("*.jpg"))[:PICTURES]
    pictures = [read_picture(path) for path in paths]
    for flavour in flavours:
        check_precisions(SAMPLES / "model.onnx", flavour, pictures, emit)


def check_precisions(model: Path, flavour: Flavour, pictures: Sequence[Array], emit: Emit) -> None:
    """Each precision of a network, then all of them side by side; where one is built, none may be refused."""
    name = f"{model.stem} {TARGETS[flavour]}"
    with tempfile.TemporaryDirectory() as folder:
        built = {
            precision: check_engine(model, flavour, precision, pictures, Path(folder), emit) for precision in PRECISIONS
        }
        engines = {precision: path for precision, path in built.items() if path is not None}
        if len(engines) == len(PRECISIONS):
            compare_engines(name, model, engines, pictures, emit)
        elif engines:
            refused = ", ".join(precision for precision in PRECISIONS if precision not in engines)
            emit(engine_row(name, "side by side", f"only {', '.join(engines)} could be built, not {refused}", ok=False))


def check_resnet(emit: Emit) -> None:
    """A ResNet-50 of torchvision's with random weights, exported here, in float16.

    Raises:
        Skipped: As for the bundled model, which no TensorRT may refuse either: exporting this one takes minutes.
    """
    flavours = [flavour for flavour in _require("torch", "torchvision", "onnxscript") if _builds(flavour)]
    if not flavours:
        raise Skipped("TensorRT refuses the bundled model already")
    from edge_mrcnn.evaluation.bench import sample_pictures
    from edge_mrcnn.training.checkpoint import save_checkpoint
    from edge_mrcnn.training.export import ExportOptions, export_model
    from edge_mrcnn.training.random_weights import random_model

    pictures = sample_pictures(RESNET_HW)
    with tempfile.TemporaryDirectory() as folder:
        weights, model = Path(folder, "weights.pth"), Path(folder, "resnet50.onnx")
        save_checkpoint(weights, random_model(RESNET, pictures, num_classes=7), model_name=RESNET)
        size = f"{RESNET_HW[0]}x{RESNET_HW[1]}"
        export_model(RESNET, ExportOptions(weights=str(weights), num_classes=7, size=size), model)
        for flavour in flavours:
            check_engine(model, flavour, "fp16", pictures, Path(folder), emit)


def _require(*more: str) -> list[Flavour]:
    """The TensorRTs that are installed."""
    missing = [name for name in (*NEEDED, *more) if importlib.util.find_spec(name) is None]
    if missing:
        raise Skipped(f"not installed: {', '.join(missing)}")
    found = [flavour for flavour in TARGETS if tensorrt_api.installed_version(flavour) is not None]
    if not found:
        raise Skipped("neither TensorRT nor TensorRT-RTX is installed")
    return found


def _builds(flavour: Flavour) -> bool:
    """Whether a TensorRT builds the bundled model for this GPU."""
    from edge_mrcnn.compiler.builder import build_engine

    with tempfile.TemporaryDirectory() as folder:
        try:
            build_engine(SAMPLES / "model.onnx", _options(flavour, "fp16"), Path(folder))
        except EdgeMrcnnError:
            return False
    return True


def _options(flavour: Flavour, precision: str) -> Any:
    from edge_mrcnn.compiler.builder import BuildOptions

    return BuildOptions(
        precision=precision,  # type: ignore[arg-type]
        target=TARGETS[flavour],
        ranges=RANGES if precision == "int8" else None,
        batch="1,1,4",
        cache_limit_gib=0,
        timeout_s=BUILD_LIMIT_S,
    )


def check_engine(
    model: Path, flavour: Flavour, precision: str, pictures: Sequence[Array], folder: Path, emit: Emit
) -> Path | None:
    """Build, run, compare, time and inspect one engine; a refusal is a row, and the end.

    Returns:
        The engine, in the folder given; None where it was refused.
    """
    from edge_mrcnn.compiler.builder import build_engine
    from edge_mrcnn.runtime.detector import Detector
    from edge_mrcnn.runtime.trt_runner import TrtRunner

    name = f"{model.stem} {TARGETS[flavour]} {precision}"
    with contextlib.ExitStack() as stack:
        try:
            built = build_engine(model, _options(flavour, precision), folder)
            runner = stack.enter_context(TrtRunner(built.engine))
        except EdgeMrcnnError as error:
            emit({"engine": name, "what": "refused", "detail": str(error)})
            return None
        emit(engine_row(name, "built", f"{built.size_bytes / 1e6:.1f} MB in {built.seconds:.1f} s"))
        emit(judge_work(name, precision, built.requested, built.realised))
        reference = stack.enter_context(Detector(model, threshold=None))
        found = [Detector(runner, threshold=None)(picture) for picture in pictures]
        expected = [reference(picture) for picture in pictures]
        emit(_compare(name, found, expected, LEAST_MATCHED[precision]))
        emit(engine_row(name, "layers", summarise_layers(_layers(flavour, built.engine))))
        for graphs in ("auto", "frame", "off"):
            with TrtRunner(built.engine, graphs=graphs) as timed:  # type: ignore[arg-type]
                emit(engine_row(name, f"frames, graphs {graphs}", _time_frames(Detector(timed), pictures)))
    return built.engine


def _time_frames(detector: Any, pictures: Sequence[Array]) -> str:
    (times,) = time_frames({"": detector}, pictures).values()
    p50, p95 = np.percentile(times, (50, 95))
    height, width = pictures[0].shape[:2]
    return f"p50 {p50:.2f} ms, p95 {p95:.2f} ms, pictures of {height}x{width}"


# --------------------------------------------------------------------------------------------------------- Comparison
@dataclass(frozen=True)
class Matches:
    """How detections of a picture go together with a reference's."""

    matched: int
    expected: int
    extra: int
    ious: tuple[float, ...]
    score_differences: tuple[float, ...]


def match_detections(found: Any, expected: Any) -> Matches:
    """Pair detections one to one, of the same class, by the highest IoU, best scores first.

    Args:
        found: `Detections` of the engine.
        expected: Those of the reference.
    """
    taken = np.zeros(len(found), bool)
    ious, differences = [], []
    wanted = np.flatnonzero(expected.score >= SCORE)
    for row in wanted:
        overlap = _iou(expected.xyxy[row], found.xyxy)
        overlap[taken | (found.class_id != expected.class_id[row])] = 0
        best = int(overlap.argmax()) if len(overlap) else -1
        if best >= 0 and overlap[best] >= SAME_IOU:
            taken[best] = True
            ious.append(float(overlap[best]))
            differences.append(abs(float(found.score[best] - expected.score[row])))
    extra = int(np.count_nonzero(~taken & (found.score >= 2 * SCORE)))
    return Matches(len(ious), len(wanted), extra, tuple(ious), tuple(differences))


def _iou(box: Array, others: Array) -> Array:
    corner, end = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.clip(end - corner, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    overlap: Array = common / np.maximum(areas - common, 1e-9)
    return overlap


def _compare(name: str, found: Sequence[Any], expected: Sequence[Any], least: float) -> Row:
    pairs = [match_detections(a, b) for a, b in zip(found, expected, strict=True)]
    matched, wanted, extra = (sum(getattr(pair, field) for pair in pairs) for field in ("matched", "expected", "extra"))
    ious = [iou for pair in pairs for iou in pair.ious] or [0.0]
    differences = [difference for pair in pairs for difference in pair.score_differences] or [0.0]
    detail = (
        f"{matched} of {wanted} matched at IoU {SAME_IOU}, {extra} extra, mean IoU {statistics.fmean(ious):.4f}, "
        f"score off by {max(differences):.4f} at most"
    )
    good = wanted > 0 and matched >= least * wanted and extra <= (1 - least) * wanted
    return engine_row(name, "against ONNX Runtime", detail, good)


# -------------------------------------------------------------------------------------------------------------- Layers
def _layers(flavour: Flavour, path: Path) -> list[dict[str, Any]]:
    """What the engine inspector says of each layer; the plugins are registered in this process already."""
    api = tensorrt_api.load(flavour)
    runtime = api.module.Runtime(api.make_logger(lambda severity, text: None))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(api.module.LayerInformationFormat.JSON)
    return [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]


def summarise_layers(layers: Sequence[dict[str, Any]]) -> str:
    """How many layers, which of them copy into another format, and what the plugins take and give."""
    reformats = [layer["Name"] for layer in layers if _is_reformat(layer)]
    parts = [f"{len(layers)} layers, {len(reformats)} reformats"]
    if reformats:
        parts.append(f"of: {', '.join(reformats[:6])}")
    parts += [f"{layer['Name']}: {', '.join(_formats(layer))}" for layer in layers if _is_plugin(layer)]
    return "; ".join(parts)


def _is_reformat(layer: dict[str, Any]) -> bool:
    return "reformat" in str(layer.get("LayerType", "")).lower() or "reformat" in layer["Name"].lower()


def _is_plugin(layer: dict[str, Any]) -> bool:
    return "plugin" in str(layer.get("LayerType", "")).lower() and not _is_reformat(layer)


def _formats(layer: dict[str, Any]) -> Iterator[str]:
    for side in ("Inputs", "Outputs"):
        names = [str(tensor.get("Format/Datatype", "?")) for tensor in layer.get(side, [])]
        yield f"{side.lower()} {' + '.join(dict.fromkeys(names)) or 'unknown'}"
