"""Imports compared with detectron2 itself, where it is installed: it is on no package index, so CI skips this.

Passed with detectron2 of 2026-06-06 (02b5c4e) under torch 2.15.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2 import model_zoo  # noqa: E402
from detectron2.layers import FrozenBatchNorm2d  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edge_mrcnn.import_options import ImportOptions  # noqa: E402
from edge_mrcnn.training.foreign import import_checkpoint  # noqa: E402
from tests.training.foreign import states  # noqa: E402
from tests.training.random_models import Reference, picture  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

HW = (128, 160)
"""A multiple of 32, to which detectron2 pads for a pyramid and not for C4, so that the borders are the same."""

MODELS = {
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml": {},
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml": {"depth": 101},
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x.yaml": {"depth": 101, "groups": 32, "width": 8},
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml": {"c4": True},
    "COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x.yaml": {"depth": 101, "c4": True},
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml": None,
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml": None,
}
"""Configs, and what `states.detectron2_shapes` calls them."""


@pytest.mark.parametrize("config", MODELS)
def test_what_detectron2_finds(config: str, tmp_path: Path) -> None:
    image = picture(*HW, seed=5)
    theirs = seeded(config, torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).float())
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    if MODELS[config] is not None:
        assert shapes == states.detectron2_shapes(**MODELS[config])
    arrays = {name: value.numpy() for name, value in theirs.state_dict().items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "detectron2"}, 2))
    want = infer(theirs, torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1).float())
    limits = ImportOptions(proposals=60, detections=15)
    model = import_checkpoint(tmp_path / "a.pkl", limits).model
    (found,) = Reference(model, image[None], np.array([HW], np.float32)).detect()
    assert len(found["scores"]) == len(want) >= 8
    assert torch.equal(found["labels"] - 1, want.pred_classes)
    assert torch.allclose(found["boxes"], want.pred_boxes.tensor, atol=0.01)
    assert torch.allclose(found["scores"], want.scores, atol=1e-4)
    if want.has("pred_masks"):
        assert torch.allclose(found["masks"], want.pred_masks, atol=1e-3)
    if want.has("pred_keypoints"):
        assert torch.allclose(found["keypoints"][..., :2], want.pred_keypoints[..., :2], atol=0.5)


def infer(model: nn.Module, image: Tensor) -> Any:
    with torch.no_grad():
        return model.inference([{"image": image}], do_postprocess=False)[0]


def seeded(config: str, image: Tensor) -> nn.Module:
    """A model of detectron2 with random weights, whose norms and output layers are fitted to a picture."""
    settings = model_zoo.get_config(config)
    settings.MODEL.DEVICE, settings.MODEL.WEIGHTS = "cpu", ""
    settings.MODEL.RPN.POST_NMS_TOPK_TEST, settings.TEST.DETECTIONS_PER_IMAGE = 60, 15
    torch.manual_seed(0)
    model: nn.Module = build_model(settings).eval()
    hooks = [
        part.register_forward_pre_hook(fit_norm) for part in model.modules() if isinstance(part, FrozenBatchNorm2d)
    ]
    for name, part in model.named_modules():
        if name.endswith("conv3.norm"):
            part.weight.mul_(0.25)
        spread = {**states.SPREADS, "score_lowres": 2.0}.get(name.rpartition(".")[2])
        if spread is not None:
            hooks.append(part.register_forward_hook(Spread(spread)))
    predictor = model.roi_heads.box_predictor
    threshold, predictor.test_score_thresh = predictor.test_score_thresh, 0.0
    infer(model, image)
    predictor.test_score_thresh = threshold
    for hook in hooks:
        hook.remove()
    return model


def fit_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Take the statistics of the first input."""
    if not hasattr(norm, "fitted"):
        norm.fitted = True
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)) + 1e-3)


class Spread:
    """Centres and scales a layer on the first input."""

    def __init__(self, spread: float) -> None:
        self.spread, self.fitted = spread, False

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.fitted:
            return output
        self.fitted = True
        channels = output.transpose(0, 1).flatten(1)
        scale = self.spread / channels.std(1).clamp(min=1e-6)
        outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        layer.weight *= scale.reshape([-1 if axis == outputs else 1 for axis in range(layer.weight.dim())])
        layer.bias.copy_((layer.bias - channels.mean(1)) * scale)
        return layer.forward(inputs[0])
