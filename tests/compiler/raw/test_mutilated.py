"""Graphs with one part spoilt are refused: the error names the part, what was expected and what was found."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

from edge_mrcnn.cli import main
from tests.compiler.raw.mutilations import MUTILATIONS
from tests.compiler.raw.seeded_weights import load

WHOLE = Path(__file__).parent / "fixtures" / "torch2.15_mask_11.onnx.xz"


@pytest.fixture(scope="module")
def whole() -> bytes:
    return load(WHOLE).SerializeToString()


@pytest.mark.parametrize("name", MUTILATIONS)
def test_a_spoilt_part_is_named(name: str, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, pattern = MUTILATIONS[name]
    model = onnx.load_model_from_string(whole)
    spoil(model)
    onnx.save(model, tmp_path / "raw.onnx")
    assert main(["import", str(tmp_path / "raw.onnx"), "-o", str(tmp_path / "model.onnx")]) == 1
    said = capsys.readouterr().err
    assert re.search(pattern, said), said
    assert "expected" in said, said
    assert "found" in said, said
    assert "unexpected" not in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["raw.onnx"]
