"""Charts of a report: SVG to be put into a page, in the page's colours and font.

Matplotlib draws with stand-in colours, which become CSS variables (`--ink`, `--muted`, `--rule`, `--accent`,
`--surface`), so that a chart follows the page into dark mode and onto paper. Nothing is told by colour alone: rows are
named, values are written out, and what was emulated is hollow and says so.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.evaluation import wording
from edge_mrcnn.evaluation.comparison import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, RULE, ACCENT, SURFACE = "#010101", "#020202", "#030303", "#040404", "#050505"
"""Stand-ins that no other part of a chart has."""

VARIABLES: Mapping[str, str] = {
    INK: "var(--ink, #16191d)",
    MUTED: "var(--muted, #5b6570)",
    RULE: "var(--rule, #d5dae0)",
    ACCENT: "var(--accent, #0b62b8)",
    SURFACE: "var(--surface, #ffffff)",
}
"""What they become, with a value for a chart outside the page."""

WIDTH = 400
"""Pixels: fits a phone, and two side by side fit a desktop."""

NARROW = 340
"""Pixels: three fit side by side."""

ROW = 30
"""Pixels from row to row."""

ROOM_FOR_TEXT = 1.4
"""Length of the axis by that of the longest bar."""

NAME_LENGTH = 26
"""Characters of a row's name at most: the middle of a longer one is left out."""

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True)
class DropRow:
    """A candidate in `draw_drops`.

    Attributes:
        name: The candidate's.
        drop: Points of AP lost; positive is worse.
        emulated: The rounding was emulated.
    """

    name: str
    drop: Interval
    emulated: bool = False


@dataclass(frozen=True)
class Bar:
    """A row in `draw_bars`.

    Attributes:
        name: At the left.
        value: Length of the bar.
        text: Behind the bar.
        tail: A thin line goes on to here, such as p95 of a latency; None for none.
        emulated: The value was emulated: the bar is hollow.
        quiet: Without the accent, such as the reference.
    """

    name: str
    value: float
    text: str
    tail: float | None = None
    emulated: bool = False
    quiet: bool = False


def draw_drops(rows: Sequence[DropRow], alt: str) -> str:
    """Points of AP lost, with intervals, beside a zero line.

    Args:
        rows: From the top.
        alt: What the chart shows, for those who do not see it.

    Returns:
        An `<svg>` element.

    Raises:
        EdgeMrcnnError: Matplotlib is not installed.
        ValueError: There are no rows.
    """
    _check(rows)
    ends = [end for row in rows for end in (row.drop.low, row.drop.high, row.drop.value, 0.0)]
    room = max(max(ends) - min(ends), 0.1) * 0.12
    with _figure(WIDTH, len(rows) * ROW + 70, alt) as figure:
        axes = _axes(figure, rows)
        axes.set_xlim(min(ends) - room, max(ends) + room)
        axes.axvline(0, color=INK, linewidth=1.4, gid="mark zero", zorder=1)
        axes.set_xlabel("points of AP lost, with 95 % interval", color=MUTED, fontsize=11)
        for text, x, side in (("worse \N{RIGHTWARDS ARROW}", 1, "right"), ("\N{LEFTWARDS ARROW} better", 0, "left")):
            _write(axes, text, (x, 1), (0, 4), xycoords="axes fraction", ha=side, va="bottom", color=MUTED, fontsize=11)
        for y, row in enumerate(rows):
            _draw_drop(axes, y, row)
        return _to_svg(figure, alt)


def draw_bars(rows: Sequence[Bar], alt: str, *, limit: float | None = None, width: int = NARROW) -> str:
    """Horizontal bars, each with its value behind it.

    Args:
        rows: From the top.
        alt: What the chart shows, for those who do not see it.
        limit: Value at the right end; with room for the texts beyond the longest bar when not given.
        width: Of the chart in pixels.

    Returns:
        An `<svg>` element.

    Raises:
        EdgeMrcnnError: Matplotlib is not installed.
        ValueError: There are no rows.
    """
    _check(rows)
    with _figure(width, len(rows) * ROW + 12, alt) as figure:
        axes = _axes(figure, rows)
        longest = max(max(row.value, row.tail or 0.0, 0.0) for row in rows)
        lowest = min(0.0, *(row.value for row in rows))
        axes.set_xlim(lowest, lowest + ((limit or longest or 1.0) - lowest) * ROOM_FOR_TEXT)
        axes.set_xticks([])
        axes.axvline(0, color=MUTED, linewidth=1, gid="mark zero")
        for y, row in enumerate(rows):
            _draw_bar(axes, y, row)
        return _to_svg(figure, alt)


def _check(rows: Sequence[object]) -> None:
    if not rows:
        raise ValueError("a chart needs at least one row, got none")


def _draw_bar(axes: Axes, y: int, row: Bar) -> None:
    """A bar and its text; what is emulated is hollow and dashed."""
    color = MUTED if row.quiet else ACCENT
    face, dashes = (SURFACE, (0, (3, 2))) if row.emulated else (color, "solid")
    style: dict[str, Any] = {"facecolor": face, "edgecolor": color, "linestyle": dashes, "linewidth": 1.2}
    axes.barh(y, row.value, height=0.5, clip_on=False, gid=f"mark bar {y}", **style)
    end = max(row.value, row.tail or 0.0, 0.0)
    if row.tail is not None and row.tail > row.value:
        axes.hlines(y, row.value, row.tail, color=color, linewidth=1.4, clip_on=False, gid=f"mark tail {y}")
        axes.vlines(row.tail, y - 0.12, y + 0.12, color=color, linewidth=1.4, clip_on=False)
    _write(axes, row.text, (end, y), (7, 0), va="center")


def _draw_drop(axes: Axes, y: int, row: DropRow) -> None:
    """A dot on its interval; what is emulated is hollow and dashed."""
    low, value, high = row.drop.low, row.drop.value, row.drop.high
    dashes: Any = (0, (4, 2)) if row.emulated else "solid"
    face = SURFACE if row.emulated else ACCENT
    line: dict[str, Any] = {"color": ACCENT, "linewidth": 2, "clip_on": False}
    axes.hlines(y, low, high, linestyle=dashes, gid=f"mark interval {y}", **line)
    axes.vlines([low, high], y - 0.13, y + 0.13, gid=f"mark ends {y}", **line)
    dot: dict[str, Any] = {"markersize": 8, "markerfacecolor": face, "markeredgecolor": ACCENT, "markeredgewidth": 2}
    axes.plot([value], [y], "o", gid=f"mark value {y}", zorder=3, clip_on=False, **dot)
    _write(axes, wording.show(value), (value, y), (0, 7), ha="center", va="bottom")


@contextmanager
def _figure(width: int, height: int, alt: str) -> Iterator[Figure]:
    """A figure of one unit a pixel, in Matplotlib's own defaults whatever the user's are."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EdgeMrcnnError("the charts of a report need Matplotlib; run: pip install 'edge-mrcnn[eval]'") from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        # The salt keeps the ids of a page's charts apart.
        wanted: Any = {
            "svg.fonttype": "none",
            "svg.hashsalt": wording.printable(alt),
            "text.parse_math": False,
            "font.size": 12,
        }
        matplotlib.rcParams.update(wanted)
        warnings.filterwarnings("ignore", message="Glyph")  # missing from Matplotlib's font, not from the reader's
        yield Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none", layout="constrained")


def _axes(figure: Figure, rows: Sequence[DropRow | Bar]) -> Axes:
    """Axes with the rows' names at the left, from the top."""
    axes = figure.add_subplot(facecolor="none")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelcolor=MUTED, labelsize=11)
    axes.locator_params(axis="x", nbins=6)
    axes.grid(axis="x", color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for y, row in enumerate(rows):
        place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "ha": "right"}
        name = wording.shorten(row.name, NAME_LENGTH)
        _write(axes, name, (0, y), (-10, 1 if row.emulated else 0), va="bottom" if row.emulated else "center", **place)
        if row.emulated:
            _write(axes, "emulated", (0, y), (-10, -1), va="top", fontsize=10, color=MUTED, **place)
    return axes


def _write(axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int], **style: Any) -> None:
    """Text some pixels away from a point."""
    style = {"color": INK, "annotation_clip": False, **style}
    axes.annotate(wording.printable(text), at, offset, textcoords="offset points", **style)


def _to_svg(figure: Figure, alt: str) -> str:
    """The figure as an `<svg>` element that can stand in a page beside others."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = re.sub(r"<!DOCTYPE.*?>", "", buffer.getvalue(), flags=re.DOTALL)
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{_SVG}}}style":  # it would hold for the whole page
                parent.remove(child)
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", drawn))
    for element in root.iter():
        _adapt(element, used)
    for side in ("width", "height"):
        root.set(side, root.attrib[side].removesuffix("pt"))
    # The page's style sheet has the last word on size and font; these are for a chart in a file of its own.
    root.attrib.update({"class": "chart", "role": "img", "aria-label": wording.printable(alt)})
    root.attrib.update({"style": "stroke-linejoin: round", "font-family": "system-ui, sans-serif"})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode"))


def _adapt(element: ElementTree.Element, used: set[str]) -> None:
    """Colours and font of the page; ids only where something refers to them, and marks as classes."""
    name = element.get("id", "")
    if name not in used:
        element.attrib.pop("id", None)
    if name.startswith("mark "):
        element.set("class", name)
    style = re.sub(r"font-family:[^;]*;?", "", element.get("style", ""))
    for color, variable in VARIABLES.items():
        style = style.replace(color, variable)
    if style:
        element.set("style", style)
