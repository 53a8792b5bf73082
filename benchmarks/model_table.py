"""One table of all models: parameters, work, size, nodes, CPU time, and what of each is tested.

    python benchmarks/model_table.py                 what the networks are: minutes, whatever else the machine does
    python benchmarks/model_table.py --only-times    what they take on this machine, which should do nothing else
    python benchmarks/model_table.py --markdown      the README's table, from `benchmarks/results/model_table.json`

Work is counted in the exported graph: multiply-accumulates of each Conv, ConvTranspose, Gemm and MatMul with weights
for one picture on the model's default canvas, with all P proposals and all D detections that the file allows, as
TensorRT runs it. On a CPU masks and keypoints are computed for as many things as there are. Times are ONNX Runtime's
for the network alone, with seeded random weights whose scores are spread out, at the default number of proposals and a
limit of 20 detections, which is reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edge_mrcnn import Detector
from edge_mrcnn.compiler.precision import layer_precisions
from edge_mrcnn.evaluation.bench import BenchOptions, DetectorSubject, bench, sample_pictures
from edge_mrcnn.evaluation.machine import describe_machine
from edge_mrcnn.spec import ModelSpec
from edge_mrcnn.training.checkpoint import save_checkpoint
from edge_mrcnn.training.export import ExportOptions, export_model
from edge_mrcnn.training.random_weights import random_model
from edge_mrcnn.training.zoo import MODELS, build_model

RESULTS = Path(__file__).parent / "results" / "model_table.json"

DETECTIONS = 20
"""Timed with so many."""

SMALL = {(800, 1088): (480, 640), (320, 416): (192, 256)}
"""A smaller canvas to time each default canvas with."""

STAGES = {"backbone": "picture", "rpn_head": "picture", "box_head": "proposals", "box_predictor": "proposals"}
"""What the work of a part grows with, by the first part of its layers' names; the other parts' with detections."""

TESTED = (
    ("parity", "tests/training/test_parity.py: ONNX Runtime against torchvision's own forward"),
    ("FP32", "tests/compiler/test_zoo_engines.py: a TensorRT-RTX engine"),
    ("FP16", "tests/compiler/test_zoo_engines.py: a TensorRT-RTX engine"),
    ("INT8", "tests/compiler/test_zoo_engines.py: calibrated, a TensorRT-RTX engine"),
    ("INT8 CPU", "tests/compiler/test_zoo_engines.py: calibrated, a model for ONNX Runtime's integer kernels"),
)
"""What is tested of every model on every commit, and where; a test holds the lists of those files against the zoo."""

NOT_TESTED = dict.fromkeys(("maskrcnn_resnet101_fpn", "maskrcnn_resnext101_fpn", "maskrcnn_resnet101_c4"), ("FP32",))
"""What of `TESTED` some models are left out of, to save time: their shallower kin have the same layers."""

HEADER = ("model", "canvas", "parameters", "P / D", "MACs", "ONNX", "nodes", "CPU time", "smaller", "tested")


@dataclass(frozen=True)
class Facts:
    """What a network is, whatever the machine.

    Attributes:
        canvas: (H, W) in pixels.
        classes: With the background.
        parameters: Numbers that are trained.
        proposals: Upper limit (P).
        detections: Upper limit (D).
        macs: Multiply-accumulates for one picture: of the `picture` alone, of all `proposals`, of all `detections`.
        bytes: Of the ONNX file.
        nodes: Of its graph; those in function bodies are not counted.
    """

    canvas: tuple[int, int]
    classes: int
    parameters: int
    proposals: int
    detections: int
    macs: Mapping[str, int]
    bytes: int
    nodes: int


def describe_model(name: str) -> Facts:
    """Export a network of the zoo with random weights and count."""
    parameters = sum(each.numel() for each in build_model(name).parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        spec = export_model(name, ExportOptions(), path)
        size, model = path.stat().st_size, onnx.load(path)
    return Facts(
        canvas=spec.input_hw,
        classes=len(spec.class_names),
        parameters=parameters,
        proposals=spec.proposals,
        detections=spec.detections,
        macs=count_macs(model, spec),
        bytes=size,
        nodes=len(model.graph.node),
    )


def count_macs(model: onnx.ModelProto, spec: ModelSpec) -> dict[str, int]:
    """Work for one picture, by what it grows with: `picture`, `proposals`, `detections`."""
    work = {"picture": 0, "proposals": 0, "detections": 0}
    for layer in layer_precisions(model, spec):
        work[STAGES.get(layer.name.partition(".")[0], "detections")] += layer.macs
    return work


def time_model(name: str, canvas: tuple[int, int], options: BenchOptions) -> dict[str, float]:
    """Median times in milliseconds of the network and of the whole way from a picture to full-size masks.

    Raises:
        RuntimeError: The random weights find fewer things than the limit.
    """
    pictures = sample_pictures(canvas, 1)
    model = random_model(name, sample_pictures(SMALL[MODELS[name].default_size], 1), background=0.0)
    with tempfile.TemporaryDirectory() as folder:
        weights, path = Path(folder) / "weights.pth", Path(folder) / "model.onnx"
        save_checkpoint(weights, model, model_name=name)
        limits = ExportOptions(weights=str(weights), size=size_text(canvas), detections=DETECTIONS)
        export_model(name, limits, path)
        with Detector(path, threshold=None, threads=options.threads) as detector:
            found = bench(DetectorSubject(detector, threads=options.threads), pictures, options)
    if found.detections != DETECTIONS:
        raise RuntimeError(f"{name} at {size_text(canvas)} found {found.detections} things instead of {DETECTIONS}")
    return {"network_ms": found.stages["infer"].p50_ms, "total_ms": found.stages["total"].p50_ms}


def markdown(results: Mapping[str, Any]) -> list[str]:
    """The README's table and what it says below."""
    lines = [_row(HEADER), _row(["---"] * 2 + ["--:"] * 7 + ["---"])]
    for name, facts in results["models"].items():
        times = results["times"].get(name, {})
        canvas = tuple(facts["canvas"])
        cells = [
            f"`{name}`",
            size_text(canvas),
            f"{facts['parameters'] / 1e6:.1f} M",
            f"{facts['proposals']} / {facts['detections']}",
            f"{sum(facts['macs'].values()) / 1e9:,.1f} G",
            f"{facts['bytes'] / 1e6:.1f} MB",
            str(facts["nodes"]),
            _time(times.get(size_text(canvas))),
            _time(times.get(size_text(SMALL[canvas])), SMALL[canvas]),
            ", ".join(results["tested"][name]),
        ]
        lines.append(_row(cells))
    return lines


def list_tests(name: str) -> tuple[str, ...]:
    """What is tested of a model, by the names in `TESTED`."""
    return tuple(what for what, _ in TESTED if what not in NOT_TESTED.get(name, ()))


def size_text(canvas: Sequence[int]) -> str:
    """A canvas as commands take it."""
    return f"{canvas[0]}x{canvas[1]}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _time(times: Mapping[str, float] | None, canvas: Sequence[int] = ()) -> str:
    where = f" at {size_text(canvas)}" if canvas else ""
    return f"{times['network_ms'] / 1e3:.2f} s{where}" if times else "not measured"


def _read() -> dict[str, Any]:
    if RESULTS.exists():
        found: dict[str, Any] = json.loads(RESULTS.read_text())
        return found
    return {"models": {}, "times": {}}


def _write(results: Mapping[str, Any]) -> None:
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _update_facts(results: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        results["models"][name] = dataclasses.asdict(describe_model(name))
        print(name, results["models"][name], flush=True)
        _write(_in_order(results))


def _update_times(results: dict[str, Any], names: Sequence[str], options: BenchOptions) -> None:
    results["timing"] = {
        "machine": dataclasses.asdict(describe_machine()),
        "options": dataclasses.asdict(options),
        "detections": DETECTIONS,
    }
    for name in names:
        canvas = MODELS[name].default_size
        sizes = (canvas, SMALL[canvas])
        results["times"][name] = {size_text(size): time_model(name, size, options) for size in sizes}
        print(name, results["times"][name], flush=True)
        _write(_in_order(results))


def _in_order(results: Mapping[str, Any]) -> dict[str, Any]:
    """With the models in the zoo's order, whichever were measured last, and what is tested of each."""
    parts = {
        part: {name: results[part][name] for name in MODELS if name in results[part]} for part in ("models", "times")
    }
    return {**results, **parts, "tested": {name: list_tests(name) for name in parts["models"]}}


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--only-times", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    results = _read()
    if arguments.markdown:
        print("\n".join(markdown(results)))
    elif arguments.only_times:
        options = BenchOptions(runs=arguments.runs, warmup=1, threads=arguments.threads)
        _update_times(results, arguments.models, options)
    else:
        _update_facts(results, arguments.models)


if __name__ == "__main__":
    main()
