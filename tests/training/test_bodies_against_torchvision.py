"""Each function body alone in ONNX Runtime against torchvision's own modules on identical inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from tests.training.op_cases import (
    Array,
    nms_attributes,
    nms_inputs,
    pad_rows,
    roi_attributes,
    rpn_attributes,
    run_body,
)

pytestmark = pytest.mark.torch

BIG = (480, 640)
GRIDS = [(120, 160), (60, 80), (30, 40), (15, 20), (8, 10)]
"""What a feature pyramid makes of 480x640: the last stride is 60 by rows and 64 by columns."""


class Recorded(torch.nn.Module):
    """A head that gives what it was told to."""

    def __init__(self, *outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, _features: Any) -> Any:
        return self.outputs


def torchvision_proposals(inputs: list[Array], attributes: dict[str, Any], canvas: tuple[int, int]) -> list[Tensor]:
    levels = len(inputs) // 2
    image_hw, objectness, deltas = inputs[0], inputs[1 : levels + 1], inputs[levels + 1 :]
    anchors = AnchorGenerator(tuple((32 * 2**level,) for level in range(levels)), ((0.5, 1.0, 2.0),) * levels)
    before, after = ({"training": 0, "testing": attributes[name]} for name in ("pre_nms_top_n", "post_nms_top_n"))
    head = Recorded([torch.from_numpy(x) for x in objectness], [torch.from_numpy(x) for x in deltas])
    rpn = RegionProposalNetwork(
        anchors, head, 0.7, 0.3, 256, 0.5, before, after, attributes["nms_threshold"], attributes["score_threshold"]
    ).eval()
    batch = len(image_hw)
    sizes = [(int(h), int(w)) for h, w in image_hw]
    features = {str(i): torch.zeros(batch, 1, *x.shape[2:]) for i, x in enumerate(objectness)}
    return rpn(ImageList(torch.zeros(batch, 3, *canvas), sizes), features)[0]


def big_rpn_inputs(seed: int) -> list[Array]:
    """Logits that are all different, and far enough apart that a sigmoid's rounding changes no rank."""
    rng = np.random.default_rng(seed)
    sizes = [(2, 3, *grid) for grid in GRIDS]
    logits = rng.permutation(np.linspace(-8, 4, sum(map(np.prod, sizes)))).astype(np.float32)
    parts = np.split(logits, np.cumsum([np.prod(size) for size in sizes])[:-1])
    objectness = [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]
    deltas = [rng.normal(0, 0.4, (2, 12, *grid)).astype(np.float32) for grid in GRIDS]
    return [np.array([BIG, (333, 500)], np.float32), *objectness, *deltas]


@pytest.mark.parametrize("score_threshold", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_proposals_are_torchvisions(seed: int, score_threshold: float) -> None:
    inputs = big_rpn_inputs(seed)
    attributes = rpn_attributes(
        5, strides=[4, 8, 16, 32, 64], pre_nms_top_n=1000, post_nms_top_n=1000, score_threshold=score_threshold
    )
    expected = torchvision_proposals(inputs, attributes, BIG)
    (found,) = run_body("RpnProposals", inputs, attributes)
    assert found.shape[1] == max(len(boxes) for boxes in expected) > 500
    for boxes, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(boxes[: len(want)], want.numpy(), atol=0.01, rtol=0)
        assert not boxes[len(want) :].any()


@pytest.mark.parametrize(("output_size", "ratio"), [(7, 2), (14, 2), (7, 0)])
@pytest.mark.parametrize("names", [["0"], ["0", "1"], ["0", "1", "2", "3"]], ids=len)
def test_pooling_is_torchvisions(names: list[str], output_size: int, ratio: int) -> None:
    rng = np.random.default_rng(len(names))
    maps = [rng.normal(size=(2, 8, *grid)).astype(np.float32) for grid in GRIDS[: len(names)]]
    count = 500
    corner = rng.uniform((0, 0), (500, 400), (2, count, 2))
    size = np.exp(rng.uniform(0, np.log(500), (2, count, 2)))
    rois = np.concatenate([corner, np.minimum(corner + size, (640, 480))], axis=-1).astype(np.float32)
    attributes = roi_attributes(len(names), output_size=output_size, sampling_ratio=ratio)
    pool = MultiScaleRoIAlign(names, output_size, ratio)
    pool.scales = [1 / stride for stride in attributes["strides"]]
    pool.map_levels = LevelMapper(2, 1 + len(names))
    features = {name: torch.from_numpy(x) for name, x in zip(names, maps, strict=True)}
    expected = pool(features, list(torch.from_numpy(rois)), [BIG, BIG]).numpy()
    (found,) = run_body("PyramidRoiAlign", [rois, *maps], attributes)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [0, 1])
def test_aligned_pooling_is_torchvisions(aligned: int, ratio: int) -> None:
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(1, 4, 30, 40)).astype(np.float32)
    corner = rng.uniform(-3, 35, (1, 200, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0.1, 30, (1, 200, 2))], axis=-1).astype(np.float32)
    attributes = roi_attributes(1, strides=[1], aligned=aligned, sampling_ratio=ratio)
    expected = roi_align(
        torch.from_numpy(feature), [torch.from_numpy(rois[0])], 7, 1.0, ratio or -1, bool(aligned)
    ).numpy()
    (found,) = run_body("PyramidRoiAlign", [rois, feature], attributes)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("classes", "count"), [(91, 1000), (7, 37), (2, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_detections_are_torchvisions(seed: int, classes: int, count: int) -> None:
    image_hw, proposals, logits, deltas = nms_inputs(count, classes, seed=seed)
    logits *= 2.5  # of 91 classes, some must pass the threshold
    attributes = nms_attributes(detections_per_image=100)
    heads = RoIHeads(
        None, None, None, 0.5, 0.5, 512, 0.25, attributes["box_weights"], attributes["score_threshold"],
        attributes["nms_threshold"], attributes["detections_per_image"],
    )  # fmt: skip
    boxes, scores, labels = heads.postprocess_detections(
        torch.from_numpy(logits),
        torch.from_numpy(deltas),
        list(torch.from_numpy(proposals)),
        [(int(h), int(w)) for h, w in image_hw],
    )
    found = run_body("DetectionNms", [image_hw, proposals, logits, deltas], attributes)
    assert found[0].tolist() == [len(s) for s in scores]
    for picture, want in enumerate(zip(boxes, scores, labels, strict=True)):
        for result, expected, tolerance in zip(found[1:], want, (1e-3, 1e-5, 0), strict=True):
            rows = pad_rows(result, 100)[picture]
            np.testing.assert_allclose(rows[: len(expected)], expected.numpy(), atol=tolerance, rtol=0)
            assert not rows[len(expected) :].any()
