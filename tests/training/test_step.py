"""Losses and sampling are the paper's, canvases are seen as torchvision sees them, and sparse pools change nothing."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torchvision.ops import MultiScaleRoIAlign  # noqa: E402

from edge_mrcnn.training.sparse_pool import SparseRoIAlign, use_sparse_pools  # noqa: E402
from edge_mrcnn.training.step import CanvasModel, normalise  # noqa: E402
from edge_mrcnn.training.zoo import build_model  # noqa: E402

pytestmark = pytest.mark.torch

HW = (96, 128)
TRUE_CLASS = 2


def target(label=TRUE_CLASS):
    masks = torch.zeros(1, *HW, dtype=torch.uint8)
    masks[0, 20:70, 30:90] = 1
    boxes = torch.tensor([[30.0, 20.0, 90.0, 70.0]])
    return {"boxes": boxes, "labels": torch.tensor([label]), "masks": masks, "image_hw": HW}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("maskrcnn_edge", 4).train()


@pytest.fixture
def picture():
    return torch.randint(0, 256, (1, *HW, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class TestPaper:
    def test_regions_are_positive_from_iou_one_half(self, model):
        """Proposals of the true box's height, whose width alone decides the IoU."""
        widths = torch.tensor([29.0, 31.0, 45.0, 60.0])
        proposals = torch.stack([torch.tensor([30.0, 20.0, 30.0 + float(width), 70.0]) for width in widths])
        model.roi_heads.fg_bg_sampler.positive_fraction = 1.0
        _, _, labels, _ = model.roi_heads.select_training_samples([proposals], [target()])
        # the true box itself is added to the proposals
        assert sorted(labels[0].tolist()) == [0, 2, 2, 2, 2]

    def test_regions_are_sampled_one_to_three(self, model):
        good = target()["boxes"].repeat(200, 1) + torch.rand(200, 4)
        bad = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(400, 1)
        sampled, _, labels, _ = model.roi_heads.select_training_samples([torch.cat([good, bad])], [target()])
        assert len(sampled[0]) == 64
        assert int((labels[0] > 0).sum()) == 16

    def test_fewer_positives_are_filled_up_with_negatives(self, model):
        bad = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(400, 1)
        _, _, labels, _ = model.roi_heads.select_training_samples([bad], [target()])
        assert len(labels[0]) == 64
        assert int((labels[0] > 0).sum()) == 1

    @pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_edge"])
    def test_thresholds_of_every_family(self, name):
        heads = build_model(name, 4).roi_heads
        assert heads.proposal_matcher.high_threshold == heads.proposal_matcher.low_threshold == 0.5
        assert heads.fg_bg_sampler.positive_fraction == 0.25

    def test_mask_and_box_losses_touch_the_true_class_only(self, model, picture):
        losses, _ = CanvasModel(model)(picture, [target()])
        (losses["loss_mask"] + losses["loss_box_reg"]).backward()
        masks = model.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.flatten(1).abs().sum(1)
        boxes = model.roi_heads.box_predictor.bbox_pred.weight.grad.view(4, -1).abs().sum(1)
        for gradient in (masks, boxes):
            assert gradient[TRUE_CLASS] > 0
            assert gradient[[0, 1, 3]].tolist() == [0, 0, 0]

    def test_mask_loss_is_the_mean_binary_cross_entropy(self, model, picture):
        """With logits of zero everywhere, each pixel of the true class costs log 2."""
        for parameter in model.roi_heads.mask_predictor.mask_fcn_logits.parameters():
            torch.nn.init.zeros_(parameter)
        losses, _ = CanvasModel(model)(picture, [target()])
        assert losses["loss_mask"].item() == pytest.approx(0.693147, abs=1e-5)

    def test_a_picture_without_objects_has_no_box_and_mask_loss(self, model, picture):
        empty = {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, *HW, dtype=torch.uint8),
            "image_hw": HW,
        }
        losses, _ = CanvasModel(model)(picture, [empty])
        assert losses["loss_mask"].item() == losses["loss_box_reg"].item() == 0
        assert losses["loss_classifier"].item() > 0


class TestCanvas:
    def test_detections_are_those_of_torchvisions_forward(self, model, picture):
        model.eval()
        model.transform.min_size, model.transform.max_size = (HW[0],), HW[1]
        with torch.inference_mode():
            _, ours = CanvasModel(model)(picture, [{"image_hw": HW}])
            theirs = model([picture[0].permute(2, 0, 1) / 255])
        assert len(theirs[0]["boxes"]) > 10
        assert torch.allclose(ours[0]["boxes"], theirs[0]["boxes"], atol=1e-2)
        assert torch.allclose(ours[0]["scores"], theirs[0]["scores"], atol=1e-4)
        assert torch.equal(ours[0]["labels"], theirs[0]["labels"])

    def test_padding_is_zero_after_normalising(self, picture):
        images = normalise(picture, [(64, 96)], (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        assert images.shape == (1, 3, *HW)
        assert not images[:, :, 64:].any()
        assert not images[:, :, :, 96:].any()
        expected = (picture[0, :64, :96].permute(2, 0, 1) / 255 - 0.5) / 0.2
        assert torch.allclose(images[0, :, :64, :96], expected, atol=1e-5)

    def test_scales_come_from_the_canvas_not_from_small_content(self, model, picture):
        CanvasModel(model.eval())(picture, [{"image_hw": (40, 50)}])
        assert model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]

    def test_bfloat16_stays_close(self, model, picture):
        torch.manual_seed(3)
        exact, _ = CanvasModel(model)(picture, [target()])
        torch.manual_seed(3)
        rounded, _ = CanvasModel(model, bf16=True)(picture, [target()])
        assert all(value.dtype == torch.float32 and value.isfinite() for value in rounded.values())
        for name in ("loss_objectness", "loss_rpn_box_reg"):  # the others depend on which proposals come first
            assert rounded[name].item() == pytest.approx(exact[name].item(), rel=0.05)


class TestSparsePool:
    BOXES = torch.tensor(
        [
            [10.0, 12.0, 40.0, 50.0],
            [-20.0, -9.0, 30.0, 200.0],  # beyond every border
            [5.0, 5.0, 5.2, 5.1],  # smaller than a pixel
            [100.0, 80.0, 128.0, 96.0],  # in the corner
            [0.0, 0.0, 128.0, 96.0],
            [60.0, 20.0, 50.0, 10.0],  # padding: x2 < x1
        ]
    )

    def features(self):
        generator = torch.Generator().manual_seed(1)
        sides = {"0": (24, 32), "1": (12, 16), "2": (6, 8)}
        return {name: torch.randn(2, 5, *side, generator=generator).requires_grad_() for name, side in sides.items()}

    @pytest.mark.parametrize(("size", "ratio"), [(7, 2), (14, 2), (3, 1), (2, 4)])
    def test_values_and_gradients_are_torchvisions(self, size, ratio):
        pool = MultiScaleRoIAlign(["0", "1", "2"], size, ratio, canonical_scale=60, canonical_level=3)
        features, boxes = self.features(), [self.BOXES, self.BOXES[:2] + 3]
        theirs = pool(features, boxes, [HW, HW])
        assert len(set(pool.map_levels(boxes).tolist())) > 1
        ours = SparseRoIAlign(pool)(features, boxes, [HW, HW])
        assert torch.allclose(ours, theirs, atol=1e-5)
        weight = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2))
        expected = torch.autograd.grad((theirs * weight).sum(), list(features.values()), allow_unused=True)
        found = torch.autograd.grad((ours * weight).sum(), list(features.values()))
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, torch.zeros_like(one) if other is None else other, atol=1e-4)

    def test_no_boxes(self):
        pool = MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
        pool(self.features(), [self.BOXES, self.BOXES], [HW, HW])
        assert SparseRoIAlign(pool)(self.features(), [self.BOXES[:0]] * 2, [HW, HW]).shape == (0, 5, 7, 7)

    def test_adaptive_sampling_is_refused(self):
        with pytest.raises(ValueError, match="fixed sampling ratio"):
            SparseRoIAlign(MultiScaleRoIAlign(["0"], 7, 0))

    def test_state_dict_and_losses_stay(self, model, picture):
        torch.manual_seed(3)
        expected, _ = CanvasModel(model)(picture, [target()])
        keys = list(model.state_dict())
        use_sparse_pools(model)
        torch.manual_seed(3)
        found, _ = CanvasModel(model)(picture, [target()])
        assert list(model.state_dict()) == keys
        assert {name: pytest.approx(value.item(), rel=1e-3) for name, value in expected.items()} == {
            name: value.item() for name, value in found.items()
        }
