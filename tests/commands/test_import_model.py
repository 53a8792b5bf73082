"""`edge-mrcnn import` as a person types it, on a raw ONNX file; what is no model is tested in tests/compiler/raw."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from edge_mrcnn.cli import main
from edge_mrcnn.commands.import_model import sniff
from tests.compiler.raw.seeded_weights import load

FIXTURE = Path(__file__).parents[1] / "compiler" / "raw" / "fixtures" / "torch2.15_mask_18_limits_patches.onnx.xz"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw file whose thresholds, limits and normalisation are all not torchvision's."""
    path = tmp_path_factory.mktemp("raw") / "weights.bin"
    onnx.save(load(FIXTURE), path)
    return path


def test_it_tells_what_it_found_and_what_differs(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model.onnx"
    assert main(["import", str(raw), "-o", str(output), "--json", str(tmp_path / "result.json")]) == 0
    said = capsys.readouterr().out
    for part in ("5 classes with the background", "input 128x160, masks 28x28", "scores from 0.12", "at most 80"):
        assert part in said, said
    for part in ("of 180 proposals", "NMS at IoU 0.4", "scaled to fit and letterboxed", f"edge-mrcnn build {output}"):
        assert part in said, said
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kind"] == "onnx"
    assert result["bytes"] == output.stat().st_size
    rpn = result["spec"]["ops"]["rpn_proposals"]
    assert (rpn["pre_nms_top_n"], rpn["post_nms_top_n"]) == (250, 180)
    assert (rpn["nms_threshold"], rpn["score_threshold"]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert result["spec"]["mean"] == pytest.approx([0.4, 0.5, 0.55])
    assert result["spec"]["std"] == pytest.approx([0.2, 0.25, 0.3])


def test_what_is_asked_for_is_changed(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "model.onnx"
    limits = ["--score-threshold", "0.3", "--detections", "9", "--proposals", "60", "--class-names", "a,b,c,d"]
    assert main(["import", str(raw), "-o", str(output), "--json", "-", *limits]) == 0
    spec = json.loads(capsys.readouterr().out)["spec"]
    assert spec["class_names"] == ["__background__", "a", "b", "c", "d"]
    assert (spec["score_threshold"], spec["detections"], spec["proposals"]) == (0.3, 9, 60)
    assert spec["ops"]["detection_nms"]["detections_per_image"] == 9
    assert spec["ops"]["rpn_proposals"]["post_nms_top_n"] == 60


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--class-names", "a,b"], 1, "2 class names were given, but the model has 5 classes"),
        (["--size", "100x160"], 2, "multiples of 32"),
        (["--score-threshold", "1.5"], 2, "score_threshold must be from 0 to below 1"),
        (["-o", "missing/model.onnx"], 1, "mkdir -p missing"),
    ],
)
def test_a_wrong_option_leaves_nothing(
    options: list[str], code: int, message: str, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = main(["import", str(raw), "-o", str(tmp_path / "model.onnx"), *options])
    except SystemExit as usage:
        ended = int(str(usage.code))
    assert ended == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_the_file_itself_is_not_overwritten(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = raw.read_bytes()
    assert main(["import", str(raw), "-o", str(raw)]) == 2
    assert "is the file to import" in capsys.readouterr().err
    assert raw.read_bytes() == before


def test_kinds_are_told_by_content(raw: Path, tmp_path: Path) -> None:
    assert sniff(raw) == "onnx"
    (tmp_path / "model.onnx").write_bytes(b"PK\x03\x04...")
    assert sniff(tmp_path / "model.onnx") == "checkpoint"
    (tmp_path / "model.txt").write_bytes(b"\x80\x02}q\x00.")
    assert sniff(tmp_path / "model.txt") == "checkpoint"


def test_a_checkpoint_without_torch_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("edge_mrcnn.training")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "model.pkl").write_bytes(b"\x80\x02}q\x00.")
    assert main(["import", str(tmp_path / "model.pkl"), "-o", str(tmp_path / "model.onnx")]) == 1
    assert "torch is not installed; install it with: pip install 'edge-mrcnn[train]'" in capsys.readouterr().err
