"""The precisions of a network as engines, side by side: what TensorRT made of them, what they find, how fast they are.

On a CPU int8 is emulated. Here the emulation is held against the engine itself, and with it every figure that rests on
the emulation: those of `edge-mrcnn compare`, of `sensitivity` and of a build within a budget.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu_check.cases import Array
from benchmarks.gpu_check.isolation import ROOT, Emit, Row

if TYPE_CHECKING:
    from edge_mrcnn.evaluation.comparison import Agreement, Drop
    from edge_mrcnn.sidecar import PrecisionShare

RANGES = ROOT / "calibration" / "tabletop" / "ranges.json"
VAL = ROOT / "samples" / "tabletop" / "val"
TYPES = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
FRAMES, WARM_UP = 150, 20
COMPARED = 32
"""Labelled pictures; their AP is rough, as its interval says: int8 is emulated on all of them, which takes a while."""

LEAST_AGREED = {"fp32": 0.99, "fp16": 0.98, "int8": 0.95}


def engine_row(engine: str, what: str, detail: str, ok: bool = True) -> Row:
    """One thing found out about an engine."""
    return {"engine": engine, "what": what, "ok": ok, "detail": detail}


def judge_work(
    engine: str, precision: str, asked: Sequence[PrecisionShare], realised: Sequence[PrecisionShare] | None
) -> Row:
    """Hold the work by precision that was found in an engine against what was asked for.

    A build fails where TensorRT computes in more bits; this fails also where the engine inspector was not understood.

    Args:
        engine: Its name.
        precision: Which was asked for.
        asked: The sidecar's table of the network.
        realised: Its table of the engine.
    """
    from edge_mrcnn.compiler.realised import LEAST_REALISED

    tables = [{one.precision: one.share for one in table} for table in (asked, realised or ())]
    wanted, found = (table.get(TYPES[precision], 0.0) for table in tables)
    in_engine = "nothing: not looked into" if realised is None else _list_work(realised)
    detail = f"asked for {_list_work(asked)}; realised {in_engine}"
    return engine_row(engine, "work", detail, 0 < LEAST_REALISED * wanted <= found)


def _list_work(table: Sequence[PrecisionShare]) -> str:
    return ", ".join(f"{one.precision} {one.share:.1%} in {one.layers} layers" for one in table)


def compare_engines(name: str, model: Path, engines: Mapping[str, Path], pictures: Sequence[Array], emit: Emit) -> None:
    """Compare the engines of one network with FP32, int8 with its emulation, and time them in turn.

    Args:
        name: Of network and target.
        model: The bundled one, which `RANGES` are of.
        engines: By precision, int8 among them.
        pictures: To be timed on, and to hold the emulation against.
        emit: Takes what is found.
    """
    _compare_with_fp32(name, model, engines, emit)
    agreement = _compare_with_emulation(model, engines["int8"], pictures)
    what = f"against its emulation, {len(pictures)} pictures"
    emit(engine_row(f"{name} int8", what, describe_agreement(agreement), _agrees(agreement, "int8")))
    emit(engine_row(name, "frames in turn", _time_in_turn(engines, pictures)))


def _compare_with_fp32(name: str, model: Path, engines: Mapping[str, Path], emit: Emit) -> None:
    """What `edge-mrcnn compare MODEL --with ENGINE...` says, of the emulated int8 too."""
    from edge_mrcnn.evaluation.compare import compare_precisions
    from edge_mrcnn.evaluation.compare_options import CompareOptions

    labelled = importlib.util.find_spec("pycocotools") is not None
    result = compare_precisions(
        model,
        data=VAL / "annotations.json" if labelled else None,
        frames=None if labelled else VAL / "images",
        others=list(engines.values()),
        options=CompareOptions(("fp32", "int8"), RANGES, limit=COMPARED, worst=0, runs=0),
    )
    precisions = {path.name: precision for precision, path in engines.items()}
    for one in result.results[1:]:
        assert one.agreement is not None
        precision = precisions.get(one.label, one.label)
        who = f"{name} {precision}" if one.label in precisions else f"{model.stem} {precision} emulated"
        detail = "; ".join([describe_agreement(one.agreement), *([describe_drop(one.drop)] if one.drop else [])])
        what = f"against fp32 in ONNX Runtime, {result.pictures} pictures"
        emit(engine_row(who, what, detail, _agrees(one.agreement, precision)))


def _compare_with_emulation(model: Path, engine: Path, pictures: Sequence[Array]) -> Agreement:
    from edge_mrcnn.compiler.calibration.ranges import Ranges
    from edge_mrcnn.compiler.recipe import Recipe
    from edge_mrcnn.evaluation.agreement import AgreementMeter
    from edge_mrcnn.evaluation.emulated_runner import EmulatedRunner
    from edge_mrcnn.runtime.detector import Detector
    from edge_mrcnn.runtime.trt_runner import TrtRunner

    recipe, meter = Recipe("int8", Ranges.load(RANGES)), AgreementMeter()
    with TrtRunner(engine) as runner, EmulatedRunner(model, recipe) as emulated:
        found, expected = (Detector(one, threshold=None) for one in (runner, emulated))
        for picture in pictures:
            meter.add(expected(picture), found(picture))
    return meter.result()


def _agrees(agreement: Agreement, precision: str) -> bool:
    least = LEAST_AGREED[precision]
    return 0 < least * agreement.expected <= agreement.matched and agreement.extra <= (1 - least) * agreement.expected


def describe_agreement(agreement: Agreement) -> str:
    """How far two networks agree, in a line."""
    overlaps = [("boxes", agreement.box_iou), ("masks", agreement.mask_iou)]
    parts = [f"{agreement.matched} of {agreement.expected} matched", f"{agreement.extra} extra"]
    parts += [f"mean IoU of {what} {iou:.4f}" for what, iou in overlaps if iou is not None]
    if agreement.keypoint_close is not None:
        parts.append(f"{100 * agreement.keypoint_close:.2f} % of keypoints within half a pixel")
    if agreement.score_shift_abs is not None:
        parts.append(f"scores off by {agreement.score_shift_abs:.4f} on average")
    return ", ".join(parts)


def describe_drop(drop: Drop) -> str:
    """The AP lost, in a line."""
    parts = (f"{kind} {one.value:.2f} ({one.low:.2f} to {one.high:.2f})" for kind, one in drop.shown.items())
    return f"points of AP lost: {', '.join(parts)}"


def time_frames(detectors: Mapping[str, Any], pictures: Sequence[Array]) -> dict[str, Array]:
    """Milliseconds from a picture to its detections: upload, letterbox, network, download, boxes.

    Args:
        detectors: Take turns, so that each picture is timed on all of them before the next one.
        pictures: Taken one after the other, again and again.

    Returns:
        `(FRAMES,)` each.
    """
    times: dict[str, list[float]] = {name: [] for name in detectors}
    for i in range(WARM_UP + FRAMES):
        for name, detector in detectors.items():
            begin = time.perf_counter()
            detector(pictures[i % len(pictures)])
            times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: np.array(taken[WARM_UP:]) for name, taken in times.items()}


def _time_in_turn(engines: Mapping[str, Path], pictures: Sequence[Array]) -> str:
    from edge_mrcnn.runtime.detector import Detector
    from edge_mrcnn.runtime.trt_runner import TrtRunner

    with contextlib.ExitStack() as stack:
        runners = {name: stack.enter_context(TrtRunner(path)) for name, path in engines.items()}
        times = time_frames({name: Detector(runner) for name, runner in runners.items()}, pictures)
    return describe_times(times)


def describe_times(times: Mapping[str, Array]) -> str:
    """Medians, and the median of int8's share of each other's time, frame by frame."""
    medians = (f"{name} p50 {np.median(taken):.2f} ms" for name, taken in times.items())
    others = [name for name in times if name != "int8"]
    shares = (f"{np.median(times['int8'] / times[name]):.2f} of {name}'s" for name in others)
    return f"{', '.join(medians)}; int8 takes {', '.join(shares)} time"
