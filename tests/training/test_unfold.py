"""Weights out of an exported file: the network answers as the file does, and is ready to be trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools.mask")

import onnx  # noqa: E402
from torch import nn  # noqa: E402

from edge_mrcnn.errors import EdgeMrcnnError  # noqa: E402
from edge_mrcnn.runtime.preprocess import letterbox  # noqa: E402
from edge_mrcnn.runtime.runners import OrtRunner  # noqa: E402
from edge_mrcnn.training.dataset import read_picture  # noqa: E402
from edge_mrcnn.training.step import CanvasModel  # noqa: E402
from edge_mrcnn.training.unfold import load_exported  # noqa: E402
from edge_mrcnn.training.zoo import build_model  # noqa: E402

pytestmark = pytest.mark.torch

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop"
MODEL = TABLETOP / "model.onnx"
CANVAS = (320, 416)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    files = sorted((TABLETOP / "val" / "images").iterdir())[:6]
    return torch.stack([torch.from_numpy(letterbox(read_picture(file), CANVAS)[0]) for file in files])


@pytest.fixture(scope="module")
def model(pictures: torch.Tensor) -> nn.Module:
    model = build_model("maskrcnn_edge")
    load_exported(model, MODEL, pictures)
    return model


def test_the_network_answers_as_the_file(model: nn.Module, pictures: torch.Tensor) -> None:
    feeds = {"images": pictures[:1].numpy(), "image_hw": np.array([CANVAS], np.float32)}
    with OrtRunner(MODEL) as runner:
        expected = runner.infer(feeds)
    with torch.inference_mode():
        _, (found,) = CanvasModel(model)(pictures[:1], [{"image_hw": CANVAS}])
    count = int((expected["scores"][0] > 0.3).sum())
    assert count >= 3
    assert found["labels"][:count].tolist() == expected["labels"][0, :count].tolist()
    np.testing.assert_allclose(found["boxes"][:count], expected["boxes"][0, :count], atol=0.05)
    np.testing.assert_allclose(found["scores"][:count], expected["scores"][0, :count], atol=1e-3)
    np.testing.assert_allclose(found["masks"][:count, 0], expected["masks"][0, :count], atol=0.01)


def test_norms_have_the_statistics_of_the_pictures(model: nn.Module, pictures: torch.Tensor) -> None:
    """In training mode a norm takes the statistics of its batch; on the same pictures it must do what it did before."""
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) > 30
    outputs: list[torch.Tensor] = []
    hooks = [norm.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for norm in norms]
    with torch.no_grad():
        images = pictures.permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor(model.transform.image_mean), torch.tensor(model.transform.image_std)
        images = (images - mean[:, None, None]) / std[:, None, None]
        model.backbone(images)
        still, outputs[:] = list(outputs), []
        statistics = [norm.running_mean.clone() for norm in norms]
        model.backbone.train()(images)
    for hook in hooks:
        hook.remove()
    model.backbone.eval()
    for norm, mean in zip(norms, statistics, strict=True):
        norm.running_mean.copy_(mean)
    for one, other in zip(still, outputs, strict=True):
        assert (one - other).abs().mean() < 0.02 * one.abs().mean()


def test_heads_that_the_file_lacks_stay(pictures: torch.Tensor) -> None:
    model = build_model("keypointrcnn_edge")
    before = {key: value.clone() for key, value in model.state_dict().items() if "keypoint" in key}
    load_exported(model, MODEL, pictures[:1])
    after = model.state_dict()
    assert before
    assert all(
        torch.equal(value, after[key])
        for key, value in before.items()
        if "running" not in key and "num_batches" not in key
    )


def test_other_classes_are_told(pictures: torch.Tensor) -> None:
    with pytest.raises(EdgeMrcnnError, match=r"cls_score\.weight is \(11, 256\), the network has \(5, 256\)"):
        load_exported(build_model("maskrcnn_edge", 5), MODEL, pictures[:1])


def test_another_network_is_told(pictures: torch.Tensor) -> None:
    with pytest.raises(EdgeMrcnnError, match=r"the network has \(.*\)\. Pick the model of the zoo"):
        load_exported(build_model("maskrcnn_resnet50_fpn", 11), MODEL, pictures[:1])


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_what_is_no_onnx_is_told(content: bytes, pictures: torch.Tensor, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(EdgeMrcnnError, match=r"is not a readable ONNX file|holds no network"):
        load_exported(build_model("maskrcnn_edge"), tmp_path / "model.onnx", pictures[:1])


def test_an_onnx_file_without_weights_is_told(pictures: torch.Tensor, tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "bare", [], [])), tmp_path / "empty.onnx")
    with pytest.raises(EdgeMrcnnError, match="lacks"):
        load_exported(build_model("maskrcnn_edge"), tmp_path / "empty.onnx", pictures[:1])
