"""The README's commands and its Python, run as written, in their order, as its reader would."""

import json
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_mrcnn.device import find_gpus
from tests.compiler.raw.seeded_weights import load as load_raw

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TABLETOP = ROOT / "samples" / "tabletop"
LESS = {
    "bench": ["--runs", "1", "--warmup", "0"],
    "calibrate": ["--allow-few"],
    "compare": ["--runs", "1"],
    "run": ["--max-frames", "2", "--status", "off"],
    "train": ["--epochs", "1", "--batch-size", "2", "--workers", "0"],
}
"""Added to a command, so that a test need not measure or train for long."""


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("edge-mrcnn ")]
    return [*lines, *(text.split() for text in re.findall(r"`(edge-mrcnn train [^`]*)`", README))]


def for_gpu(line: list[str]) -> bool:
    """Whether a command needs a GPU."""
    return "current" in line or any(part.endswith(".engine") for part in line)


def prepare(folder: Path) -> None:
    """What the reader of the README has: a checkpoint, a clip, photos, a data set of the checkpoint's classes."""
    import torch

    from edge_mrcnn.training.zoo import build_model
    from tests.training.foreign.states import detectron2_shapes

    torch.manual_seed(0)
    torch.save(build_model("maskrcnn_resnet50_fpn", 7).state_dict(), folder / "checkpoint.pth")
    shutil.copy(TABLETOP / "clip.mp4", folder / "whole.mp4")
    subprocess.run([sys.executable, "-c", SHORTEN], cwd=folder, check=True)
    for name in ("val", "data"):
        truth = json.loads((TABLETOP / "val" / "annotations.json").read_text())
        truth["images"] = truth["images"][:4]
        truth["categories"] = [{"id": label, "name": f"class_{label}"} for label in range(1, 7)]
        kept = {image["id"] for image in truth["images"]}
        truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in kept and a["category_id"] < 7]
        (folder / name / "images").mkdir(parents=True)
        (folder / name / "annotations.json").write_text(json.dumps(truth))
        for image in truth["images"]:
            shutil.copy(TABLETOP / "val" / "images" / image["file_name"], folder / name / "images")
    shutil.copytree(folder / "val" / "images", folder / "photos")
    onnx.save(
        load_raw(ROOT / "tests/compiler/raw/fixtures/torch2.0_mask_11.onnx.xz"), folder / "maskrcnn_of_last_year.onnx"
    )
    values = np.random.default_rng(0)
    weights = {name: values.normal(0, 0.01, shape).astype(np.float32) for name, shape in detectron2_shapes(14).items()}
    (folder / "model_final_f10217.pkl").write_bytes(
        pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"})
    )


SHORTEN = """
from edge_mrcnn import Detections, open_sink, open_source
with open_source("whole.mp4") as frames, open_sink("clip.mp4") as sink:
    for frame in frames:
        if frame.index < 2:
            sink.write(frame, Detections.empty(frame.image_hw), frame.image)
"""


@pytest.mark.torch
@pytest.mark.slow
def test_commands_and_python(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    prepare(tmp_path)
    verbs = ["export", "build", "run", "eval", "bench", "inspect", "doctor", "import", "import"]
    verbs += ["run", "run", "soak", "calibrate", "compare", "build", "build", "build", "run", "train"]
    assert [line[1] for line in commands()] == verbs
    for line in commands():
        if any("rtsp://" in part for part in line) or line[1] == "soak":
            continue  # there is no camera, and not that much time: tests/faults and tests/evaluation/soak have both
        line = [part.replace(":8080", ":0") for part in line]
        command = [sys.executable, "-m", "edge_mrcnn", *line[1:], *LESS.get(line[1], [])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        if for_gpu(line) and not find_gpus():
            assert done.returncode == 1, f"{' '.join(line)} cannot have worked here"
            assert "GPU" in done.stderr or "no engine" in done.stderr, done.stderr
        else:
            assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout}\n{done.stderr}"
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    subprocess.run([sys.executable, "-c", code[1]], cwd=tmp_path, check=True)
    for name in ("model.onnx", "model.rtx-sm_86-sm_89.fp16.engine", "out.mp4", "runs/mine/best.pt"):
        assert (tmp_path / name).stat().st_size > 1000, name


OURS = ("", "docs", "plugins", "samples", "calibration", "benchmarks")
PAGES = sorted(page for folder in OURS for page in (ROOT / folder).glob("**/*.md" if folder else "*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
