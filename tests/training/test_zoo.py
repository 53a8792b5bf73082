"""The zoo: names, sizes, component types, norms by case, and where weights may come from."""

from __future__ import annotations

from urllib.error import URLError

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torchvision.models import detection, resnet50  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone  # noqa: E402
from torchvision.models.detection.roi_heads import RoIHeads  # noqa: E402
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead  # noqa: E402
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402
from torchvision.ops.misc import FrozenBatchNorm2d  # noqa: E402

from edge_mrcnn.errors import EdgeMrcnnError  # noqa: E402
from edge_mrcnn.training import tabletop, zoo  # noqa: E402
from edge_mrcnn.training.c4 import C4Backbone, maskrcnn_c4  # noqa: E402
from edge_mrcnn.training.checkpoint import save_checkpoint  # noqa: E402
from edge_mrcnn.training.zoo import MODELS, build_model  # noqa: E402

pytestmark = pytest.mark.torch

NAMES = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_resnext101_fpn",
    "maskrcnn_resnet50_c4",
    "maskrcnn_resnet101_c4",
    "maskrcnn_edge",
    "keypointrcnn_resnet50_fpn",
    "keypointrcnn_edge",
)


def norms(model):
    return {type(module) for module in model.backbone.body.modules() if "BatchNorm" in type(module).__name__}


def test_the_zoo_has_these_models():
    assert tuple(MODELS) == NAMES
    assert all(name == entry.name for name, entry in MODELS.items())
    assert all(side % 32 == 0 for entry in MODELS.values() for side in entry.default_size)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_made_of_torchvisions_components(name):
    model = build_model(name, 5)
    heads = ("mask", *(["keypoint"] if name == "keypointrcnn_edge" else []))
    heads = ("keypoint",) if name == "keypointrcnn_resnet50_fpn" else heads
    assert type(model) is (detection.MaskRCNN if "mask" in heads else detection.KeypointRCNN)
    assert not model.training
    assert isinstance(model.backbone, C4Backbone if name.endswith("_c4") else BackboneWithFPN)
    assert type(model.rpn) is RegionProposalNetwork
    assert isinstance(model.rpn.head, RPNHead)
    assert type(model.rpn.anchor_generator) is AnchorGenerator
    assert type(model.roi_heads) is RoIHeads
    assert type(model.roi_heads.box_roi_pool) is MultiScaleRoIAlign
    assert [model.roi_heads.has_mask(), model.roi_heads.has_keypoint()] == ["mask" in heads, "keypoint" in heads]
    assert all(type(getattr(model.roi_heads, f"{head}_roi_pool")) is MultiScaleRoIAlign for head in heads)
    assert model.roi_heads.box_predictor.cls_score.out_features == 5
    assert "mask" not in heads or model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 5
    assert norms(model) == {nn.BatchNorm2d}


def test_frozen_norms_of_a_checkpoint_reach_the_head_of_a_c4(tmp_path):
    frozen = maskrcnn_c4(resnet50(weights=None, norm_layer=FrozenBatchNorm2d), 5)
    save_checkpoint(tmp_path / "a.pt", frozen)
    model = build_model("maskrcnn_resnet50_c4", 5, tmp_path / "a.pt")
    kinds = {type(module) for module in model.modules() if "BatchNorm" in type(module).__name__}
    assert kinds == {FrozenBatchNorm2d}
    assert all(torch.equal(value, frozen.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("maskrcnn_resnet50_fpn", lambda: detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)),
        ("maskrcnn_resnet50_fpn_v2", lambda: detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)),
        (
            "maskrcnn_resnet101_fpn",
            lambda: detection.MaskRCNN(resnet_fpn_backbone(backbone_name="resnet101", weights=None), 91),
        ),
    ],
)
def test_state_dicts_of_torchvisions_constructors_load(tmp_path, name, make):
    torch.manual_seed(1)
    theirs = make().eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pt")
    ours = build_model(name, weights=tmp_path / "a.pt")
    assert norms(ours) == norms(theirs)
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


class TestEdge:
    def test_parameters(self):
        count = sum(parameter.numel() for parameter in build_model("maskrcnn_edge").parameters())
        assert 1_000_000 < count <= 4_000_000

    def test_default_classes_are_the_tabletops(self):
        assert MODELS["maskrcnn_edge"].default_classes == len(tabletop.CLASS_NAMES) + 1

    def test_activations_are_relu_and_relu6(self):
        kinds = {
            type(module)
            for module in build_model("maskrcnn_edge").modules()
            if type(module).__module__.startswith("torch.nn.modules.activation")
        }
        assert kinds == {nn.ReLU, nn.ReLU6}

    def test_features_and_masks_have_the_promised_strides_and_size(self):
        model = build_model("maskrcnn_edge")
        with torch.inference_mode():
            levels = model.backbone(torch.zeros(1, 3, 96, 128))
            found = model([torch.rand(3, 96, 128)])
        assert {name: tuple(level.shape[2:]) for name, level in levels.items()} == {
            "0": (24, 32),
            "1": (12, 16),
            "2": (6, 8),
            "3": (3, 4),
            "pool": (2, 2),
        }
        assert len(found[0]["boxes"]) > 0
        with torch.inference_mode():
            logits = model.roi_heads.mask_predictor(model.roi_heads.mask_head(torch.zeros(1, 64, 14, 14)))
        assert logits.shape == (1, 11, 28, 28)

    def test_its_size_holds_a_camera_picture(self):
        """torchvision's transform scales 480x640 to 312x416, as the runtime's letterbox does."""
        images, _ = build_model("maskrcnn_edge").transform([torch.rand(3, 480, 640)])
        assert images.image_sizes == [(312, 416)]
        assert tuple(images.tensors.shape[2:]) == MODELS["maskrcnn_edge"].default_size


class TestWeights:
    def test_number_of_classes_comes_from_our_checkpoints(self, tmp_path):
        names = ("__background__", "a", "b")
        save_checkpoint(tmp_path / "a.pt", build_model("maskrcnn_edge", 3), class_names=names)
        model = build_model("maskrcnn_edge", weights=tmp_path / "a.pt")
        assert model.roi_heads.box_predictor.cls_score.out_features == 3

    def test_mismatch_of_a_foreign_checkpoint_names_the_flag(self, tmp_path):
        torch.save(build_model("maskrcnn_edge", 7).state_dict(), tmp_path / "a.pt")
        with pytest.raises(EdgeMrcnnError, match="checkpoint has 7 classes, the model was built for 11: pass --num-c"):
            build_model("maskrcnn_edge", weights=tmp_path / "a.pt")

    def test_other_classes_can_be_fine_tuned(self, tmp_path):
        theirs = build_model("maskrcnn_edge", 7)
        torch.save(theirs.state_dict(), tmp_path / "a.pt")
        model = build_model("maskrcnn_edge", 3, tmp_path / "a.pt", replace_class_layers=True)
        assert torch.equal(model.roi_heads.box_head.fc6.weight, theirs.roi_heads.box_head.fc6.weight)
        assert model.roi_heads.box_predictor.cls_score.out_features == 3

    def test_a_checkpoint_of_another_model_is_refused(self, tmp_path):
        torch.save(build_model("maskrcnn_edge", 91).state_dict(), tmp_path / "a.pt")
        with pytest.raises(EdgeMrcnnError, match="Pick the model of the zoo"):
            build_model("maskrcnn_resnet50_fpn", weights=tmp_path / "a.pt")

    def test_a_name_that_is_no_file_and_no_weights(self):
        with pytest.raises(EdgeMrcnnError, match=r"'COCO_V9' are neither a file nor .* COCO_V1"):
            build_model("maskrcnn_resnet50_fpn", weights="COCO_V9")
        with pytest.raises(EdgeMrcnnError, match="'DEFAULT' are neither a file"):
            build_model("maskrcnn_edge", weights="DEFAULT")

    @pytest.mark.parametrize("weights", ["a.pth", "folder/weights"])
    def test_a_path_that_does_not_exist(self, weights):
        with pytest.raises(EdgeMrcnnError, match="does not exist"):
            build_model("maskrcnn_resnet50_fpn", weights=weights)

    def test_offline(self, monkeypatch):
        def offline(*args, **kwargs):
            raise URLError("Name or service not known")

        monkeypatch.setattr(zoo.MaskRCNN_ResNet50_FPN_Weights, "get_state_dict", offline)
        with pytest.raises(EdgeMrcnnError, match=r"cannot be fetched from https://.*\.pth: .*Download that file"):
            build_model("maskrcnn_resnet50_fpn", weights="COCO_V1")

    def test_torchvisions_frozen_weights_run_with_their_epsilon(self, monkeypatch):
        state = detection.MaskRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), 91).state_dict()
        monkeypatch.setattr(zoo.MaskRCNN_ResNet50_FPN_Weights, "get_state_dict", lambda *args, **kwargs: state)
        model = build_model("maskrcnn_resnet50_fpn", weights="DEFAULT")
        frozen = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
        assert len(frozen) == 53
        assert {module.eps for module in frozen} == {0.0}


def test_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'maskrcnn_resnet50_fpn'"):
        build_model("maskrcnn_resnet50_fp")


@pytest.mark.parametrize("count", [0, 1, -3])
def test_too_few_classes(count):
    with pytest.raises(ValueError, match=f"num_classes is {count}: it counts the background"):
        build_model("maskrcnn_edge", count)
