"""C4: the paper's numbers, one set of weights for both heads wherever a model goes, norms folded before the trace."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torchvision.models import resnet50  # noqa: E402
from torchvision.models.detection import MaskRCNN  # noqa: E402
from torchvision.ops.misc import FrozenBatchNorm2d  # noqa: E402

from edge_mrcnn.training.c4 import fold_shared_norms, maskrcnn_c4  # noqa: E402
from edge_mrcnn.training.checkpoint import load_weights, save_checkpoint  # noqa: E402
from edge_mrcnn.training.export import trace_model  # noqa: E402
from edge_mrcnn.training.step import CanvasModel  # noqa: E402
from edge_mrcnn.training.zoo import build_model  # noqa: E402
from tests.training.random_models import calibrate_norms  # noqa: E402
from tests.training.small_c4 import CLASSES, HW, NAMES, small_c4  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def model() -> MaskRCNN:
    return small_c4()


@pytest.fixture(scope="module")
def resnet50_c4() -> MaskRCNN:
    return build_model("maskrcnn_resnet50_c4")


@pytest.fixture(scope="module", params=[nn.BatchNorm2d, FrozenBatchNorm2d])
def traced(request):
    return trace_model(small_c4(request.param), "small", HW, NAMES)


class TestPaper:
    """Source: Mask R-CNN, sections 3 and 3.1 and figure 4; Faster R-CNN for the anchors."""

    def test_one_map_of_stride_16_with_1024_channels(self, resnet50_c4):
        with torch.inference_mode():
            (level,) = resnet50_c4.backbone(torch.zeros(1, 3, 64, 96)).values()
        assert level.shape == (1, 1024, 4, 6)
        assert resnet50_c4.backbone.out_channels == 1024

    def test_five_scales_and_three_ratios(self, resnet50_c4):
        anchors = resnet50_c4.rpn.anchor_generator.cell_anchors[0]
        sides = (anchors[:, 2:] - anchors[:, :2]).double()
        areas = sides.prod(1).sqrt().view(3, 5)
        assert torch.allclose(areas, torch.tensor([32, 64, 128, 256, 512]).double().expand(3, 5), rtol=0.02)
        ratios = (sides[:, 1] / sides[:, 0]).view(3, 5)
        assert torch.allclose(ratios, torch.tensor([[0.5], [1.0], [2.0]]).double().expand(3, 5), rtol=0.05)
        assert resnet50_c4.rpn.head.cls_logits.out_channels == 15

    def test_300_proposals_and_64_regions(self, resnet50_c4):
        assert resnet50_c4.rpn._post_nms_top_n["testing"] == 300
        assert resnet50_c4.roi_heads.fg_bg_sampler.batch_size_per_image == 64

    def test_heads(self, resnet50_c4):
        heads = resnet50_c4.roi_heads
        assert heads.box_roi_pool.output_size == heads.mask_roi_pool.output_size == (14, 14)
        with torch.inference_mode():
            pooled = torch.randn(2, 1024, 14, 14)
            res5 = heads.box_head.layer4(pooled)
            assert res5.shape == (2, 2048, 7, 7)
            assert torch.allclose(heads.box_head(pooled), res5.flatten(2).mean(2), atol=1e-5)
            assert torch.equal(heads.mask_head(pooled), res5)
            assert heads.mask_predictor(res5).shape == (2, 91, 14, 14)
        deconvolution = heads.mask_predictor.conv5_mask
        assert (deconvolution.kernel_size, deconvolution.stride) == ((2, 2), (2, 2))

    def test_the_fifth_stage_is_the_whole_of_torchvisions(self, resnet50_c4):
        theirs = resnet50(weights=None).layer4.state_dict()
        ours = resnet50_c4.roi_heads.box_head.layer4.state_dict()
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}

    @pytest.mark.parametrize(("name", "millions"), [("maskrcnn_resnet50_c4", 36.08), ("maskrcnn_resnet101_c4", 55.07)])
    def test_parameters(self, name, millions):
        count = sum(parameter.numel() for parameter in build_model(name).parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.01)


class TestSharedWeights:
    def test_they_stand_once_in_the_state_dict(self, model):
        stage = [key for key in model.state_dict() if "layer4" in key]
        assert stage
        assert all(key.startswith("roi_heads.box_head.layer4.") for key in stage)
        assert not [key for key in model.state_dict() if key.startswith("roi_heads.mask_head")]
        addresses = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
        assert len(addresses) == len(set(addresses))

    @pytest.mark.parametrize("change", [copy.deepcopy, lambda model: model.double()])
    def test_copies_and_casts_keep_them_shared(self, model, change):
        changed = change(model)
        stage = changed.roi_heads.box_head.layer4
        weight = next(stage.parameters())
        with torch.no_grad():
            weight.zero_()
        pooled = torch.randn(1, 256, 14, 14, dtype=weight.dtype)
        assert torch.equal(changed.roi_heads.mask_head(pooled), stage(pooled))

    def test_a_copy_is_independent(self, model):
        other, pooled = copy.deepcopy(model), torch.randn(1, 256, 14, 14)
        before = model.roi_heads.mask_head(pooled)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(model.roi_heads.mask_head(pooled), before)
        assert not other.roi_heads.mask_head(pooled).any()

    def test_a_checkpoint_brings_both_heads_back(self, model, tmp_path):
        save_checkpoint(tmp_path / "a.pt", model)
        other, pooled = small_c4(seed=1), torch.randn(2, 256, 14, 14)
        load_weights(other, tmp_path / "a.pt")
        assert torch.equal(other.roi_heads.mask_head(pooled), model.roi_heads.mask_head(pooled))

    def test_both_losses_reach_them(self, model):
        masks = torch.zeros(1, *HW, dtype=torch.uint8)
        masks[0, 20:70, 30:90] = 1
        boxes = torch.tensor([[30.0, 20.0, 90.0, 70.0]])
        target = {"boxes": boxes, "labels": torch.tensor([2]), "masks": masks, "image_hw": HW}
        picture = torch.randint(0, 256, (1, *HW, 3), dtype=torch.uint8)
        losses, _ = CanvasModel(model.train())(picture, [target])
        weight = model.roi_heads.box_head.layer4[0].conv1.weight
        for name in ("loss_mask", "loss_classifier"):
            weight.grad = None
            losses[name].backward(retain_graph=True)
            assert weight.grad.abs().sum() > 0, name


class TestFoldedNorms:
    @pytest.fixture(params=["resnet18", "resnet50"])
    def stage_model(self, request) -> MaskRCNN:
        if request.param == "resnet18":
            return small_c4()
        torch.manual_seed(0)
        model = maskrcnn_c4(resnet50(weights=None), CLASSES)
        calibrate_norms(model, lambda: model.roi_heads.box_head(torch.rand(4, 1024, 14, 14)))
        return model

    @torch.no_grad()
    def test_the_stage_gives_the_same(self, stage_model):
        folded = fold_shared_norms(stage_model)
        stage = folded.roi_heads.box_head.layer4
        assert not any(isinstance(module, nn.BatchNorm2d) for module in stage.modules())
        pooled = torch.rand(3, stage_model.backbone.out_channels, 14, 14)
        expected = stage_model.roi_heads.mask_head(pooled)
        assert torch.allclose(folded.roi_heads.mask_head(pooled), expected, rtol=1e-4, atol=1e-4)
        assert torch.allclose(folded.roi_heads.box_head(pooled), expected.mean((2, 3)), rtol=1e-4, atol=1e-4)

    def test_the_model_is_not_changed(self, model):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fold_shared_norms(model)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)

    def test_other_models_are_left_as_they_are(self):
        other = build_model("maskrcnn_edge", CLASSES)
        assert fold_shared_norms(other) is other


class TestExport:
    def test_spec(self, traced):
        _, spec = traced
        assert (spec.proposals, spec.detections, spec.mask_size) == (20, 8, 14)
        assert spec.ops["rpn_proposals"]["strides"] == spec.ops["box_roi_align"]["strides"] == [16]
        assert spec.ops["rpn_proposals"]["pre_nms_top_n"] == 6000
        assert spec.ops["box_roi_align"]["output_size"] == spec.ops["mask_roi_align"]["output_size"] == 14
        assert len(spec.ops["rpn_proposals"]["cell_anchors"]) == 4 * 9

    def test_each_weight_stands_once_and_is_read_by_both_heads(self, traced):
        graph = traced[0].graph
        weights = [tensor.name for tensor in graph.initializer if "layer4" in tensor.name]
        assert len(weights) == len(set(weights)) == 2 * 5, "weight and bias of five convolutions"
        readers = {name: [node.name for node in graph.node if name in node.input] for name in weights}
        assert all(len(found) == 2 for found in readers.values()), readers
        convolutions = [node for node in graph.node if node.op_type == "Conv" and "layer4" in node.name]
        assert len({node.name for node in convolutions}) == len(convolutions) == 10

    def test_no_norm_is_left_and_the_file_is_sound(self, traced):
        assert not [node for node in traced[0].graph.node if node.op_type == "BatchNormalization"]
        onnx.checker.check_model(traced[0], full_check=True)

    def test_masks_are_14x14(self, traced):
        session = onnxruntime.InferenceSession(traced[0].SerializeToString(), providers=["CPUExecutionProvider"])
        images = np.random.default_rng(0).integers(0, 256, (2, *HW, 3), dtype=np.uint8)
        feeds = {"images": images, "image_hw": np.array([HW, (60, 128)], np.float32)}
        found = dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))
        assert found["masks"].shape == (*found["scores"].shape, 14, 14)
        assert found["masks"].shape[0] == 2
