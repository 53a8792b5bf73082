"""Checkpoints with mmdetection's names: imported, exported, run, and compared with the restatement of mmdetection."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from torchvision.ops import MultiScaleRoIAlign  # noqa: E402

from edge_mrcnn.errors import ExportError  # noqa: E402
from edge_mrcnn.import_options import ImportOptions  # noqa: E402
from edge_mrcnn.training.conventions import AlignedRoIAlign, GivenAnchors  # noqa: E402
from edge_mrcnn.training.foreign import import_checkpoint, mmdetection  # noqa: E402
from edge_mrcnn.training.foreign.mmdetection_config import read_class_names, read_config  # noqa: E402
from edge_mrcnn.training.foreign.mmdetection_recipe import check_config, choose_pixels, read_recipe  # noqa: E402
from edge_mrcnn.training.foreign.weights import ForeignFile  # noqa: E402
from tests.training.foreign import restated, states  # noqa: E402
from tests.training.foreign.agreement import check_exported, check_model  # noqa: E402
from tests.training.foreign.restated_steps import Picture, Settings, Weights  # noqa: E402
from tests.training.random_models import picture  # noqa: E402

pytestmark = pytest.mark.torch

NAMES = ("nut", "bolt", "washer", "pin", "gear", "spring")
FEW = {"post_nms": 80, "detections": 40}
LIMITS = ImportOptions(size="128x160", proposals=80, detections=40)

VERSION_3 = """
data_root = 'data/'
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True),
    backbone=dict(type='ResNet', depth=50, num_stages=4, style='pytorch'),
    rpn_head=dict(
        type='RPNHead',
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0])),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2])),
        mask_head=dict(type='FCNMaskHead', num_convs=4)),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(1333, 800), keep_ratio=True)]
"""
VERSION_2_CAFFE = """
model = dict(type='MaskRCNN', backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='BN'), style='caffe'))
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
test_pipeline = [
    dict(type='MultiScaleFlipAug', img_scale=(1000, 600), transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)])]
"""
META_3 = {"cfg": VERSION_3, "dataset_meta": {"classes": NAMES}, "mmengine_version": "0.10.3"}
META_2 = {"config": VERSION_2_CAFFE, "CLASSES": NAMES, "mmdet_version": "2.25.0"}


# --------------------------------------------------------------------------------------------------------- whole models
@dataclass(frozen=True)
class Case:
    """A checkpoint and what mmdetection finds with it."""

    path: Path
    picture: Picture
    want: restated.Found


def make_case(meta: Mapping[str, Any], settings: Settings, folder: Path) -> Case:
    image = picture(100, 160, seed=3)
    state = states.seeded_state(states.mmdetection_shapes(classes=6), restated.mmdetection, settings, image)
    want = restated.mmdetection(Weights(state), image, states.canvas_of(image), settings)
    path = folder / "model.pth"
    torch.save({"meta": dict(meta), "state_dict": state, "optimizer": {}}, path)
    return Case(path, image, want)


@pytest.fixture(scope="module")
def caffe(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of version 2, with a backbone of Caffe."""
    return make_case(META_2, Settings(**FEW), tmp_path_factory.mktemp("caffe"))


@pytest.mark.slow
def test_an_imported_model_finds_what_mmdetection_finds(tmp_path: Path) -> None:
    case = make_case(META_3, Settings(**restated.PYTORCH_STYLE, **FEW), tmp_path)
    imported = import_checkpoint(case.path, LIMITS)
    assert imported.name == "maskrcnn_resnet50_fpn"
    assert imported.class_names == ("__background__", *NAMES)
    assert imported.canvas == (128, 160)
    check_model(imported.model, case.picture, case.want)


@pytest.mark.slow
def test_a_model_of_caffe_style_finds_it_and_as_exported_too(caffe: Case) -> None:
    imported = import_checkpoint(caffe.path, LIMITS)
    check_model(imported.model, caffe.picture, caffe.want)
    check_exported(imported.model, caffe.picture, caffe.want)


@pytest.mark.slow
def test_any_other_convention_is_found_out(caffe: Case) -> None:
    """Of channels, strides, pooling, anchors and levels."""
    for told in ({"channels": "rgb"}, {"strides": "pytorch"}, {"mean": (0.0, 0.0, 0.0)}):
        model = import_checkpoint(caffe.path, dataclasses.replace(LIMITS, **told)).model
        with pytest.raises(AssertionError):
            check_model(model, caffe.picture, caffe.want)
    model = import_checkpoint(caffe.path, LIMITS).model
    anchors, pool = model.rpn.anchor_generator, model.roi_heads.box_roi_pool
    for part, name, value in (
        (anchors, "cell_anchors", [level.round() for level in anchors.cell_anchors]),
        (pool, "sampling_ratio", 1),
        (pool, "canonical_scale", 56),
        (model.roi_heads, "box_roi_pool", MultiScaleRoIAlign(pool.featmap_names, 7, 0)),
    ):
        right = getattr(part, name)
        setattr(part, name, value)
        with pytest.raises(AssertionError):
            check_model(model, caffe.picture, caffe.want)
        setattr(part, name, right)
    check_model(model, caffe.picture, caffe.want)


def test_the_canvas_is_the_configs() -> None:
    assert mmdetection.build(blank(META_2), ImportOptions()).canvas == (608, 1024)
    assert mmdetection.build(blank(META_3), ImportOptions()).canvas == (800, 1344)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "groups", "width", "name"),
    [(101, 1, 64, "resnet101"), (101, 32, 8, "resnext101"), (101, 64, 4, "resnext101")],
)
def test_deeper_backbones(depth: int, groups: int, width: int, name: str) -> None:
    imported = mmdetection.build(blank(depth=depth, groups=groups, width=width), ImportOptions())
    assert imported.name == f"maskrcnn_{name}_fpn"
    convolution = imported.model.backbone.body.layer3[0].conv2
    assert (convolution.groups, convolution.stride) == (groups, (2, 2))


# ----------------------------------------------------------------------------------------------------- names and shapes
def blank(meta: Mapping[str, Any] | None = None, **architecture: int) -> ForeignFile:
    """A checkpoint whose numbers are 0."""
    shapes = states.mmdetection_shapes(**{"classes": 6, **architecture})
    return ForeignFile(
        {name: torch.zeros(shape) for name, shape in shapes.items()}, "a.pth", {"meta": dict(meta or {})}
    )


def test_missing_and_unknown_weights_are_listed_by_the_files_names() -> None:
    file = blank()
    del file.tensors["rpn_head.rpn_reg.bias"], file.tensors["backbone.layer3.5.bn2.running_var"]
    file.tensors["backbone.layer2.0.attention.weight"] = torch.zeros(1)
    with pytest.raises(ExportError) as caught:
        mmdetection.build(file, ImportOptions())
    assert "2 of its weights are missing" in str(caught.value)
    assert "rpn_head.rpn_reg.bias" in str(caught.value)
    assert "backbone.layer3.5.bn2.running_var" in str(caught.value)
    assert "1 are not known (backbone.layer2.0.attention.weight)" in str(caught.value)


@pytest.mark.parametrize("name", ["roi_head.bbox_head.fc_cls.weight", "neck.fpn_convs.0.conv.weight"])
def test_without_what_tells_the_architecture(name: str) -> None:
    file = blank()
    del file.tensors[name]
    with pytest.raises(ExportError, match=f"{name} is missing"):
        mmdetection.build(file, ImportOptions())


def test_a_shape_that_does_not_fit() -> None:
    file = blank()
    file.tensors["roi_head.bbox_head.fc_reg.weight"] = torch.zeros(20, 1024)
    with pytest.raises(ExportError, match=r"fc_reg.weight \(20, 1024\)"):
        mmdetection.build(file, ImportOptions())


def test_anchors_that_nothing_describes() -> None:
    file = blank()
    for part, count in (("cls", 5), ("reg", 20)):
        file.tensors[f"rpn_head.rpn_{part}.weight"] = torch.zeros(count, 256, 1, 1)
        file.tensors[f"rpn_head.rpn_{part}.bias"] = torch.zeros(count)
    with pytest.raises(ExportError, match="5 anchors in a cell"):
        mmdetection.build(file, ImportOptions())
    text = VERSION_3.replace("ratios=[0.5, 1.0, 2.0]", "ratios=[0.2, 0.5, 1.0, 2.0, 5.0]")
    described = ForeignFile(file.tensors, "a.pth", {"meta": {"cfg": text}})
    generator = mmdetection.build(described, ImportOptions()).model.rpn.anchor_generator
    assert isinstance(generator, GivenAnchors)
    assert generator.num_anchors_per_location() == [5] * 5


def test_layers_that_know_no_classes_are_given_a_row_for_each() -> None:
    file = blank()
    for name, rows in (("bbox_head.fc_reg", 4), ("mask_head.conv_logits", 1)):
        for part in ("weight", "bias"):
            key = f"roi_head.{name}.{part}"
            shape = (rows, *file.tensors[key].shape[1:])
            file.tensors[key] = torch.arange(float(rows)).reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    heads = mmdetection.build(file, ImportOptions()).model.roi_heads
    assert heads.box_predictor.bbox_pred.bias.tolist() == [0, 1, 2, 3] * 7
    assert heads.mask_predictor.mask_fcn_logits.bias.tolist() == [0] * 7


@pytest.mark.parametrize(
    ("found", "what"),
    [
        ("rpn_head.a roi_head.bbox_head.0.fc_cls.weight roi_head.mask_head.0.conv_logits.weight", "a Cascade R-CNN"),
        ("rpn_head.a roi_head.bbox_head.0.fc_cls.weight roi_head.semantic_head.convs.0.conv.weight", "(HTC)"),
        ("neck.a bbox_head.retina_cls.weight bbox_head.cls_convs.0.conv.weight", "a RetinaNet of mmdetection"),
        ("neck.a bbox_head.conv_centerness.weight", "an FCOS"),
        ("neck.fpn_convs.4.conv.weight bbox_head.atss_cls.weight", "a detector of one stage"),
        ("neck.a mask_head.conv_cls.weight", "a detector of one stage"),
        ("neck.convs.0.conv.weight encoder.layers.0.norms.0.weight bbox_head.fc_cls.weight", "a DETR"),
        ("neck.a rpn_head.rpn_cls.weight bbox_head.fc_cls.weight mask_head.conv_logits.weight", "mmdetection 1,"),
        ("rpn_head.a roi_head.mask_head.a roi_head.mask_iou_head.fcs.0.weight", "a Mask Scoring R-CNN"),
        ("rpn_head.a roi_head.shared_head.layer4.0.conv1.weight roi_head.mask_head.a", "a C4 model"),
        ("rpn_head.a roi_head.bbox_head.shared_convs.0.conv.weight", "whose box head has convolutions"),
        ("rpn_head.a roi_head.bbox_head.fc_cls.weight", "a Faster R-CNN"),
        ("neck.lateral_convs.0.conv.weight rpn_head.rpn_cls.weight", "proposals alone (RPN)"),
        ("rpn_head.a roi_head.mask_head.a neck.lateral_convs.0.bn.weight", "norms in its pyramid"),
        ("rpn_head.a roi_head.mask_head.a neck.pafpn_convs.0.conv.weight", "PAFPN"),
        ("rpn_head.a roi_head.mask_head.a neck.lateral_convs.0.a backbone.stages.0.blocks.0.a", "a transformer"),
        ("rpn_head.a roi_head.mask_head.a neck.lateral_convs.0.a backbone.layer3.0.conv2.conv_offset.a", "deformable"),
        (
            "rpn_head.a roi_head.mask_head.a neck.lateral_convs.0.a backbone.layer4.0.conv1.weight",
            "a ResNet-18 or -34",
        ),
    ],
)
def test_other_architectures_are_refused_by_name(found: str, what: str) -> None:
    file = ForeignFile({name: torch.zeros(1) for name in found.split()}, "a.pth")
    assert mmdetection.recognises(file)
    with pytest.raises(ExportError) as caught:
        mmdetection.build(file, ImportOptions())
    assert what in str(caught.value)
    assert "Supported is mmdetection's Mask R-CNN with FPN" in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- configs
def test_what_a_config_says() -> None:
    recipe = read_recipe(read_config({"meta": META_3}))
    assert recipe == read_recipe({}), "the text is of the zoo's config, which is what is taken without one"
    changed = VERSION_3.replace("max_per_img=100)", "max_per_img=30)").replace("score_thr=0.05", "score_thr=0.001")
    changed = changed.replace("iou_threshold=0.7", "iou_threshold=0.6").replace("scales=[8]", "scales=[4, 8]")
    changed = changed.replace("sampling_ratio=0", "sampling_ratio=2").replace(
        "0.1, 0.1, 0.2, 0.2", "0.05, 0.1, 0.2, 0.4"
    )
    recipe = read_recipe(read_config({"meta": {"cfg": changed}}))
    assert (recipe.detections, recipe.score, recipe.proposal_iou, recipe.scales) == (30, 0.001, 0.6, (4.0, 8.0))
    assert recipe.sampling == (2, 0)
    assert recipe.box_stds == (0.05, 0.1, 0.2, 0.4)


def test_numbers_of_the_config_go_into_the_model() -> None:
    text = VERSION_3.replace("max_per_img=100)", "max_per_img=30)").replace("sampling_ratio=0", "sampling_ratio=2")
    text = text.replace("0.1, 0.1, 0.2, 0.2", "0.05, 0.1, 0.2, 0.4")
    model = mmdetection.build(blank({"cfg": text}), ImportOptions()).model
    assert model.roi_heads.detections_per_img == 30
    assert model.roi_heads.box_coder.weights == pytest.approx((20, 10, 5, 2.5))
    pool = model.roi_heads.box_roi_pool
    assert isinstance(pool, AlignedRoIAlign)
    assert (pool.sampling_ratio, pool.canonical_scale, pool.canonical_level) == (2, 224, 4)
    assert model.roi_heads.mask_roi_pool.sampling_ratio == 0


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("type='MaskRCNN'", "type='CascadeRCNN'", "model is a CascadeRCNN"),
        ("type='AnchorGenerator'", "type='LegacyAnchorGenerator'", "anchor_generator is a LegacyAnchorGenerator"),
        ("sampling_ratio=0", "sampling_ratio=0, aligned=False", "roi_layer.aligned is False"),
        ("nms=dict(type='nms', iou_threshold=0.5)", "nms=dict(type='soft_nms')", "rcnn.nms is a soft_nms"),
        ("num_stages=4", "num_stages=4, dilations=(1, 1, 1, 2)", r"dilations is \[1, 1, 1, 2\]"),
    ],
)
def test_what_a_config_says_and_we_cannot_do(old: str, new: str, what: str) -> None:
    config = read_config({"meta": {"cfg": VERSION_3.replace(old, new)}})
    check_config(read_config({"meta": META_3}), "a.pth")
    with pytest.raises(ExportError, match=what):
        check_config(config, "a.pth")


@pytest.mark.parametrize(
    "text",
    [
        "model = __import__('os').system('touch HERE')",
        "model = dict(type=open('HERE', 'w').name)",
        "import os\nos.mkdir('HERE')",
        "model = [x for x in (1, 2)]",
        "model = dict(",
        "(" * 5000,
        "model = " + "[" * 90 + "]" * 90,
        7,
    ],
)
def test_a_config_is_never_run(text: Any, tmp_path: Path) -> None:
    text = text.replace("HERE", str(tmp_path / "here")) if isinstance(text, str) else text
    config = read_config({"meta": {"cfg": text}})
    assert not list(tmp_path.iterdir())
    assert read_recipe(config) == read_recipe({})


def test_pixels_by_the_config_the_weights_and_the_options() -> None:
    file = blank()
    for meta, bgr, std in ((META_3, False, 58.395), (META_2, True, 1.0)):
        pixels = choose_pixels(file, read_config({"meta": meta}), 1, 64, ImportOptions())
        assert (pixels.bgr, pixels.caffe_strides, pixels.std[0]) == (bgr, bgr, std)
    told = ImportOptions(channels="bgr", strides="caffe", std=(1.0, 2.0, 3.0))
    pixels = choose_pixels(file, read_config({"meta": META_3}), 1, 64, told)
    assert pixels.mean == (103.53, 116.28, 123.675), "the same numbers in the new order"
    assert (pixels.bgr, pixels.caffe_strides, pixels.std) == (True, True, (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("groups", "width", "variance", "expected"),
    [
        (1, 64, 1.0, (True, True, 1.0)),
        (1, 64, 0.7, (False, False, 58.395)),
        (32, 8, 1.0, (True, False, 57.375)),
        (64, 4, 0.7, (False, False, 58.395)),
    ],
)
def test_pixels_without_a_config_are_as_the_zoo_has_them(
    groups: int, width: int, variance: float, expected: tuple[bool, bool, float]
) -> None:
    """Backbones of Caffe have no statistics of their norms."""
    tensors = {"backbone.bn1.running_mean": torch.zeros(64), "backbone.bn1.running_var": torch.full((64,), variance)}
    pixels = choose_pixels(ForeignFile(tensors, "a.pth"), {}, groups, width, ImportOptions())
    assert (pixels.bgr, pixels.caffe_strides, pixels.std[0]) == expected


def test_class_names() -> None:
    assert read_class_names({"meta": META_2}) == NAMES
    assert read_class_names({"meta": META_3}) == NAMES
    assert read_class_names({"meta": {"CLASSES": "nut"}}) == ("nut",)
    assert read_class_names({"meta": {"CLASSES": [1, 2]}}) is None
    assert read_class_names({"meta": None}) is None


def test_class_names_of_another_number_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    assert mmdetection.build(blank({"CLASSES": NAMES[:4]}), ImportOptions()).class_names is None
    assert "names 4 classes, but has 6" in caplog.text


def test_a_model_of_80_classes_without_names_has_cocos() -> None:
    names = mmdetection.build(blank(classes=80), ImportOptions()).class_names
    assert names is not None
    assert len(names) == 81
    assert names[:3] == ("__background__", "person", "bicycle")
    assert names[-1] == "toothbrush"
