"""Figures of a comparison in words and in print, for a report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from edge_mrcnn.evaluation.coco import ApSummary
from edge_mrcnn.evaluation.comparison import Agreement, CandidateResult, Drop, Interval, PrecisionComparison
from edge_mrcnn.evaluation.machine import Machine

MISSING = "\N{EN DASH}"
"""Stands where there is nothing to measure."""

PLURALS = {"mask": "masks", "keypoint": "keypoints", "box": "boxes"}
"""What is measured, for people."""

JUDGEMENTS = {"loss": "measurable loss", "even": "no measurable loss", "gain": "measurable gain"}
"""What `judge` says, for people."""

_UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\u202a-\\u202e\\u2066-\\u2069\\ufffe\\uffff]"
)


def show(value: float | None, digits: int = 2) -> str:
    """A number with a real minus sign and no negative zero; `MISSING` where there is none."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def show_share(value: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent."""
    return MISSING if value is None or not math.isfinite(value) else f"{show(100 * value, digits)}\N{NO-BREAK SPACE}%"


def show_range(interval: Interval) -> str:
    """The two ends of an interval, kept on one line."""
    return f"{show(interval.low)} to {show(interval.high)}".replace(" ", "\N{NO-BREAK SPACE}")


def show_size(size_bytes: int | None) -> str:
    """Bytes in the unit that suits them, three digits."""
    if size_bytes is None:
        return MISSING
    value, unit = (size_bytes / 1e6, "MB") if size_bytes >= 1e6 else (size_bytes / 1e3, "kB")
    return f"{show(value, 0 if value >= 100 else 1 if value >= 10 else 2)}\N{NO-BREAK SPACE}{unit}"


def show_ms(value_ms: float | None) -> str:
    """Milliseconds, three digits."""
    if value_ms is None:
        return MISSING
    return f"{show(value_ms, 0 if value_ms >= 100 else 1 if value_ms >= 10 else 2)}\N{NO-BREAK SPACE}ms"


def show_db(value: float) -> str:
    """A ratio in decibels; infinite is no noise at all."""
    return "no noise" if math.isinf(value) else f"{show(value, 1)}\N{NO-BREAK SPACE}dB"


def show_count(value: int | None) -> str:
    """A count with its thousands apart; large ones in millions or billions."""
    if value is None:
        return MISSING
    for unit, name in ((1e9, " G"), (1e6, " M")):
        if value >= unit:
            return f"{show(value / unit)}{name}"
    return f"{value:,}"


def show_name(label: str) -> str:
    """A label as a text calls it: precisions in capitals, files as they are."""
    return label.upper() if re.fullmatch(r"(fp32|fp16|int8)(-cpu)?", label) else label


def printable(text: str) -> str:
    """A text without what no page or terminal should get: controls, halves of a pair, changes of direction."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def shorten(name: str, length: int) -> str:
    """A name with its middle left out where it is long."""
    if len(name) <= length:
        return name
    tail = length // 2
    return f"{name[: length - tail - 1]}\N{HORIZONTAL ELLIPSIS}{name[-tail:]}"


def show_time(created: str) -> str:
    """A time in ISO 8601, to the minute."""
    return re.sub(
        r"T(\d\d:\d\d)(:[\d.]+)?(Z|\+00:00)?$", lambda found: f" {found[1]}{' UTC' * bool(found[3])}", created
    )


def judge(drop: Interval) -> str:
    """`loss` or `gain` where the whole interval is on that side of 0, `even` where it holds 0."""
    if drop.low > 0:
        return "loss"
    return "gain" if drop.high < 0 else "even"


def judge_both(drop: Drop) -> tuple[str, str]:
    """What `judge` says of the worst of boxes, masks and keypoints, and in words of which it holds."""
    kinds = {PLURALS[kind]: judge(lost) for kind, lost in drop.kinds.items()}
    worst = next(kind for kind in ("loss", "gain", "even") if kind in kinds.values())
    parts = [part for part, kind in kinds.items() if kind == worst]
    return worst, JUDGEMENTS[worst] + ("" if len(parts) == len(kinds) else f" of {' and '.join(parts)}")


def main_drop(drop: Drop) -> tuple[str, Interval]:
    """The drop a reader asks for first and its name: of masks where there are any, or else of keypoints, or boxes."""
    kind, lost = next(iter(drop.kinds.items()))
    return f"{kind} AP", lost


def measured_kinds(results: Sequence[CandidateResult]) -> list[str]:
    """Of `box`, `mask` and `keypoint` what any of the results has an accuracy of."""
    return [kind for kind in ("box", "mask", "keypoint") if any(getattr(one.accuracy, kind, None) for one in results)]


def main_kind(accuracy: ApSummary) -> str:
    """What a reader asks for first: `mask`, `keypoint` or `box`, the first that there is."""
    return next(kind for kind in ("mask", "keypoint", "box") if getattr(accuracy, kind))


def size_ratio(result: CandidateResult, reference: CandidateResult) -> float | None:
    """The file's size by the reference's; None where one is unknown."""
    if result.size_bytes is None or not reference.size_bytes:
        return None
    return result.size_bytes / reference.size_bytes


def speed_ratio(result: CandidateResult, reference: CandidateResult) -> float | None:
    """How many times as fast as the reference, by the median; None where one is unknown."""
    if result.latency is None or reference.latency is None or not result.latency.p50_ms:
        return None
    return reference.latency.p50_ms / result.latency.p50_ms


def headline(comparison: PrecisionComparison) -> CandidateResult | None:
    """What is shipped if all is well: the smallest file measured, or the last candidate; None without candidates."""
    rivals = comparison.results[1:]
    sized = [result for result in rivals if result.size_bytes is not None and not result.emulated]
    if sized:
        return min(sized, key=lambda result: result.size_bytes or 0)
    return rivals[-1] if rivals else None


def verdict(comparison: PrecisionComparison) -> str:
    """The sentence that a reader who decides reads first."""
    reference, chosen = comparison.results[0], headline(comparison)
    if chosen is None:
        return f"{show_name(reference.label)} alone: nothing to compare it with."
    return describe(chosen, reference)


def describe(result: CandidateResult, reference: CandidateResult) -> str:
    """What a candidate costs and what it brings, in one sentence."""
    name = show_name(result.label) + (" (emulated)" if result.emulated else "")
    accuracy = None
    if result.drop is not None:
        accuracy = _describe_drop(result.drop)
    elif result.agreement is not None:
        accuracy = _describe_agreement(result.agreement, show_name(reference.label))
    ratio, speed = size_ratio(result, reference), speed_ratio(result, reference)
    costs = [] if ratio is None else [_describe_size(ratio)]
    if speed is not None:
        costs.append(f"runs {show(speed)} times as fast" if speed >= 1 else f"takes {show(1 / speed)} times as long")
    parts = [part for part in (accuracy, " and ".join(costs)) if part]
    return f"{name} {'; it '.join(parts)}." if parts else f"{name} was not measured."


def describe_load(machine: Machine) -> str | None:
    """A word of caution where other programs slowed the measurement; None where there is no need."""
    if machine.load is None or machine.load <= machine.cores / 2:
        return None
    return f"The machine was busy (load {machine.load:.1f}, {machine.cores} cores): take the times as ratios only."


def describe_drops(results: Sequence[CandidateResult], of: str, reference: str) -> str:
    """A chart of drops in words, for those who do not see it."""
    rows = []
    for result in results:
        drop = getattr(result.drop, of, None)
        if drop is not None:
            emulated = " (emulated)" if result.emulated else ""
            rows.append(f"{show_name(result.label)}{emulated} {show(drop.value)}, interval {show_range(drop)}")
    return f"Points of {of} AP lost against {show_name(reference)}: {'; '.join(rows)}."


def _describe_drop(drop: Drop) -> str:
    first, *others = (_describe_interval(f"{kind} AP", lost) for kind, lost in drop.kinds.items())
    rest = [text.removeprefix("costs ") if first.startswith("costs") else text for text in others]
    return " and ".join([first, *rest])


def _describe_interval(what: str, lost: Interval) -> str:
    kind = judge(lost)
    shown = Interval(-lost.value, -lost.high, -lost.low) if kind == "gain" else lost
    level = f"95 %: {show_range(shown)}".replace(" ", "\N{NO-BREAK SPACE}")
    if kind == "even":
        return f"costs no measurable {what} ({show(lost.value)}; {level})"
    return f"{'costs' if kind == 'loss' else 'gains'} {show(shown.value)} points of {what} ({level})"


def _describe_size(ratio: float) -> str:
    if 0.995 < ratio < 1.005:
        return "is as large"
    return f"takes {show_share(ratio)} of the space" if ratio < 1 else f"is {show(ratio)} times as large"


def _describe_agreement(agreement: Agreement, reference: str) -> str:
    text = f"finds {show_share(agreement.matched_share)} of the {agreement.expected:,} objects that {reference} finds"
    if agreement.mask_iou is not None:
        text += f", with masks that overlap by {show(agreement.mask_iou, 3)} on average"
    if agreement.keypoint_close is not None:
        text += f", and {show_share(agreement.keypoint_close)} of their keypoints within half a pixel"
    return text
