"""The rivals of the bench: they run, time their stages and find the same things as torchvision's own forward."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

from edge_mrcnn.evaluation.bench import BenchOptions, compare, sample_pictures
from edge_mrcnn.training.baselines import (
    EagerSubject,
    RawOnnxSubject,
    export_raw,
    raw_torchvision_onnx,
    torchvision_eager,
)
from edge_mrcnn.training.checkpoint import save_checkpoint
from edge_mrcnn.training.random_weights import random_model

pytestmark = pytest.mark.torch

HW = (128, 160)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small networks gain nothing from threads and lose much when the cores are taken."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures():
    return sample_pictures(HW, 2)


@pytest.fixture(scope="module")
def model(pictures):
    return random_model("maskrcnn_edge", pictures, num_classes=4, background=3.0)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("baselines") / "weights.pth"
    save_checkpoint(path, model, model_name="maskrcnn_edge")
    return path


def forward(model, picture):
    with torch.inference_mode():
        return model([torch.from_numpy(picture).permute(2, 0, 1).float() / 255])[0]


def test_random_scores_are_spread_out_and_repeat(model, pictures) -> None:
    scores = torch.cat([forward(model, picture)["scores"] for picture in pictures])
    assert len(scores) >= 10
    assert scores.max() < 0.9999
    assert len(scores.unique()) == len(scores)
    assert scores.max() - scores.min() > 0.1
    again = random_model("maskrcnn_edge", pictures, num_classes=4, background=3.0)
    key = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(again.state_dict()[key], model.state_dict()[key])


def test_rivals_find_what_torchvision_finds(model, weights, pictures) -> None:
    expected = forward(model, pictures[0])
    count = len(expected["scores"])
    eager = torchvision_eager("maskrcnn_edge", weights, HW, num_classes=4, threads=1)
    pasted = raw_torchvision_onnx("maskrcnn_edge", weights, HW, num_classes=4, threads=1)
    network = raw_torchvision_onnx("maskrcnn_edge", weights, HW, num_classes=4, threads=1, paste_masks=False)
    found = compare(eager, pasted, network, pictures=pictures[:1], options=BenchOptions(runs=1, warmup=0))
    assert [result.detections for result in found.results] == pytest.approx([count] * 3, abs=1)  # float noise at 0.05
    assert [ratio.network is None for ratio in found.ratios] == [True, False]
    assert all(result.stages["infer"].p50_ms > 0 for result in found.results)
    feed = {"image": np.ascontiguousarray(pictures[0].transpose(2, 0, 1), dtype=np.float32) / 255}
    boxes, _, scores, masks = pasted.session.run(None, feed)
    assert np.allclose(scores[:5], expected["scores"][:5], atol=1e-3)
    assert np.allclose(boxes[:5], expected["boxes"][:5], atol=0.1)
    assert masks.shape[1:] == (1, *HW)
    assert network.session.run(None, feed)[3].shape[1:] == (1, 28, 28)


def test_rivals_of_a_network_with_keypoints(pictures, tmp_path) -> None:
    network = random_model("keypointrcnn_edge", pictures, num_classes=3, background=3.0)
    network.roi_heads.mask_roi_pool = network.roi_heads.mask_head = network.roi_heads.mask_predictor = None
    expected = forward(network, pictures[0])
    export_raw(network, HW, tmp_path / "raw.onnx", paste_masks=False)
    raw = RawOnnxSubject(tmp_path / "raw.onnx", pastes_inside=False, threads=1)
    for subject in (EagerSubject(network, 1), raw):
        assert subject.run(pictures[0]).detections == pytest.approx(len(expected["scores"]), abs=1)
    feed = {"image": np.ascontiguousarray(pictures[0].transpose(2, 0, 1), dtype=np.float32) / 255}
    names = [output.name for output in raw.session.get_outputs()]
    found = dict(zip(names, raw.session.run(None, feed), strict=True))
    assert set(found) == set(expected) >= {"keypoints", "keypoints_scores"}
    assert np.allclose(found["keypoints"][:5], expected["keypoints"][:5], atol=1.0)


def test_what_cannot_be_built_is_refused(weights) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        torchvision_eager("maskrcnn_edge", weights, (100, 160))
    with pytest.raises(ValueError, match="not in the zoo"):
        raw_torchvision_onnx("maskrcnn_ege", weights, HW)
