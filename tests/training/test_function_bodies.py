"""Each function body alone in ONNX Runtime against its NumPy gold function; and spoilt bodies, which must fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_mrcnn.compiler.function_bodies import make_function_body
from edge_mrcnn.errors import PluginError
from tests import gold
from tests.training.op_cases import (
    LEVELS,
    Array,
    Mutation,
    feature_maps,
    nms_attributes,
    nms_inputs,
    pad_rows,
    random_rois,
    roi_attributes,
    rpn_attributes,
    rpn_inputs,
    run_body,
)

PIXELS = 1e-3
NAN, INF = np.float32("nan"), np.float32("inf")


def check_proposals(inputs: list[Array], attributes: dict[str, Any], mutate: Mutation | None = None) -> Array:
    """Hold the body of `RpnProposals` against gold; gives the proposals."""
    levels = len(inputs) // 2
    expected = gold.rpn_proposals(inputs[0], inputs[1 : levels + 1], inputs[levels + 1 :], attributes)
    (found,) = run_body("RpnProposals", inputs, attributes, mutate)
    found = pad_rows(found, attributes["post_nms_top_n"])
    np.testing.assert_allclose(found, expected, atol=PIXELS, rtol=0)
    return found


def check_pooled(inputs: list[Array], attributes: dict[str, Any], mutate: Mutation | None = None) -> Array:
    """Hold the body of `PyramidRoiAlign` against gold; gives the patches."""
    expected = gold.pyramid_roi_align(inputs[0], inputs[1:], attributes)
    (found,) = run_body("PyramidRoiAlign", inputs, attributes, mutate)
    assert found.dtype == inputs[1].dtype
    tolerance = 1e-5 if found.dtype == np.float32 else 2e-3
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=tolerance, rtol=0)
    return found


def check_detections(inputs: list[Array], attributes: dict[str, Any], mutate: Mutation | None = None) -> list[Array]:
    """Hold the body of `DetectionNms` against gold; gives num, boxes, scores, labels."""
    expected = gold.detection_nms(*inputs, attributes)
    found = run_body("DetectionNms", inputs, attributes, mutate)
    rows = max(1, int(found[0].max()))
    assert all(result.shape[1] == rows for result in found[1:])
    found[1:] = [pad_rows(result, attributes["detections_per_image"]) for result in found[1:]]
    for result, want, tolerance in zip(found, expected, (0, PIXELS, 1e-5, 0), strict=True):
        assert result.dtype == want.dtype
        np.testing.assert_allclose(result, want, atol=tolerance, rtol=0)
    return found


# ------------------------------------------------------------------------------------------------------- RpnProposals
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("levels", LEVELS)
def test_proposals_of_each_number_of_levels(levels: int, dtype: str) -> None:
    found = check_proposals(rpn_inputs(levels, dtype, seed=levels), rpn_attributes(levels))
    assert (found[0].any(axis=1)).sum() > 5


@pytest.mark.parametrize(
    "changes",
    [
        {"stride_rule": "fixed"},
        {"box_weights": [10.0, 10.0, 5.0, 5.0]},
        {"box_weights": [0.5, 0.6, 0.7, 0.8]},
        {"bbox_xform_clip": 0.1},
        {"pre_nms_top_n": 7},
        {"pre_nms_top_n": 1000, "post_nms_top_n": 1000},  # more than there are
        {"post_nms_top_n": 3},
        {"nms_threshold": 0.3},
        {"score_threshold": 0.95},
        {"score_threshold": 0.99999},
        {"min_size": 40.0},
        {"min_size": 0.0},
    ],
    ids=str,
)
def test_proposals_honour_each_attribute(changes: dict[str, Any]) -> None:
    inputs = rpn_inputs(3, seed=7)
    usual = check_proposals(inputs, rpn_attributes(3))
    changed = check_proposals(inputs, rpn_attributes(3, **changes))
    if changes not in ({"stride_rule": "fixed"}, {"min_size": 0.0}):  # the grids are even; no box is that small
        assert usual.shape != changed.shape or not np.allclose(usual, changed)


@pytest.mark.parametrize("rule", ["grid", "fixed"])
def test_uneven_grids_follow_the_stride_rule(rule: str) -> None:
    # 120 rows of pixels: 15, 8, 4 and 2 cells; 120 // 8 = 15 and not 16
    inputs = rpn_inputs(4, canvas=(120, 128))
    assert inputs[2].shape[2] == 8
    found = check_proposals(inputs, rpn_attributes(4, stride_rule=rule))
    other = check_proposals(inputs, rpn_attributes(4, stride_rule="fixed" if rule == "grid" else "grid"))
    assert not np.allclose(found, other)


def test_equal_logits_go_to_the_lower_level_and_cell() -> None:
    inputs = rpn_inputs(2)
    for x in inputs[1:]:
        x[:] = 0
    found = check_proposals(inputs, rpn_attributes(2, nms_threshold=1.0, pre_nms_top_n=4, post_nms_top_n=6))
    # the first cell's three anchors, then the second cell's first, then level 1
    np.testing.assert_array_equal(found[0, :5, 2], [23, 16, 11, 8 + 23, 45])


def test_ranking_is_by_probability_and_not_by_logit() -> None:
    inputs = rpn_inputs(2)
    inputs[1][:], inputs[2][:] = 20, 30  # both have a probability of exactly 1 in float32
    found = check_proposals(inputs, rpn_attributes(2, nms_threshold=1.0, pre_nms_top_n=3))
    inputs[1][:], inputs[2][:] = 30, 20
    np.testing.assert_array_equal(found, check_proposals(inputs, rpn_attributes(2, nms_threshold=1.0, pre_nms_top_n=3)))


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_poisoned_deltas_and_logits_are_no_candidates(poison: np.float32) -> None:
    inputs = rpn_inputs(3, seed=3)
    rng = np.random.default_rng(0)
    for x in inputs[1:]:
        x[rng.random(x.shape) < 0.1] = poison
    found = check_proposals(inputs, rpn_attributes(3))
    assert np.isfinite(found).all()
    assert found[0].any()


def test_nothing_but_nan_gives_one_row_of_padding() -> None:
    inputs = rpn_inputs(2)
    for x in inputs[1:]:
        x[:] = NAN
    attributes = rpn_attributes(2, score_threshold=0.0, min_size=0.0)
    (found,) = run_body("RpnProposals", inputs, attributes)
    np.testing.assert_array_equal(found, np.zeros((2, 1, 4)))


def test_rows_follow_the_fullest_picture() -> None:
    inputs = rpn_inputs(1)
    inputs[0][1] = (40, 40)  # fewer boxes reach into the second picture's content
    (found,) = run_body("RpnProposals", inputs, rpn_attributes(1, min_size=8.0, nms_threshold=0.2))
    filled = found.any(axis=2).sum(axis=1)
    assert filled[1] < filled[0] == found.shape[1] < 50


# ---------------------------------------------------------------------------------------------------- PyramidRoiAlign
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("levels", LEVELS)
def test_pooling_of_each_number_of_levels(levels: int, dtype: str) -> None:
    rois = random_rois(18, seed=levels)
    found = check_pooled([rois, *feature_maps(levels, dtype)], roi_attributes(levels, output_size=3))
    assert found.any(axis=(1, 2, 3)).sum() > 25


@pytest.mark.parametrize("count", [0, 1, 37])
def test_pooling_of_each_number_of_rois(count: int) -> None:
    found = check_pooled([random_rois(count), *feature_maps(2)], roi_attributes(2, output_size=2))
    assert found.shape == (2 * count, 3, 2, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"output_size": 5},
        {"sampling_ratio": 0},
        {"sampling_ratio": 1},
        {"sampling_ratio": 3},
        {"aligned": 1},
        {"aligned": 1, "sampling_ratio": 0},
        {"canonical_scale": 60.0},
        {"canonical_level": 3},
        {"canonical_level": 5, "canonical_scale": 100.0},
        {"level_eps": 0.6},
        {"strides": [8, 16, 32]},
    ],
    ids=str,
)
def test_pooling_honours_each_attribute(changes: dict[str, Any]) -> None:
    inputs = [random_rois(12, seed=5), *feature_maps(3)]
    usual = check_pooled(inputs, roi_attributes(3, output_size=3))
    changed = check_pooled(inputs, roi_attributes(3, **{"output_size": 3, **changes}))
    assert usual.shape != changed.shape or not np.allclose(usual, changed)


@pytest.mark.parametrize(
    ("side", "level"), [(111.9, 0), (112, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (900, 3)]
)
def test_boxes_at_the_border_of_two_levels(side: float, level: int) -> None:
    maps = [np.full((2, 1, 1024 >> (index + 2), 1024 >> (index + 2)), index, np.float32) for index in range(4)]
    rois = np.array([[[16, 16, 16 + side, 16 + side]]] * 2, np.float32)
    found = check_pooled([rois, *maps], roi_attributes(4, output_size=1))
    assert found[0, 0, 0, 0] == level


PADDING_BOXES = {
    "zeros": (0, 0, 0, 0),
    "no width": (9, 8, 9, 20),
    "no height": (9, 8, 20, 8),
    "upside down": (9, 20, 20, 8),
    "swapped both ways": (20, 20, 8, 8),  # its area is positive
    "nan": (NAN, 8, 20, 20),
    "all nan": (NAN, NAN, NAN, NAN),
    "infinite": (-INF, 8, INF, 20),
    "infinite corner": (0, 0, INF, INF),
}


@pytest.mark.parametrize("levels", [1, 4])
@pytest.mark.parametrize("box", PADDING_BOXES.values(), ids=PADDING_BOXES.keys())
def test_padding_pools_to_zeros(box: tuple[float, ...], levels: int) -> None:
    rois = random_rois(3)
    rois[0, 1] = box
    found = check_pooled([rois, *feature_maps(levels)], roi_attributes(levels, output_size=2))
    assert not found[1].any()
    assert found[0].any()
    assert found[2].any()


def test_nothing_but_padding_pools_to_zeros() -> None:
    found = check_pooled([np.zeros((2, 3, 4), np.float32), *feature_maps(2)], roi_attributes(2, output_size=2))
    assert not found.any()


# ------------------------------------------------------------------------------------------------------- DetectionNms
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("class_agnostic", [0, 1])
@pytest.mark.parametrize("background", ["first", "last"])
def test_detections_of_each_variant(background: str, class_agnostic: int, dtype: str) -> None:
    inputs = nms_inputs(37, dtype=dtype, class_agnostic=bool(class_agnostic))
    num, _, _, labels = check_detections(inputs, nms_attributes(background=background, class_agnostic=class_agnostic))
    assert (num > 5).all()
    assert (labels[0, : num[0]] == 0).any() == (background == "last")


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_detections_of_each_size(count: int, classes: int) -> None:
    num, *_ = check_detections(nms_inputs(count, classes, seed=count), nms_attributes())
    assert (num.sum() > 0) == (count > 0)


def test_detections_of_a_thousand_proposals() -> None:
    num, *_ = check_detections(
        nms_inputs(1000, 3), nms_attributes(detections_per_image=100, score_threshold=0.7, nms_threshold=0.3)
    )
    assert (num > 50).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"box_weights": [1.0, 1.0, 1.0, 1.0]},
        {"bbox_xform_clip": 0.05},
        {"score_threshold": 0.5},
        {"score_threshold": 0.0},
        {"nms_threshold": 0.05},
        {"min_size": 40.0},
        {"detections_per_image": 4},
        {"detections_per_image": 1000},  # more than there are
    ],
    ids=str,
)
def test_detections_honour_each_attribute(changes: dict[str, Any]) -> None:
    inputs = nms_inputs(37, seed=2)
    usual = check_detections(inputs, nms_attributes(detections_per_image=80))
    changed = check_detections(inputs, nms_attributes(**{"detections_per_image": 80, **changes}))
    assert usual[1].shape != changed[1].shape or not np.allclose(usual[1], changed[1])


def test_equal_scores_go_to_the_lower_proposal_and_class() -> None:
    image_hw, boxes, logits, deltas = nms_inputs(12, classes=3)
    logits[:], deltas[:] = 0, 0
    boxes[:, :, :2] = np.arange(12).reshape(1, 12, 1) * 10
    boxes[:, :, 2:] = boxes[:, :, :2] + 8
    found = check_detections([image_hw, boxes, logits, deltas], nms_attributes(detections_per_image=7))
    np.testing.assert_array_equal(found[3][0], [1, 2, 1, 2, 1, 2, 1])
    np.testing.assert_array_equal(found[1][0, :, 0], [0, 0, 10, 10, 20, 20, 30])


def test_the_lower_of_two_equal_boxes_stays() -> None:
    image_hw, boxes, logits, deltas = nms_inputs(6, classes=2)
    logits[:], deltas[:] = 0, 0
    boxes[:] = np.array([10, 10, 90, 90]) + np.arange(6).reshape(1, 6, 1)
    found = check_detections([image_hw, boxes, logits, deltas], nms_attributes())
    np.testing.assert_array_equal(found[0], [1, 1])
    np.testing.assert_array_equal(found[1][0, 0], [10, 10, 90, 90])


@pytest.mark.parametrize("box", PADDING_BOXES.values(), ids=PADDING_BOXES.keys())
def test_padding_gives_no_detections(box: tuple[float, ...]) -> None:
    image_hw, boxes, logits, deltas = nms_inputs(8, seed=4)
    boxes[:, 2:] = box
    logits[:, 1] = 9
    deltas[:, 2:] = 3  # would blow up a box without area
    found = check_detections([image_hw, boxes, logits, deltas], nms_attributes(min_size=0.0))
    assert (found[0] <= 2 * 4).all()
    assert all(np.isfinite(result).all() for result in found)


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [2, 3], ids=["logits", "deltas"])
def test_poisoned_logits_and_deltas_are_no_candidates(where: int, poison: np.float32) -> None:
    inputs = nms_inputs(37, seed=6)
    rng = np.random.default_rng(0)
    inputs[where][rng.random(inputs[where].shape) < 0.1] = poison
    found = check_detections(inputs, nms_attributes())
    assert all(np.isfinite(result).all() for result in found)
    assert (found[0] > 0).all()


# ---------------------------------------------------------------------------------------------------------- attributes
@pytest.mark.parametrize(
    ("op", "attributes", "count", "name"),
    [
        ("RpnProposals", rpn_attributes(2, stride_rule="guess"), 5, "stride_rule"),
        ("PyramidRoiAlign", roi_attributes(2, aligned=2), 3, "aligned"),
        ("DetectionNms", nms_attributes(background="none"), 4, "background"),
        ("DetectionNms", nms_attributes(class_agnostic=2), 4, "class_agnostic"),
    ],
)
def test_unknown_values_are_refused(op: str, attributes: dict[str, Any], count: int, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make_function_body(op, attributes, count)


def test_missing_attributes_are_refused() -> None:
    attributes = nms_attributes()
    del attributes["min_size"]
    with pytest.raises(PluginError, match="min_size"):
        make_function_body("DetectionNms", attributes, 4)
