"""`edge-mrcnn bench`: latency by stage, alone or in turn with rivals."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, ModelFile, report
from edge_mrcnn.evaluation.bench import (
    BenchOptions,
    BenchSubject,
    DetectorSubject,
    Picture,
    bench,
    compare,
    sample_pictures,
)
from edge_mrcnn.evaluation.overhead import measure_overhead
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.preprocess import letterbox
from edge_mrcnn.runtime.runners import open_runner
from edge_mrcnn.runtime.sources import open_source
from edge_mrcnn.spec import ModelSpec

EAGER, RAW_ONNX = "torchvision", "torchvision-onnx"
MOST_PICTURES = 16


def command(
    model: ModelFile,
    options: Annotated[BenchOptions, tyro.conf.arg(name="bench")],
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar=f"{EAGER}|{RAW_ONNX}|MODEL")] = (),
    weights: str | None = None,
    source: str | None = None,
    overhead: bool = False,
    json_target: JsonTarget = None,
) -> None:
    """Measure p50 and p95 of preprocessing, network and postprocessing, alone or in turn with rivals.

    Args:
        model: model.onnx or engine.
        options: How long to measure.
        against: Measure these in the same run and give ratios: torchvision's eager forward, its raw ONNX export in ONNX
            Runtime, or other models.
        weights: The checkpoint that the model was exported from, for the rivals from torchvision.
        source: Pictures to measure on, such as a folder or a video; synthetic ones when not given.
        overhead: Measure instead what a run costs besides the network: of a camera of 1920x1080 with 20 objects in
            each frame, without decoding, drawing and encoding.
        json_target: Where the result goes as JSON.
    """
    if overhead:
        with open_runner(model) as runner:
            spec = runner.spec
        cost = measure_overhead(spec)
        report(cost.lines(), cost.to_json(), json_target)
        return
    with contextlib.ExitStack() as stack:
        detector = stack.enter_context(Detector(model, threshold=None, threads=options.threads))
        subject = DetectorSubject(detector, threads=options.threads, name=model.name)
        rivals = [one for name in against for one in _rivals(name, detector.spec, weights, options.threads, stack)]
        pictures = _pictures(source, detector.spec.input_hw)
        if rivals:
            comparison = compare(subject, *rivals, pictures=pictures, options=options)
            report(comparison.lines(), comparison.to_json(), json_target)
        else:
            result = bench(subject, pictures, options)
            report(result.lines(), result.to_json(), json_target)


def _rivals(
    name: str, spec: ModelSpec, weights: str | None, threads: int, stack: contextlib.ExitStack
) -> list[BenchSubject]:
    if name not in (EAGER, RAW_ONNX):
        rival = stack.enter_context(Detector(Path(name), threshold=None, threads=threads))
        return [DetectorSubject(rival, threads=threads, name=name)]
    if weights is None:
        raise ValueError(f"--against {name} needs the checkpoint that the model was exported from: --weights FILE")
    from edge_mrcnn.training.baselines import raw_torchvision_onnx, torchvision_eager  # torch only when asked for

    classes = len(spec.class_names)
    if name == EAGER:
        return [torchvision_eager(spec.name, weights, spec.input_hw, num_classes=classes, threads=threads)]
    # As exported it pastes masks inside; without that, or without masks, it can be compared as a network.
    return [
        raw_torchvision_onnx(
            spec.name, weights, spec.input_hw, num_classes=classes, paste_masks=pasted, threads=threads
        )
        for pasted in ((True, False) if spec.mask_size else (False,))
    ]


def _pictures(source: str | None, input_hw: tuple[int, int]) -> list[Picture]:
    """Pictures of the network's own size, so that every rival sees the same pixels."""
    if source is None:
        return sample_pictures(input_hw)
    return [letterbox(image, input_hw)[0] for image in _first_images(source)]


def _first_images(source: str) -> Iterator[Picture]:
    with open_source(source) as frames:
        for index, frame in enumerate(frames):
            if index == MOST_PICTURES:
                return
            yield frame.image
