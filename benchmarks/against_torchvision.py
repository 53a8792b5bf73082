"""Time exported models against torchvision: eager, and its legacy ONNX export in ONNX Runtime.

    python benchmarks/against_torchvision.py [--cases resnet50-13 ...] [--runs 10] [--threads 0]

Every case has seeded random weights whose scores are spread out, the same in all subjects, on the same pictures. Writes
`benchmarks/results/against_torchvision.json` and prints tables: times, ratios round by round, and where the time goes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_mrcnn import Detector
from edge_mrcnn.evaluation.bench import (
    BenchOptions,
    Comparison,
    DetectorSubject,
    Picture,
    compare,
    sample_pictures,
)
from edge_mrcnn.evaluation.machine import usable_cores
from edge_mrcnn.evaluation.profile import Profile, network_feeds, profile_onnx
from edge_mrcnn.training.baselines import raw_torchvision_onnx, torchvision_eager
from edge_mrcnn.training.checkpoint import save_checkpoint
from edge_mrcnn.training.export import ExportOptions, export_model
from edge_mrcnn.training.random_weights import random_model

RESULTS = Path(__file__).parent / "results" / "against_torchvision.json"
CLASSES = 7
TARGET = 0.9
"""Ours may take at most so much of the time of torchvision's raw ONNX."""


@dataclass(frozen=True)
class Case:
    """A network at a size; the background's logit sets how many objects random weights find."""

    model: str
    hw: tuple[int, int]
    background: float


CASES = {
    "resnet50-13": Case("maskrcnn_resnet50_fpn", (480, 640), 10.5),
    "resnet50-100": Case("maskrcnn_resnet50_fpn", (480, 640), 0.0),
    "edge-13": Case("maskrcnn_edge", (320, 416), 7.7),
    "edge-100": Case("maskrcnn_edge", (320, 416), 0.0),
}


def measure(case: Case, options: BenchOptions, profiled: int) -> dict[str, Any]:
    """Compare and profile one case; the result is JSON."""
    pictures = sample_pictures(case.hw)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, ours, raw = folder / "weights.pth", folder / "ours.onnx", folder / "raw.onnx"
        model = random_model(case.model, pictures, num_classes=CLASSES, background=case.background)
        save_checkpoint(weights, model, model_name=case.model)
        del model
        size = f"{case.hw[0]}x{case.hw[1]}"
        export_model(case.model, ExportOptions(weights=str(weights), num_classes=CLASSES, size=size), ours)
        found = run_comparison(case, weights, ours, raw, pictures, options)
        print("\n".join(found.lines()))
        print(verdict(found))
        profiles = profile_both(ours, raw, pictures[0], options.threads, profiled) if profiled else []
    return {
        "case": dataclasses.asdict(case),
        "comparison": dataclasses.asdict(found),
        "target": TARGET,
        "verdict": verdict(found),
        "profiles": [dataclasses.asdict(profile) for profile in profiles],
    }


def run_comparison(
    case: Case, weights: Path, ours: Path, raw: Path, pictures: Sequence[Picture], options: BenchOptions
) -> Comparison:
    arguments = (case.model, weights, case.hw)
    threads = options.threads
    with Detector(ours, threshold=None, threads=threads) as detector:
        return compare(
            DetectorSubject(detector, threads=threads, name="edge_mrcnn"),
            raw_torchvision_onnx(*arguments, num_classes=CLASSES, threads=threads),
            raw_torchvision_onnx(*arguments, num_classes=CLASSES, threads=threads, paste_masks=False, output=raw),
            torchvision_eager(*arguments, num_classes=CLASSES, threads=threads),
            pictures=pictures,
            options=options,
        )


def profile_both(ours: Path, raw: Path, picture: Picture, threads: int, runs: int) -> list[Profile]:
    image = np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32) / 255
    profiles = []
    for name, path, feeds in (
        ("edge_mrcnn", ours, network_feeds(picture)),
        ("torchvision ONNX, network only", raw, {"image": image}),
    ):
        found = profile_onnx(path, feeds, threads=threads, runs=runs)
        profiles.append(dataclasses.replace(found, model=name))
        print("\n" + "\n".join(profiles[-1].lines()))
    return profiles


def verdict(found: Comparison) -> str:
    pasted, network = found.ratios[0].total, found.ratios[1].network
    assert network is not None
    words = [
        f"{'reached' if ratio <= TARGET else 'missed'} at {ratio:.2f} {what}"
        for ratio, what in ((network, "for the network alone"), (pasted, "with full-size masks"))
    ]
    return f"target of {TARGET} of raw torchvision ONNX: {'; '.join(words)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--profile-runs", type=int, default=3, help="0: no profile")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(arguments.threads or usable_cores())
    options = BenchOptions(arguments.runs, arguments.warmup, arguments.threads)
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for name in arguments.cases:
        print(f"\n== {name}")
        results[name] = measure(CASES[name], options, arguments.profile_runs)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
