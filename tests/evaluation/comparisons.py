"""A comparison of precisions as a run would give it: figures by hand, pictures from the bundled model."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import cv2
import numpy as np

from edge_mrcnn import Detections, Detector, annotate
from edge_mrcnn.evaluation.bench import StageStats
from edge_mrcnn.evaluation.coco import ApScores, ApSummary
from edge_mrcnn.evaluation.comparison import (
    Agreement,
    CandidateResult,
    DisagreementPicture,
    Drop,
    Interval,
    PrecisionComparison,
)
from edge_mrcnn.evaluation.machine import Machine
from edge_mrcnn.evaluation.sensitivity import GroupSensitivity, SensitivityResult

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop"
CLASSES = (
    "mug",
    "bowl",
    "plate",
    "bottle",
    "can",
    "box",
    "ball",
    "cube",
    "fork",
    "spoon",
    "knife",
    "banana",
    "brick",
    "pen",
)
LABELS = ("fp32", "fp16", "int8", "int8-cpu")


def make_sensitivity(count: int = 24) -> SensitivityResult:
    """Groups of a network, the one that costs most first; the last makes no noise."""
    rng = np.random.default_rng(5)
    names = [f"backbone.body.{block}" for block in range(count - 6)]
    names += ["fpn.inner_blocks", "fpn.layer_blocks", "rpn_head", "box_head", "mask_head", "mask_predictor"]
    noise = [12.5, *sorted(rng.uniform(18, 48, count - 1)), math.inf]
    rows = []
    for name, decibels in zip(["all together", *rng.permutation(names)], noise, strict=True):
        box, mask = rng.normal(0.03, 0.03, 2)
        drop = Drop(Interval(box, box - 0.1, box + 0.1), Interval(mask, mask - 0.1, mask + 0.1))
        taps = {"p2": decibels + 3, "mask_logits": decibels - 4}
        layers = tuple(f"/{name}/conv{layer}" for layer in range(int(rng.integers(1, 4))))
        rows.append(GroupSensitivity(str(name), layers, int(rng.integers(2e6, 9e7)), decibels, taps, drop))
    backend = "onnxruntime-cpu, int8 emulated"
    return SensitivityResult(
        "model.onnx", "val.json", "tensorrt", backend, "mse", 32, 500, rows[0], tuple(rows[1:]), 61.5
    )


def make_scores(ap: float, seed: int) -> ApScores:
    """Plausible figures around an AP."""
    rng = np.random.default_rng(seed)
    per_class = {name: ap + 6 * np.sin(2.1 * row) + float(rng.normal(0, 0.35)) for row, name in enumerate(CLASSES)}
    return ApScores(ap, ap + 19.31, ap + 8.62, ap - 21.4, ap + 2.13, ap + 11.27, ap + 4.5, per_class)


def make_summary(box: float, mask: float, seed: int) -> ApSummary:
    return ApSummary(make_scores(box, seed), make_scores(mask, seed + 10))


def make_comparison(*, pictures: bool = True) -> PrecisionComparison:
    """FP32, FP16 and INT8 emulated, and INT8 for the CPU."""
    results = (
        CandidateResult(
            "fp32", "onnxruntime-cpu", False, 7_982_982, StageStats(46.212, 53.871, 47.034), 0.0, (),
            make_summary(74.812, 70.235, 1), None, None,
        ),
        CandidateResult(
            "fp16", "onnxruntime-cpu, fp16 emulated", True, None, None, 0.0, (),
            make_summary(74.809, 70.241, 2),
            Drop(Interval(0.003, -0.021, 0.028), Interval(-0.006, -0.033, 0.019)),
            Agreement(7412, 7405, 0.99906, 7, 5, 0.9981, 0.9967, -0.0001, 0.0007),
        ),
        CandidateResult(
            "int8", "onnxruntime-cpu, int8 emulated", True, None, None, 0.9731, ("backbone.body.0", "rpn_head"),
            make_summary(74.671, 70.123, 3),
            Drop(Interval(0.141, -0.024, 0.302), Interval(0.112, -0.051, 0.268)),
            Agreement(7412, 7301, 0.98502, 111, 97, 0.9648, 0.9531, -0.0042, 0.0183),
        ),
        CandidateResult(
            "int8-cpu", "onnxruntime-cpu", False, 2_314_556, StageStats(21.064, 23.418, 21.377), 0.9512, (),
            make_summary(74.601, 70.038, 4),
            Drop(Interval(0.211, 0.034, 0.391), Interval(0.197, 0.021, 0.372)),
            Agreement(7412, 7287, 0.98313, 125, 118, 0.9602, 0.9497, -0.0051, 0.0207),
        ),
    )  # fmt: skip
    return PrecisionComparison(
        model="samples/tabletop/model.onnx",
        data="data/val1000/annotations.json",
        pictures=1000,
        labelled=True,
        threshold=0.5,
        bootstrap=1000,
        results=results,
        disagreements=make_pictures() if pictures else (),
        warnings=(),
        machine=Machine(
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", 2, "Linux x86_64", "3.11.7",
            {"numpy": "2.4.6", "onnxruntime": "1.31.1", "opencv-python": "5.0.0.93"}, 0.4,
        ),
        created="2026-11-21T17:05:12+00:00",
    )  # fmt: skip


@functools.cache
def make_pictures(count: int = 6) -> tuple[DisagreementPicture, ...]:
    """Pictures of the bundled model's detections; the candidates' are its own with a little noise and one lost."""
    files = sorted((TABLETOP / "val" / "images").iterdir())[:count]
    rng = np.random.default_rng(2)
    found = []
    with Detector(TABLETOP / "model.onnx", threshold=0.4, threads=1) as detector:
        for number, file in enumerate(files):
            image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
            right = detector(image)
            lost = number % max(len(right), 1)
            versions = {"fp32": right, "fp16": _noisy(right, rng, 0.001)}
            rows = [row for row in range(len(right)) if row != lost]
            versions |= {label: _noisy(right[rows], rng, 0.03) for label in ("int8", "int8-cpu")}
            jpeg = {label: _jpeg(annotate(image, one, detector.class_names)) for label, one in versions.items()}
            name = detector.class_names[right.class_id[lost]] if len(right) else "nothing"
            what = f"int8 misses a {name} ({right.score[lost]:.2f}); int8-cpu misses it too and moves a mask by 3 px"
            found.append(DisagreementPicture(file.name, 1.8 - 0.2 * number, what, jpeg))
    return tuple(found)


def _noisy(found: Detections, rng: np.random.Generator, sigma: float) -> Detections:
    score = np.clip(found.score + rng.normal(0, sigma, len(found)), 0, 1).astype(np.float32)
    return dataclasses.replace(found, score=score)


def _jpeg(picture: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
