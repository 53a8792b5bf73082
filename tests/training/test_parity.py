"""Whole exported networks in ONNX Runtime against torchvision's own forward on the same letterboxed pictures."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import box_iou

from edge_mrcnn.class_names import complete_class_names
from edge_mrcnn.runtime.keypoints import decode_keypoints
from edge_mrcnn.training.export import trace_model
from tests.training.random_models import Reference, fix_pools, letterboxed, matter, seeded_model

pytestmark = [pytest.mark.torch, pytest.mark.slow]

log = logging.getLogger(__name__)

LEAST_DETECTIONS = 50
FEWER_DETECTIONS = {"keypointrcnn_resnet50_fpn": 6}
"""Where a detection costs 4 GMAC."""

MATCHED = 0.995
EXTRA = 0.005
IOU = 0.99
SCORE = 2e-3
MASK = 1e-3
HEATMAP = 1e-3
"""Mean difference of a heatmap's logits, whose standard deviation is 2."""
KEYPOINT = 0.5
KEYPOINTS_FAR = 0.01
"""Share of the keypoints that may be farther off than that many pixels, decoded as the runtime does."""

NETWORK_THRESHOLD = 0.04
"""Below what is compared (0.05), so that a rounding error at the threshold does not make a detection vanish."""

PROPOSALS = {
    "maskrcnn_edge": 200,
    "maskrcnn_resnet50_fpn": 1000,
    "maskrcnn_resnet50_fpn_v2": 300,
    "maskrcnn_resnet101_fpn": 300,
    "maskrcnn_resnext101_fpn": 300,
    "maskrcnn_resnet50_c4": 25,
    "maskrcnn_resnet101_c4": 25,
    "keypointrcnn_edge": 200,
    "keypointrcnn_resnet50_fpn": 300,
}
"""torchvision's limit, or fewer where the heads are heavy, or the same as elsewhere: that keeps the tests short."""

SIZES = ((256, 320), (320, 320), (480, 640))
ONLY = dict.fromkeys(
    ("maskrcnn_resnet50_c4", "maskrcnn_resnet101_c4", "keypointrcnn_edge", "keypointrcnn_resnet50_fpn"), SIZES[:1]
)
MORE = {"maskrcnn_resnet50_fpn": (*SIZES, (800, 1088))}
CASES = [(name, size) for name in PROPOSALS for size in {**ONLY, **MORE}.get(name, SIZES)]


@dataclass
class Score:
    """How many detections agree."""

    expected: int = 0
    matched: int = 0
    given: int = 0
    extra: int = 0
    mask_differences: list[float] = field(default_factory=list)
    heatmap_differences: list[float] = field(default_factory=list)
    keypoint_distances: list[float] = field(default_factory=list)

    def check(self) -> None:
        assert self.matched >= MATCHED * self.expected, self
        assert self.extra <= EXTRA * self.given, self
        assert np.mean(self.mask_differences or [0]) <= MASK, self
        assert np.mean(self.heatmap_differences or [0]) <= HEATMAP, self
        assert self.keypoints_far <= KEYPOINTS_FAR * len(self.keypoint_distances), self

    @property
    def keypoints_far(self) -> int:
        return sum(distance > KEYPOINT for distance in self.keypoint_distances)

    def __str__(self) -> str:
        mask, heatmap = (np.mean(each or [0]) for each in (self.mask_differences, self.heatmap_differences))
        return (
            f"{self.matched}/{self.expected} matched, {self.extra} extra, difference of masks {mask:.1e}, of heatmaps "
            f"{heatmap:.1e}, {self.keypoints_far} of {len(self.keypoint_distances)} keypoints over {KEYPOINT} px"
        )


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, GeneralizedRCNN]]:
    """The last seeded model, by name: one at a time is kept, since they are large."""
    kept: dict[str, GeneralizedRCNN] = {}
    threads = torch.get_num_threads()
    yield kept
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "canvas"), CASES, ids=lambda value: "x".join(map(str, value)) if len(value) == 2 else value
)
def test_detections_are_torchvisions(name: str, canvas: tuple[int, int], models: dict[str, GeneralizedRCNN]) -> None:
    if name not in models:
        models.clear()
        gc.collect()
        models[name] = seeded_model(name, rois=10 if name.endswith("_c4") else 150)
    model = models[name]
    model.rpn._post_nms_top_n["testing"] = PROPOSALS[name]
    height, width = canvas
    images, image_hw = letterboxed(canvas, [(height, width * 3 // 4), (height * 2 // 3, width)], seed=7)
    model.roi_heads.score_thresh = NETWORK_THRESHOLD
    fix_pools(model, canvas)
    reference = Reference(model, images, image_hw)
    reference.separate_proposals(model)
    least = FEWER_DETECTIONS.get(name, LEAST_DETECTIONS)
    reference.set_background(least + 5)
    expected = reference.detect()
    session = open_session(model, name, canvas)
    outputs = [output.name for output in session.get_outputs()]
    assert ("masks" in outputs, "keypoint_logits" in outputs) == tuple(
        key in expected[0] for key in ("masks", "keypoints")
    )
    for batch in (slice(0, 2), slice(1, 2)):
        score = Score()
        found = session.run(None, {"images": images[batch], "image_hw": image_hw[batch]})
        for picture, want in enumerate(expected[batch]):
            assert len(want["scores"]) >= least
            rows = {name: torch.as_tensor(output[picture]) for name, output in zip(outputs, found, strict=True)}
            compare(want, rows, score)
        log.info("%s at %dx%d, batch %d: %s", name, height, width, len(found[0]), score)
        score.check()


def open_session(model: GeneralizedRCNN, name: str, canvas: tuple[int, int]) -> onnxruntime.InferenceSession:
    classes = model.roi_heads.box_predictor.cls_score.out_features
    proto, _ = trace_model(model, name, canvas, complete_class_names(None, classes))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def compare(want: dict[str, Tensor], found: dict[str, Tensor], score: Score) -> None:
    """Match one picture's detections one to one and add to the score."""
    count = int(found.pop("num_detections"))
    for output in found.values():
        assert not output[count:].any(), "rows beyond num are not zero"
    boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
    agree = box_iou(want["boxes"], boxes[:count]) >= IOU
    agree &= want["labels"][:, None] == labels[:count]
    agree &= (want["scores"][:, None] - scores[:count]).abs() <= SCORE
    pairs: dict[int, int] = {}
    for row, candidates in enumerate(agree):
        free = [int(column) for column in candidates.nonzero()[:, 0] if int(column) not in pairs.values()]
        if free:
            pairs[row] = free[0]
    counts = matter(want["boxes"], want["scores"])
    score.expected += int(counts.sum())
    score.matched += sum(bool(counts[row]) for row in pairs)
    score.given += count
    unpaired = [column for column in range(count) if column not in pairs.values()]
    score.extra += int(matter(boxes[unpaired], scores[unpaired]).sum())
    rows, columns = list(pairs), list(pairs.values())
    if "masks" in found:
        differences = (want["masks"][rows, 0] - found["masks"][columns]).abs()
        score.mask_differences += differences.mean((1, 2)).tolist()
    if "keypoint_logits" in found:
        differences = (want["keypoint_logits"][rows] - found["keypoint_logits"][columns]).abs()
        score.heatmap_differences += differences.mean((1, 2, 3)).tolist()
        decoded = decode_keypoints(found["keypoint_logits"][columns].numpy(), boxes[columns].numpy())
        apart = torch.from_numpy(decoded)[..., :2] - want["keypoints"][rows, :, :2]
        score.keypoint_distances += apart.norm(dim=-1).flatten().tolist()
