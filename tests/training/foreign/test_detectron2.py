"""Checkpoints with detectron2's names: imported, exported, run, and compared with the restatement of detectron2.

The same was done once against detectron2 itself (see docs): its own state dicts have exactly the names and shapes of
`states.py`, and it finds what the imported model finds.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from edge_mrcnn.errors import ExportError  # noqa: E402
from edge_mrcnn.import_options import ImportOptions  # noqa: E402
from edge_mrcnn.training.exportable import Exportable  # noqa: E402
from edge_mrcnn.training.foreign import detectron2, import_checkpoint  # noqa: E402
from edge_mrcnn.training.foreign.weights import ForeignFile  # noqa: E402
from tests.training.foreign import restated, states  # noqa: E402
from tests.training.foreign.agreement import check_model  # noqa: E402
from tests.training.foreign.restated_steps import Settings, Weights, detectron2_levels, pool  # noqa: E402
from tests.training.random_models import picture  # noqa: E402

pytestmark = pytest.mark.torch

FEW = {"post_nms": 80, "detections": 40}
LIMITS = ImportOptions(size="128x160", proposals=80, detections=40)
SMALL = 14
"""A ResNet of one block a stage."""

C4 = {"c4": True}
RGB = {**restated.PYTORCH_STYLE}


def write(state: dict[str, Tensor], path: Path) -> Path:
    """As detectron2's model zoo (.pkl) or its trainer (.pth) writes it."""
    if path.suffix == ".pkl":
        content = {
            "model": {name: value.numpy() for name, value in state.items()},
            "__author__": "Detectron2 Model Zoo",
        }
        path.write_bytes(pickle.dumps(content, 2))
    else:
        torch.save({"model": state, "optimizer": {"state": {}}, "scheduler": {"last_epoch": 3}, "iteration": 3}, path)
    return path


# --------------------------------------------------------------------------------------------------------- whole models
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes", "settings", "options"),
    [
        ("maskrcnn_resnet50_fpn.pkl", {"depth": 50}, {}, {}),
        ("maskrcnn_resnet_1_1_1_1_1x64d_c4.pth", {"depth": SMALL, "c4": True}, {"pre_nms": 6000}, {}),
        (
            "maskrcnn_resnext_1_1_1_1_32x8d_fpn.pkl",
            {"depth": SMALL, "groups": 32, "width": 8},
            restated.X101_32X8D,
            {},
        ),
        (
            "maskrcnn_resnet_1_1_1_1_1x64d_fpn.pth",
            {"depth": SMALL},
            restated.PYTORCH_STYLE,
            {"channels": "rgb", "strides": "pytorch", "std": (58.395, 57.12, 57.375)},
        ),
    ],
    ids=["R50-FPN", "C4", "X-FPN", "RGB"],
)
def test_an_imported_model_finds_what_detectron2_finds(
    name: str, shapes: dict[str, Any], settings: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    image = picture(100, 160, seed=3)
    run = restated.detectron2_c4 if shapes.get("c4") else restated.detectron2_fpn
    config = Settings(**settings, **FEW)
    state = states.seeded_state(states.detectron2_shapes(classes=6, **shapes), run, config, image)
    want = run(Weights(state), image, (128, 160), config)
    limits = ImportOptions(size="128x160", proposals=80, detections=40, class_names="a,b,c,d,e,f", **options)
    imported = import_checkpoint(write(state, tmp_path / name), limits)
    assert imported.name == Path(name).stem
    assert (imported.class_names, imported.canvas) == (tuple("abcdef"), (128, 160))
    check_model(imported.model, image, want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shapes", "name", "stride_1x1"),
    [
        ({"depth": 101}, "maskrcnn_resnet101_fpn", 2),
        ({"depth": 101, "groups": 32, "width": 8}, "maskrcnn_resnext101_fpn", 1),
        ({"depth": 50, "c4": True}, "maskrcnn_resnet50_c4", 2),
        ({"depth": 101, "c4": True}, "maskrcnn_resnet101_c4", 2),
    ],
)
def test_the_zoos_other_models(shapes: dict[str, Any], name: str, stride_1x1: int) -> None:
    imported = detectron2.build(blank(classes=80, **shapes), ImportOptions())
    assert imported.name == name
    assert imported.canvas == (800, 1344)
    assert imported.class_names is not None
    assert (len(imported.class_names), imported.class_names[80]) == (81, "toothbrush")
    block = imported.model.backbone.body.layer2[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == (stride_1x1, 3 - stride_1x1)


def test_keypoints_beside_masks() -> None:
    file, generator = blank(), torch.Generator().manual_seed(1)
    for name, shape in keypoint_shapes().items():
        file.tensors[name] = torch.randn(shape, generator=generator) * 0.05
    imported = detectron2.build(file, ImportOptions())
    assert imported.name.startswith("maskrcnn")
    assert imported.keypoints is not None
    assert imported.keypoints.names[0] == "nose"
    boxes = torch.tensor([[3.0, 5, 40, 90], [0, 0, 150, 100], [70.5, 20, 81, 31], [10, 10, 130, 60]])
    levels = [torch.randn(1, 256, 32 // 2**level, 40 // 2**level, generator=generator) for level in range(4)]
    heads = imported.model.roi_heads
    with torch.no_grad():
        pooled = heads.keypoint_roi_pool(dict(zip("0123", levels, strict=True)), [boxes], [(100, 160)])
        found = heads.keypoint_predictor(heads.keypoint_head(pooled))
    assert torch.allclose(found, keypoint_maps(Weights(file.tensors), levels, boxes), atol=1e-4)
    module = Exportable(imported.model.eval(), (128, 160))
    assert (module.mask_size, module.num_keypoints, module.keypoint_size) == (28, 17, 56)


def keypoint_shapes(count: int = 17, convs: int = 2, width: int = 32) -> states.Shapes:
    """Of `KRCNNConvDeconvUpsampleHead`; the zoo has 8 convolutions of 512.

    Source: detectron2 modeling/roi_heads/keypoint_head.py.
    """
    shapes: states.Shapes = {}
    for index in range(1, convs + 1):
        name = f"roi_heads.keypoint_head.conv_fcn{index}"
        shapes |= {f"{name}.weight": (width, 256 if index == 1 else width, 3, 3), f"{name}.bias": (width,)}
    name = "roi_heads.keypoint_head.score_lowres"
    return {**shapes, f"{name}.weight": (width, count, 4, 4), f"{name}.bias": (count,)}


def keypoint_maps(weights: Weights, levels: list[Tensor], boxes: Tensor) -> Tensor:
    """The head restated: 3x3 convolutions, a deconvolution of 4x4, twice the size. Source: as `keypoint_shapes`."""
    x = pool(levels, boxes, detectron2_levels(boxes), 14)
    for index in (1, 2):
        x = weights.conv(f"roi_heads.keypoint_head.conv_fcn{index}", x, padding=1).relu()
    name = "roi_heads.keypoint_head.score_lowres"
    x = F.conv_transpose2d(x, weights.take(f"{name}.weight"), weights.bias(name), stride=2, padding=1)
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


# ----------------------------------------------------------------------------------------------------- names and shapes
def blank(depth: int = SMALL, classes: int = 6, **architecture: Any) -> ForeignFile:
    """A checkpoint whose numbers are 0."""
    shapes = states.detectron2_shapes(depth, classes, **architecture)
    return ForeignFile({name: torch.zeros(shape) for name, shape in shapes.items()}, "a.pkl")


def people() -> ForeignFile:
    """The zoo's Keypoint R-CNN, but smaller."""
    file = blank(classes=1)
    for name in [name for name in file.tensors if "mask_head" in name]:
        del file.tensors[name]
    file.tensors.update({name: torch.zeros(shape) for name, shape in keypoint_shapes().items()})
    return file


def test_keypoints_of_people() -> None:
    imported = detectron2.build(people(), ImportOptions())
    assert imported.name == "keypointrcnn_resnet_1_1_1_1_1x64d_fpn"
    assert imported.class_names == ("__background__", "person")
    assert imported.keypoints is not None
    assert imported.keypoints.names[-1] == "right_ankle"


def test_what_goes_into_the_ops() -> None:
    """Numbers of Base-RCNN-FPN.yaml, and of Base-RCNN-C4.yaml."""
    ops = Exportable(detectron2.build(blank(), ImportOptions()).model.eval(), (128, 160)).ops
    rpn, pooled, nms = ops["rpn_proposals"], ops["box_roi_align"], ops["detection_nms"]
    assert (rpn["pre_nms_top_n"], rpn["post_nms_top_n"], rpn["nms_threshold"]) == (1000, 1000, 0.7)
    assert (rpn["strides"], rpn["stride_rule"], rpn["min_size"]) == ([4, 8, 16, 32, 64], "fixed", 1e-30)
    assert rpn["cell_anchors"][:8] == pytest.approx([-22.62742, -11.31371, 22.62742, 11.31371, -16, -16, 16, 16])
    assert (pooled["aligned"], pooled["sampling_ratio"], pooled["level_eps"], pooled["output_size"]) == (1, 0, 0, 7)
    assert (pooled["canonical_scale"], pooled["canonical_level"], pooled["strides"]) == (224, 4, [4, 8, 16, 32])
    assert ops["mask_roi_align"]["output_size"] == 14
    assert (nms["score_threshold"], nms["nms_threshold"], nms["detections_per_image"]) == (0.05, 0.5, 100)
    assert (nms["box_weights"], nms["background"]) == ([10, 10, 5, 5], "first")
    ops = Exportable(detectron2.build(blank(c4=True), ImportOptions()).model.eval(), (128, 160)).ops
    rpn, pooled = ops["rpn_proposals"], ops["box_roi_align"]
    assert (rpn["pre_nms_top_n"], rpn["post_nms_top_n"], rpn["strides"]) == (6000, 1000, [16])
    sides = torch.tensor(rpn["cell_anchors"]).reshape(15, 4)
    assert (sides[:, 2] - sides[:, 0])[1::3].tolist() == [32, 64, 128, 256, 512], "a size after the other"
    assert (pooled["aligned"], pooled["strides"], pooled["output_size"]) == (1, [16], 14)


def test_pixels_by_the_options_the_file_and_the_zoo() -> None:
    model = detectron2.build(blank(), ImportOptions()).model
    assert model.transform.image_mean == pytest.approx([123.675 / 255, 116.28 / 255, 103.53 / 255])
    assert model.transform.image_std == pytest.approx([1 / 255] * 3)
    file = blank()
    file.tensors["pixel_mean"] = torch.tensor([10.0, 20, 30]).reshape(3, 1, 1)
    file.tensors["pixel_std"] = torch.tensor([1.0, 2, 3]).reshape(3, 1, 1)
    transform = detectron2.build(file, ImportOptions()).model.transform
    assert transform.image_mean == pytest.approx([30 / 255, 20 / 255, 10 / 255])
    assert transform.image_std == pytest.approx([3 / 255, 2 / 255, 1 / 255])
    told = ImportOptions(mean=(1.0, 2.0, 3.0), channels="rgb")
    transform = detectron2.build(file, told).model.transform
    assert transform.image_mean == pytest.approx([1 / 255, 2 / 255, 3 / 255])
    assert transform.image_std == pytest.approx([1 / 255, 2 / 255, 3 / 255])


@pytest.mark.parametrize("channels", ["bgr", "rgb"])
def test_the_first_convolution_takes_red_first(channels: Any) -> None:
    file = blank()
    weight = file.tensors["backbone.bottom_up.stem.conv1.weight"]
    weight += torch.arange(3.0).reshape(1, 3, 1, 1)
    found = detectron2.build(file, ImportOptions(channels=channels)).model.backbone.body.conv1.weight
    assert found[0, :, 0, 0].tolist() == ([2, 1, 0] if channels == "bgr" else [0, 1, 2])


def test_strides_as_told() -> None:
    layers = detectron2.build(blank(), ImportOptions(strides="pytorch")).model.backbone.body
    assert (layers.layer3[0].conv1.stride, layers.layer3[0].conv2.stride) == ((1, 1), (2, 2))


def test_the_background_comes_first() -> None:
    file = blank(classes=3)
    for name, rows in (("box_predictor.cls_score", 4), ("box_predictor.bbox_pred", 12), ("mask_head.predictor", 3)):
        file.tensors[f"roi_heads.{name}.bias"] = torch.arange(rows) + 1.0
    heads = detectron2.build(file, ImportOptions()).model.roi_heads
    assert heads.box_predictor.cls_score.bias.tolist() == [4, 1, 2, 3]
    assert heads.box_predictor.bbox_pred.bias.tolist() == [0, 0, 0, 0, *range(1, 13)]
    assert heads.mask_predictor.mask_fcn_logits.bias.tolist() == [0, 1, 2, 3]


def test_layers_that_know_no_classes_are_given_a_row_for_each() -> None:
    """`mask_rcnn_R_50_FPN_1x_cls_agnostic.yaml`: boxes and masks alike for all classes."""
    file = blank(classes=3)
    for name, rows in (("box_predictor.bbox_pred", 4), ("mask_head.predictor", 1)):
        weight = file.tensors[f"roi_heads.{name}.weight"]
        file.tensors[f"roi_heads.{name}.weight"] = torch.randn(rows, *weight.shape[1:])
        file.tensors[f"roi_heads.{name}.bias"] = torch.arange(rows) + 1.0
    heads = detectron2.build(file, ImportOptions()).model.roi_heads
    assert heads.box_predictor.bbox_pred.bias.tolist() == [1, 2, 3, 4] * 4
    assert heads.mask_predictor.mask_fcn_logits.bias.tolist() == [1] * 4
    weight = heads.box_predictor.bbox_pred.weight
    assert torch.equal(weight[4:8], file.tensors["roi_heads.box_predictor.bbox_pred.weight"])


def test_one_class_is_not_taken_for_none() -> None:
    file = blank(classes=1)
    file.tensors["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(4) + 1.0
    heads = detectron2.build(file, ImportOptions()).model.roi_heads
    assert heads.box_predictor.bbox_pred.bias.tolist() == [0, 0, 0, 0, 1, 2, 3, 4]


def test_anchors_in_the_file_are_taken() -> None:
    """Checkpoints of before 2021 keep them."""
    file = blank()
    for level in range(5):
        cells = torch.arange(12.0).reshape(3, 4) + 100 * level
        file.tensors[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = cells
    anchors = detectron2.build(file, ImportOptions()).model.rpn.anchor_generator.cell_anchors
    assert [float(level[0, 1]) for level in anchors] == [1, 101, 201, 301, 401]


def test_anchors_that_nothing_describes() -> None:
    file = blank()
    for part, count in (("objectness_logits", 5), ("anchor_deltas", 20)):
        file.tensors[f"proposal_generator.rpn_head.{part}.weight"] = torch.zeros(count, 256, 1, 1)
    with pytest.raises(
        ExportError,
        match=r"5 anchors in each cell of 5 levels by its RPN, but .* does not say which they are, are 3 on 5",
    ):
        detectron2.build(file, ImportOptions())


def test_anchors_in_the_file_that_do_not_fit() -> None:
    file = blank()
    for level in range(4):
        file.tensors[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.zeros(3, 4)
    with pytest.raises(ExportError, match="the anchors that it keeps are 3 on 4 levels"):
        detectron2.build(file, ImportOptions())


def test_plain_batch_norm() -> None:
    file = blank()
    for name in [name for name in file.tensors if name.endswith("running_var")]:
        file.tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(9)
    assert detectron2.build(file, ImportOptions()).name.startswith("maskrcnn_resnet")


def test_missing_and_unknown_weights_are_listed_by_the_files_names() -> None:
    file = blank()
    del file.tensors["backbone.fpn_lateral3.bias"], file.tensors["backbone.bottom_up.res3.0.conv2.norm.running_var"]
    file.tensors["roi_heads.iou_head.fc.weight"] = torch.zeros(1)
    with pytest.raises(ExportError) as caught:
        detectron2.build(file, ImportOptions())
    assert "2 of its weights are missing" in str(caught.value)
    assert "backbone.fpn_lateral3.bias" in str(caught.value)
    assert "backbone.bottom_up.res3.0.conv2.norm.running_var" in str(caught.value)
    assert "1 are not known (roi_heads.iou_head.fc.weight)" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "backbone.bottom_up.res2.0.conv2.weight",
        "roi_heads.box_predictor.cls_score.weight",
        "roi_heads.box_head.fc1.weight",
        "proposal_generator.rpn_head.objectness_logits.weight",
        "roi_heads.mask_head.deconv.weight",
    ],
)
def test_without_what_tells_the_architecture(name: str) -> None:
    file = blank()
    del file.tensors[name]
    with pytest.raises(ExportError, match=f"{name} is missing"):
        detectron2.build(file, ImportOptions())


def test_a_stage_is_missing() -> None:
    tensors = {name: value for name, value in blank().tensors.items() if ".res4." not in name}
    with pytest.raises(ExportError, match="res4 is missing"):
        detectron2.build(ForeignFile(tensors, "a.pkl"), ImportOptions())


def test_a_shape_that_does_not_fit() -> None:
    file = blank()
    file.tensors["roi_heads.box_predictor.bbox_pred.weight"] = torch.zeros(20, 1024)
    with pytest.raises(ExportError, match=r"bbox_pred.weight \(20, 1024\)"):
        detectron2.build(file, ImportOptions())


def others() -> Iterator[tuple[str, str]]:
    """Names that tell an architecture, from state dicts of detectron2's own models, and what it is called."""
    rpn, roi = "proposal_generator.rpn_head.conv.weight", "roi_heads.box_predictor.cls_score.weight"
    both = f"{rpn} {roi} roi_heads.mask_head.predictor.weight"
    yield "backbone.fpn_lateral3.weight backbone.top_block.p6.weight head.cls_subnet.0.weight", "a RetinaNet"
    yield "backbone.fpn_lateral3.weight head.cls_subnet.0.weight head.ctrness.weight", "an FCOS"
    yield f"{rpn} roi_heads.box_head.0.fc1.weight roi_heads.box_predictor.0.cls_score.weight", "a Cascade R-CNN"
    yield f"{both} sem_seg_head.p2.0.weight sem_seg_head.predictor.weight", "a Panoptic FPN"
    yield "sem_seg_head.pixel_decoder.mask_features.weight backbone.res2.0.conv1.weight", "a MaskFormer"
    yield f"{rpn} {roi} roi_heads.mask_head.point_head.fc1.weight", "a PointRend"
    yield f"{rpn} {roi} roi_heads.mask_coarse_head.reduce_spatial_dim_conv.weight", "a PointRend"
    yield f"{rpn} {roi} roi_heads.densepose_head.body_conv_fcn1.weight", "a DensePose"
    yield f"{both} backbone.net.patch_embed.proj.weight", "a transformer's backbone"
    yield f"{both} backbone.bottom_up.res3.0.conv2_offset.weight", "deformable convolutions"
    yield f"{both} backbone.fpn_lateral2.norm.weight roi_heads.box_head.conv1.weight", "norms in its pyramid"
    yield f"{both} roi_heads.box_head.conv1.norm.weight", "norms in its heads"
    yield f"{both} roi_heads.box_head.conv1.weight", "not of two linear layers"
    yield f"{both} backbone.res5.0.conv1.weight roi_heads.box_head.fc1.weight", "(DC5)"
    yield f"{rpn} backbone.fpn_lateral2.weight", "proposals alone (RPN)"
    yield f"{roi} backbone.fpn_lateral2.weight", "a Fast R-CNN"
    yield f"{rpn} {roi} roi_heads.box_head.fc1.weight", "a Faster R-CNN, which gives boxes only"
    yield f"{both} backbone.bottom_up.s1.b1.a.weight", "no ResNet"
    yield f"{both} backbone.bottom_up.res2.0.conv1.weight", "a ResNet-18 or -34"
    body = "backbone.bottom_up.res2.0"
    yield f"{both} {body}.conv1.weight {body}.conv3.weight {body}.conv1.norm.weight", "no batch norm"
    yield "stem.conv1.weight res2.0.conv1.weight stem.fc.weight", "trained on ImageNet alone"
    yield "conv1_w res2_0_branch2a_w res2_0_branch2a_bn_gamma", "trained on ImageNet alone"


@pytest.mark.parametrize(("found", "what"), list(others()))
def test_other_architectures_are_refused_by_name(found: str, what: str) -> None:
    file = ForeignFile({name: torch.zeros(1) for name in found.split()}, "a.pkl")
    assert detectron2.recognises(file)
    with pytest.raises(ExportError) as caught:
        detectron2.build(file, ImportOptions())
    assert what in str(caught.value)
    assert "Mask R-CNN and Keypoint R-CNN with FPN, and Mask R-CNN C4, can be imported" in str(caught.value)
