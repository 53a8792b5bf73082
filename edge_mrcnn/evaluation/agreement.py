"""How far two networks agree on pictures without labels.

Detections are matched one to one within their class, best IoU of boxes first. A score that just crosses the threshold
is no object lost: partners are looked for below it too, and what happens to scores has figures of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.evaluation.comparison import Agreement
from edge_mrcnn.evaluation.keypoint_agreement import CLOSE_PX, box_sizes, keypoint_distances, mean_shift
from edge_mrcnn.runtime.paste import Window, iter_masks

THRESHOLD = 0.5
"""Score from which detections count, where nothing else is said: that of `edge-mrcnn run`."""

LEAST_IOU = 0.5
"""Boxes of partners overlap at least so much."""

PARTNER_SHARE = 0.5
"""A detection whose score falls below this share of the threshold is lost; above it, it is a partner with a lower
score. One that rises above the threshold is new only if the reference has no such detection at all."""

_NAMED = 3
"""Objects named in a sentence before the rest is counted."""

_TELLING_SHIFT, _TELLING_IOU = 0.1, 0.9
"""A score moved further, or a mask that overlaps less, is worth a word where no object is missing."""

_TELLING_KEYPOINTS = 0.03
"""So are keypoints that moved further, as a share of the box's size."""

_VISIBLE = 0.01
"""Smaller differences are not spoken of."""


@dataclass(frozen=True)
class PictureAgreement:
    """What two networks make of one picture.

    Attributes:
        reference: The reference's detections, all of them.
        candidate: The other network's.
        pairs: `(P, 2)` rows of partners, the reference's first; the reference's score is from the threshold on.
        box_iou: `(P,)` of their boxes.
        mask_iou: `(P,)` of their masks at full size; None where one side has none.
        missed: Rows of the reference's detections from the threshold on that have no partner, not even one with half
            of that score.
        extra: Rows of the candidate's detections from the threshold on that no detection of the reference matches.
        keypoint_px: `(P, K)` how far their keypoints are apart in pixels, not a number where the reference shows none;
            None where one side has no keypoints.
    """

    reference: Detections
    candidate: Detections
    pairs: npt.NDArray[np.intp]
    box_iou: npt.NDArray[np.float64]
    mask_iou: npt.NDArray[np.float64] | None
    missed: npt.NDArray[np.intp]
    extra: npt.NDArray[np.intp]
    keypoint_px: npt.NDArray[np.float64] | None = None

    @property
    def score_shift(self) -> npt.NDArray[np.float64]:
        """`(P,)` the candidate's score minus the reference's, of each pair."""
        before, after = self.reference.score[self.pairs[:, 0]], self.candidate.score[self.pairs[:, 1]]
        return np.asarray(after.astype(np.float64) - before)

    @property
    def overlap(self) -> npt.NDArray[np.float64]:
        """`(P,)` IoU of each pair's masks, of its boxes where there are no masks."""
        return self.box_iou if self.mask_iou is None else self.mask_iou

    @property
    def keypoint_shift(self) -> npt.NDArray[np.float64]:
        """`(P,)` mean distance of each pair's keypoints by the size of the reference's box; 0 without keypoints."""
        return mean_shift(self.keypoint_px, box_sizes(self.reference, self.pairs[:, 0]))

    @property
    def pair_disagreement(self) -> npt.NDArray[np.float64]:
        """`(P,)` squares of score shift, of what the masks lack in overlap, and of the keypoints' shift."""
        return self.score_shift**2 + (1 - self.overlap) ** 2 + self.keypoint_shift**2

    @property
    def disagreement(self) -> float:
        """The larger, the more they differ; 0 where they agree in everything.

        The scores of what is missed or extra, and the pairs' squares: squares, so that many slight differences do not
        outweigh one lost object.
        """
        lost = self.reference.score[self.missed].sum() + self.candidate.score[self.extra].sum()
        return float(lost + self.pair_disagreement.sum())

    def describe(self, class_names: Sequence[str]) -> str:
        """The difference in words, such as `misses a mug (0.71) and adds a fork (0.54)`, or `agrees`.

        Args:
            class_names: Name of each label.
        """
        parts = []
        if len(self.missed):
            parts.append(f"misses {_name_objects(self.reference, self.missed, class_names)}")
        if len(self.extra):
            parts.append(f"adds {_name_objects(self.candidate, self.extra, class_names)}")
        return " and ".join(parts) or self._describe_pair(class_names)

    def _describe_pair(self, class_names: Sequence[str]) -> str:
        """The largest difference between partners."""
        if not self.disagreement:
            return "agrees"
        place = int(np.argmax(self.pair_disagreement))
        row, other = self.pairs[place]
        name = _article(class_name(class_names, int(self.reference.class_id[row])))
        before, after = self.reference.score[row], self.candidate.score[other]
        parts = []
        if abs(after - before) >= _TELLING_SHIFT:
            parts.append(f"gives {name} {after:.2f} instead of {before:.2f}")
        what = "box" if self.mask_iou is None else "mask"
        if self.overlap[place] < _TELLING_IOU:
            parts.append(f"draws another {what} of {name} (IoU {self.overlap[place]:.2f})")
        if self.keypoint_px is not None and self.keypoint_shift[place] >= _TELLING_KEYPOINTS:
            parts.append(f"moves the keypoints of {name} by {np.nanmean(self.keypoint_px[place]):.1f} px")
        return " and ".join(parts) or self._describe_slightly(what)

    def _describe_slightly(self, what: str) -> str:
        largest, least = np.abs(self.score_shift).max(), self.overlap.min()
        parts = [f"scores by up to {largest:.2f}"] if largest >= _VISIBLE else []
        parts += [f"a {what} IoU of {least:.2f}"] if 1 - least >= _VISIBLE else []
        return "agrees" + (f" but for {' and '.join(parts)}" if parts else "")


class AgreementMeter:
    """Collects the agreement of two networks picture by picture, at constant memory.

    Example:
        >>> meter = AgreementMeter()
        >>> found = Detections(np.array([[0, 0, 9, 9]]), np.array([0.9]), np.array([1]), (20, 20))
        >>> meter.add(found, found).disagreement
        0.0
        >>> meter.result().matched_share
        1.0
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        """Begin with no pictures.

        Args:
            threshold: Score from which detections count.

        Raises:
            ValueError: It is not from 0 to 1.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be from 0 to 1, got {threshold}")
        self.threshold = threshold
        self._expected = self._missed = self._extra = 0
        self._box, self._mask, self._shift, self._shift_abs = _Mean(), _Mean(), _Mean(), _Mean()
        self._close, self._moved = _Mean(), _Mean()

    def add(self, reference: Detections, candidate: Detections) -> PictureAgreement:
        """Compare the detections of one picture.

        Args:
            reference: All that the reference gives, whatever the score.
            candidate: All that the other network gives.

        Returns:
            What they make of this picture.

        Raises:
            ValueError: The detections belong to pictures of different sizes.
        """
        one = match_detections(reference, candidate, self.threshold)
        self._expected += len(one.pairs) + len(one.missed)
        self._missed += len(one.missed)
        self._extra += len(one.extra)
        self._box.add(one.box_iou)
        self._mask.add([] if one.mask_iou is None else one.mask_iou)
        self._shift.add(one.score_shift)
        self._shift_abs.add(np.abs(one.score_shift))
        if one.keypoint_px is not None:
            shown = ~np.isnan(one.keypoint_px)
            self._close.add(one.keypoint_px[shown] <= CLOSE_PX)
            self._moved.add((one.keypoint_px / box_sizes(reference, one.pairs[:, 0])[:, None])[shown])
        return one

    def result(self) -> Agreement:
        """The agreement over all pictures so far."""
        matched = self._expected - self._missed
        return Agreement(
            expected=self._expected,
            matched=matched,
            matched_share=matched / self._expected if self._expected else 1.0,
            missed=self._missed,
            extra=self._extra,
            box_iou=self._box.value,
            mask_iou=self._mask.value,
            score_shift=self._shift.value,
            score_shift_abs=self._shift_abs.value,
            keypoint_close=self._close.value,
            keypoint_shift=self._moved.value,
        )


def match_detections(
    reference: Detections, candidate: Detections, threshold: float = THRESHOLD, least_iou: float = LEAST_IOU
) -> PictureAgreement:
    """Match two sets of detections of one picture one to one.

    Pairs in which both scores are from the threshold on come first, then those with one such score; among them the
    larger IoU of the boxes goes first.

    Args:
        reference: The reference's detections, whatever their scores.
        candidate: The other network's.
        threshold: Detections below it serve as partners only: the candidate's down to `PARTNER_SHARE` of it.
        least_iou: Boxes of partners overlap at least so much.

    Returns:
        Pairs, and what has no partner.

    Raises:
        ValueError: The detections belong to pictures of different sizes.
    """
    if reference.image_hw != candidate.image_hw:
        raise ValueError(
            f"candidate must be of the reference's picture, {reference.image_hw} (H, W), got {candidate.image_hw}"
        )
    expected, shown = reference.score >= threshold, candidate.score >= threshold
    likely = candidate.score >= PARTNER_SHARE * threshold
    iou = box_iou(reference.xyxy, candidate.xyxy)
    same = reference.class_id[:, None] == candidate.class_id
    rows, others = np.nonzero(same & (iou >= least_iou) & ((expected[:, None] & likely) | shown))
    order = np.lexsort((others, rows, -iou[rows, others], ~(expected[rows] & shown[others])))
    pairs = _take_greedily(rows[order], others[order])
    missed = np.setdiff1d(np.flatnonzero(expected), pairs[:, 0])
    extra = np.setdiff1d(np.flatnonzero(shown), pairs[:, 1])
    pairs = pairs[expected[pairs[:, 0]]]
    boxes, masks = iou[pairs[:, 0], pairs[:, 1]], _mask_iou(reference, candidate, pairs)
    points = keypoint_distances(reference, candidate, pairs)
    return PictureAgreement(reference, candidate, pairs, boxes, masks, missed, extra, points)


def box_iou(boxes: npt.NDArray[np.float32], others: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """IoU of every box with every other.

    Args:
        boxes: `(N, 4)` xyxy.
        others: `(M, 4)` xyxy.

    Returns:
        `(N, M)`; 1 where they are equal, even without an area.
    """
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inner = np.maximum(sides, 0).prod(axis=-1)
    areas = [np.maximum(one[..., 2:] - one[..., :2], 0).prod(axis=-1) for one in (a, b)]
    union = areas[0] + areas[1] - inner
    equal = (a == b).all(axis=-1).astype(np.float64)
    return np.asarray(np.divide(inner, union, out=equal, where=union > 0))


def class_name(class_names: Sequence[str], label: int) -> str:
    """Name of a label; its number where it has none."""
    return class_names[label] if 0 <= label < len(class_names) else f"class {label}"


class _Mean:
    """A running mean."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, values: Iterable[float]) -> None:
        found = np.asarray(values, np.float64)
        self._total += float(found.sum())
        self._count += found.size

    @property
    def value(self) -> float | None:
        return self._total / self._count if self._count else None


def _take_greedily(rows: npt.NDArray[np.intp], others: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """`(P, 2)` pairs in the order given, without those that have a row that is taken."""
    taken: set[int] = set()
    taken_others: set[int] = set()
    pairs = []
    for row, other in zip(rows.tolist(), others.tolist(), strict=True):
        if row not in taken and other not in taken_others:
            taken.add(row)
            taken_others.add(other)
            pairs.append((row, other))
    return np.array(pairs, np.intp).reshape(-1, 2)


def _mask_iou(
    reference: Detections, candidate: Detections, pairs: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64] | None:
    """IoU of the masks of pairs at full size, pasted over their boxes only; None where one side has no masks."""
    if reference.mask is None or candidate.mask is None:
        return None
    sides = (_windows(reference, pairs[:, 0]), _windows(candidate, pairs[:, 1]))
    return np.array([_window_iou(a, b) for a, b in zip(*sides, strict=True)], np.float64)


def _windows(detections: Detections, rows: npt.NDArray[np.intp]) -> list[Window | None]:
    chosen = detections[rows]
    found: list[Window | None] = [None] * len(rows)
    for window in iter_masks(chosen._patches(), chosen.xyxy, chosen.image_hw):
        found[window.row] = window
    return found


def _window_iou(a: Window | None, b: Window | None) -> float:
    """IoU of two masks of a picture; 1 where both are empty."""
    areas = [0 if one is None else int(np.count_nonzero(one.mask)) for one in (a, b)]
    inner = 0 if a is None or b is None else _count_common(a, b)
    union = sum(areas) - inner
    return inner / union if union else 1.0


def _count_common(a: Window, b: Window) -> int:
    """Pixels that both masks have."""
    x0, y0 = max(a.x, b.x), max(a.y, b.y)
    x1, y1 = (min(one.x + one.mask.shape[1] for one in (a, b)), min(one.y + one.mask.shape[0] for one in (a, b)))
    if x1 <= x0 or y1 <= y0:
        return 0
    parts = [one.mask[y0 - one.y : y1 - one.y, x0 - one.x : x1 - one.x] for one in (a, b)]
    return int(np.count_nonzero(parts[0] & parts[1]))


def _name_objects(detections: Detections, rows: npt.NDArray[np.intp], class_names: Sequence[str]) -> str:
    best = sorted(rows.tolist(), key=lambda row: -detections.score[row])
    named = [
        f"{_article(class_name(class_names, int(detections.class_id[row])))} ({detections.score[row]:.2f})"
        for row in best[:_NAMED]
    ]
    return ", ".join(named) + (f" and {len(best) - _NAMED} more" if len(best) > _NAMED else "")


def _article(name: str) -> str:
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"
