"""`edge-mrcnn sensitivity`, and `build --max-drop`, as a person types them."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from pathlib import Path

import onnx
import pytest

from edge_mrcnn.cli import main
from edge_mrcnn.evaluation.budget_options import BudgetOptions
from edge_mrcnn.evaluation.sensitivity import SensitivityOptions
from edge_mrcnn.sidecar import EngineSidecar, hash_file
from tests.compiler.ranges import BUNDLED, TABLETOP, bundled_inputs, measured_ranges
from tests.compiler.tiny_model import build_tiny_model
from tests.evaluation.planted import GROUP, plant_outliers

IMAGES = str(TABLETOP / "val" / "images")
VAL = str(TABLETOP / "val" / "annotations.json")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The tiny model and its ranges, as files."""
    folder = tmp_path_factory.mktemp("tiny")
    path, ranges = folder / "tiny.onnx", folder / "ranges.json"
    onnx.save(build_tiny_model(), path)
    measured_ranges(build_tiny_model(), sha256=hash_file(path)).save(ranges)
    return str(path), str(ranges)


def test_it_prints_a_table(tiny: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", tiny[0], IMAGES, "--ranges", tiny[1], "--pictures", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("all together")
    assert {line.split()[0] for line in lines[2:7]} == {"n11", "n14", "n17", "n31", "n37"}
    assert "█" in lines[1]
    assert "int8 emulated" in lines[-1]


def test_json_and_chart(tiny: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "chart.svg"
    options = ["--ranges", tiny[1], "--pictures", "2", "--chart", str(chart), "--json", "-"]
    assert main(["sensitivity", tiny[0], IMAGES, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["groups"]) == 5
    assert result["groups"][0]["taps_db"].keys() == result["together"]["taps_db"].keys()
    drawn = chart.read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert all(group["name"] in drawn for group in result["groups"])


def test_ap_needs_labels(tiny: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", tiny[0], IMAGES, "--ranges", tiny[1], "--ap"]) == 1
    assert "annotation file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max-drop", "0.3"], "--max-drop and --data go together"),
        (["--data", VAL], "--max-drop and --data go together"),
        (["--max-drop", "0.3", "--data", VAL], "--max-drop is for int8"),
        (["--certain"], "say how --max-drop is measured"),
    ],
    ids=["no data", "no budget", "fp16", "only how"],
)
def test_a_budget_needs_int8_and_labels(options: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(BUNDLED), "--precision", "fp16", *options]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "rtx:sm_89"])
def test_a_build_keeps_what_the_budget_needs(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if target != "cpu":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    model, ranges = tmp_path / "planted.onnx", tmp_path / "ranges.json"
    plant_outliers(model)
    measured_ranges(onnx.load(model), bundled_inputs(8), hash_file(model)).save(ranges)
    asked = ["--precision", "int8", "--ranges", str(ranges), "--target", target, "--cache-dir", str(tmp_path / "cache")]
    budget = ["--max-drop", "3", "--data", VAL, "--limit", "6", "--pictures", "1"]
    assert main(["build", str(model), "-o", str(tmp_path), *asked, *budget, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["budget"]["kept"] == [GROUP]
    assert {f"{GROUP}.0", f"{GROUP}.1"} <= set(result["kept"])
    assert EngineSidecar.load_for(Path(result["engine"])).recipe.keep_fp16 == tuple(result["budget"]["keep"])


@pytest.mark.parametrize("options", [SensitivityOptions, BudgetOptions])
def test_every_option_is_documented(options: type) -> None:
    """The command line's help comes from the docstrings of the fields."""
    body = ast.parse(inspect.getsource(options)).body[0].body
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{options.__name__}.{field.target.id} has no docstring"
