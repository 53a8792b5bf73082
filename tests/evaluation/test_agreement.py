"""Agreement of detections with hand-made differences, and its masks against the full-size ones."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is not installed")

from edge_mrcnn.detections import Detections
from edge_mrcnn.evaluation.agreement import AgreementMeter, box_iou, match_detections

NAMES = ("__background__", "mug", "apple", "fork")
HW = (60, 200)
MUG, APPLE, FORK = (1, 0.9, 0), (2, 0.8, 50), (3, 0.7, 100)
"""Class, score and left edge of boxes 40 x 40."""


def detections(*rows: tuple[int, float, float], masks: bool = True) -> Detections:
    boxes = np.array([[x, 10, x + 40, 50] for _, _, x in rows], np.float32).reshape(-1, 4)
    mask = np.ones((len(rows), 28, 28), np.float32) if masks else None
    return Detections(boxes, np.array([row[1] for row in rows]), np.array([row[0] for row in rows]), HW, mask)


def describe(reference: Detections, candidate: Detections) -> str:
    return match_detections(reference, candidate).describe(NAMES)


def test_the_same_detections_agree_in_everything() -> None:
    meter = AgreementMeter()
    found = detections(MUG, APPLE, (3, 0.2, 100))
    for _ in range(3):
        assert meter.add(found, found).disagreement == 0
    result = meter.result()
    assert (result.expected, result.matched, result.missed, result.extra) == (6, 6, 0, 0)
    assert (result.matched_share, result.box_iou, result.mask_iou) == (1, 1, 1)
    assert (result.score_shift, result.score_shift_abs) == (0, 0)
    assert describe(found, found) == "agrees"


def pointed(found: Detections, *points: tuple[float, float, float]) -> Detections:
    """Detections with these keypoints each."""
    return dataclasses.replace(found, keypoints=np.tile(np.array(points, np.float32), (len(found), 1, 1)))


def test_keypoints_that_move_are_measured_in_pixels_and_sizes() -> None:
    meter = AgreementMeter()
    reference = pointed(detections(MUG, masks=False), (10, 20, 0.9), (20, 20, 0.5), (30, 30, 0.04), (30, 30, 0))
    moved = pointed(detections(MUG, masks=False), (10, 20.4, 0.9), (20, 23.2, 0.5), (99, 99, 0.9), (99, 99, 0.9))
    one = meter.add(reference, moved)
    result = meter.result()
    # 0.4 and 3.2 px of a box of 40: those that the reference does not show do not count.
    assert result.keypoint_close == 0.5
    assert result.keypoint_shift == pytest.approx((0.4 + 3.2) / 2 / 40)
    assert one.keypoint_shift == pytest.approx([1.8 / 40])
    assert one.disagreement == pytest.approx((1.8 / 40) ** 2)
    assert one.describe(NAMES) == "moves the keypoints of a mug by 1.8 px"
    again = AgreementMeter()
    assert again.add(reference, reference).describe(NAMES) == "agrees"
    assert (again.result().keypoint_close, again.result().keypoint_shift) == (1, 0)


def test_networks_of_which_one_has_no_keypoints() -> None:
    meter = AgreementMeter()
    meter.add(pointed(detections(MUG), (10, 20, 0.9)), detections(MUG))
    assert (meter.result().keypoint_close, meter.result().keypoint_shift) == (None, None)
    none = pointed(detections(MUG), (10, 20, 0.0))
    assert meter.add(none, none).disagreement == 0
    assert meter.add(pointed(detections(), (1, 1, 1)), pointed(detections(MUG), (1, 1, 1))).keypoint_shift.shape == (0,)


def test_missed_and_extra_objects_are_counted_and_named() -> None:
    meter = AgreementMeter()
    one = meter.add(detections(MUG, APPLE), detections(APPLE, FORK))
    result = meter.result()
    assert (result.expected, result.matched, result.missed, result.extra) == (2, 1, 1, 1)
    assert result.matched_share == 0.5
    assert one.disagreement == pytest.approx(0.9 + 0.7)
    assert one.describe(NAMES) == "misses a mug (0.90) and adds a fork (0.70)"
    assert describe(detections(), detections(APPLE)) == "adds an apple (0.80)"
    assert describe(detections((7, 0.6, 0)), detections()) == "misses a class 7 (0.60)"


def test_the_best_three_are_named_and_the_rest_counted() -> None:
    many = detections(*[(1, 0.5 + place / 10, 40 * place) for place in range(5)])
    assert describe(many, detections()) == "misses a mug (0.90), a mug (0.80), a mug (0.70) and 2 more"


def test_a_score_that_crosses_the_threshold_is_a_shift_and_no_loss() -> None:
    for before, after in ((0.52, 0.45), (0.45, 0.52)):
        meter = AgreementMeter()
        meter.add(detections((1, before, 0)), detections((1, after, 0)))
        result = meter.result()
        assert (result.missed, result.extra) == (0, 0)
        assert result.expected == (1 if before > 0.5 else 0)
    assert result.score_shift is None  # the reference had nothing to say from the threshold on
    meter.add(detections(MUG, APPLE), detections((1, 0.6, 0), (2, 0.9, 50)))
    assert meter.result().score_shift == pytest.approx((-0.3 + 0.1) / 2)
    assert meter.result().score_shift_abs == pytest.approx((0.3 + 0.1) / 2)
    assert describe(detections(MUG, APPLE), detections((1, 0.6, 0), APPLE)) == "gives a mug 0.60 instead of 0.90"


def test_a_score_that_collapses_is_a_loss_and_one_that_rises_is_nothing_new() -> None:
    strong, weak, faint = (detections((1, score, 0)) for score in (0.9, 0.3, 0.2))
    assert describe(strong, weak) == "gives a mug 0.30 instead of 0.90"
    assert describe(strong, faint) == "misses a mug (0.90)"
    assert match_detections(faint, strong).extra.tolist() == []
    assert match_detections(detections(), strong).extra.tolist() == [0]


def test_slight_differences_are_told_as_such() -> None:
    assert describe(detections(MUG), detections((1, 0.897, 0))) == "agrees"
    assert describe(detections(MUG), detections((1, 0.87, 0))) == "agrees but for scores by up to 0.03"
    assert describe(detections(MUG, masks=False), detections((1, 0.87, 1), masks=False)) == (
        "agrees but for scores by up to 0.03 and a box IoU of 0.95"
    )


def test_partners_have_the_same_class_and_overlap_by_half() -> None:
    result = match_detections(detections(MUG), detections((2, 0.9, 0)))
    assert (len(result.pairs), result.missed.tolist(), result.extra.tolist()) == (0, [0], [0])
    near, far = detections((1, 0.9, 13)), detections((1, 0.9, 14))  # IoU 27 / 53 = 0.51 and 26 / 54 = 0.48
    assert match_detections(detections(MUG), near).box_iou == pytest.approx([27 / 53])
    assert len(match_detections(detections(MUG), far).pairs) == 0


def test_matching_is_one_to_one_and_takes_the_best_overlap_first() -> None:
    reference = detections((1, 0.9, 0), (1, 0.8, 10))
    candidate = detections((1, 0.9, 9), (1, 0.8, 14))
    found = match_detections(reference, candidate)
    assert found.pairs.tolist() == [[1, 0]]  # at 9 it lies on both; 10 is nearer, and 14 is too far from 0
    assert found.missed.tolist() == [0]
    assert found.extra.tolist() == [1]


def test_a_confident_partner_comes_before_a_weak_one_that_fits_better() -> None:
    found = match_detections(detections(MUG), detections((1, 0.8, 4), (1, 0.1, 0)))
    assert found.pairs.tolist() == [[0, 0]]
    assert found.extra.tolist() == []


def test_mask_iou_is_that_of_full_size_masks() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-20, 60, (12, 2))
    xyxy = np.concatenate([boxes, boxes + rng.uniform(15, 70, (12, 2))], axis=1)
    patches = (rng.random((2, 12, 14, 14)) > 0.3).astype(np.float32)
    shifted = xyxy + rng.uniform(-3, 3, (12, 4))
    classes = np.arange(12)  # each its own, so that row pairs with row
    sides = [
        Detections(box, np.full(12, 0.9), classes, HW, mask) for box, mask in zip((xyxy, shifted), patches, strict=True)
    ]
    found = match_detections(*sides)
    assert len(found.pairs) >= 8
    whole = [side.masks() for side in sides]
    for (row, other), iou in zip(found.pairs, found.mask_iou, strict=True):
        a, b = whole[0][row], whole[1][other]
        assert iou == pytest.approx((a & b).sum() / max(1, (a | b).sum())), row
    assert found.mask_iou.min() < 0.8 < found.box_iou.mean()


def test_a_mask_that_is_drawn_otherwise_is_told() -> None:
    reference, candidate = detections(MUG), detections(MUG)
    candidate.mask[:, :14] = 0
    found = match_detections(reference, candidate)
    assert found.mask_iou == pytest.approx([0.5], abs=0.03)
    assert found.disagreement == pytest.approx((1 - found.mask_iou[0]) ** 2)
    assert found.describe(NAMES) == f"draws another mask of a mug (IoU {found.mask_iou[0]:.2f})"


def test_empty_masks_and_boxes_without_area_agree_with_themselves() -> None:
    found = detections(MUG)
    found.mask[:] = 0
    assert match_detections(found, found).mask_iou.tolist() == [1]
    flat = Detections(np.array([[3, 3, 3, 9]]), np.array([0.9]), np.array([1]), HW)
    assert match_detections(flat, flat).disagreement == 0


def test_without_masks_boxes_speak_for_them() -> None:
    meter = AgreementMeter()
    one = meter.add(detections(MUG, masks=False), detections((1, 0.9, 10), masks=False))
    assert meter.result().mask_iou is None
    assert one.disagreement == pytest.approx((1 - 30 / 50) ** 2)
    assert one.describe(NAMES) == "draws another box of a mug (IoU 0.60)"
    assert match_detections(detections(MUG), detections(MUG, masks=False)).mask_iou is None


def test_pictures_without_anything_agree() -> None:
    meter = AgreementMeter()
    assert meter.add(detections(), detections()).disagreement == 0
    result = meter.result()
    assert (result.expected, result.matched_share, result.box_iou, result.score_shift) == (0, 1, None, None)


def test_one_lost_object_weighs_more_than_many_slight_differences() -> None:
    reference = detections(*[(1, 0.9, 40 * place) for place in range(5)])
    shaky = detections(*[(1, 0.8, 40 * place + 2) for place in range(5)])
    lossy = detections(*[(1, 0.9, 40 * place) for place in range(4)])
    assert match_detections(reference, shaky).disagreement < match_detections(reference, lossy).disagreement


def test_box_iou_of_every_pair() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 60]], np.float32)
    assert box_iou(boxes, boxes[:2]) == pytest.approx(np.array([[1, 1 / 3], [1 / 3, 1], [0, 0]]))
    assert box_iou(boxes[:0], boxes).shape == (0, 3)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of the reference's picture, \(60, 200\) \(H, W\), got \(30, 40\)"):
        match_detections(detections(MUG), Detections.empty((30, 40), 28))
    with pytest.raises(ValueError, match=r"threshold must be from 0 to 1, got 1\.5"):
        AgreementMeter(1.5)
