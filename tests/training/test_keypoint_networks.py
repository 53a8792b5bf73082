"""Networks with keypoints: what the zoo builds and loads, what an export writes, and the loss they are trained with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torchvision.models import detection  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor  # noqa: E402
from torchvision.models.detection.roi_heads import RoIHeads, keypointrcnn_loss  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402
from torchvision.ops.misc import FrozenBatchNorm2d  # noqa: E402

from edge_mrcnn.errors import EdgeMrcnnError, ExportError  # noqa: E402
from edge_mrcnn.ops import DOMAIN  # noqa: E402
from edge_mrcnn.spec import ModelSpec  # noqa: E402
from edge_mrcnn.training import export, tabletop, zoo  # noqa: E402
from edge_mrcnn.training.checkpoint import save_checkpoint  # noqa: E402
from edge_mrcnn.training.export import ExportOptions, export_model, trace_model  # noqa: E402
from edge_mrcnn.training.exportable import Exportable  # noqa: E402
from edge_mrcnn.training.keypoint_labels import KeypointNames  # noqa: E402
from edge_mrcnn.training.keypoints import COCO_PERSON, TABLETOP_KEYPOINTS  # noqa: E402
from edge_mrcnn.training.tabletop import objects  # noqa: E402
from edge_mrcnn.training.tabletop.keypoints import KEYPOINT_NAMES, SKELETON  # noqa: E402
from edge_mrcnn.training.zoo import MODELS, build_model  # noqa: E402
from tests.training.random_models import Reference, letterboxed  # noqa: E402

pytestmark = pytest.mark.torch

PERSON, EDGE = "keypointrcnn_resnet50_fpn", "keypointrcnn_edge"
CANVAS = (64, 96)
CLASSES = ("__background__", "cup", "fork")
POINTS = KeypointNames(("rim", "grip", "tip"), ((0, 1),), ((1,), (1, 2), (2,)))


# ------------------------------------------------------------------------------------------------------------- the zoo
def test_the_person_network_is_torchvisions() -> None:
    model = build_model(PERSON)
    assert type(model) is detection.KeypointRCNN
    assert type(model.roi_heads) is RoIHeads
    published = detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta
    assert list(MODELS[PERSON].keypoints.names) == published["keypoint_names"]
    assert set(MODELS[PERSON].weights.__members__) >= {"COCO_V1", "COCO_LEGACY"}


def test_cocos_skeleton_joins_what_belongs_together() -> None:
    lines = {frozenset((COCO_PERSON.names[a], COCO_PERSON.names[b])) for a, b in COCO_PERSON.skeleton}
    assert len(lines) == 19
    for side in ("left", "right"):
        for joint, next_joint in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")):
            assert {f"{side}_{joint}", f"{side}_{next_joint}"} in lines
        assert {"nose", f"{side}_eye"} in lines
    assert {"left_hip", "right_hip"} in lines


def test_torchvisions_weights_load_with_their_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = detection.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    state = {key: value for key, value in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    monkeypatch.setattr(zoo.KeypointRCNN_ResNet50_FPN_Weights, "get_state_dict", lambda *args, **kwargs: state)
    model = build_model(PERSON, weights="COCO_LEGACY")
    frozen = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(frozen) == 53
    published = detection.KeypointRCNN_ResNet50_FPN_Weights.COCO_LEGACY.meta["num_params"]
    assert sum(parameter.numel() for parameter in model.parameters()) == published
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class TestEdge:
    def test_masks_stay_beside_the_keypoints(self) -> None:
        model = build_model(EDGE)
        assert model.roi_heads.has_mask()
        assert model.roi_heads.has_keypoint()
        assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
        with torch.inference_mode():
            pooled = torch.zeros(2, 64, 14, 14)
            maps = model.roi_heads.keypoint_predictor(model.roi_heads.keypoint_head(pooled))
        assert maps.shape == (2, len(KEYPOINT_NAMES), 56, 56)

    def test_default_keypoints_are_the_tabletops(self) -> None:
        rng = np.random.default_rng(0)
        having = [
            tuple(
                label
                for label, name in enumerate(tabletop.CLASS_NAMES, 1)
                if point in {keypoint.name for keypoint in objects.MAKERS[name](rng).keypoints}
            )
            for point in KEYPOINT_NAMES
        ]
        assert KeypointNames(tuple(KEYPOINT_NAMES), tuple(SKELETON), tuple(having)) == TABLETOP_KEYPOINTS
        assert MODELS[EDGE].keypoints == TABLETOP_KEYPOINTS

    def test_a_mask_networks_weights_fit_all_but_the_new_head(self, tmp_path: Path) -> None:
        theirs = build_model("maskrcnn_edge", 3)
        torch.save(theirs.state_dict(), tmp_path / "a.pt")
        with pytest.raises(EdgeMrcnnError, match=r"keys are missing \(roi_heads.keypoint_head"):
            build_model(EDGE, 3, tmp_path / "a.pt")
        model = build_model(EDGE, 3, tmp_path / "a.pt", replace_class_layers=True)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in theirs.state_dict().items())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("five") / "five.pt"
    torch.save(build_model(EDGE, num_keypoints=5).state_dict(), path)
    return path


class TestNumberOfKeypoints:
    def test_it_is_read_from_any_weights(self, weights: Path) -> None:
        assert build_model(EDGE, weights=weights).roi_heads.keypoint_predictor.out_channels == 5

    def test_another_one_is_refused_by_name(self, weights: Path) -> None:
        with pytest.raises(
            EdgeMrcnnError, match=r"has 5 keypoints, the model was built for 3: give 5 names with --key"
        ):
            build_model(EDGE, weights=weights, num_keypoints=3)

    def test_another_one_can_be_fine_tuned(self, weights: Path) -> None:
        model = build_model(EDGE, weights=weights, num_keypoints=3, replace_class_layers=True)
        state = torch.load(weights, weights_only=True)
        assert model.roi_heads.keypoint_predictor.out_channels == 3
        for key in ("roi_heads.keypoint_head.0.0.weight", "roi_heads.box_predictor.cls_score.weight"):
            assert torch.equal(model.state_dict()[key], state[key])

    def test_a_network_without_keypoints_has_none(self) -> None:
        with pytest.raises(ValueError, match="num_keypoints is 3 for maskrcnn_edge: it has no keypoints"):
            build_model("maskrcnn_edge", num_keypoints=3)
        with pytest.raises(ValueError, match="at least 1"):
            build_model(EDGE, num_keypoints=0)


# -------------------------------------------------------------------------------------------------------- the exported
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "cups.pt"
    model = build_model(EDGE, 3, num_keypoints=3)
    save_checkpoint(path, model, model_name=EDGE, class_names=CLASSES, size=CANVAS, keypoints=POINTS)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSpec]:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    options = ExportOptions(weights=str(checkpoint), score_threshold=0.0, detections=4, proposals=20)
    return path, export_model(EDGE, options, path)


def test_the_checkpoints_keypoints_travel_in_the_spec(exported: tuple[Path, ModelSpec]) -> None:
    path, spec = exported
    metadata = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert ModelSpec.from_metadata(metadata) == spec
    assert (spec.keypoint_names, spec.skeleton, spec.keypoint_labels) == POINTS
    assert (spec.keypoint_size, spec.mask_size, spec.class_names) == (56, 28, CLASSES)


@pytest.mark.parametrize(
    "changes",
    [
        {"skeleton": [[0, 3]]},
        {"skeleton": [[0]]},
        {"labels": [[1], [2]]},
        {"labels": 3},
        {"names": []},
        {"names": None},
        None,
    ],
)
def test_a_checkpoints_note_that_contradicts_itself_is_passed_over(changes: dict[str, Any] | None) -> None:
    fields = {"names": ["a", "b", "c"], "skeleton": [[0, 1]], "labels": [[1], [], [1, 2]]}
    assert KeypointNames.from_meta(fields) == KeypointNames(("a", "b", "c"), ((0, 1),), ((1,), (), (1, 2)))
    assert KeypointNames.from_meta(None if changes is None else {**fields, **changes}) is None


def test_both_heads_read_one_pool_and_names_are_plain(exported: tuple[Path, ModelSpec]) -> None:
    graph = onnx.load(exported[0]).graph
    custom = [node.name for node in graph.node if node.domain == DOMAIN]
    assert custom == ["rpn_proposals", "box_roi_align", "detection_nms", "mask_roi_align"] == list(exported[1].ops)
    readers = {node.name for node in graph.node if "mask_roi_align" in node.input}
    assert readers == {"mask_head.0.0", "keypoint_head.0.0"}
    names = {node.name for node in graph.node}
    assert {"keypoint_predictor.kps_score_lowres", "keypoint_predictor.resize", "keypoint_logits"} <= names
    dims = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.output
    }
    assert list(dims) == ["num_detections", "boxes", "scores", "labels", "masks", "keypoint_logits"]
    assert dims["keypoint_logits"] == ["batch", "detections", 3, 56, 56]


@pytest.mark.parametrize(
    ("classes", "options", "expected"),
    [
        (11, {}, TABLETOP_KEYPOINTS),
        (4, {}, TABLETOP_KEYPOINTS._replace(labels=())),
        (11, {"keypoint_names": "a,b"}, KeypointNames(("a", "b"))),
        (11, {"keypoint_names": "a,b,c,d,e,f"}, TABLETOP_KEYPOINTS._replace(names=tuple("abcdef"))),
    ],
)
def test_keypoints_of_an_export_without_weights(
    classes: int, options: dict[str, str], expected: KeypointNames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any) -> None:
        raise ExportError(repr(given[-1]))

    monkeypatch.setattr(export, "trace_model", stop)
    with pytest.raises(ExportError) as caught:
        export_model(EDGE, ExportOptions(num_classes=classes, **options), tmp_path / "model.onnx")
    assert str(caught.value) == repr(expected)


def test_names_for_another_number_of_keypoints(checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(weights=str(checkpoint), keypoint_names="a,b")
    with pytest.raises(EdgeMrcnnError, match="has 3 keypoints, the model was built for 2"):
        export_model(EDGE, options, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="maskrcnn_edge: it has no keypoints"):
        export_model("maskrcnn_edge", ExportOptions(keypoint_names="a,b"), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="3 keypoint names for a network with 5 keypoints"):
        trace_model(build_model(EDGE, 3, num_keypoints=5), EDGE, CANVAS, CLASSES, POINTS)
    assert not list(tmp_path.iterdir())


class OneLevel(nn.Sequential):
    out_channels = 8

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1), nn.ReLU())


def keypoint_model(**changes: Any) -> detection.KeypointRCNN:
    torch.manual_seed(1)
    settings = {
        "rpn_anchor_generator": AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 7, 2),
        "keypoint_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
        "keypoint_head": KeypointRCNNHeads(8, (16, 16)),
        "keypoint_predictor": KeypointRCNNPredictor(16, 4),
        "rpn_post_nms_top_n_test": 30,
        "box_detections_per_img": 10,
        "box_score_thresh": 0.3,
    }
    return detection.KeypointRCNN(OneLevel(), 3, **{**settings, **changes}).eval()


def with_masks(model: detection.KeypointRCNN) -> detection.KeypointRCNN:
    """The same with a mask head whose pool differs in the number of samples."""
    masks = detection.MaskRCNN(
        OneLevel(),
        3,
        rpn_anchor_generator=model.rpn.anchor_generator,
        box_roi_pool=model.roi_heads.box_roi_pool,
        mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 1),
    )
    for part in ("mask_roi_pool", "mask_head", "mask_predictor"):
        setattr(model.roi_heads, part, getattr(masks.roi_heads, part))
    return model.eval()


@pytest.mark.parametrize("masks", [False, True])
def test_heads_with_pools_of_their_own_are_torchvisions(masks: bool) -> None:
    model = with_masks(keypoint_model()) if masks else keypoint_model()
    proto, spec = trace_model(model, "one_level", CANVAS, CLASSES)
    assert [node.name for node in proto.graph.node if node.domain == DOMAIN] == list(spec.ops)
    assert list(spec.ops)[3:] == [*(["mask_roi_align"] if masks else []), "keypoint_roi_align"]
    assert [spec.ops[role]["sampling_ratio"] for role in list(spec.ops)[3:]] == ([1, 2] if masks else [2])
    assert spec.keypoint_names == ("keypoint_1", "keypoint_2", "keypoint_3", "keypoint_4")
    images, image_hw = letterboxed(CANVAS, [CANVAS], seed=2)
    for name in ("box", "keypoint", *(["mask"] if masks else [])):
        pool = getattr(model.roi_heads, f"{name}_roi_pool")
        pool.scales, pool.map_levels = [1 / 16], object()
    (want,) = Reference(model, images, image_hw).detect()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images, "image_hw": image_hw})
    assert found[0].tolist() == [len(want["scores"])] != [0]
    np.testing.assert_allclose(found[-1][0], want["keypoint_logits"].numpy(), atol=1e-4)
    if masks:
        np.testing.assert_allclose(found[4][0], want["masks"][:, 0].numpy(), atol=1e-4)


def test_a_keypoint_pool_of_another_kind_is_refused() -> None:
    class OwnPool(MultiScaleRoIAlign):
        pass

    with pytest.raises(ExportError, match=r"model\.roi_heads\.keypoint_roi_pool is a OwnPool"):
        Exportable(keypoint_model(keypoint_roi_pool=OwnPool(["0"], 14, 2)), CANVAS)
    with pytest.raises(ExportError, match="keypoint predictor gives maps of 56x28"):
        Exportable(keypoint_model(keypoint_predictor=nn.Upsample(scale_factor=(4.0, 2.0))), CANVAS)


# ------------------------------------------------------------------------------------------------------------ the loss
def test_the_loss_is_the_softmax_of_the_one_true_cell() -> None:
    """By hand, on a box of 10 to 66 by 20 to 132: a cell is 1x2 pixels. Mask R-CNN (2017), section 5."""
    logits = torch.randn(1, 6, 56, 56, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[10.0, 20.0, 66.0, 132.0]])
    points = torch.tensor(
        [
            [10.0, 20.0, 2],  # the first cell
            [12.9, 25.9, 2],  # column 2, row 2
            [66.0, 132.0, 1],  # on the far corner: the last cell; hidden ones count
            [9.9, 30.0, 2],  # outside
            [30.0, 132.1, 2],  # outside
            [30.0, 60.0, 0],  # not labelled
        ]
    )
    cells = [(0, 0), (2, 2), (55, 55)]
    expected = sum(
        math.log(float(logits[0, k].double().exp().sum())) - float(logits[0, k, row, column])
        for k, (row, column) in enumerate(cells)
    )
    found = keypointrcnn_loss(logits, [box], [points[None]], [torch.tensor([0])])
    assert float(found) == pytest.approx(expected / len(cells), rel=1e-5)


def test_nothing_to_learn_from_costs_nothing() -> None:
    logits = torch.randn(1, 2, 56, 56, requires_grad=True)
    loss = keypointrcnn_loss(logits, [torch.tensor([[0.0, 0, 56, 56]])], [torch.zeros(1, 2, 3)], [torch.tensor([0])])
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()
