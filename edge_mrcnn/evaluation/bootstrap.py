"""What a drop of average precision is worth: paired-bootstrap intervals of COCO AP.

pycocotools matches detections with truth once for each candidate. A resample of the pictures only changes how often
each picture counts, so AP of a thousand resamples needs a thousand weighted sums, not a thousand evaluations. All
candidates see the same resamples: a picture that is hard for one is hard for all, which leaves in the interval of a
drop only what the candidates do differently.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals; the sums are those of
`COCOeval.accumulate` in pycocotools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.evaluation.comparison import Drop, Interval

RESAMPLES = 1000
"""Enough that another seed moves the ends of an interval by a few hundredths of its width."""

_LOW, _HIGH = 2.5, 97.5
"""Percentiles of the resamples that 95 % lie between."""

_CELLS = 1 << 20
"""Numbers in one work array: resamples are taken in blocks that keep to it."""


@dataclass(frozen=True)
class ClassMatches:
    """Detections of one class over all pictures, best first, and which of them hit.

    Attributes:
        picture: `(D,)` int, place of each detection's picture.
        hit: `(T, D)` bool: matched at each IoU threshold, and not with truth to be ignored.
        counts: `(T, D)` bool: neither ignored nor matched with what is to be ignored.
        truth: `(I,)` int, objects of the class to be found on each picture.
    """

    picture: npt.NDArray[np.intp]
    hit: npt.NDArray[np.bool_]
    counts: npt.NDArray[np.bool_]
    truth: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """What AP (0.50:0.95, all areas, all detections counted) is computed from: of one candidate's boxes, masks or so.

    Attributes:
        pictures: Number of pictures.
        recall: `(R,)` recall points that precision is averaged over.
        classes: One for each class that has detections or truth.
    """

    pictures: int
    recall: npt.NDArray[np.float64]
    classes: tuple[ClassMatches, ...]

    @classmethod
    def of(cls, evaluation: Any) -> Matches:
        """Read them off a `COCOeval` of pycocotools after its `evaluate`."""
        params = evaluation.params
        pictures, areas = len(params.imgIds), len(params.areaRng)
        blocks = [
            evaluation.evalImgs[(place * areas) * pictures :][:pictures]  # the first area is all of them
            for place in range(len(params.catIds))
        ]
        depth, thresholds = params.maxDets[-1], len(params.iouThrs)
        found = tuple(_read_class(block, depth, thresholds) for block in blocks if any(block))
        return cls(pictures, np.asarray(params.recThrs), found)

    def average_precision(self, weights: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """AP in points of 100 when each picture counts as often as a weight says.

        With all weights 1 this is pycocotools' figure; with others it is that of the pictures copied so often, up to
        the order of detections of one picture that share a score, which copies would shuffle.

        Args:
            weights: `(S, I)` integers from 0, one row a resample.

        Returns:
            `(S,)`; not a number where no class has truth.

        Raises:
            ValueError: `weights` has not a column for each picture.
        """
        if weights.ndim != 2 or weights.shape[1] != self.pictures:
            raise ValueError(f"weights must have shape (S, {self.pictures}), got {weights.shape}")
        total = np.zeros(len(weights))
        measured = np.zeros(len(weights))
        for one in self.classes:
            precision = _class_precision(one, weights, self.recall)
            known = ~np.isnan(precision)
            total[known] += precision[known]
            measured += known
        with np.errstate(invalid="ignore"):
            return np.asarray(100 * total / measured)


def resample_weights(pictures: int, resamples: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.int32]:
    """How often each picture is drawn when as many as there are get drawn with replacement.

    Args:
        pictures: Number of pictures.
        resamples: Number of draws of them all.
        seed: Same seed, same draws.

    Returns:
        `(resamples, pictures)`; each row's sum is `pictures`.

    Raises:
        ValueError: A number is not positive.
    """
    if pictures < 1 or resamples < 1:
        raise ValueError(f"pictures and resamples must be at least 1, got {pictures} and {resamples}")
    rng = np.random.default_rng(seed)
    rows = [np.bincount(rng.integers(0, pictures, pictures), minlength=pictures) for _ in range(resamples)]
    return np.stack(rows).astype(np.int32)


def paired_drops(
    reference: Matches, candidates: Sequence[Matches], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Interval, ...]:
    """What each candidate loses against the reference, in points of AP, with 95 % intervals.

    Args:
        reference: The reference's matches.
        candidates: Of the same pictures, in the same order.
        resamples: How many.
        seed: Same seed, same resamples.

    Returns:
        For each candidate the reference's AP minus its own; positive is worse.

    Raises:
        ValueError: A candidate has another number of pictures, or there is no truth to measure AP on.
    """
    for one in candidates:
        if one.pictures != reference.pictures:
            raise ValueError(f"candidates must have the reference's {reference.pictures} pictures, got {one.pictures}")
    once = np.ones((1, reference.pictures), np.int32)
    weights = np.concatenate([once, resample_weights(reference.pictures, resamples, seed)])
    expected = reference.average_precision(weights)
    if np.isnan(expected[0]):
        raise ValueError("reference must have truth of at least one class to measure AP on, got none")
    return tuple(_interval(expected - one.average_precision(weights)) for one in candidates)


def ap_drops(
    reference: Mapping[str, Matches],
    candidates: Sequence[Mapping[str, Matches]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Drop, ...]:
    """Drops of boxes, masks and keypoints.

    Args:
        reference: Matches by kind: `bbox` and, where they are there, `segm` and `keypoints`.
        candidates: Likewise.
        resamples: How many.
        seed: Same seed, same resamples.

    Returns:
        For each candidate; its `mask` is None where it or the reference has no masks, and so is `keypoint`.

    Raises:
        ValueError: A candidate has another number of pictures, or there is no truth to measure AP on.
    """
    box = paired_drops(reference["bbox"], [one["bbox"] for one in candidates], resamples, seed)
    mask, keypoint = (_drops_of(kind, reference, candidates, resamples, seed) for kind in ("segm", "keypoints"))
    return tuple(map(Drop, box, mask, keypoint))


def _drops_of(
    kind: str, reference: Mapping[str, Matches], candidates: Sequence[Mapping[str, Matches]], resamples: int, seed: int
) -> tuple[Interval | None, ...]:
    """Drops of what not all have; None where one side lacks it."""
    there = [one[kind] for one in candidates if kind in one] if kind in reference else []
    drops = iter(paired_drops(reference[kind], there, resamples, seed)) if there else iter(())
    return tuple(next(drops) if there and kind in one else None for one in candidates)


def _interval(drops: npt.NDArray[np.float64]) -> Interval:
    """Of the pictures as they are (first) and of the resamples (the rest)."""
    low, high = np.nanpercentile(drops[1:], (_LOW, _HIGH))
    return Interval(float(drops[0]), float(low), float(high))


def _read_class(entries: Sequence[Any], depth: int, thresholds: int) -> ClassMatches:
    """One class of `COCOeval.evalImgs`, ordered as `accumulate` orders it: ties go to the earlier picture."""
    there = [(place, entry) for place, entry in enumerate(entries) if entry is not None]
    score = np.concatenate([np.asarray(entry["dtScores"][:depth], np.float64) for _, entry in there])
    order = np.argsort(-score, kind="mergesort")
    matched, ignored = (
        np.concatenate([np.asarray(entry[key], bool).reshape(thresholds, -1)[:, :depth] for _, entry in there], axis=1)
        for key in ("dtMatches", "dtIgnore")
    )
    picture = np.concatenate([np.full(len(entry["dtScores"][:depth]), place, np.intp) for place, entry in there])
    truth = np.zeros(len(entries), np.int64)
    for place, entry in there:
        truth[place] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    counts = ~ignored[:, order]
    return ClassMatches(picture[order], matched[:, order] & counts, counts, truth)


def _class_precision(
    one: ClassMatches, weights: npt.NDArray[np.integer[Any]], recall: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Mean precision of a class over IoU thresholds and recall points, by resample; NaN where it has no truth."""
    truth = weights.astype(np.int64) @ one.truth
    result = np.full(len(weights), np.nan)
    for rows in _blocks(np.flatnonzero(truth), len(one.picture)):
        drawn = weights[rows][:, one.picture].astype(np.int64)
        needed = _hits_needed(truth[rows], recall)
        result[rows] = _threshold_precision(one, drawn, needed).mean(axis=0)
    return result


def _blocks(rows: npt.NDArray[np.intp], width: int) -> Iterator[npt.NDArray[np.intp]]:
    step = max(1, _CELLS // max(1, width))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _hits_needed(truth: npt.NDArray[np.int64], recall: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """`(S, R)`: the fewest hits whose share of the truth, as a floating-point quotient, reaches each recall point."""
    count = truth[:, None].astype(np.float64)
    needed = np.ceil(recall * count)
    needed -= (needed > 0) & ((needed - 1) / count >= recall)
    needed += needed / count < recall
    return needed.astype(np.int64)


def _threshold_precision(
    one: ClassMatches, drawn: npt.NDArray[np.int64], needed: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """`(T, S)` mean over the recall points of the best precision at that recall or more.

    Precision rises at hits only, so the best one stands at a hit: the others need no look.

    Args:
        one: The class.
        drawn: `(S, D)` how often each detection counts.
        needed: `(S, R)` hits needed for each recall point.
    """
    precision = np.zeros((len(one.hit), len(drawn)))
    plain = bool(one.counts.all())
    seen = np.cumsum(drawn, axis=1) if plain else drawn
    for place, (hit, counts) in enumerate(zip(one.hit, one.counts, strict=True)):
        at = np.flatnonzero(hit)
        if not len(at):
            continue
        hits = np.cumsum(drawn[:, at], axis=1)
        found = (seen if plain else np.cumsum(drawn * counts, axis=1))[:, at]
        best = hits / (found + np.spacing(1))
        best = np.maximum.accumulate(best[:, ::-1], axis=1)[:, ::-1]
        precision[place] = _mean_at(best, hits, needed)
    return precision


def _mean_at(
    best: npt.NDArray[np.float64], hits: npt.NDArray[np.int64], needed: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Mean over each row's recall points of `best` where `hits` first reaches what is needed, 0 where it never does."""
    rows, width = hits.shape
    # One search for all rows: each row's numbers are lifted above those of the row before.
    lift = np.arange(rows)[:, None] * (max(int(hits[:, -1].max()), int(needed.max())) + 1)
    flat = np.searchsorted((hits + lift).ravel(), (needed + lift).ravel(), side="left").reshape(needed.shape)
    within = flat - np.arange(rows)[:, None] * width
    padded = np.concatenate([best, np.zeros((rows, 1))], axis=1)
    return np.asarray(np.take_along_axis(padded, np.minimum(within, width), axis=1).mean(axis=1))
