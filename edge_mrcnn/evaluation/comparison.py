"""What a comparison of precisions found: plain data, as terminal, JSON and report show it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from edge_mrcnn.evaluation.bench import StageStats
from edge_mrcnn.evaluation.coco import ApSummary
from edge_mrcnn.evaluation.machine import Machine


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that holds 95 % of its paired-bootstrap resamples.

    Attributes:
        value: On the pictures as they are.
        low: 2.5 % of the resamples are below.
        high: 2.5 % are above.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Drop:
    """What a precision costs: the reference's AP minus its own, in points of 100; positive is worse.

    Attributes:
        box: Of the boxes.
        mask: Of the masks; None where the model or the data has none.
        keypoint: Of the keypoints; likewise.
    """

    box: Interval
    mask: Interval | None
    keypoint: Interval | None = None

    @property
    def kinds(self) -> dict[str, Interval]:
        """Those that there are by kind, in the order that readers ask for: `mask`, `keypoint`, `box`."""
        found = {"mask": self.mask, "keypoint": self.keypoint, "box": self.box}
        return {kind: lost for kind, lost in found.items() if lost is not None}

    @property
    def shown(self) -> dict[str, Interval]:
        """The same in the order of tables: `box`, `mask`, `keypoint`."""
        return {kind: self.kinds[kind] for kind in ("box", "mask", "keypoint") if kind in self.kinds}


@dataclass(frozen=True)
class Agreement:
    """How far detections agree with the reference's: matched one to one, same class, IoU of boxes at least 0.5.

    Attributes:
        expected: Detections of the reference with a score from the threshold on.
        matched: How many of them have a partner with a score from half the threshold on: one that just falls below the
            threshold is no loss, and what happens to scores has its own figures.
        matched_share: `matched / expected`, 1 where nothing was expected.
        missed: Expected ones without such a partner.
        extra: Detections from the threshold on that no detection of the reference matches, whatever its score.
        box_iou: Mean IoU of the boxes of matched pairs; None without any.
        mask_iou: Mean IoU of their masks at full size; None without masks.
        score_shift: Mean of (own score - reference's) over matched pairs.
        score_shift_abs: Mean of its magnitude.
        keypoint_close: Share of the keypoints of matched pairs that are within half a pixel of the reference's; None
            without keypoints.
        keypoint_shift: Mean distance of these, as a share of the square root of the box's area.
    """

    expected: int
    matched: int
    matched_share: float
    missed: int
    extra: int
    box_iou: float | None
    mask_iou: float | None
    score_shift: float | None
    score_shift_abs: float | None
    keypoint_close: float | None = None
    keypoint_shift: float | None = None


@dataclass(frozen=True)
class CandidateResult:
    """One precision, or one file, of a comparison.

    Attributes:
        label: `fp32`, `fp16`, `int8`, `int8-cpu`, or the name of a file.
        backend: What produced the figures, such as `onnxruntime-cpu`, `onnxruntime-cpu, fp16 emulated` or
            `tensorrt-rtx on NVIDIA ...`.
        emulated: The rounding was emulated; such a result has no latency and no size of its own.
        size_bytes: Of the file that would be shipped; None where it is emulated.
        latency: Of the network, milliseconds; None where it is emulated.
        int8_share: Share of the multiply-accumulates in int8, 0 to 1; None where it is unknown.
        kept: Names of the layer groups kept out of int8 beyond the default ones.
        accuracy: Average precision; None without labels.
        drop: Against the reference; None without labels, and for the reference itself.
        agreement: With the reference; None for the reference itself.
    """

    label: str
    backend: str
    emulated: bool
    size_bytes: int | None
    latency: StageStats | None
    int8_share: float | None
    kept: tuple[str, ...]
    accuracy: ApSummary | None
    drop: Drop | None
    agreement: Agreement | None


@dataclass(frozen=True)
class DisagreementPicture:
    """A picture on which the precisions disagree.

    Attributes:
        name: File name, or source and frame number.
        disagreement: The larger, the more the precisions differ on it; 0 where they agree.
        what: In words, such as `int8 misses a cup (0.71) and adds a fork (0.54)`.
        jpeg: Annotated picture by candidate label, the reference first, as JPEG bytes.
    """

    name: str
    disagreement: float
    what: str
    jpeg: Mapping[str, bytes]


@dataclass(frozen=True)
class PrecisionComparison:
    """Precisions of a model side by side.

    Attributes:
        model: File of the model.
        data: What it was compared on.
        pictures: Number of pictures.
        labelled: The data has labels.
        threshold: Score from which detections count in `Agreement`.
        bootstrap: Number of resamples behind the intervals; 0 without labels.
        results: The candidates, the reference first.
        disagreements: The pictures that differ most, most first.
        warnings: What a reader must know, such as ranges measured on pictures that are compared on.
        machine: Where it was measured.
        created: UTC, ISO 8601.
    """

    model: str
    data: str
    pictures: int
    labelled: bool
    threshold: float
    bootstrap: int
    results: tuple[CandidateResult, ...]
    disagreements: tuple[DisagreementPicture, ...]
    warnings: tuple[str, ...]
    machine: Machine
    created: str

    def to_json(self) -> str:
        """Everything but the pictures' pixels as indented JSON."""
        plain = dataclasses.replace(
            self, disagreements=tuple(dataclasses.replace(item, jpeg={}) for item in self.disagreements)
        )
        return json.dumps(dataclasses.asdict(plain), indent=2)
