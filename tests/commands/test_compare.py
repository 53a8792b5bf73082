"""`edge-mrcnn compare` as a person types it."""

import ast
import inspect
import itertools
import json
from pathlib import Path

import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")
pytest.importorskip("jinja2", reason="Jinja2 is not installed")

from edge_mrcnn.cli import main
from edge_mrcnn.evaluation.compare_options import CompareOptions
from tests.compiler.ranges import BUNDLED
from tests.evaluation.tabletop import CLIP, VAL, save_spoilt

MODEL = str(BUNDLED)
QUICK = ("--runs", "1", "--threads", "1")


def test_labels_give_accuracy_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, result = tmp_path / "report.html", tmp_path / "result.json"
    given = ["--precisions", "fp32,fp16", "--data", str(VAL), "--limit", "3", "--resamples", "50", *QUICK]
    assert main(["compare", MODEL, *given, "--report", str(report), "--json", str(result)]) == 0
    printed = capsys.readouterr().out
    assert "fp16 emulated" in printed
    assert f"report: {report}" in printed
    assert max(map(len, printed.splitlines())) <= 120
    page = report.read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "data:image/jpeg;base64," in page
    read = json.loads(result.read_text())
    assert [one["label"] for one in read["results"]] == ["fp32", "fp16"]
    assert read["results"][1]["emulated"] is True
    assert read["results"][1]["drop"]["mask"]["low"] <= read["results"][1]["drop"]["mask"]["high"]


def test_frames_give_agreement_with_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = save_spoilt(tmp_path / "spoilt.onnx", 0.25)
    given = ["--precisions", "fp32", "--frames", str(CLIP), "--every", "20", "--limit", "2", "--with", str(spoilt)]
    assert main(["compare", MODEL, *given, *QUICK, "--json", "-"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert (read["pictures"], read["labelled"]) == (2, False)
    assert read["results"][1]["label"] == "spoilt.onnx"
    assert read["results"][1]["agreement"]["matched_share"] < 1


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ([], 2, "either labelled pictures or frames, got neither: --data val.json or --frames clip.mp4"),
        (["--data", str(VAL), "--precisions", "int8"], 1, "edge-mrcnn calibrate"),
        (["--data", str(VAL), "--precisions", "fp32"], 2, "nothing to compare"),
        (["--data", str(VAL), "--report", "no/report.html"], 2, "--report no/report.html: there is no folder no"),
        (["--frames", "no.mp4", "--precisions", "fp32", "--with", "no.onnx"], 1, "there is no file no.onnx"),
    ],
)
def test_mistakes_are_answered_with_the_remedy(
    given: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", MODEL, *given]) == code
    assert message in capsys.readouterr().err


def test_every_option_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    body = ast.parse(inspect.getsource(CompareOptions)).body[0].body
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), field.target.id
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "MISSING" not in shown
    for flag in ("--precisions", "--data", "--frames", "--ranges", "--keep-fp16", "--with", "--report", "--json"):
        assert flag in shown
