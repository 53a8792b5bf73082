"""The page of a report: charts and template put together into one HTML file."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

import edge_mrcnn
from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.evaluation import charts, wording
from edge_mrcnn.evaluation.comparison import CandidateResult, PrecisionComparison

if TYPE_CHECKING:
    from jinja2 import Environment

    from edge_mrcnn.evaluation.sensitivity import SensitivityResult

PICTURE_BYTES = 1_200_000
"""All pictures of a page together, before base64 makes them a third larger; beyond it they are compressed more."""

SHOWN_GROUPS = 16
"""Layer groups in the chart of sensitivity; the table has all."""

QUIET_DB = 60.0
"""Decibels from which the bar of a group is empty: float16's own noise."""

SHOWN_CLASSES = 12
"""Classes in view, those that lost most; the rest unfold."""


@dataclass(frozen=True)
class ClassRow:
    """AP of one class: the reference's, and what each rival lost of it.

    Attributes:
        name: The class.
        box: Of the reference's boxes.
        box_lost: By rival.
        mask: Of the reference's masks.
        mask_lost: By rival.
        keypoint: Of the reference's keypoints.
        keypoint_lost: By rival.
    """

    name: str
    box: float | None
    box_lost: tuple[float | None, ...]
    mask: float | None
    mask_lost: tuple[float | None, ...]
    keypoint: float | None
    keypoint_lost: tuple[float | None, ...]

    @property
    def worst(self) -> float:
        """The largest loss."""
        every = (*self.box_lost, *self.mask_lost, *self.keypoint_lost)
        return max((value for value in every if value is not None), default=-math.inf)


def render_page(comparison: PrecisionComparison, sensitivity: SensitivityResult | None = None) -> str:
    """A comparison as one HTML page without a reference to anything outside it.

    Args:
        comparison: What to show.
        sensitivity: Which layer groups mind int8 most; left out when not given.

    Returns:
        The page.

    Raises:
        EdgeMrcnnError: Jinja2 or Matplotlib is not installed.
    """
    reference, *rivals = comparison.results
    return _environment().get_template("report.html.j2").render(
        comparison=comparison,
        reference=reference,
        rivals=rivals,
        chosen=wording.headline(comparison),
        verdict=wording.verdict(comparison),
        title=PurePath(comparison.model).name,
        kinds=wording.measured_kinds(comparison.results),
        pointed_anywhere=any(one.agreement and one.agreement.keypoint_close is not None for one in rivals),
        emulated={result.label for result in comparison.results if result.emulated},
        drop_charts=_draw_drops(comparison),
        cost_charts=_draw_costs(comparison.results),
        classes=sorted(class_rows(comparison.results), key=lambda row: -row.worst),
        shown_classes=SHOWN_CLASSES,
        sensitivity=sensitivity,
        sensitivity_chart=_draw_sensitivity(sensitivity) if sensitivity else None,
        pictures=[(picture, _sources(picture.jpeg, comparison)) for picture in comparison.disagreements],
        version=edge_mrcnn.__version__,
    )  # fmt: skip


def class_rows(results: Sequence[CandidateResult]) -> Iterator[ClassRow]:
    """Differences by class; nothing without labels or without rivals."""
    reference, *rivals = results
    if reference.accuracy is None or not rivals:
        return
    for name in reference.accuracy.box.per_class:
        figures: list[Any] = []
        for kind in ("box", "mask", "keypoint"):
            first, *others = (_class_ap(result, kind, name) for result in results)
            figures += [first, tuple(_difference(first, other) for other in others)]
        yield ClassRow(name, *figures)


def _class_ap(result: CandidateResult, of: str, name: str) -> float | None:
    scores = getattr(result.accuracy, of, None)
    value: float | None = scores.per_class.get(name) if scores else None
    return value


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after


def _environment() -> Environment:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise EdgeMrcnnError("the report needs Jinja2; run: pip install 'edge-mrcnn[eval]'") from error
    environment = Environment(
        loader=PackageLoader("edge_mrcnn.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: wording.printable(value) if type(value) is str else value,  # what comes from files
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = [name for name in vars(wording) if name == "show" or name.startswith("show_")]
    environment.filters.update({name: getattr(wording, name) for name in (*filters, "judge")})
    environment.globals.update(
        main_drop=wording.main_drop,
        size_ratio=wording.size_ratio,
        speed_ratio=wording.speed_ratio,
        judgements=wording.JUDGEMENTS,
        judge_both=wording.judge_both,
        plurals=wording.PLURALS,
        main_kind=wording.main_kind,
        describe_load=wording.describe_load,
    )
    return environment


def _draw_drops(comparison: PrecisionComparison) -> list[tuple[str, Any]]:
    """A chart of the drops of masks, of keypoints and of boxes, of those there are, with their titles."""
    found = []
    for of, title in (("mask", "Mask AP lost"), ("keypoint", "Keypoint AP lost"), ("box", "Box AP lost")):
        drops = [(result, getattr(result.drop, of, None)) for result in comparison.results]
        rows = [charts.DropRow(wording.show_name(one.label), drop, one.emulated) for one, drop in drops if drop]
        if rows:
            alt = wording.describe_drops(comparison.results, of, comparison.results[0].label)
            found.append((title, _safe(charts.draw_drops(rows, alt))))
    return found


def _draw_costs(results: Sequence[CandidateResult]) -> list[tuple[str, Any]]:
    """Charts of size, latency and share of int8, of what is known, with their titles."""
    reference = results[0]
    sizes, times, shares = [], [], []
    for result in results:
        style: dict[str, Any] = {"emulated": result.emulated, "quiet": result is reference}
        name = wording.show_name(result.label)
        if result.size_bytes is not None:
            sizes.append(charts.Bar(name, result.size_bytes, wording.show_size(result.size_bytes), **style))
        if result.latency is not None:
            p50, p95 = result.latency.p50_ms, result.latency.p95_ms
            times.append(charts.Bar(name, p50, wording.show_ms(p50), tail=p95, **style))
        if result.int8_share is not None:
            shares.append(charts.Bar(name, result.int8_share, wording.show_share(result.int8_share, 0), **style))
    kinds = (
        ("File size", sizes, None),
        ("Latency: median, line to 95 %", times, None),
        ("Multiply-accumulates in INT8", shares, 1.0),
    )
    return [
        (title, _safe(charts.draw_bars(rows, _alt(title, rows), limit=limit))) for title, rows, limit in kinds if rows
    ]


def _draw_sensitivity(sensitivity: SensitivityResult) -> Any:
    """The groups that cost most, longer bars for more noise; None where nothing makes any."""
    rows = [
        charts.Bar(group.name, max(QUIET_DB - group.snr_db, 0), wording.show_db(group.snr_db))
        for group in sensitivity.groups[:SHOWN_GROUPS]
        if math.isfinite(group.snr_db)
    ]
    title = "Signal to noise with one group of layers in INT8, most noise first"
    return _safe(charts.draw_bars(rows, _alt(title, rows), width=charts.WIDTH)) if rows else None


def _alt(title: str, rows: Sequence[charts.Bar]) -> str:
    values = (f"{row.name}{' (emulated)' if row.emulated else ''} {row.text}" for row in rows)
    return f"{title}: {'; '.join(values)}."


def _safe(svg: str) -> Any:
    """An element made here, whose text is escaped already."""
    from markupsafe import Markup

    return Markup(svg)


def _sources(jpegs: Any, comparison: PrecisionComparison) -> list[tuple[CandidateResult, str]]:
    """Data URIs of one picture's versions, in the order of the candidates."""
    budget = PICTURE_BYTES // sum(len(picture.jpeg) for picture in comparison.disagreements)
    return [
        (result, f"data:image/jpeg;base64,{base64.b64encode(fit_jpeg(jpegs[result.label], budget)).decode()}")
        for result in comparison.results
        if result.label in jpegs
    ]


def fit_jpeg(jpeg: bytes, limit: int) -> bytes:
    """A JPEG of at most so many bytes: compressed more, then made smaller, where it is larger.

    Args:
        jpeg: A JPEG file.
        limit: Bytes; the least that can be reached is a picture 160 pixels wide.
    """
    if len(jpeg) <= limit:
        return jpeg
    import cv2

    picture: Any = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"a disagreement picture is not a JPEG of a known kind ({len(jpeg)} bytes)")
    smallest = jpeg
    for width in (960, 640, 480, 320, 160):
        scale = min(1.0, width / picture.shape[1])
        scaled = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else picture
        for quality in (85, 75):
            smallest = cv2.imencode(".jpg", scaled, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if len(smallest) <= limit:
                return smallest
    return smallest
