"""What a comparison says in words."""

from __future__ import annotations

import dataclasses

import pytest

from edge_mrcnn.evaluation import wording
from edge_mrcnn.evaluation.bench import StageStats
from edge_mrcnn.evaluation.comparison import Drop, Interval
from tests.evaluation import comparisons

LOSS, GAIN = Interval(0.2, 0.05, 0.35), Interval(-0.2, -0.35, -0.05)
EVEN = Interval(0.2, -0.05, 0.45)


@pytest.mark.parametrize(
    ("mask", "box", "words", "judgement"),
    [
        (LOSS, LOSS, "costs 0.20 points of mask AP (95 %: 0.05 to 0.35) and 0.20 points of box AP (95 %: ", "loss"),
        (
            GAIN,
            GAIN,
            "gains 0.20 points of mask AP (95 %: 0.05 to 0.35) and gains 0.20 points of box AP (95 %: ",
            "gain",
        ),
        (
            EVEN,
            EVEN,
            "costs no measurable mask AP (0.20; 95 %: -0.05 to 0.45) and no measurable box AP (0.20; ",
            "no loss",
        ),
        (
            EVEN,
            LOSS,
            "costs no measurable mask AP (0.20; 95 %: -0.05 to 0.45) and 0.20 points of box AP (",
            "loss of boxes",
        ),
        (GAIN, LOSS, "gains 0.20 points of mask AP (95 %: 0.05 to 0.35) and costs 0.20 points of box", "loss of boxes"),
        (GAIN, EVEN, "gains 0.20 points of mask AP (95 %: 0.05 to 0.35) and costs no measurable box", "gain of masks"),
        (None, LOSS, "costs 0.20 points of box AP (95 %: 0.05 to 0.35); it takes", "loss"),
        (None, Interval(0.0, 0.0, 0.0), "costs no measurable box AP (0.00; 95 %: 0.00 to 0.00); it takes", "no loss"),
    ],
)
def test_verdicts(mask: Interval | None, box: Interval, words: str, judgement: str) -> None:
    first = comparisons.make_comparison(pictures=False).results[0]
    drop = Drop(box, mask)
    rival = dataclasses.replace(first, label="int8", drop=drop, size_bytes=798_298)
    sentence = wording.describe(rival, first).replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
    assert sentence.startswith(f"INT8 {words}")
    assert sentence.endswith("; it takes 10.0 % of the space and runs 1.00 times as fast.")
    assert wording.judge_both(drop)[1].replace("no measurable", "no").replace("measurable ", "") == judgement


@pytest.mark.parametrize(
    ("size", "p50", "words"),
    [
        (7_982_982, 92.424, "is as large and takes 2.00 times as long."),
        (15_965_964, 23.106, "is 2.00 times as large and runs 2.00 times as fast."),
        (None, 23.106, "runs 2.00 times as fast."),
    ],
)
def test_size_and_speed_in_words(size: int | None, p50: float, words: str) -> None:
    first = comparisons.make_comparison(pictures=False).results[0]
    rival = dataclasses.replace(first, label="a.engine", size_bytes=size, latency=StageStats(p50, 100, 95))
    assert wording.describe(rival, first) == f"a.engine {words}"


def test_the_headline_is_what_would_be_shipped() -> None:
    comparison = comparisons.make_comparison(pictures=False)
    chosen = wording.headline(comparison)
    assert chosen is not None
    assert chosen.label == "int8-cpu"
    assert "it takes 29.0 % of the space and runs 2.19 times as fast" in wording.verdict(comparison).replace(
        "\xa0", " "
    )
    alone = dataclasses.replace(comparison, results=comparison.results[:1])
    assert wording.headline(alone) is None
    assert "nothing to compare" in wording.verdict(alone)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (wording.show(-0.004), "0.00"),  # no negative zero
        (wording.show(-1234.5, 1), "\N{MINUS SIGN}1,234.5"),
        (wording.show(float("nan")), wording.MISSING),
        (wording.show(None), wording.MISSING),
        (wording.show_size(999_000), "999 kB"),
        (wording.show_size(7_982_982), "7.98 MB"),
        (wording.show_size(98_000_000), "98.0 MB"),
        (wording.show_size(178_000_000), "178 MB"),
        (wording.show_ms(0.123), "0.12 ms"),
        (wording.show_ms(21.06), "21.1 ms"),
        (wording.show_ms(423.4), "423 ms"),
        (wording.show_count(1_234_000_000), "1.23 G"),
        (wording.show_count(12_340_000), "12.34 M"),
        (wording.show_count(7412), "7,412"),
        (wording.show_share(0.98502), "98.5 %"),
        (wording.show_time("2026-11-21T17:05:12+00:00"), "2026-11-21 17:05 UTC"),
        (wording.show_time("2026-11-21T17:05:12.123+01:00"), "2026-11-21T17:05:12.123+01:00"),
        (wording.show_name("int8-cpu"), "INT8-CPU"),
        (wording.show_name("int8.engine"), "int8.engine"),
    ],
)
def test_numbers_read_well(shown: str, expected: str) -> None:
    assert shown.replace("\N{NO-BREAK SPACE}", " ") == expected
