"""Every sample runs, as a subprocess, and stays short enough to read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[1] / "samples"


def run(*arguments: str, folder: Path) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.py")), ids=lambda sample: sample.name)
def test_at_most_40_lines(sample: Path) -> None:
    assert len(sample.read_text().splitlines()) <= 40


def test_masks(tmp_path: Path) -> None:
    source = str(SAMPLES / "tabletop" / "val" / "images" / "000000.jpg")
    assert "0 [" in run(str(SAMPLES / "masks.py"), source, "out/", folder=tmp_path)
    assert (tmp_path / "out" / "000000.jpg").stat().st_size > 1000


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    printed = run(str(SAMPLES / "demo.py"), "demo", folder=tmp_path)
    assert "150 frames" in printed
    left = {path.name for path in (tmp_path / "demo").iterdir()}
    engines = {f"model.rtx.{precision}.{suffix}" for precision in ("fp32", "fp16") for suffix in ("engine", "json")}
    assert left == engines | {"clip.mp4", "clip.jsonl", "contact_sheet.png", "results.json"}
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert [engine["size_bytes"] > 1e6 for engine in results["engines"]] == [True, True]
    assert results["accuracy"]["mask"]["ap"] > 60
