"""The step that measures: average precision, share of INT8 and speed of what every tool made, by one evaluator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from benchmarks.int8_tools.process import Row, serve
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.precision import int8_share, layer_precisions, requested_table
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.evaluation.bench import BenchOptions, DetectorSubject, compare, sample_pictures
from edge_mrcnn.evaluation.bootstrap import Matches, ap_drops
from edge_mrcnn.evaluation.coco import average_precision, run_cocoeval, to_results
from edge_mrcnn.evaluation.dataset import LabelledSet
from edge_mrcnn.evaluation.emulated_runner import EmulatedRunner
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.spec import ModelSpec


def judge(job: Row) -> Row:
    """Evaluate models and time them in turn.

    Args:
        job: `reference`, the FP32 model; `models`: by name `path`, `tool`, `dialect` and `ranges`; `data`, `limit`,
            `threads`, `runs`.

    Returns:
        `pictures`; by name in `models` what was found, the reference under `FP32`.
    """
    source = onnx.load(job["reference"])
    reference = _Reference(Path(job["reference"]), source, job)
    found = {"FP32": reference.row}
    for name, model in job["models"].items():
        try:
            found[name] = reference.measure(model)
        except Exception as error:  # a model that does not run is a finding
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    runnable = {name: job["models"][name]["path"] for name in found if _is_integer(name, job, found[name])}
    for name, ratio in _time_in_turn(job, runnable).items():
        found[name]["speed_up"] = ratio
    return {"pictures": len(reference.labelled.paths), "models": found}


class _Reference:
    """The FP32 model, run once; the others are held against it."""

    def __init__(self, path: Path, source: onnx.ModelProto, job: Row) -> None:
        self.path, self.source, self.threads = path, source, job["threads"]
        self.spec = ModelSpec.from_metadata({entry.key: entry.value for entry in source.metadata_props}, path)
        self.labelled = LabelledSet.read(Path(job["data"]), self.spec.class_names, "equal", job["limit"])
        with OrtRunner(path, self.threads) as runner:
            self.row, self.matches = self._evaluate(runner)
        self.row["size"] = path.stat().st_size

    def measure(self, made: Row) -> Row:
        """Average precision, drop with its interval, and share of INT8 of a tool's model."""
        path = Path(made["path"])
        model = self.adopt(onnx.load(path))
        with self._open(path, model, made) as runner:
            row, matches = self._evaluate(runner)
        (drop,) = ap_drops(self.matches, [matches])
        return {
            **row,
            "size": path.stat().st_size,
            "backend": runner.backend,
            "drop": dataclasses.asdict(drop),
            **self._count_layers(model),
        }

    def adopt(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model with our spec, which ModelOpt drops."""
        return adopt_metadata(model, self.source)

    def _open(self, path: Path, model: onnx.ModelProto, made: Row) -> OrtRunner:
        if made["dialect"] == "ort":
            return OrtRunner(path, self.threads, content=model.SerializeToString())
        if made["tool"] == "edge_mrcnn":  # its file is for TensorRT already: no function bodies, float16
            recipe = Recipe("int8", Ranges.load(Path(made["ranges"])))
            return EmulatedRunner(self.path, recipe, self.threads, model=self.source)
        return EmulatedRunner(path, Recipe("int8"), self.threads, model=model)

    def _count_layers(self, model: onnx.ModelProto) -> Row:
        """Weighted layers and those in INT8; nothing where the boxes' arithmetic was inlined and shapes are lost."""
        try:
            layers = layer_precisions(model, self.spec)
        except ValueError:
            return {}
        quantised = sum(layer.precision == "int8" for layer in layers)
        return {"layers": len(layers), "int8_layers": quantised, "int8_macs": int8_share(requested_table(layers))}

    def _evaluate(self, runner: OrtRunner) -> tuple[Row, Mapping[Any, Matches]]:
        detector = Detector(runner, threshold=None)
        results: list[dict[str, Any]] = []
        for image, frame in self.labelled.frames():
            results += to_results(detector(frame), image["id"], self.labelled.categories)
        summary = average_precision(self.labelled.truth, results)
        matches = {kind: Matches.of(found) for kind, found in run_cocoeval(self.labelled.truth, results).items()}
        return {"box_ap": summary.box.ap, "mask_ap": summary.mask.ap if summary.mask else None}, matches


def adopt_metadata(model: onnx.ModelProto, source: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with the entries of the source's metadata that it lacks."""
    adopted = onnx.ModelProto()
    adopted.CopyFrom(model)
    present = {entry.key for entry in model.metadata_props}
    adopted.metadata_props.extend(entry for entry in source.metadata_props if entry.key not in present)
    return adopted


def _is_integer(name: str, job: Row, row: Row) -> bool:
    return name in job["models"] and job["models"][name]["dialect"] == "ort" and "error" not in row


def _time_in_turn(job: Row, models: Mapping[str, str]) -> dict[str, float]:
    """Time of the FP32 network divided by each model's: medians of rounds in turn."""
    if not models:
        return {}
    subjects = []
    for name, path in {"FP32": job["reference"], **models}.items():
        detector = Detector(path, threshold=None, threads=job["threads"])
        subjects.append(DetectorSubject(detector, threads=job["threads"], name=name))
    pictures = sample_pictures(subjects[0].detector.spec.input_hw)
    compared = compare(*subjects, pictures=pictures, options=BenchOptions(job["runs"], 3, job["threads"]))
    return {ratio.rival: ratio.network for ratio in compared.ratios if ratio.network is not None}


if __name__ == "__main__":
    serve(judge)
