"""What calibration costs beside plain inference: time, in turn on the same pictures, and peak memory.

    python benchmarks/calibration_cost.py [--cases tabletop resnet50] [--pictures 100] [--turns 10] [--threads 0]

`tabletop` is the bundled model at 320x416. `resnet50` has seeded random weights and stands at 800x1088; it is exported
first, unless `--resnet50 FILE` names it. The ratio is of sums over pictures on which the plain network and calibration
take turns, preprocessing included; CPU time, which other programs disturb less, is given beside it. The memory is the
peak of a process that does nothing but calibrate on all pictures. Writes `benchmarks/results/calibration_cost.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "calibration_cost.json"
CASES = ("tabletop", "resnet50")
RESNET50_HW = (800, 1088)
LIMIT_RATIO, LIMIT_BYTES = 1.3, 2e9
"""What calibration may cost at most, with 100 pictures through resnet50. The small network pays more for its heads."""


def export_resnet50(path: Path) -> None:
    from edge_mrcnn.evaluation.bench import sample_pictures
    from edge_mrcnn.training.checkpoint import save_checkpoint
    from edge_mrcnn.training.export import ExportOptions, export_model
    from edge_mrcnn.training.random_weights import random_model

    name, weights = "maskrcnn_resnet50_fpn", path.with_name("weights.pth")
    # finds about a dozen objects: with more, the plain network would take longer
    model = random_model(name, sample_pictures(RESNET50_HW), num_classes=7, background=10.5)
    save_checkpoint(weights, model, model_name=name)
    size = f"{RESNET50_HW[0]}x{RESNET50_HW[1]}"
    export_model(name, ExportOptions(weights=str(weights), num_classes=7, size=size), path)


def draw_pictures(folder: Path, count: int) -> None:
    from edge_mrcnn.evaluation.bench import sample_pictures

    for index in range(count):
        (picture,) = sample_pictures(RESNET50_HW, 1, seed=index)
        cv2.imwrite(str(folder / f"{index:03}.jpg"), picture[..., ::-1])


def take_turns(model: Path, data: Path, turns: int, threads: int) -> dict[str, Any]:
    """Times of the plain network and of calibration, picture by picture; the first picture warms up."""
    from edge_mrcnn.compiler.calibration.census import Census
    from edge_mrcnn.compiler.calibration.measure import Measurement
    from edge_mrcnn.compiler.calibration.pictures import CalibrationPictures
    from edge_mrcnn.compiler.preparation import load_model
    from edge_mrcnn.runtime.preprocess import letterbox_batch
    from edge_mrcnn.runtime.runners import OrtRunner
    from edge_mrcnn.runtime.sources.pictures import read_picture

    plain: list[tuple[float, float]] = []
    calibrating: list[tuple[float, float]] = []
    found: list[int] = []
    # Both without spinning threads: whoever waits would take the other one's time.
    with (
        OrtRunner(model, threads, config={"session.intra_op.allow_spinning": "0"}) as runner,
        Measurement(load_model(model), model, threads) as measurement,
        CalibrationPictures([data], runner.spec.input_hw, limit=turns + 1) as pictures,
    ):
        census, shots = Census(), iter(pictures)

        def infer(path: Path) -> None:
            images, image_hw, _ = letterbox_batch([read_picture(path)], runner.spec.input_hw)
            found.append(int(runner.infer({"images": images, "image_hw": image_hw})["num_detections"][0]))

        def calibrate_one() -> None:
            shot = next(shots)
            census.add(shot, measurement.add(shot))
            shot.sha256()

        for path in sorted(data.iterdir())[: turns + 1]:
            plain.append(timed(lambda path=path: infer(path)))  # type: ignore[misc]
            calibrating.append(timed(calibrate_one))
        start = time.perf_counter(), time.process_time()
        measurement.ranges(99.99)
        finish = time.perf_counter() - start[0], time.process_time() - start[1]
        tensors = len(measurement.tensors)
    sums = [np.sum(times[1:], axis=0) for times in (plain, calibrating)]
    return {
        "turns": turns,
        "tensors": tensors,
        "detections": float(np.mean(found[1:])),
        "plain_s": round(float(sums[0][0]) / turns, 4),
        "calibrating_s": round(float(sums[1][0]) / turns, 4),
        "ratio": round(float(sums[1][0] / sums[0][0]), 3),
        "cpu_ratio": round(float(sums[1][1] / sums[0][1]), 3),
        "ranges_s": round(finish[0], 3),
    }


def timed(action: Callable[[], None]) -> tuple[float, float]:
    """Wall clock and CPU time in seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def calibrate_alone(model: Path, data: Path, threads: int, count: int) -> dict[str, Any]:
    """Calibrate on all pictures; to be run in a process of its own."""
    from edge_mrcnn.compiler.calibration.calibrate import CalibrateOptions, calibrate

    start = time.perf_counter()
    ranges = calibrate(model, [data], CalibrateOptions(threads=threads, limit=count, allow_few=True))
    return {
        "pictures": len(ranges.pictures),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_process(step: str, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "--step", step, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, data = ROOT / "samples" / "tabletop" / "model.onnx", ROOT / "calibration" / "tabletop" / "images"
        if case == "resnet50":
            model, data = options.resnet50 or folder / "model.onnx", folder / "pictures"
            if options.resnet50 is None:
                in_process("export", model)
            data.mkdir()
            draw_pictures(data, options.pictures)
        turns = in_process("turns", model, data, options.turns, options.threads)
        alone = in_process("alone", model, data, options.threads, options.pictures)
    result = {"case": case, **turns, **alone}
    met = result["ratio"] <= LIMIT_RATIO and result["peak_bytes"] < LIMIT_BYTES
    print(
        f"{case}: {result['ratio']:.2f} times plain inference ({result['cpu_ratio']:.2f} in CPU time), "
        f"{result['peak_bytes'] / 1e9:.2f} GB at most with {result['pictures']} pictures "
        f"({result['seconds']:.0f} s)"
        + (f": {'within' if met else 'beyond'} {LIMIT_RATIO} and {LIMIT_BYTES / 1e9:.0f} GB" * (case == "resnet50"))
    )
    return result


def run_step(step: str, arguments: list[str]) -> None:
    if step == "export":
        export_resnet50(Path(arguments[0]))
        print("{}")
        return
    model, data, first, second = Path(arguments[0]), Path(arguments[1]), int(arguments[2]), int(arguments[3])
    print(json.dumps((take_turns if step == "turns" else calibrate_alone)(model, data, first, second)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--resnet50", type=Path)
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step[0], options.step[1:])
        return
    from edge_mrcnn.evaluation.machine import describe_machine

    before = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    results = [measure(case, options) for case in options.cases]
    kept = [result for result in before if result["case"] not in options.cases]
    machine = describe_machine()
    text = json.dumps({"machine": vars(machine), "results": [*kept, *results]}, indent=2)
    RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
