"""What FP16 and INT8 cost the bundled model, on pictures that neither training nor calibration saw.

    python -m edge_mrcnn.training.tabletop --seed 7005 --images 2000 --out data/val2000
    python benchmarks/int8_accuracy.py data/val2000/annotations.json

Writes benchmarks/results/int8_accuracy.json: points of AP lost against FP32 with paired-bootstrap intervals. FP16 and
INT8 of TensorRT are emulated; INT8 for a CPU is what ONNX Runtime computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from edge_mrcnn.compiler.calibration.ranges import Method, Ranges
from edge_mrcnn.compiler.preparation import load_model
from edge_mrcnn.compiler.recipe import Dialect, Recipe
from edge_mrcnn.evaluation.drops import DropMeter
from edge_mrcnn.evaluation.machine import describe_machine
from edge_mrcnn.files import write_text

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "samples" / "tabletop" / "model.onnx"
RANGES = ROOT / "calibration" / "tabletop" / "ranges.json"
RESULT = ROOT / "benchmarks" / "results" / "int8_accuracy.json"

DIALECTS: tuple[Dialect, ...] = ("tensorrt", "ort")
METHODS: tuple[Method, ...] = ("entropy", "mse")
KEPT = (r"^backbone\.body\.stem\.", r"^backbone\.body\.stride4\.0\.")
"""The two groups that cost most by `edge-mrcnn sensitivity`: 5 % of the work."""


def recipes(ranges: Ranges) -> Iterator[tuple[str, Recipe]]:
    yield "fp16", Recipe("fp16")
    for dialect in DIALECTS:
        for method in METHODS:
            yield f"int8 {dialect}, {method}", Recipe("int8", ranges.with_method(method), dialect=dialect)
        kept = Recipe("int8", ranges, keep_fp16=KEPT, dialect=dialect)
        yield f"int8 {dialect}, {ranges.method}, stem and stride4.0 kept", kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="COCO annotation file")
    parser.add_argument("--limit", type=int, help="take the first so many pictures only")
    options = parser.parse_args()
    meter = DropMeter(MODEL, load_model(MODEL), options.data, options.limit)
    rows = []
    print(f"{meter.pictures} pictures of {options.data}; points of AP lost against FP32, 95 % interval")
    for name, recipe in recipes(Ranges.load(RANGES)):
        drop = meter.measure(recipe)
        rows.append({"recipe": name, "backend": meter.backend, **dataclasses.asdict(drop)})
        sides = [f"{one.value:6.2f} [{one.low:5.2f}, {one.high:5.2f}]" for one in (drop.box, drop.mask) if one]
        print(f"{name:48} {'   '.join(sides)}   {meter.backend}", flush=True)
    found = {"data": str(options.data), "pictures": meter.pictures, "rows": rows}
    write_text(RESULT, json.dumps({**found, "machine": dataclasses.asdict(describe_machine())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
