"""The fewest groups that must stay out of int8, and that a planted bad one is among them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnx
import pytest

from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import CalibrationError
from edge_mrcnn.evaluation.budget import BudgetResult, BudgetStep, _Search, _warnings, fit_budget
from edge_mrcnn.evaluation.budget_options import BudgetOptions
from edge_mrcnn.evaluation.comparison import Drop, Interval
from edge_mrcnn.evaluation.drops import larger, upper_end
from edge_mrcnn.sidecar import hash_file
from tests.compiler.ranges import BUNDLED, TABLETOP, bundled_inputs, measured_ranges
from tests.evaluation.planted import GROUP, plant_outliers

VAL = TABLETOP / "val" / "annotations.json"


class ScriptedMeter:
    """Gives a drop by how many layers a recipe keeps."""

    pictures = 50

    def __init__(self, drops: list[float], spread: float = 0.0) -> None:
        self.drops, self.spread = drops, spread

    def measure(self, recipe: Recipe) -> Drop:
        value = self.drops[len(recipe.keep_fp16)]
        return Drop(Interval(value, value - self.spread, value + self.spread), None)


def search(drops: list[float], certain: bool = False, spread: float = 0.0) -> _Search:
    groups = {f"group{number}": (f"node{number}",) for number in range(len(drops) - 1)}
    return _Search(ScriptedMeter(drops, spread), Recipe("int8"), groups, 0.3, certain)


@pytest.mark.parametrize("groups", [1, 2, 3, 8, 27])
def test_the_fewest_are_found_in_few_steps(groups: int) -> None:
    """Whatever number is needed, of any number of groups."""
    for needed in range(1, groups + 1):
        tried = search([1.0] * needed + [0.1] * (groups + 1 - needed))
        assert not tried.fits(0)
        tried.find_fewest()
        assert len(tried.best.kept) == needed
        assert tried.best.kept == tuple(f"group{number}" for number in range(needed))
        assert len(tried.steps) <= 2 * groups.bit_length() + 2


def test_what_never_fits_is_an_error() -> None:
    with pytest.raises(CalibrationError, match=r"every group kept in float16 the drop is still box 0\.40"):
        search([1.0, 0.8, 0.4]).find_fewest()


def test_certain_holds_the_upper_end_against_the_budget() -> None:
    drops = [0.5, 0.25, 0.1]
    assert search(drops, spread=0.1).fits(1)
    assert not search(drops, certain=True, spread=0.1).fits(1)
    assert search(drops, certain=True, spread=0.1).fits(2)


def test_the_larger_drop_counts() -> None:
    box, mask = Interval(0.1, -0.3, 0.5), Interval(0.2, 0.1, 0.3)
    assert larger(Drop(box, mask)) == mask
    assert upper_end(Drop(box, mask)) == 0.5
    assert larger(Drop(box, None)) == box
    points = Interval(0.9, 0.1, 2.0)
    assert larger(Drop(box, mask, points)) == points
    assert upper_end(Drop(box, None, points)) == 2.0


def test_too_few_pictures_are_said() -> None:
    unsure = Drop(Interval(0.1, -0.3, 0.5), None)
    assert "20 pictures are too few to be sure of 0.3 points" in _warnings(unsure, 0.3, 20)[0]
    assert _warnings(unsure, 0.6, 20) == ()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranges]:
    path = tmp_path_factory.mktemp("budget") / "planted.onnx"
    plant_outliers(path)
    return path, measured_ranges(onnx.load(path), bundled_inputs(8), hash_file(path))


@pytest.fixture(scope="module")
def fitted(planted: tuple[Path, Ranges]) -> BudgetResult:
    return fit_budget(*planted, VAL, 3.0, BudgetOptions(limit=10, pictures=2))


@pytest.mark.slow
def test_the_planted_group_is_the_one_that_is_kept(planted: tuple[Path, Ranges], fitted: BudgetResult) -> None:
    assert fitted.kept == (GROUP,)
    assert [(len(step.kept), step.fits) for step in fitted.steps] == [(0, False), (1, True)]
    assert fitted.steps[0].drop.box.value > 4
    assert fitted.drop == fitted.steps[1].drop
    model = run_passes(onnx.load(planted[0]), Recipe("int8", planted[1], fitted.keep))
    made = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    plain = [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] not in made]
    assert [name for name in plain if name.startswith("backbone")] == [f"{GROUP}.0", f"{GROUP}.1"]


@pytest.mark.slow
def test_what_the_caller_keeps_is_kept_in_every_step(planted: tuple[Path, Ranges]) -> None:
    recipe = Recipe(keep_fp16=(rf"^{GROUP}\.",))
    result = fit_budget(*planted, VAL, 3.0, BudgetOptions(limit=10), recipe=recipe)
    assert result.kept == ()
    assert result.sensitivity is None
    assert len(result.steps) == 1


@pytest.mark.slow
def test_the_result_as_text_and_json(fitted: BudgetResult) -> None:
    assert any(line == f"kept out of int8: {GROUP}" for line in fitted.lines())
    read = json.loads(fitted.to_json())
    assert read["kept"] == [GROUP]
    assert read["sensitivity"]["groups"][0]["name"] == GROUP


def test_only_everything_kept_is_pointless() -> None:
    with pytest.raises(CalibrationError, match="use fp16 instead of int8"):
        raise search([1.0, 0.1]).pointless()


def test_a_step_names_what_it_kept() -> None:
    tried = search([1.0, 0.2])
    tried.fits(1)
    assert tried.steps == [BudgetStep(("group0",), Drop(Interval(0.2, 0.2, 0.2), None), True)]


@pytest.mark.parametrize("budget", [0.0, -1.0])
def test_a_budget_is_positive(budget: float) -> None:
    with pytest.raises(ValueError, match="max_drop must be above 0"):
        fit_budget(BUNDLED, measured_ranges(onnx.load(BUNDLED), bundled_inputs(1)), VAL, budget)


def test_ranges_of_another_model_are_refused() -> None:
    ranges = dataclasses.replace(measured_ranges(onnx.load(BUNDLED), bundled_inputs(1)), onnx_sha256="f" * 64)
    with pytest.raises(CalibrationError, match="were measured on an ONNX file"):
        fit_budget(BUNDLED, ranges, VAL, 0.3)


@pytest.mark.parametrize("name", ["pictures", "limit"])
def test_numbers_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"BudgetOptions\.{name} must be at least 1, got 0"):
        BudgetOptions(**{name: 0})
