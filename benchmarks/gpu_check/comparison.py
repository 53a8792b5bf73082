"""Says how far two results of an op agree, in numbers that a table can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.gpu_check.cases import Array

BOX_TOLERANCE_PX = 0.01
SCORE_TOLERANCE = 1e-4
SAME_IN_LARGE = 0.99
"""Of thousands of boxes a few may differ: exp and divisions round differently, and an IoU falls on the other side."""


@dataclass(frozen=True)
class Agreement:
    """How far a result agrees with a reference.

    Attributes:
        ok: Far enough.
        matched: Rows or numbers that are the same within tolerance.
        expected: Rows or numbers of the reference.
        extra: Rows that the reference does not have.
        worst: Largest difference of what matched.
    """

    ok: bool
    matched: int
    expected: int
    extra: int
    worst: float

    def text(self) -> str:
        """In a few words."""
        extra = f", {self.extra} extra" if self.extra else ""
        return f"{self.matched} of {self.expected}{extra}, worst {self.worst:.2g}"


def compare_values(found: Array, expected: Array, atol: float, rtol: float = 0.0) -> Agreement:
    """Compare arrays number by number; NaN equals NaN."""
    if found.shape != expected.shape:
        return Agreement(False, 0, expected.size, found.size, float("inf"))
    a, b = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
        same = (difference == 0) | (difference <= atol + rtol * np.abs(b))
    worst = float(difference[same].max(initial=0.0))
    return Agreement(bool(same.all()), int(same.sum()), expected.size, 0, worst)


def compare_rows(found: Sequence[Array], expected: Sequence[Array], least: float = SAME_IN_LARGE) -> Agreement:
    """Compare detections one to one, in any order: boxes `(N, 4)`, then scores `(N,)` and labels `(N,)` where given.

    Args:
        found: The result, without padding.
        expected: The reference, likewise.
        least: Share of the rows, of both sides, that has to match.
    """
    boxes, wanted = (np.asarray(rows[0], np.float64).reshape(-1, 4) for rows in (found, expected))
    if not len(boxes) or not len(wanted):
        same = len(boxes) == len(wanted)
        return Agreement(same, 0, len(wanted), len(boxes), 0.0)
    distance = np.abs(boxes[None] - wanted[:, None]).max(-1)
    allowed = distance <= BOX_TOLERANCE_PX
    if len(found) > 1:
        allowed &= np.abs(found[1][None] - expected[1][:, None]) <= SCORE_TOLERANCE
    if len(found) > 2:
        allowed &= found[2][None] == expected[2][:, None]
    taken = np.zeros(len(boxes), bool)
    worst, matched = 0.0, 0
    for row, candidates in enumerate(allowed):
        free = np.flatnonzero(candidates & ~taken)
        if len(free):
            best = free[distance[row, free].argmin()]
            taken[best], matched = True, matched + 1
            worst = max(worst, float(distance[row, best]))
    ok = matched >= least * max(len(boxes), len(wanted))
    return Agreement(ok, matched, len(wanted), len(boxes) - matched, worst)
