"""Time the INT8 model for a CPU (`--target cpu`) against the FP32 model it is made from, both in ONNX Runtime, in turn.

    python benchmarks/int8_cpu.py [--cases edge resnet50 ...] [--runs 15] [--threads 2]

`edge` is the trained model of samples/tabletop on its pictures. The others have seeded random weights, the same on both
sides: their times are those of trained ones, their boxes mean nothing. What is timed is the network alone, from the
bytes of the picture to boxes and masks. Writes `benchmarks/results/int8_cpu.json` and prints tables: times, ratios
round by round, where the time goes, and the floor: what would be left if integer arithmetic took no time at all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from edge_mrcnn import Detector
from edge_mrcnn.compiler.build_options import BuildOptions
from edge_mrcnn.compiler.builder import build_engine
from edge_mrcnn.compiler.calibration.calibrate import CalibrateOptions, calibrate
from edge_mrcnn.evaluation.bench import BenchOptions, Comparison, DetectorSubject, Picture, compare, sample_pictures
from edge_mrcnn.evaluation.profile import Profile, profile_onnx
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources.pictures import read_picture

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "int8_cpu.json"
TABLETOP = ROOT / "samples" / "tabletop"
CALIBRATION = ROOT / "calibration" / "tabletop"
CLASSES = 7
TARGET = 2.0
"""INT8 is to be at least so many times as fast as FP32."""

INTEGER_OPS = ("QLinearConv", "QGemm", "QLinearMatMul", "QLinearAdd")
"""What ONNX Runtime computes in integers."""


@dataclass(frozen=True)
class Case:
    """A network at a size; the background's logit sets how many objects random weights find."""

    model: str
    hw: tuple[int, int]
    background: float | None = None


CASES = {
    "edge": Case("maskrcnn_edge", (320, 416)),
    "resnet50": Case("maskrcnn_resnet50_fpn", (480, 640), 10.5),
    "resnet50-800": Case("maskrcnn_resnet50_fpn", (800, 1088), 10.5),
}


def measure(case: Case, options: BenchOptions, profiled: int) -> dict[str, Any]:
    """Build, compare and profile one case; the result is JSON."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        full, ranges, pictures = trained(folder) if case.background is None else random_weights(case, folder)
        built = build_engine(full, BuildOptions(target="cpu", precision="int8", ranges=ranges), folder)
        found = run_comparison(full, built.engine, pictures, options)
        print("\n".join(found.lines()))
        ratio = 1 / (found.ratios[0].network or 1.0)
        images, image_hw, _ = letterbox_batch([pictures[0]], case.hw)
        feeds = {"images": images, "image_hw": image_hw}
        profiles = [
            dataclasses.replace(profile_onnx(path, feeds, threads=options.threads, runs=profiled), model=label)
            for label, path in (("FP32", full), ("INT8", built.engine))
        ]
        result = {
            "case": dataclasses.asdict(case),
            "comparison": dataclasses.asdict(found),
            "times_as_fast": round(ratio, 3),
            "target": TARGET,
            "size_share": round(built.size_bytes / full.stat().st_size, 3),
            "floor": floor(profiles[0], profiles[1]),
            "profiles": [dataclasses.asdict(profile) for profile in profiles],
        }
    for profile in profiles:
        print("\n" + "\n".join(profile.lines()))
    print(f"\n{verdict(result)}")
    return result


def trained(folder: Path) -> tuple[Path, Path, Sequence[Picture]]:
    """The bundled model, its committed ranges (measured here where there are none) and its labelled pictures."""
    model, ranges = TABLETOP / "model.onnx", CALIBRATION / "ranges.json"
    if not ranges.exists():
        ranges = folder / "ranges.json"
        calibrate(model, [CALIBRATION / "images"]).save(ranges)
    paths = sorted((TABLETOP / "val" / "images").iterdir())[:16]
    return model, ranges, [read_picture(path) for path in paths]


def random_weights(case: Case, folder: Path) -> tuple[Path, Path, Sequence[Picture]]:
    """An exported network with seeded random weights, and ranges of a few pictures of the kind it is timed on."""
    from edge_mrcnn.training.checkpoint import save_checkpoint
    from edge_mrcnn.training.export import ExportOptions, export_model
    from edge_mrcnn.training.random_weights import random_model

    pictures = sample_pictures(case.hw)
    weights, model, ranges = folder / "weights.pth", folder / "model.onnx", folder / "ranges.json"
    network = random_model(case.model, pictures, num_classes=CLASSES, background=case.background or 0.0)
    save_checkpoint(weights, network, model_name=case.model)
    size = f"{case.hw[0]}x{case.hw[1]}"
    export_model(case.model, ExportOptions(weights=str(weights), num_classes=CLASSES, size=size), model)
    (folder / "pictures").mkdir()
    for index, picture in enumerate(pictures):
        cv2.imwrite(str(folder / "pictures" / f"{index}.png"), picture[..., ::-1])
    calibrate(model, [folder / "pictures"], CalibrateOptions(method="max", allow_few=True)).save(ranges)
    return model, ranges, pictures


def run_comparison(full: Path, integer: Path, pictures: Sequence[Picture], options: BenchOptions) -> Comparison:
    threads = options.threads
    with (
        Detector(integer, threshold=None, threads=threads) as int8,
        Detector(full, threshold=None, threads=threads) as fp32,
    ):
        subjects = [
            DetectorSubject(detector, threads=threads, name=name) for detector, name in ((int8, "INT8"), (fp32, "FP32"))
        ]
        return compare(*subjects, pictures=pictures, options=options)


def floor(full: Profile, integer: Profile) -> dict[str, float]:
    """Time in nodes, in milliseconds: of FP32, of INT8, and of that what is not integer arithmetic."""
    integers = sum(share.ms for share in integer.ops if share.name in INTEGER_OPS)
    rest = integer.total_ms - integers
    return {
        "fp32_ms": full.total_ms,
        "int8_ms": integer.total_ms,
        "not_integer_ms": round(rest, 2),
        "times_as_fast_at_most": round(full.total_ms / rest, 2),
    }


def verdict(result: dict[str, Any]) -> str:
    """What was reached, in a sentence."""
    ratio, least = result["times_as_fast"], result["floor"]
    word = "reached" if ratio >= TARGET else "missed"
    return (
        f"target of {TARGET:g} times as fast: {word} at {ratio:.2f}; the file is {100 * result['size_share']:.0f} % as "
        f"large; {least['not_integer_ms']:.1f} of {least['int8_ms']:.1f} ms in INT8's nodes are no integer arithmetic: "
        f"were the rest free, it would be {least['times_as_fast_at_most']:.1f} times as fast"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["edge", "resnet50"])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile-runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    options = BenchOptions(arguments.runs, arguments.warmup, arguments.threads)
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for name in arguments.cases:
        print(f"\n== {name}")
        results[name] = measure(CASES[name], options, arguments.profile_runs)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
