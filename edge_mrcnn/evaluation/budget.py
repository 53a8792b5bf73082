"""`fit_budget`: the fewest groups of layers kept out of int8 with which its drop of AP is within a budget."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.recipe import Dialect, Recipe
from edge_mrcnn.errors import CalibrationError
from edge_mrcnn.evaluation.budget_options import BudgetOptions
from edge_mrcnn.evaluation.comparison import Drop, Interval
from edge_mrcnn.evaluation.drops import DropMeter, larger, upper_end
from edge_mrcnn.evaluation.groups import keep_pattern, layer_groups
from edge_mrcnn.evaluation.sensitivity import SensitivityOptions, SensitivityResult, load_plain, sensitivity

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BudgetStep:
    """One recipe that was tried.

    Attributes:
        kept: Groups kept out of int8, the worst first.
        drop: What the recipe costs, in points of AP.
        fits: It is within the budget.
    """

    kept: tuple[str, ...]
    drop: Drop
    fits: bool


@dataclass(frozen=True)
class BudgetResult:
    """What it takes to stay within a budget.

    Attributes:
        model: The model's file.
        data: What was measured on.
        backend: What ran the recipes.
        max_drop: The budget, in points of AP.
        certain: The upper end of the interval was held against it.
        pictures: Number of pictures.
        kept: Names of the groups to keep out of int8, the worst first.
        keep: A regular expression for each, as `Recipe.keep_fp16` takes it.
        drop: What int8 costs with them kept.
        steps: The recipes tried, in order.
        warnings: What a reader must know, such as data too few to tell.
        sensitivity: By which the groups were ranked; None where all could be quantised.
        seconds: Time it took.
    """

    model: str
    data: str
    backend: str
    max_drop: float
    certain: bool
    pictures: int
    kept: tuple[str, ...]
    keep: tuple[str, ...]
    drop: Drop
    steps: tuple[BudgetStep, ...]
    warnings: tuple[str, ...]
    sensitivity: SensitivityResult | None
    seconds: float

    def to_json(self) -> str:
        """The result as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        ranking = None if self.sensitivity is None else self.sensitivity.to_dict()
        return {**dataclasses.asdict(self), "sensitivity": ranking}

    def lines(self) -> list[str]:
        """The result as lines of text: each step, then what is kept."""
        kinds = [kind for kind in ("box", "mask", "keypoint") if any(kind in step.drop.kinds for step in self.steps)]
        rows = [f"{'groups kept':>11}" + "".join(f" {f'{kind} AP lost (95 %)':>24}" for kind in kinds)]
        for step in self.steps:
            drops = [step.drop.kinds.get(kind) for kind in kinds]
            cells = "".join(f" {'-' if lost is None else _interval(lost):>24}" for lost in drops)
            verdict = "within" if step.fits else "above"
            rows.append(f"{len(step.kept):>11}{cells}  {verdict} {self.max_drop:g}")
        kept = f"kept out of int8: {', '.join(self.kept)}" if self.kept else "nothing needs to be kept out of int8"
        return [
            *rows,
            "",
            kept,
            *(f"warning: {warning}" for warning in self.warnings),
            f"{self.model} on {self.backend}; {self.pictures} pictures of {self.data}; {self.seconds:.0f} s",
        ]


def fit_budget(
    model: Path,
    ranges: Ranges,
    data: Path,
    max_drop: float,
    options: BudgetOptions | None = None,
    *,
    dialect: Dialect = "tensorrt",
    recipe: Recipe | None = None,
    threads: int | None = None,
) -> BudgetResult:
    """Find which groups must stay out of int8 for its drop of AP to be within a budget.

    All groups are quantised first. If that costs too much, they are ranked by the noise that each brings alone, and
    the worst 1, 2, 4, ... are kept, until the drop fits; the fewest that do are then found by halving the step between
    the last number that did not fit and the first that did.

    The drop in the result was measured on the pictures that chose the groups, hence it is a little too good: to quote
    one, compare on other pictures.

    Args:
        model: ONNX file made by `edge-mrcnn export`.
        ranges: Of that file.
        data: COCO annotation file with the model's classes.
        max_drop: The budget in points of AP; the larger of the drops of boxes and masks counts.
        options: How to search.
        dialect: `tensorrt` is emulated; `ort` runs as it is, and what is kept stays in float32.
        recipe: What is kept in any case (`keep_fp16`, `keep_fp32`); its precision, ranges and dialect do not count.
        threads: CPU threads; None or 0 for one per core.

    Raises:
        CalibrationError: The budget cannot be met, or only with every group kept; the ranges are those of another file;
            or the model is quantised already.
        ExportError: The file is not a model of ours.
        StreamError: The set cannot be used, or has other classes than the model.
        ValueError: `max_drop` is not positive.
    """
    if max_drop <= 0:
        raise ValueError(f"max_drop must be above 0 points of AP, got {max_drop:g}")
    options = options or BudgetOptions()
    start = time.perf_counter()
    proto = load_plain(model, ranges)
    base = dataclasses.replace(recipe or Recipe(), precision="int8", ranges=ranges, dialect=dialect)
    groups = {
        name: nodes for name, nodes in layer_groups(proto).items() if not all(base.keeps_high(node) for node in nodes)
    }
    meter = DropMeter(model, proto, data, options.limit, threads)
    search = _Search(meter, base, groups, max_drop, options.certain)
    ranking = None
    if not search.fits(0):
        ranked = SensitivityOptions(pictures=options.pictures, dialect=dialect)
        ranking = sensitivity(model, ranges, data, ranked, threads=threads)
        search.order = tuple(group.name for group in ranking.groups if group.name in groups)
        search.find_fewest()
    best = search.best
    if len(best.kept) == len(groups):
        raise search.pointless()
    return BudgetResult(
        model=str(model),
        data=str(data),
        backend=meter.backend,
        max_drop=max_drop,
        certain=options.certain,
        pictures=meter.pictures,
        kept=best.kept,
        keep=tuple(keep_pattern(search.groups[group]) for group in best.kept),
        drop=best.drop,
        steps=tuple(search.steps),
        warnings=_warnings(best.drop, max_drop, meter.pictures),
        sensitivity=ranking,
        seconds=time.perf_counter() - start,
    )


class _Search:
    """Recipes tried so far, by how many of the worst groups they keep.

    Attributes:
        groups: Names of nodes by name of the group.
        order: Names of the groups, the worst first.
        steps: What was tried, in order.
    """

    def __init__(
        self, meter: DropMeter, base: Recipe, groups: Mapping[str, tuple[str, ...]], max_drop: float, certain: bool
    ) -> None:
        self.groups, self.order, self.steps = groups, tuple(groups), list[BudgetStep]()
        self._meter, self._base, self._max_drop, self._certain = meter, base, max_drop, certain

    def fits(self, count: int) -> bool:
        """Measure int8 with the worst `count` groups kept."""
        kept = self.order[:count]
        keep = (*self._base.keep_fp16, *(keep_pattern(self.groups[group]) for group in kept))
        drop = self._meter.measure(dataclasses.replace(self._base, keep_fp16=keep))
        fits = (upper_end(drop) if self._certain else larger(drop).value) <= self._max_drop
        self.steps.append(BudgetStep(kept, drop, fits))
        _log.info("%d groups kept: drop %s, %s the budget", count, _both(drop), "within" if fits else "above")
        return fits

    def find_fewest(self) -> None:
        """Double the number kept until the drop fits, then halve the step back; none kept is known not to fit.

        Raises:
            CalibrationError: It does not fit with all kept.
        """
        low, high = 0, 1
        while not self.fits(min(high, len(self.order))):
            if high >= len(self.order):
                raise self._hopeless()
            low, high = high, 2 * high
        high = min(high, len(self.order))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(middle) else (middle, high)

    @property
    def best(self) -> BudgetStep:
        """What fits with the fewest groups kept."""
        return min((step for step in self.steps if step.fits), key=lambda step: len(step.kept))

    def pointless(self) -> CalibrationError:
        """The error that only the network without int8 fits."""
        kept, precision = ("float32", "fp32") if self._base.dialect == "ort" else ("float16", "fp16")
        return CalibrationError(
            f"the drop of AP is within {self._max_drop:g} only with all {len(self.groups)} groups kept in {kept}: use "
            f"{precision} instead of int8, allow more with --max-drop, or calibrate on pictures more like these"
        )

    def _hopeless(self) -> CalibrationError:
        kept = "float32" if self._base.dialect == "ort" else "float16"
        what = "its upper end" if self._certain else "the drop"
        return CalibrationError(
            f"with every group kept in {kept} the drop is still {_both(self.steps[-1].drop)} points of AP, and {what} "
            f"is above the budget of {self._max_drop:g}; measure on more than {self._meter.pictures} pictures, or "
            "allow more with --max-drop"
        )


def _warnings(drop: Drop, max_drop: float, pictures: int) -> tuple[str, ...]:
    """Data too few to tell whether the drop is within the budget."""
    highest = upper_end(drop)
    if highest <= max_drop:
        return ()
    return (
        f"{pictures} pictures are too few to be sure of {max_drop:g} points: the drop may be {highest:.2f} (upper end "
        "of the 95 % interval); measure on more pictures, or add --certain to keep layers until it cannot be",
    )


def _interval(value: Interval) -> str:
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


def _both(drop: Drop) -> str:
    return ", ".join(f"{kind} {_interval(lost)}" for kind, lost in drop.shown.items())
