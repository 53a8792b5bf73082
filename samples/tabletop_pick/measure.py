"""Holds grasps against the truth that a simulation knows, and sums up many tries."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_mrcnn.runtime.grasp import Grasp

from .world import Cell

NEAR_M = 0.01


@dataclass(frozen=True)
class Aim:
    """How well one grasp point is placed.

    Attributes:
        body: the instance meant: of all things on the table, the one that the mask overlaps most; 0 for none.
        on_object: the grasp point's pixel shows that body.
        class_right: that body is of the class that the detector named.
        off_m: metres between the grasp point and the body's visible centroid; infinite where there is no body.

    The visible centroid is the mean of the pixels in which the body is truly seen; where that pixel shows something
    else (the hollow of a bent outline), the body's pixel nearest to it. Its point in space comes from the true depth
    there.
    """

    body: int
    on_object: bool
    class_right: bool
    off_m: float


def _visible_centroid(cell: Cell, body: int) -> NDArray[np.float64]:
    """(3,) metres in the camera's frame."""
    rows, columns = np.nonzero(cell.bodies == body)
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    row, column = rows[nearest], columns[nearest]
    lens = cell.camera.intrinsics(cell.bodies.shape)
    depth = float(cell.depth_m[row, column])
    return np.array([(column + 0.5 - lens[0, 2]) / lens[0, 0], (row + 0.5 - lens[1, 2]) / lens[1, 1], 1.0]) * depth


def aim(cell: Cell, mask: NDArray[np.bool_], class_id: int, grasp: Grasp) -> Aim:
    """Holds a grasp point against the truth; `class_id` is 1 for the first class."""
    shown = cell.bodies[mask]
    counts = Counter(int(body) for body in shown[np.isin(shown, cell.scene.bodies)])
    if not counts or not np.isfinite(grasp.point_m).all():
        return Aim(0, False, False, np.inf)
    body = counts.most_common(1)[0][0]
    column, row = (round(float(value)) for value in grasp.point_px)
    right = cell.scene.class_ids()[cell.scene.bodies.index(body)] == class_id
    off = float(np.linalg.norm(grasp.point_m - _visible_centroid(cell, body)))
    return Aim(body, bool(cell.bodies[row, column] == body), right, off)


@dataclass(frozen=True)
class Try:
    """One scene: `outcome` is "lifted" or why not; the rest is None where nothing was chosen."""

    seed: int
    outcome: str
    target: str | None = None
    on_object: bool | None = None
    class_right: bool | None = None
    off_mm: float | None = None


def _share(hits: list[bool]) -> dict[str, Any]:
    return {"of": len(hits), "yes": sum(hits), "share": round(sum(hits) / len(hits), 4) if hits else None}


def _aims(on_object: list[bool], class_right: list[bool], off_mm: list[float]) -> dict[str, Any]:
    finite = [value for value in off_mm if np.isfinite(value)]
    levels = {f"p{level}": round(float(np.percentile(finite, level)), 2) for level in (50, 95, 100)} if finite else {}
    return {
        "on_the_right_object": _share(on_object),
        "within_1_cm_of_its_visible_centroid": _share([value <= 1000 * NEAR_M for value in off_mm]),
        "of_the_class_named": _share(class_right),
        "distance_mm": levels,
    }


def summary(tries: list[Try], every: list[Aim]) -> dict[str, Any]:
    """Rates of the picks, and of the grasp points of all detections.

    Args:
        tries: one a scene.
        every: each detection with a grasp point, picked or not.
    """
    gone = [one for one in tries if one.target is not None]
    return {
        "scenes": len(tries),
        "lifted": _share([one.outcome == "lifted" for one in tries]),
        "failures": dict(Counter(one.outcome for one in tries if one.outcome != "lifted").most_common()),
        "lifted_by_class": {
            name: _share([one.outcome == "lifted" for one in gone if one.target == name])
            for name in sorted({str(one.target) for one in gone})
        },
        "chosen": _aims(
            [bool(one.on_object) for one in gone],
            [bool(one.class_right) for one in gone],
            [np.inf if one.off_mm is None else one.off_mm for one in gone],
        ),
        "all_detections": _aims(
            [one.on_object for one in every], [one.class_right for one in every], [1000 * one.off_m for one in every]
        ),
        "tries": [asdict(one) for one in tries],
    }
