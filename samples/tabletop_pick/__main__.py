"""Picks things off a simulated table. `python -m samples.tabletop_pick --scenes 3 --out demo_pick`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

from edge_mrcnn import Detector
from edge_mrcnn.training.tabletop.gl import backend

from .measure import Aim, Try, aim, summary
from .pick import Choice, choose, pick, plan
from .world import make_cell

if TYPE_CHECKING:
    from .video import Recorder

_MODEL = Path(__file__).parents[1] / "tabletop" / "model.onnx"


@dataclass(frozen=True)
class Options:
    """Picks one thing in each of many simulated scenes, and says how often that went well."""

    scenes: int = 3
    """Number of scenes."""
    seed: int = 50000
    """Of the first scene; the others follow. Nothing was trained or tuned on seeds from 50000 on."""
    out: Path | None = None
    """Folder for a video of the picks, `pick.mp4`, and a still of the first, `pick.jpg`."""
    json: Path | None = None
    """File for the figures."""
    model: Path = _MODEL
    """Detector: an ONNX file or an engine."""
    anything: bool = False
    """Go for a random thing among those that the robot thinks it can take, not for the surest."""
    threads: int = 0
    """CPU threads of the detector; 0 for one per core."""


def run_scene(
    seed: int, detector: Detector, recorder: Recorder | None = None, anything: bool = False
) -> tuple[Try, list[Aim]]:
    """One scene: what became of it, and how all grasp points were placed."""
    cell = make_cell(seed)
    detections = detector(cell.frame)
    if not len(detections):
        return Try(seed, "nothing detected"), []
    grasps, masks = plan(cell, detections), detections.masks()
    aims = [aim(cell, masks[row], int(detections.class_id[row]), grasp) for row, grasp in enumerate(grasps)]
    placed = [one for one, grasp in zip(aims, grasps, strict=True) if np.isfinite(grasp.point_m).all()]
    chosen: Choice | None = choose(cell, detections, grasps, np.random.default_rng([seed, 1]) if anything else None)
    if chosen is None:
        return Try(seed, "nothing to grasp: " + (grasps[0].refusal or "off the table")), placed
    truth = aims[chosen.row]
    name = detector.class_names[int(detections.class_id[chosen.row])]
    if recorder is not None:
        recorder.begin(cell, detections, detector.class_names, chosen)
    outcome = "wrong object"
    if truth.body and truth.on_object:
        outcome = pick(cell, chosen.grasp, truth.body, recorder.step if recorder else None)
    if recorder is not None:
        recorder.end(name, outcome)
    off = round(1000 * truth.off_m, 2) if truth.body else None
    return Try(seed, outcome, name, truth.on_object, truth.class_right, off), placed


def main(options: Options) -> None:
    """Runs the scenes one after the other and prints a line for each."""
    recorder = None
    if options.out is not None:
        from .video import Recorder  # PyAV only where a video is wanted

        recorder = Recorder(options.out)
    tries: list[Try] = []
    every: list[Aim] = []
    with Detector(options.model, threads=options.threads) as detector:
        for seed in range(options.seed, options.seed + options.scenes):
            done, aims = run_scene(seed, detector, recorder, options.anything)
            print(f"{seed}  {done.target or '-':8s} {done.outcome}", flush=True)
            tries.append(done)
            every += aims
    if recorder is not None:
        recorder.close()
    figures = summary(tries, every)
    if options.json is not None:
        flags = f"--scenes {options.scenes} --seed {options.seed}" + " --anything" * options.anything
        command = f"python -m samples.tabletop_pick {flags} --json FILE"
        made = {"command": command, "mujoco": version("mujoco"), "renderer": backend(), "detector": options.model.name}
        options.json.write_text(json.dumps({**made, **figures}, indent=1) + "\n", encoding="utf-8")
    del figures["tries"]
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
