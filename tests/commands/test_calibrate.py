"""`edge-mrcnn calibrate` as a person types it."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from edge_mrcnn.cli import main
from edge_mrcnn.compiler.calibration.calibrate import CalibrateOptions
from edge_mrcnn.compiler.calibration.ranges import Ranges
from tests.compiler.tiny_model import build_tiny_model

ROOT = Path(__file__).parents[2]
BUNDLED = str(ROOT / "samples" / "tabletop" / "model.onnx")
PATTERN = "test://96x64?frames=6"


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.onnx"
    onnx.save(build_tiny_model(), path)
    return str(path)


def test_summary(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ranges.json"
    assert main(["calibrate", model, PATTERN, "--allow-few", "--method", "entropy", "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert f"{output}: ranges of 9 tensors of tiny from 6 pictures, method entropy, in " in printed
    assert f"next: edge-mrcnn build {model} --precision int8 --ranges {output}" in printed
    assert Ranges.load(output).method == "entropy"


def test_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ranges.json"
    code = main(["calibrate", model, PATTERN, "--allow-few", "-o", str(output), "--limit", "4", "--json", "-"])
    summary = json.loads(capsys.readouterr().out)
    assert code == 0
    assert summary["pictures"] == 4
    assert summary["tensors"] == 9
    assert summary["warnings"] == list(Ranges.load(output).warnings)
    assert summary["ranges"] == str(output)


def test_several_sources(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ranges.json"
    assert main(["calibrate", model, PATTERN, "test://64x64?frames=2&seed=3", "--allow-few", "-o", str(output)]) == 0
    assert len(Ranges.load(output).pictures) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([PATTERN], "the number given is 6", id="few"),
        pytest.param([], "name a folder, a COCO file or a video", id="no-data"),
        pytest.param(["gone/"], "there is no source 'gone/'", id="missing"),
    ],
)
def test_errors(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    output = tmp_path / "ranges.json"
    assert main(["calibrate", model, *arguments, "-o", str(output)]) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    output = tmp_path / "ranges.json"
    output.write_text("from before")
    command = [
        sys.executable,
        "-m",
        "edge_mrcnn",
        "calibrate",
        BUNDLED,
        "test://640x480?frames=5000",
        "-o",
        str(output),
    ]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error.endswith("edge-mrcnn: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["ranges.json"]
    assert output.read_text() == "from before"


def test_every_option_is_documented() -> None:
    body = ast.parse(inspect.getsource(CalibrateOptions)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, after in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{ast.unparse(field.target)} has no docstring"
