"""The bundled model, trained weights and real pictures of its world, against torchvision's own forward.

Its checkpoint is not bundled, so the torch model is rebuilt from the ONNX file: convolutions take the folded weights,
and the batch norms behind them are left with the folded bias to add.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch
from onnx import numpy_helper
from torch import nn
from torchvision.models.detection import MaskRCNN

from edge_mrcnn.compiler.model_file import write_model
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.runtime.sources.pictures import read_picture
from edge_mrcnn.training.export import trace_model
from edge_mrcnn.training.zoo import MODELS, build_model
from tests.training.random_models import Reference, fix_pools
from tests.training.test_parity import Score, compare

pytestmark = pytest.mark.torch

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop"
HEADS = ("box_head", "box_predictor", "mask_head", "mask_predictor")


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    tensors = onnx.load(TABLETOP / "model.onnx").graph.initializer
    weights = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in tensors}
    model = build_model("maskrcnn_edge")
    parts = {"backbone": model.backbone, "rpn_head": model.rpn.head}
    parts |= {name: getattr(model.roi_heads, name) for name in HEADS}
    with torch.no_grad():
        for name, part in parts.items():
            fill(part, name, weights)
    return model.eval()


def fill(part: nn.Module, name: str, weights: dict[str, torch.Tensor]) -> None:
    """Put the exported weights into a module and those below it; every layer must find its own."""
    for path, module in list(part.named_modules()):
        children = list(module.named_children())
        for (key, layer), (_, behind) in zip(children, [*children[1:], ("", None)], strict=False):
            if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                continue
            full = ".".join(piece for piece in (name, path, key) if piece)
            layer.weight.copy_(weights[f"{full}.weight"])
            if isinstance(behind, nn.BatchNorm2d):
                behind.running_mean.zero_()
                behind.running_var.fill_(1 - behind.eps)
                behind.weight.fill_(1)
                behind.bias.copy_(weights[f"{full}.weight_bias"])
            elif layer.bias is not None:
                layer.bias.copy_(weights[f"{full}.bias"])


def val_pictures() -> list[np.ndarray]:
    pictures = [read_picture(path) for path in sorted((TABLETOP / "val" / "images").iterdir())[:6]]
    pictures[1] = pictures[1][:, :500].copy()  # so that the contents differ in size
    return pictures


def run_bundled(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with OrtRunner(TABLETOP / "model.onnx") as runner:
        return runner.infer(feeds)


def test_the_file_as_it_is(model: MaskRCNN) -> None:
    check(model, MODELS["maskrcnn_edge"].default_size, run_bundled)


@pytest.mark.parametrize("canvas", [(256, 320), (320, 320), (480, 640)], ids=lambda canvas: "x".join(map(str, canvas)))
def test_exported_again_at_other_sizes(model: MaskRCNN, canvas: tuple[int, int], tmp_path: Path) -> None:
    with OrtRunner(TABLETOP / "model.onnx") as runner:
        names = runner.spec.class_names
    write_model(*trace_model(model, "maskrcnn_edge", canvas, names), tmp_path / "model.onnx")
    with OrtRunner(tmp_path / "model.onnx") as runner:
        check(model, canvas, runner.infer)


def check(
    model: MaskRCNN, canvas: tuple[int, int], run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> None:
    """Pictures of its world show about ten things each: fifty detections to compare are those of six pictures."""
    images, image_hw, _ = letterbox_batch(val_pictures(), canvas)
    assert len(np.unique(image_hw, axis=0)) == 2
    fix_pools(model, canvas)
    score = Score()
    for start in (0, 2, 4):
        two = slice(start, start + 2)
        expected = Reference(model, images[two], image_hw[two]).detect()
        outputs = run({"images": images[two], "image_hw": image_hw[two]})
        for row, want in enumerate(expected):
            compare(want, {name: torch.as_tensor(output[row]) for name, output in outputs.items()}, score)
    assert score.expected >= 50
    score.check()
