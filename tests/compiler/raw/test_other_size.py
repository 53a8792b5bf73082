"""A raw file of one fixed size, imported for another, finds what torchvision finds at that size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

from edge_mrcnn.compiler.raw import import_raw
from edge_mrcnn.import_options import ImportOptions
from tests.compiler.raw.raw_models import Case, build, export
from tests.compiler.raw.seeded_weights import picture

pytestmark = pytest.mark.torch

HW = (160, 224)


def test_another_size_finds_what_torchvision_does(tmp_path: Path) -> None:
    torch.manual_seed(3)
    case = Case("fixed", kind="box", opset=13, frozen=True, limits=(("box_score_thresh", 0.21),))
    model = build(case)
    with torch.no_grad():
        model.rpn.head.cls_logits.weight *= 30
        model.roi_heads.box_predictor.cls_score.weight *= 20
        model.roi_heads.box_predictor.bbox_pred.weight *= 20
    export(case, tmp_path / "raw.onnx", model)
    imported = import_raw(onnx.load(tmp_path / "raw.onnx"), ImportOptions(size=f"{HW[0]}x{HW[1]}"))
    session = onnxruntime.InferenceSession(imported.SerializeToString(), providers=["CPUExecutionProvider"])
    image = picture(HW, 4)
    count, boxes, scores, labels = session.run(None, {"images": image[None], "image_hw": np.array([HW], np.float32)})
    model.transform.min_size, model.transform.max_size = (min(HW),), max(HW)
    with torch.no_grad():
        (expected,) = model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    assert count[0] == len(expected["scores"]) > 10
    np.testing.assert_allclose(scores[0, : count[0]], expected["scores"].numpy(), atol=1e-3)
    np.testing.assert_array_equal(labels[0, : count[0]], expected["labels"].numpy())
    np.testing.assert_allclose(boxes[0, : count[0]], expected["boxes"].numpy(), atol=0.05)
