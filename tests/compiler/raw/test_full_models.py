"""torchvision's own model on ResNet-50, as the installed torch exports it, imported and compared."""

from __future__ import annotations

import gc
from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

from edge_mrcnn.compiler.raw import import_raw
from edge_mrcnn.import_options import ImportOptions
from tests.compiler.raw.parity import PIXELS, Score, run_imported, run_raw
from tests.compiler.raw.raw_models import Case, export
from tests.training.random_models import Reference, fix_pools, letterboxed, seeded_model

pytestmark = [pytest.mark.torch, pytest.mark.slow]

HW = (160, 224)


@pytest.mark.parametrize(
    "case",
    # v2 and Keypoint R-CNN pass as well, given here: half a minute each, and small ones are in test_raw_parity.py
    [Case("mask", "maskrcnn_resnet50_fpn", opset=17, dynamic=True, hw=HW)],
    ids=lambda case: case.kind,
)
def test_what_is_found_is_the_files(case: Case, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = seeded_model(case.kind)
    model.transform.min_size, model.transform.max_size = (min(HW),), max(HW)
    model.rpn._post_nms_top_n["testing"] = 150
    model.roi_heads.score_thresh = 0.04
    fix_pools(model, HW)
    images, image_hw = letterboxed(HW, [HW] * 2, seed=7)
    Reference(model, images, image_hw).set_background(45)
    for pool in model.roi_heads.children():
        if hasattr(pool, "map_levels"):
            pool.scales = pool.map_levels = None  # torchvision infers them from the picture at hand
    export(case, tmp_path / "raw.onnx", model)
    torch.set_num_threads(threads)
    del model
    gc.collect()
    raw = onnx.load(tmp_path / "raw.onnx")
    imported = import_raw(raw, ImportOptions(size=f"{HW[0]}x{HW[1]}") if case.dynamic else ImportOptions())
    pictures = list(images)
    score = Score()
    for want, got in zip(run_raw(raw, pictures), run_imported(imported, pictures), strict=True):
        score.add(want, got)
    keypoints = case.kind.startswith("keypoint")
    score.check(None if keypoints else PIXELS, keypoints)
