"""A comparison of precisions as lines of text, and as a page to show to others."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_mrcnn.evaluation import wording
from edge_mrcnn.evaluation.coco import ApScores
from edge_mrcnn.evaluation.comparison import CandidateResult, Interval, PrecisionComparison

if TYPE_CHECKING:
    from edge_mrcnn.evaluation.sensitivity import SensitivityResult

COLUMNS = 110
"""Characters of a line on the terminal at most."""

LABEL_LENGTH = 22
"""Characters of a candidate's name on the terminal at most."""

_AP_FIELDS = {
    "AP": "ap",
    "AP50": "ap50",
    "AP75": "ap75",
    "small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
}


def write_report(comparison: PrecisionComparison, path: Path, sensitivity: SensitivityResult | None = None) -> None:
    """Write a comparison as one HTML file that needs nothing else: no network, no script, no other file.

    Args:
        comparison: What to show.
        path: The file, written whole or not at all.
        sensitivity: Which layer groups mind int8 most; left out of the page when not given.

    Raises:
        EdgeMrcnnError: Jinja2 or Matplotlib is not installed.
        OSError: The folder is missing or not writable, or the disk is full.
    """
    from edge_mrcnn.evaluation.report_page import render_page
    from edge_mrcnn.files import write_text

    write_text(path, render_page(comparison, sensitivity))


def comparison_lines(comparison: PrecisionComparison) -> list[str]:
    """A comparison as lines of text tables."""
    reference = comparison.results[0]
    lines = [f"warning: {text}" for text in comparison.warnings]
    kind = "labelled pictures" if comparison.labelled else "pictures without labels"
    lines += [
        f"{comparison.model} on {comparison.pictures} {kind} of {comparison.data}",
        wording.verdict(comparison).replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-"),
        "",
        *_cost_table(comparison.results),
    ]
    if reference.accuracy is not None:
        for kind in wording.measured_kinds(comparison.results):
            lines += ["", *_accuracy_table(comparison.results, kind)]
        lines.append(
            f"AP lost: points of 100 below {reference.label}; negative is a gain. In brackets what holds 95 % of "
            f"{comparison.bootstrap} paired-bootstrap resamples; 'none shown' where that holds 0."
        )
    if any(result.agreement for result in comparison.results):
        lines += ["", *_agreement_table(comparison), *_keypoint_table(comparison.results)]
    if comparison.disagreements:
        lines += ["", "Most different on"]
        lines += [f"  {picture.name}: {picture.what}" for picture in comparison.disagreements]
    lines += ["", *(f"{_label(result)}: {_origin(result)}" for result in comparison.results)]
    if any(result.emulated for result in comparison.results):
        lines.append("* emulated: rounded as the precision would, computed in float32; it has no size and no speed.")
    busy = wording.describe_load(comparison.machine)
    return _wrap([*lines, comparison.machine.line(), *([busy] if busy else [])])


def _cost_table(results: Sequence[CandidateResult]) -> list[str]:
    heads = f"{'size':>11}{'of ' + results[0].label[:8]:>11}{'p50 ms':>10}{'p95 ms':>10}{'mean ms':>10}{'speed-up':>10}"
    rows = [_head("size and time") + heads + f"{'int8 MACs':>11}"]
    for result in results:
        size = "-" if result.size_bytes is None else f"{result.size_bytes / 1e6:.2f} MB"
        ratio, speed = (measure(result, results[0]) for measure in (wording.size_ratio, wording.speed_ratio))
        latency = result.latency
        times = (latency.p50_ms, latency.p95_ms, latency.mean_ms) if latency else (None, None, None)
        cells = f"{size:>11}{_percent(ratio, 1):>11}" + "".join(f"{_number(time, 1):>10}" for time in times)
        rows.append(_head(_label(result)) + cells + f"{_number(speed):>10}{_percent(result.int8_share):>11}")
    return rows


def _accuracy_table(results: Sequence[CandidateResult], of: str) -> list[str]:
    rows = [_head(f"{of} AP") + "".join(f"{head:>8}" for head in _AP_FIELDS) + "   AP lost [95 % interval]"]
    for result in results:
        scores: ApScores | None = getattr(result.accuracy, of, None)
        cells = "".join(f"{_number(getattr(scores, field, None)):>8}" for field in _AP_FIELDS.values())
        drop: Interval | None = getattr(result.drop, of, None)
        rows.append(_head(_label(result)) + cells + ("" if drop is None else f"   {_drop(drop)}"))
    return rows


def _agreement_table(comparison: PrecisionComparison) -> list[str]:
    heads = ("expected", "matched", "share", "missed", "extra", "box IoU", "mask IoU", "score", "|score|")
    rows = [_head("agreement") + "".join(f"{head:>9}" for head in heads)]
    for result in comparison.results:
        found = result.agreement
        if found is None:
            continue
        cells = [str(found.expected), str(found.matched), _percent(found.matched_share, 1)]
        cells += [str(found.missed), str(found.extra), _number(found.box_iou, 3), _number(found.mask_iou, 3)]
        cells += [_number(found.score_shift, 3, "+"), _number(found.score_shift_abs, 3)]
        rows.append(_head(_label(result)) + "".join(f"{cell:>9}" for cell in cells))
    rows.append(
        f"Matched: of {comparison.results[0].label}'s detections with a score of {comparison.threshold:g} or more, one "
        "to one, same class, IoU of boxes 0.5 or more. Score: mean shift of matched pairs, and mean of its size."
    )
    return rows


def _keypoint_table(results: Sequence[CandidateResult]) -> list[str]:
    """Agreement of keypoints; nothing where there are none."""
    found = [(result, result.agreement) for result in results if result.agreement is not None]
    there = [(result, one) for result, one in found if one.keypoint_close is not None]
    if not there:
        return []
    rows = ["", _head("keypoints") + f"{'< 0.5 px':>9}{'shift':>9}"]
    for result, one in there:
        rows.append(_head(_label(result)) + f"{_percent(one.keypoint_close, 1):>9}{_percent(one.keypoint_shift, 2):>9}")
    rows.append("Of matched pairs: share within half a pixel, and mean distance by the square root of the box's area.")
    return rows


def _drop(drop: Interval) -> str:
    words = {"loss": "loss", "even": "none shown", "gain": "gain"}
    return f"{_number(drop.value)} [{_number(drop.low)}, {_number(drop.high)}] {words[wording.judge(drop)]}"


def _label(result: CandidateResult) -> str:
    return wording.shorten(result.label, LABEL_LENGTH) + ("*" if result.emulated else "")


def _head(text: str) -> str:
    return f"{text:<{LABEL_LENGTH + 3}}"


def _origin(result: CandidateResult) -> str:
    kept = f"; kept out of int8: {', '.join(result.kept)}" if result.kept else ""
    return f"{result.backend}{kept}"


def _number(value: float | None, digits: int = 2, sign: str = "") -> str:
    return "-" if value is None or not math.isfinite(value) else f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def _percent(share: float | None, digits: int = 0) -> str:
    return "-" if share is None else f"{_number(100 * share, digits)} %"


def _wrap(lines: Sequence[str]) -> list[str]:
    """Lines of at most `COLUMNS` characters; those that are longer go on indented."""
    return [
        part
        for line in map(wording.printable, lines)
        for part in (
            textwrap.wrap(line, COLUMNS, subsequent_indent=" " * (len(line) - len(line.lstrip()) + 2))
            if len(line) > COLUMNS
            else [line]
        )
    ]
