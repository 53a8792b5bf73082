"""What precisions cost: accuracy, agreement with the reference, size and speed, side by side.

All candidates see a picture before the next one is read, so that nothing is kept of a picture but results: run-length
encoded masks where there are labels, running sums, and the few pictures that are shown. Times are taken afterwards and
in turn, since the emulation of a precision takes a core for as long as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.compiler.calibration.pictures import Shot
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.evaluation.agreement import AgreementMeter
from edge_mrcnn.evaluation.bench import BenchOptions, DetectorSubject, StageStats, compare
from edge_mrcnn.evaluation.bootstrap import Matches, ap_drops
from edge_mrcnn.evaluation.candidates import Candidate, open_candidates
from edge_mrcnn.evaluation.coco import ApSummary, import_pycocotools, kinds_of, run_cocoeval, summarise, to_results
from edge_mrcnn.evaluation.compare_options import CompareOptions
from edge_mrcnn.evaluation.compared_pictures import ComparedPicture, LabelledPictures, UnlabelledPictures
from edge_mrcnn.evaluation.comparison import CandidateResult, Drop, PrecisionComparison
from edge_mrcnn.evaluation.dataset import LabelledSet
from edge_mrcnn.evaluation.disagreement import DisagreementGallery
from edge_mrcnn.evaluation.machine import describe_machine
from edge_mrcnn.runtime.annotate import AnnotateOptions
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.spec import ModelSpec

Picture = npt.NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB."""

TIMED_PICTURES = 16
"""The first so many pictures are those that latency is measured on."""


def compare_precisions(
    model: str | Path,
    *,
    data: Path | None = None,
    frames: str | Path | None = None,
    others: Sequence[str | Path] = (),
    reference: str | Path | None = None,
    options: CompareOptions | None = None,
) -> PrecisionComparison:
    """Compare precisions of a model, and files built from it, on the same pictures.

    Example:
        >>> compare_precisions("model.onnx", data=Path("val.json")).results[1].drop  # doctest: +SKIP

    Args:
        model: ONNX file made by `edge-mrcnn export`; or an engine or a quantised ONNX file, where there is a reference.
        data: COCO annotation file: accuracy is measured, and agreement.
        frames: Folder, glob, video or picture without labels: agreement is measured.
        others: More ONNX files and engines to compare.
        reference: What everything is compared with; the model when not given.
        options: Which precisions, and how they are compared.

    Raises:
        CalibrationError: int8 is to be made without ranges, or with those of another model.
        EdgeMrcnnError: A file cannot be read or run.
        StreamError: The pictures cannot be used, or the data has other classes than the model.
        ValueError: Not exactly one of `data` and `frames` is given, or there is nothing to compare.
    """
    options = options or CompareOptions()
    _check_sources(data, frames, options)
    machine = describe_machine()
    files = [Path(path) for path in others]
    with open_candidates(Path(model), files, None if reference is None else Path(reference), options) as candidates:
        labelled = _read_labels(data, candidates[0].runner.spec, options)
        pictures = (
            UnlabelledPictures(str(frames), options.every, options.limit)
            if labelled is None
            else LabelledPictures(labelled)
        )
        tally = _Tally(candidates, labelled, options)
        for picture in pictures:
            tally.add(picture)
        results = tally.results(_measure_latency(candidates, tally.timed, options))
    return PrecisionComparison(
        model=str(model),
        data=str(frames if data is None else data),
        pictures=tally.pictures,
        labelled=labelled is not None,
        threshold=options.threshold,
        bootstrap=options.resamples if labelled is not None else 0,
        results=results,
        disagreements=tally.gallery.draw(),
        warnings=tuple(_warnings(tally, pictures.skipped, options)),
        machine=machine,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


class _Tally:
    """What the candidates find, collected picture by picture.

    Attributes:
        pictures: Number of pictures so far.
        gallery: Those on which the candidates disagree most.
        timed: The first ones, letterboxed to the reference's input, to measure latency on.
        calibrated: How many of the pictures the ranges were measured on.
    """

    def __init__(self, candidates: Sequence[Candidate], labelled: LabelledSet | None, options: CompareOptions) -> None:
        self.pictures = self.calibrated = 0
        self.timed: list[Picture] = []
        self._candidates, self._labelled, self._options = candidates, labelled, options
        self._spec = candidates[0].runner.spec
        self._detectors = {one.label: Detector(one.runner, threshold=None) for one in candidates}
        self._reference, *others = self._detectors
        self._meters = {label: AgreementMeter(options.threshold) for label in others}
        self._rows: dict[str, list[dict[str, Any]]] = {label: [] for label in self._detectors}
        self._known = frozenset(Ranges.load(options.ranges).pictures) if options.ranges is not None else frozenset()
        look = AnnotateOptions(skeleton=self._spec.skeleton)
        names = self._spec.class_names
        self.gallery = DisagreementGallery(options.worst, self._reference, names, options.threshold, look)

    def add(self, picture: ComparedPicture) -> None:
        """Run all candidates on a picture."""
        self.pictures += 1
        found = {label: detector(picture.frame) for label, detector in self._detectors.items()}
        if self._labelled is not None:
            for label, detections in found.items():
                self._rows[label] += to_results(detections, picture.image_id, self._labelled.categories)
        reference = found[self._reference]
        agreements = {label: meter.add(reference, found[label]) for label, meter in self._meters.items()}
        self.gallery.add(picture.name, picture.frame.image, agreements)
        images, image_hw, _ = letterbox_batch([picture.frame.image], self._spec.input_hw)
        self.calibrated += Shot(picture.name, images, image_hw).sha256() in self._known
        if len(self.timed) < TIMED_PICTURES:
            self.timed.append(images[0])

    def results(self, latency: Mapping[str, StageStats]) -> tuple[CandidateResult, ...]:
        """The figures of each candidate, the reference first."""
        accuracy, drops = self._accuracy()
        return tuple(
            CandidateResult(
                label=one.label,
                backend=one.runner.backend,
                emulated=one.emulated,
                size_bytes=one.size_bytes,
                latency=latency.get(one.label),
                int8_share=one.int8_share,
                kept=one.kept,
                accuracy=accuracy.get(one.label),
                drop=drops.get(one.label),
                agreement=self._meters[one.label].result() if one.label in self._meters else None,
            )
            for one in self._candidates
        )

    def _accuracy(self) -> tuple[dict[str, ApSummary], dict[str, Drop]]:
        """AP of each candidate and what it lost; one candidate's evaluation is in memory at a time."""
        if self._labelled is None:
            return {}, {}
        truth = self._labelled.truth
        accuracy: dict[str, ApSummary] = {}
        matches: dict[str, dict[str, Matches]] = {}
        for label, rows in self._rows.items():
            evaluations = run_cocoeval(truth, rows, kinds_of(self._detectors[label].spec))
            accuracy[label] = summarise(evaluations, truth["categories"])
            matches[label] = {kind: Matches.of(found) for kind, found in evaluations.items()}
        reference = matches.pop(self._reference)
        drops = ap_drops(reference, list(matches.values()), self._options.resamples, self._options.seed)
        return accuracy, dict(zip(matches, drops, strict=True))


def _check_sources(data: Path | None, frames: str | Path | None, options: CompareOptions) -> None:
    if (data is None) == (frames is None):
        given = "neither" if data is None else "both"
        raise ValueError(
            f"compare takes either labelled pictures or frames, got {given}: --data val.json or --frames clip.mp4"
        )
    if data is not None:
        import_pycocotools()  # says what to install before minutes are spent
    if data is not None and options.every != 1:
        raise ValueError(f"--every is for --frames, got {options.every} with --data; to take fewer pictures: --limit N")


def _read_labels(data: Path | None, spec: ModelSpec, options: CompareOptions) -> LabelledSet | None:
    if data is None:
        return None
    return LabelledSet.read(data, spec.class_names, options.classes, options.limit, spec.keypoint_names)


def _measure_latency(
    candidates: Sequence[Candidate], pictures: Sequence[Picture], options: CompareOptions
) -> dict[str, StageStats]:
    """Time of the network by label, of candidates that are not emulated, measured in turn."""
    real = [one for one in candidates if not one.emulated]
    if not (options.runs and real and pictures):
        return {}
    subjects = [
        DetectorSubject(Detector(one.runner, threshold=None), threads=options.threads, name=one.label) for one in real
    ]
    times = compare(*subjects, pictures=pictures, options=BenchOptions(options.runs, threads=options.threads))
    return {result.name: result.stages["infer"] for result in times.results}


def _warnings(tally: _Tally, skipped: int, options: CompareOptions) -> Iterator[str]:
    """What a reader of the comparison must know."""
    if tally.calibrated:
        yield (
            f"{tally.calibrated} of the {tally.pictures} pictures are among those that {options.ranges} was measured "
            "on: int8 looks better on them than on others; compare on pictures that calibration never saw"
        )
    if skipped:
        yield f"{skipped} pictures could not be read and were left out"
    if options.ranges is not None:
        yield from (f"{options.ranges}: {text}" for text in Ranges.load(options.ranges).warnings)
