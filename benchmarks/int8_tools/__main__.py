"""Compare INT8 by this project with ONNX Runtime's quantize_static and NVIDIA ModelOpt, on the same footing.

    python -m benchmarks.int8_tools [--data data/val1000] [--limit 300] [--modelopt-python VENV/bin/python]

The same FP32 model, the same 128 letterboxed calibration pictures, each tool in a process of its own; what they make
goes to one evaluator and to TensorRT-RTX's builder. Models for TensorRT are evaluated with its rounding emulated in
ONNX Runtime (INT8 by their own Q/DQ nodes, float16 elsewhere); models for ONNX Runtime with its integer kernels.
ModelOpt wants an environment of its own: `pip install 'nvidia-modelopt[onnx]==0.47.0'` there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.int8_tools.process import ROOT, Row, run_step
from benchmarks.int8_tools.subjects import SUBJECTS, Subject
from benchmarks.int8_tools.table import markdown
from edge_mrcnn.compiler.placement import sensitive_nodes
from edge_mrcnn.compiler.preparation import load_model
from edge_mrcnn.evaluation.machine import describe_machine
from edge_mrcnn.gpu import tensorrt_api
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources.pictures import read_picture
from edge_mrcnn.spec import ModelSpec

RESULTS = ROOT / "benchmarks" / "results" / "int8_tools.json"
MODEL = ROOT / "samples" / "tabletop" / "model.onnx"
CALIBRATION = ROOT / "calibration" / "tabletop"
VALIDATION = ROOT / "samples" / "tabletop" / "val"


def prepare(folder: Path, calibration: Path) -> Row:
    """What every tool is given: the model, the pictures as the network takes them, the layers not to quantise."""
    model = load_model(MODEL)
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props}, MODEL)
    paths = sorted((calibration / "images").iterdir())
    images, image_hw, _ = letterbox_batch([read_picture(path) for path in paths], spec.input_hw)
    np.save(folder / "images.npy", images)
    np.save(folder / "image_hw.npy", image_hw)
    return {
        "model": str(MODEL),
        "calibration": str(calibration / "images"),
        "images": str(folder / "images.npy"),
        "image_hw": str(folder / "image_hw.npy"),
        "exclude": [node.name for node in sensitive_nodes(model)],
        "pictures": len(paths),
    }


def quantise_all(subjects: Sequence[Subject], common: Row, folder: Path, modelopt: Path | None) -> list[Row]:
    """Run the tools one after the other; a row each. What lies in the folder already is taken as it is."""
    rows: list[Row] = []
    for subject in subjects:
        base = folder / re.sub(r"\W+", "-", subject.name)
        row: Row = {**dataclasses.asdict(subject), "path": f"{base}.onnx", "ranges": f"{base}.ranges.json"}
        record = base.with_suffix(".row.json")
        if record.exists():
            row = json.loads(record.read_text(encoding="utf-8"))
        elif subject.tool == "modelopt" and modelopt is None:
            row["error"] = "skipped: there is no ModelOpt; give its environment's Python with --modelopt-python"
        else:
            row["pictures"] = subject.pictures or common["pictures"]
            job = {**common, **row, "exclude": common["exclude"] if subject.exclude else []}
            row |= run_step(
                "benchmarks.int8_tools.quantise", job, str(modelopt) if subject.tool == "modelopt" else sys.executable
            )
            record.write_text(json.dumps(row), encoding="utf-8")
        print(f"{subject.name:64} {row.get('error') or str(row['seconds']) + ' s'}"[:200], flush=True)
        rows.append(row)
    return rows


def build_all(rows: Sequence[Row]) -> None:
    """Ask TensorRT-RTX about each model that there is."""
    with tempfile.TemporaryDirectory() as libraries:
        tensorrt_api.link_libraries("rtx", Path(libraries))
        for row in rows:
            if "error" not in row:
                job = {"path": row["path"], "reference": str(MODEL)}
                row["tensorrt"] = run_step(
                    "benchmarks.int8_tools.engine", job, environment={"LD_LIBRARY_PATH": libraries}, limit_s=600
                )


def measure_all(rows: list[Row], options: argparse.Namespace) -> Row:
    """Evaluate and time the models; gives the head of the results."""
    given = ("path", "tool", "dialect", "ranges")
    made = {row["name"]: {key: row[key] for key in given} for row in rows if "error" not in row}
    job = {
        "reference": str(MODEL),
        "models": made,
        "data": str(options.data / "annotations.json"),
        "limit": options.limit,
        "threads": options.threads,
        "runs": options.runs,
    }
    found = run_step("benchmarks.int8_tools.judge", job, limit_s=6 * 3600)
    if "error" in found:
        raise SystemExit(f"the models could not be evaluated: {found['error']}")
    for row in rows:
        row |= found["models"].get(row["name"], {})
    rows.insert(0, {"name": "FP32", **found["models"]["FP32"]})
    return {"pictures": found["pictures"], "data": options.data.name, "threads": options.threads}


def modelopt_versions(python: Path | None) -> str | None:
    """Versions that matter in ModelOpt's environment."""
    if python is None:
        return None
    code = "import modelopt, onnxruntime; print(modelopt.__version__, 'with ONNX Runtime', onnxruntime.__version__)"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=VALIDATION, help="folder with annotations.json and images")
    parser.add_argument("--limit", type=int, help="first so many pictures of it")
    parser.add_argument("--calibration", type=Path, default=CALIBRATION)
    parser.add_argument("--only", default="", metavar="NAME", help="subjects whose name begins so")
    parser.add_argument("--modelopt-python", type=Path, help="python of an environment with nvidia-modelopt[onnx]")
    parser.add_argument("--folder", type=Path, help="keep what the tools made here, and take up what is there")
    parser.add_argument("--threads", type=int, default=1, help="of evaluation and timing; 0: all cores")
    parser.add_argument("--runs", type=int, default=20, help="rounds of timing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    modelopt = options.modelopt_python if options.modelopt_python and options.modelopt_python.exists() else None
    subjects = [subject for subject in SUBJECTS if subject.name.startswith(options.only)]
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        rows = quantise_all(subjects, prepare(Path(name), options.calibration), folder, modelopt)
        build_all(rows)
        head = measure_all(rows, options)
    for row in rows:  # paths of a folder that is gone
        for key in ("path", "ranges"):
            row.pop(key, None)
    head |= {"machine": dataclasses.asdict(describe_machine()), "modelopt": modelopt_versions(modelopt)}
    options.output.write_text(json.dumps({**head, "subjects": rows}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(markdown(rows)))


if __name__ == "__main__":
    main()
