"""Charts as they stand in a page: where marks are, what is written, and what must not be in them."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.evaluation import charts
from edge_mrcnn.evaluation.charts import Bar, DropRow, draw_bars, draw_drops
from edge_mrcnn.evaluation.comparison import Interval

matplotlib = pytest.importorskip("matplotlib", reason="Matplotlib is not installed")

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    return root


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in parse(svg).iter(f"{SVG}text")]


def marks(svg: str, name: str) -> list[ElementTree.Element]:
    return [element for element in parse(svg).iter() if element.get("class") == f"mark {name}"]


def xs(svg: str, name: str) -> list[float]:
    """Abscissas of all points of a mark."""
    (group,) = marks(svg, name)
    found = [number for path in group.iter(f"{SVG}path") for number in re.findall(r"[ML] (\S+) \S+", path.get("d", ""))]
    return [float(number) for number in found]


def drop(value: float, low: float, high: float, name: str = "int8", emulated: bool = False) -> DropRow:
    return DropRow(name, Interval(value, low, high), emulated)


@pytest.mark.parametrize(
    ("interval", "left", "right"),
    [
        (Interval(0.2, 0.05, 0.35), False, True),  # worse: right of the zero line
        (Interval(-3.0, -4.0, -2.0), True, False),  # better: left of it
        (Interval(0.1, -0.1, 0.3), True, True),  # across
    ],
)
def test_intervals_lie_on_the_right_side_of_the_zero_line(interval: Interval, left: bool, right: bool) -> None:
    svg = draw_drops([DropRow("int8", interval)], "drops")
    zero, points = xs(svg, "zero")[0], xs(svg, "interval 0")
    assert (min(points) < zero, max(points) > zero) == (left, right)
    (value,) = (float(use.get("x", "")) for use in marks(svg, "value 0")[0].iter(f"{SVG}use"))
    share = (interval.value - interval.low) / (interval.high - interval.low)
    assert value == pytest.approx(min(points) + share * (max(points) - min(points)), abs=0.01)
    box = [float(number) for number in parse(svg).get("viewBox", "").split()]
    assert box[0] < min(points)
    assert max(points) < box[0] + box[2]


def test_rows_share_one_scale() -> None:
    svg = draw_drops([drop(0.1, 0, 0.2), drop(0.2, 0, 0.4), drop(0.0, 0.0, 0.0)], "drops")
    zero = xs(svg, "zero")[0]
    lengths = [max(xs(svg, f"interval {row}")) - zero for row in range(3)]
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=0.01)
    assert lengths[2] == pytest.approx(0, abs=0.01)
    assert {"0.10", "0.20", "0.00"} <= set(texts(svg))


def test_bars_are_as_long_as_their_values() -> None:
    svg = draw_bars([Bar("fp32", 8, "8 MB", quiet=True), Bar("int8", 2, "2 MB", tail=3)], "sizes")
    first, second = ([min(xs(svg, f"bar {row}")), max(xs(svg, f"bar {row}"))] for row in range(2))
    assert second[1] - second[0] == pytest.approx((first[1] - first[0]) / 4, abs=0.02)
    assert max(xs(svg, "tail 1")) - second[0] == pytest.approx(1.5 * (second[1] - second[0]), abs=0.02)
    assert {"fp32", "8 MB", "int8", "2 MB"} <= set(texts(svg))


def test_a_limit_is_the_whole_width() -> None:
    half = draw_bars([Bar("int8", 0.5, "50 %")], "a", limit=1)
    whole = draw_bars([Bar("int8", 1.0, "50 %")], "a", limit=1)
    lengths = [max(xs(svg, "bar 0")) - min(xs(svg, "bar 0")) for svg in (half, whole)]
    assert lengths[1] == pytest.approx(2 * lengths[0], rel=0.01)


def test_what_is_emulated_says_so_and_looks_different() -> None:
    for svg in (
        draw_drops([drop(0.1, 0, 0.2, emulated=True), drop(0.1, 0, 0.2)], "a"),
        draw_bars([Bar("int8", 1, "1", emulated=True), Bar("int8-cpu", 1, "1")], "b"),
    ):
        assert texts(svg).count("emulated") == 1
        kind = "interval" if "mark interval 0" in svg else "bar"
        dashed = [
            "stroke-dasharray" in ElementTree.tostring(marks(svg, f"{kind} {row}")[0], encoding="unicode")
            for row in range(2)
        ]
        assert dashed == [True, False]


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "$x^2$ & $y$",
        'quo"ted',
        "null\0and\x1bescape and \udc80",
        "模型.onnx",
        r"\frac{1}{2}",
    ],
)
def test_any_name_gives_a_well_formed_chart(name: str) -> None:
    svg = draw_bars([Bar(name, 1, name)], name)
    shown = re.sub(r"[\0\x1b\udc80]", "\N{REPLACEMENT CHARACTER}", name)
    assert texts(svg).count(shown) == 2
    assert parse(svg).get("aria-label") == shown
    assert "<script" not in svg


def test_long_names_lose_their_middle() -> None:
    name = "engines/2026-11-21/model.rtx-sm_86.int8.engine"
    (shown,) = (text for text in texts(draw_bars([Bar(name, 1, "1")], "a")) if "…" in text)
    assert len(shown) == charts.NAME_LENGTH
    assert name.startswith(shown.split("…")[0])
    assert name.endswith(shown.split("…")[1])


def test_a_chart_fits_into_a_page() -> None:
    pair = [draw_drops([drop(0.1, 0, 0.2)], alt) for alt in ("Boxes: 0.1", "Masks: 0.1")]
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in pair]
    assert not set(ids[0]) & set(ids[1]), "ids of two charts clash in a page"
    for svg, own, alt in zip(pair, ids, ("Boxes: 0.1", "Masks: 0.1"), strict=True):
        root = parse(svg)
        assert (root.get("role"), root.get("aria-label")) == ("img", alt)
        assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg)) == set(own), (
            "references without a target, or idle ids"
        )
        assert not [element for element in root.iter() if element.tag in (f"{SVG}style", f"{SVG}metadata")]
        for color in charts.VARIABLES:
            assert color not in svg
        colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
        assert colors <= {"none", *charts.VARIABLES.values()}, "a colour does not follow the page"
        assert "font-family:" not in svg, "the page's style sheet could not change it"
        assert not re.findall(r'(?:src|href)="(?!#)', svg)
        assert len(svg) < 20_000


def test_a_users_settings_neither_matter_nor_change() -> None:
    rows = [drop(0.1, 0, 0.2)]
    plain = draw_drops(rows, "a")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert draw_drops(rows, "a") == plain
        assert dict(matplotlib.rcParams) == before


def test_no_rows() -> None:
    for draw in (draw_drops, draw_bars):
        with pytest.raises(ValueError, match="at least one row"):
            draw([], "nothing")


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*(name for name in sys.modules if name.startswith("matplotlib.")), "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EdgeMrcnnError, match=r"pip install 'edge-mrcnn\[eval\]'"):
        draw_drops([drop(0.1, 0, 0.2)], "a")


def test_libraries_are_imported_when_something_is_drawn() -> None:
    program = (
        "import sys\n"
        "import edge_mrcnn.evaluation.charts, edge_mrcnn.evaluation.report, edge_mrcnn.evaluation.report_page\n"
        "heavy = {'matplotlib', 'jinja2', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
