"""The report: all figures are there, each with its backend, and the page is one sound file whatever goes into it."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.evaluation import wording
from edge_mrcnn.evaluation.comparison import (
    CandidateResult,
    DisagreementPicture,
    Interval,
    PrecisionComparison,
)
from edge_mrcnn.evaluation.report import COLUMNS, comparison_lines, write_report
from edge_mrcnn.evaluation.report_page import fit_jpeg, render_page
from tests.evaluation import comparisons
from tests.evaluation.html_page import Page

pytest.importorskip("matplotlib", reason="Matplotlib, which draws the charts, is not installed")

HOSTILE = "<script>alert(\"1\")</script> & '$x$' \x1b[31m"


def strip(comparison: PrecisionComparison, **changes: object) -> PrecisionComparison:
    """The comparison with fields of all its candidates changed."""
    results = tuple(dataclasses.replace(result, **changes) for result in comparison.results)
    return dataclasses.replace(comparison, results=results)


def without_labels(comparison: PrecisionComparison) -> PrecisionComparison:
    return dataclasses.replace(strip(comparison, accuracy=None, drop=None), labelled=False, bootstrap=0)


def without_masks(comparison: PrecisionComparison) -> PrecisionComparison:
    def change(result: CandidateResult) -> CandidateResult:
        assert result.accuracy is not None
        return dataclasses.replace(
            result,
            accuracy=dataclasses.replace(result.accuracy, mask=None),
            drop=result.drop and dataclasses.replace(result.drop, mask=None),
            agreement=result.agreement and dataclasses.replace(result.agreement, mask_iou=None),
        )

    return dataclasses.replace(comparison, results=tuple(change(result) for result in comparison.results))


def with_keypoints(comparison: PrecisionComparison, *, masks: bool) -> PrecisionComparison:
    """Figures of keypoints that no other figure equals, beside those of masks or in their place."""

    def change(place: int, result: CandidateResult) -> CandidateResult:
        assert result.accuracy is not None
        scores = dataclasses.replace(comparisons.make_scores(61.407 - place / 7, 40 + place), ap_small=None)
        lost = Interval(place / 7, place / 7 - 0.05, place / 7 + 0.05)
        close, shift = 0.97311 - place / 100, 0.01234 + place / 1000
        return dataclasses.replace(
            result,
            accuracy=dataclasses.replace(result.accuracy, keypoint=scores),
            drop=result.drop and dataclasses.replace(result.drop, keypoint=lost),
            agreement=result.agreement
            and dataclasses.replace(result.agreement, keypoint_close=close, keypoint_shift=shift),
        )

    plain = comparison if masks else without_masks(comparison)
    return dataclasses.replace(plain, results=tuple(change(*each) for each in enumerate(plain.results)))


def without_small_objects(comparison: PrecisionComparison) -> PrecisionComparison:
    def change(result: CandidateResult) -> CandidateResult:
        assert result.accuracy is not None
        box = dataclasses.replace(result.accuracy.box, ap_small=None, per_class={"mug": None, "bowl": float("nan")})
        return dataclasses.replace(result, accuracy=dataclasses.replace(result.accuracy, box=box))

    return dataclasses.replace(comparison, results=tuple(change(result) for result in comparison.results))


def without_pairs(comparison: PrecisionComparison) -> PrecisionComparison:
    nothing = {"box_iou": None, "mask_iou": None, "score_shift": None, "score_shift_abs": None}
    agreements = [one.agreement and dataclasses.replace(one.agreement, **nothing) for one in comparison.results]
    results = zip(comparison.results, agreements, strict=True)
    return dataclasses.replace(
        comparison, results=tuple(dataclasses.replace(one, agreement=agreement) for one, agreement in results)
    )


def reference_alone(comparison: PrecisionComparison) -> PrecisionComparison:
    return dataclasses.replace(comparison, results=comparison.results[:1], disagreements=())


def without_load(comparison: PrecisionComparison) -> PrecisionComparison:
    machine = dataclasses.replace(comparison.machine, load=None, packages={})
    return dataclasses.replace(comparison, machine=machine, disagreements=())


VARIATIONS: dict[str, Callable[[PrecisionComparison], PrecisionComparison]] = {
    "complete": lambda comparison: comparison,
    "no labels": without_labels,
    "no masks": without_masks,
    "keypoints and masks": lambda comparison: with_keypoints(comparison, masks=True),
    "keypoints without masks": lambda comparison: with_keypoints(comparison, masks=False),
    "no small objects": without_small_objects,
    "no pairs": without_pairs,
    "no latency": lambda comparison: strip(comparison, latency=None),
    "no size": lambda comparison: strip(comparison, size_bytes=None, int8_share=None),
    "nothing but labels": lambda comparison: without_labels(
        strip(comparison, latency=None, size_bytes=None, int8_share=None, agreement=None)
    ),
    "no disagreement": lambda comparison: dataclasses.replace(comparison, disagreements=()),
    "one candidate": lambda comparison: dataclasses.replace(comparison, results=comparison.results[:2]),
    "the reference alone": reference_alone,
    "an unknown machine": without_load,
}


@pytest.fixture(scope="module")
def comparison() -> PrecisionComparison:
    return comparisons.make_comparison()


@pytest.mark.parametrize("name", VARIATIONS)
def test_pages_are_sound_and_complete_in_themselves(name: str, comparison: PrecisionComparison, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(VARIATIONS[name](comparison), path)
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", page.text), page.text
    links = [value for _, kind, value in page.attributes if kind in ("src", "href", "srcset", "action", "data")]
    links += re.findall(r"url\(([^)]*)\)", source)
    assert all(link.startswith(("data:", "#")) for link in links if link)
    assert not re.search(r"<(script|iframe|object|embed|base)\b|@import", source)
    assert all(kind != "xlink:href" or value.startswith("#") for _, kind, value in page.attributes)
    ids = [value for _, kind, value in page.attributes if kind == "id"]
    assert len(ids) == len(set(ids))
    assert not re.search(r"stroke: #0[1-5]|fill: #0[1-5]", source), "a chart in stand-in colours"
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("name", VARIATIONS)
def test_lines_fit_the_terminal(name: str, comparison: PrecisionComparison) -> None:
    lines = comparison_lines(VARIATIONS[name](comparison))
    assert max(map(len, lines)) <= COLUMNS
    assert not re.search(r"\b(None|nan|inf)\b", "\n".join(lines))


@pytest.mark.parametrize("place", range(4))
def test_all_figures_are_on_the_page(comparison: PrecisionComparison, place: int) -> None:
    result = comparison.results[place]
    page = Page(render_page(comparison))
    name = wording.show_name(result.label)
    shown = " ".join(" ".join(row) for row in page.rows if row[0].split()[:1] == [name])
    for expected in (*accuracy_figures(result), *agreement_figures(result), *cost_figures(result)):
        assert expected in shown, expected
    assert result.backend in shown
    assert all(group in page.text for group in result.kept)


def accuracy_figures(result: CandidateResult) -> list[str]:
    assert result.accuracy is not None
    fields = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    found = [
        wording.show(getattr(scores, field))
        for scores in (result.accuracy.box, result.accuracy.mask)
        for field in fields
    ]
    for drop in (result.drop.box, result.drop.mask) if result.drop else ():
        assert drop is not None
        found.append(f"{wording.show(drop.value)} ({wording.show(drop.low)} to {wording.show(drop.high)})")
    return found


def agreement_figures(result: CandidateResult) -> list[str]:
    found = result.agreement
    if found is None:
        return []
    shares = (found.box_iou, found.mask_iou, found.score_shift, found.score_shift_abs)
    counts = (found.expected, found.matched, found.missed, found.extra)
    return [f"{count:,}" for count in counts] + [wording.show(share, 3) for share in shares]


def cost_figures(result: CandidateResult) -> list[str]:
    times = dataclasses.astuple(result.latency) if result.latency else ()
    size = [f"{result.size_bytes / 1e6:.2f} MB"] if result.size_bytes else []
    return [*size, *(f"{time:.1f} ms" for time in times)]


def test_how_it_was_measured_is_on_the_page(comparison: PrecisionComparison) -> None:
    text = Page(render_page(comparison)).text
    words = (
        "1,000",
        "Xeon(R) Platinum 8481C",
        "onnxruntime 1.31.1",
        "Python 3.11.7",
        "load 0.4",
        "2026-11-21 17:05 UTC",
    )
    for word in (comparison.model, comparison.data, *words):
        assert word in text
    for picture in comparison.disagreements:
        assert f"{picture.name} {picture.what.replace(';', '')}" in text, "each candidate's part on a line of its own"


def test_classes_are_compared_with_the_reference(comparison: PrecisionComparison) -> None:
    page = Page(render_page(comparison))
    box = [result.accuracy.box.per_class["fork"] for result in comparison.results if result.accuracy]
    mask = [result.accuracy.mask.per_class["fork"] for result in comparison.results if result.accuracy]  # type: ignore
    (row,) = (row for row in page.rows if row[0].strip() == "fork")
    expected = [value for first, *others in (box, mask) for value in (first, *(first - other for other in others))]
    assert [cell.strip() for cell in row[1:]] == [wording.show(value) for value in expected]
    names = [row[0].strip() for row in page.rows if row[0].strip() in comparisons.CLASSES]
    assert sorted(names) == sorted(comparisons.CLASSES), "the rest unfolds, but is there"


def test_emulated_figures_say_so_wherever_they_stand(comparison: PrecisionComparison) -> None:
    page = Page(render_page(comparison))
    labels = {"FP32": False, "FP16": True, "INT8": True, "INT8-CPU": False}
    rows = [(row[0].split()[0], "emulated" in row[0]) for row in page.rows if row[0].split()[0] in labels]
    assert len(rows) == 2 * 4 + 3 + 4
    captions = [(caption.split()[0], "emulated" in caption) for caption in page.captions]
    assert len(captions) == 6 * 4
    for name, emulated in (*rows, *captions):
        assert emulated == labels[name], name
    for _, alt in ((tag, value) for tag, name, value in page.attributes if name in ("alt", "aria-label")):
        for label in ("FP16", "INT8"):
            for place in re.finditer(rf"{label}(?!-CPU)\b( \(emulated\))?(?= [\d\N{{MINUS SIGN}}])", alt):
                assert place[1], alt
    heads = [cell for row in page.rows for cell in row if "lost" in cell and "FP16" in cell]
    assert heads
    assert all("emulated" in head for head in heads)


def test_an_emulated_verdict_says_so(comparison: PrecisionComparison) -> None:
    shorter = dataclasses.replace(comparison, results=comparison.results[:3])
    assert wording.verdict(shorter).startswith("INT8 (emulated) costs no measurable mask AP (0.11; 95")
    lines = comparison_lines(shorter)
    assert [line for line in lines if line.startswith("int8*")]
    assert any(line.startswith("* emulated:") for line in lines)


def test_lines_have_the_figures(comparison: PrecisionComparison) -> None:
    text = "\n".join(comparison_lines(comparison))
    for expected in (
        r"int8-cpu +2\.31 MB +29\.0 % +21\.1 +23\.4 +21\.4 +2\.19 +95 %",
        r"int8\* +- +- +- +- +- +- +97 %",
        r"int8-cpu +70\.04 +89\.35 +78\.66 +48\.64 +72\.17 +81\.31   0\.20 \[0\.02, 0\.37\] loss",
        r"fp16\* .* -0\.01 \[-0\.03, 0\.02\] none shown",
        r"int8-cpu +7412 +7287 +98\.3 % +125 +118 +0\.960 +0\.950 +-0\.005 +0\.021",
        r"int8\*: onnxruntime-cpu, int8 emulated; kept out of int8: backbone\.body\.0, rpn_head",
    ):
        assert re.search(expected, text), expected


def test_nothing_from_a_file_becomes_markup(comparison: PrecisionComparison, tmp_path: Path) -> None:
    def poison(result: CandidateResult) -> CandidateResult:
        assert result.accuracy is not None
        box = dataclasses.replace(result.accuracy.box, per_class={HOSTILE: 50.0})
        label = result.label if result.label == "fp32" else HOSTILE + result.label
        return dataclasses.replace(
            result,
            label=label,
            backend=HOSTILE,
            kept=(HOSTILE,),
            accuracy=dataclasses.replace(result.accuracy, box=box),
        )

    pictures = tuple(
        DisagreementPicture(HOSTILE, 1.0, HOSTILE, {f"{HOSTILE}int8": picture.jpeg["int8"]})
        for picture in comparison.disagreements
    )
    bad = dataclasses.replace(
        comparison,
        model=f"dir/{HOSTILE}",
        data=f"{HOSTILE}\udcff",  # as the system gives a file name that is not UTF-8
        results=tuple(map(poison, comparison.results)),
        disagreements=pictures,
        warnings=(HOSTILE,),
        created=HOSTILE,
    )
    path = tmp_path / "report.html"
    write_report(bad, path, comparisons.make_sensitivity())
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert not re.search(r"<script|\x1b", source)
    assert page.text.count("<script>alert(\"1\")</script> & '$x$' \N{REPLACEMENT CHARACTER}[31m") > 20
    lines = comparison_lines(bad)
    assert not [line for line in lines if "\x1b" in line or "\udcff" in line]
    assert max(map(len, lines)) <= COLUMNS


def test_warnings_come_before_the_verdict(comparison: PrecisionComparison) -> None:
    warned = dataclasses.replace(comparison, warnings=("3 pictures are among those of the calibration",))
    text = Page(render_page(warned)).text
    assert text.index("3 pictures are among") < text.index(wording.verdict(warned).replace("\N{NO-BREAK SPACE}", " "))
    assert comparison_lines(warned)[0] == "warning: 3 pictures are among those of the calibration"
    assert "Before you rely on this" not in Page(render_page(comparison)).text


def test_pictures_stand_reference_first_and_fit_the_size(comparison: PrecisionComparison) -> None:
    rng = np.random.default_rng(0)
    noise = cv2.imencode(".jpg", rng.integers(0, 255, (960, 1280, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
    pictures = tuple(
        DisagreementPicture(f"{row}.jpg", 1.0, "noise", dict.fromkeys(reversed(comparisons.LABELS), noise.tobytes()))
        for row in range(6)
    )
    source = render_page(dataclasses.replace(comparison, disagreements=pictures), comparisons.make_sensitivity())
    assert len(source.encode()) < 2_000_000
    page = Page(source)
    assert len(page.images) == 24
    assert [caption.split()[0] for caption in page.captions[:4]] == ["FP32", "FP16", "INT8", "INT8-CPU"]


def test_small_pictures_stay_as_they_are(comparison: PrecisionComparison) -> None:
    jpeg = comparison.disagreements[0].jpeg["fp32"]
    assert fit_jpeg(jpeg, len(jpeg)) is jpeg
    smaller = fit_jpeg(jpeg, len(jpeg) // 3)
    assert len(smaller) <= len(jpeg) // 3
    before, after = (cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape for data in (jpeg, smaller))
    assert after[0] / after[1] == pytest.approx(before[0] / before[1], rel=0.02)
    with pytest.raises(ValueError, match="not a JPEG"):
        fit_jpeg(b"GIF89a" * 100, 10)


def test_sensitivity_is_ranked_and_labelled(comparison: PrecisionComparison) -> None:
    sensitivity = comparisons.make_sensitivity()
    page = Page(render_page(comparison, sensitivity))
    names = {group.name for group in sensitivity.groups}
    rows = [row for row in page.rows if row[0].strip() in names]
    assert [row[0].strip() for row in rows] == [group.name for group in sensitivity.groups]
    for row, group in zip(rows, sensitivity.groups, strict=True):
        assert row[1].strip() == wording.show_db(group.snr_db).replace("\N{NO-BREAK SPACE}", " ")
        assert row[6].strip() == wording.show(group.box_drop)
        assert row[7].strip() == wording.show(group.mask_drop)
    assert "Signal to noise (emulated)" in page.text
    assert "no noise" in rows[-1][1]
    measured = dataclasses.replace(sensitivity, dialect="ort", labelled=0)
    assert "Signal to noise (emulated)" not in Page(render_page(comparison, measured)).text


@pytest.mark.parametrize(("load", "busy"), [(None, False), (0.4, False), (1.0, False), (3.1, True)])
def test_a_busy_machine_is_said_to_be_one(comparison: PrecisionComparison, load: float | None, busy: bool) -> None:
    loaded = dataclasses.replace(comparison, machine=dataclasses.replace(comparison.machine, load=load))
    text = Page(render_page(dataclasses.replace(loaded, disagreements=()))).text
    assert ("The machine was busy (load 3.1, 2 cores)" in text) == busy
    assert any(line.startswith("The machine was busy") for line in comparison_lines(loaded)) == busy


def test_a_report_that_cannot_be_written_leaves_nothing(comparison: PrecisionComparison, tmp_path: Path) -> None:
    old = tmp_path / "report.html"
    old.write_text("old")
    broken = DisagreementPicture("x.jpg", 1.0, "broken", {"fp32": b"no jpeg" * 400_000})
    with pytest.raises(ValueError, match="not a JPEG"):
        write_report(dataclasses.replace(comparison, disagreements=(broken,)), old)
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("report.html", "old")]
    with pytest.raises(OSError, match="missing"):
        write_report(comparison, tmp_path / "missing" / "report.html")


def test_without_jinja(comparison: PrecisionComparison, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(EdgeMrcnnError, match=r"pip install 'edge-mrcnn\[eval\]'"):
        write_report(comparison, tmp_path / "report.html")


def luminance(color: str) -> float:
    """Relative luminance. Source: WCAG 2."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_in_light_and_dark(comparison: PrecisionComparison, scheme: int) -> None:
    source = render_page(dataclasses.replace(comparison, disagreements=()))
    blocks = re.findall(r":root \{([^}]*--ink[^}]*)\}", source)
    assert len(blocks) == 2
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))
    pairs = [(text, ground) for text in ("ink", "muted", "accent") for ground in ("page", "surface", "raised")]
    pairs += [(kind, f"{kind}-soft") for kind in ("loss", "gain", "even", "warn")] + [("ink", "warn-soft")]
    for text, ground in pairs:
        dark, light = sorted((luminance(colors[text]), luminance(colors[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_headings_skip_no_level(comparison: PrecisionComparison) -> None:
    source = render_page(comparison, comparisons.make_sensitivity())
    levels = [int(level) for level in re.findall(r"<h(\d)", source)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("masks", [True, False])
def test_keypoints_have_their_place_beside_masks_or_alone(masks: bool) -> None:
    comparison = with_keypoints(comparisons.make_comparison(pictures=False), masks=masks)
    text, page = "\n".join(comparison_lines(comparison)), render_page(comparison)
    for shown in (text, page):
        assert "61.41" in shown  # the reference's AP
        assert ("mask AP" in shown) == masks
        assert ("Masks</th>" in page) == masks
    assert "keypoint AP" in text
    assert "96.3 %" in text  # within half a pixel, of the first rival
    assert "1.33 %" in text
    assert "Keypoints</th>" in page
    assert "Keypoint AP lost" in page
    assert "within ½ px" in page
    assert "Keypoint lost<br>" in page  # by class
    assert max(map(len, text.splitlines())) <= COLUMNS
    verdict = wording.verdict(comparison)
    assert verdict.index("keypoint AP") > 0
    assert ("mask AP" in verdict) == masks
    main, _ = wording.main_drop(comparison.results[1].drop)
    assert main == ("mask AP" if masks else "keypoint AP")


def test_without_keypoints_nothing_speaks_of_them() -> None:
    comparison = comparisons.make_comparison(pictures=False)
    assert "keypoint" not in "\n".join(comparison_lines(comparison)).lower()
    assert "keypoint" not in render_page(comparison).lower()
