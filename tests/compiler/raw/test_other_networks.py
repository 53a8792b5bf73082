"""Networks beside torchvision's ready-made ones: another backbone, no pyramid, a file that was optimised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN, MaskRCNN, fasterrcnn_mobilenet_v3_large_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from edge_mrcnn.compiler.raw import import_raw
from edge_mrcnn.import_options import ImportOptions
from tests.compiler.raw.parity import read_spec
from tests.compiler.raw.raw_models import Case, export
from tests.compiler.raw.seeded_weights import load, picture

pytestmark = [pytest.mark.torch, pytest.mark.slow]

HW = (128, 160)
LIMITS = {
    "min_size": 128,
    "max_size": 160,
    "box_score_thresh": 0.2,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 60,
    "box_detections_per_img": 20,
}


def mobile() -> nn.Module:
    """Two levels of the same stride, all boxes on the first."""
    return fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=5, **LIMITS)


def without_pyramid() -> nn.Module:
    """The model of torchvision's tutorial, with masks: one level, 15 anchors."""
    backbone = mobilenet_v2(weights=None).features
    backbone.out_channels = 1280
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=TwoMLPHead(1280 * 49, 64),
        box_predictor=FastRCNNPredictor(64, 3),
        mask_head=MaskRCNNHeads(1280, (32,), 1),
        mask_predictor=MaskRCNNPredictor(32, 32, 3),
        **LIMITS,
    )


def enliven(model: nn.Module) -> None:
    """Let norms do something, and scores differ."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for norm in model.modules():
            if hasattr(norm, "running_var") and hasattr(norm, "weight"):
                norm.running_mean.normal_(0, 0.1, generator=generator)
                norm.running_var.uniform_(0.5, 1.5, generator=generator)
                norm.weight.data.uniform_(0.6, 1.2, generator=generator)
        model.rpn.head.cls_logits.weight.mul_(20)
        model.roi_heads.box_predictor.cls_score.weight.mul_(10)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(10)


@pytest.mark.parametrize("build", [mobile, without_pyramid])
def test_it_finds_what_torchvision_does(build: Callable[[], FasterRCNN], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build().eval()
    enliven(model)
    export(Case("other", kind="box" if build is mobile else "mask", opset=16, hw=HW), tmp_path / "raw.onnx", model)
    model.eval()  # the exporter leaves another mode behind
    imported = import_raw(onnx.load(tmp_path / "raw.onnx"), ImportOptions())
    session = onnxruntime.InferenceSession(imported.SerializeToString(), providers=["CPUExecutionProvider"])
    image = picture(HW, 4)
    count, boxes, scores, labels, *masks = session.run(
        None, {"images": image[None], "image_hw": np.array([HW], np.float32)}
    )
    with torch.no_grad():
        (expected,) = model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])
    assert count[0] == len(expected["scores"]) > 0
    assert bool(masks) == ("masks" in expected)
    np.testing.assert_allclose(scores[0, : count[0]], expected["scores"].numpy(), atol=1e-3)
    np.testing.assert_array_equal(labels[0, : count[0]], expected["labels"].numpy())
    np.testing.assert_allclose(boxes[0, : count[0]], expected["boxes"].numpy(), atol=0.05)


def test_a_file_that_was_optimised(tmp_path: Path) -> None:
    """Constants folded and norms fused by ONNX Runtime: a third of the nodes, the same network."""
    raw = load(Path(__file__).parent / "fixtures" / "torch2.15_mask_16_anchors.onnx.xz")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(raw.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx")
    assert len(optimised.graph.node) < len(raw.graph.node) / 2
    one, other = (read_spec(import_raw(model, ImportOptions())) for model in (raw, optimised))
    assert one == other
