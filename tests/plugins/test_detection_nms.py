"""DetectionNms: gold, function body, and the kernels as the Python plan and as the C++ launcher start them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.kernels import detection_nms
from edge_mrcnn.gpu.launches import Tensor
from tests import gold
from tests.plugins.executor import Executor, KernelError, Kernels, compile_kernels
from tests.plugins.faces import Array, run_kernels
from tests.training.op_cases import nms_attributes, nms_inputs, pad_rows, run_body

PIXELS, SCORE = 1e-3, 1e-5
NAN, INF = np.float32("nan"), np.float32("inf")


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compile_kernels(detection_nms.SOURCE, detection_nms.Args)


def by_kernels(kernels: Kernels, inputs: list[Array], attributes: dict[str, Any], seed: int = 0) -> list[Array]:
    return run_kernels(kernels, detection_nms, "DetectionNms", attributes, inputs, seed=seed)


def by_body(inputs: list[Array], attributes: dict[str, Any]) -> list[Array]:
    number, *rows = run_body("DetectionNms", inputs, attributes)
    return [number, *(pad_rows(result, attributes["detections_per_image"]) for result in rows)]


def same(found: list[Array], expected: Any) -> None:
    for result, want, tolerance in zip(found, expected, (0, PIXELS, SCORE, 0), strict=True):
        assert result.dtype == want.dtype
        np.testing.assert_allclose(result, want, atol=tolerance, rtol=0)


def check(kernels: Kernels, inputs: list[Array], attributes: dict[str, Any]) -> list[Array]:
    """Hold the kernels against gold and body; gives num, boxes, scores, labels."""
    found = by_kernels(kernels, inputs, attributes)
    same(found, gold.detection_nms(*inputs, attributes))
    same(found, by_body(inputs, attributes))
    return found


def check_many(kernels: Kernels, inputs: list[Array], attributes: dict[str, Any]) -> list[Array]:
    """Hold the kernels against the body alone, where gold takes long."""
    found = by_kernels(kernels, inputs, attributes)
    same(found, by_body(inputs, attributes))
    return found


# -------------------------------------------------------------------------------------------------- shapes and variants
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("class_agnostic", [0, 1])
@pytest.mark.parametrize("background", ["first", "last"])
def test_each_variant(kernels: Kernels, background: str, class_agnostic: int, dtype: str) -> None:
    inputs = nms_inputs(37, dtype=dtype, class_agnostic=bool(class_agnostic))
    attributes = nms_attributes(background=background, class_agnostic=class_agnostic)
    num, _, _, labels = check(kernels, inputs, attributes)
    assert (num > 5).all()
    assert (labels[0, : num[0]] == 0).any() == (background == "last")


@pytest.mark.parametrize("classes", [2, 3, 9, 10, 20])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_each_size(kernels: Kernels, count: int, classes: int) -> None:
    num, *_ = check(kernels, nms_inputs(count, classes, seed=count), nms_attributes())
    assert (num.sum() > 0) == (count > 0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_thousand_proposals_of_91_classes(kernels: Kernels, dtype: str) -> None:
    inputs = nms_inputs(1000, 91, dtype)
    num, *_ = check_many(kernels, inputs, nms_attributes(detections_per_image=100, score_threshold=0.2))
    assert (num == 100).all()


def test_a_thousand_proposals_of_one_class(kernels: Kernels) -> None:
    attributes = nms_attributes(detections_per_image=100, score_threshold=0.7, nms_threshold=0.3)
    num, *_ = check(kernels, nms_inputs(1000, 2), attributes)
    assert (num > 50).all()


@pytest.mark.parametrize("count", [0, 5])
def test_nothing_but_background_gives_no_detections(kernels: Kernels, count: int) -> None:
    inputs = nms_inputs(count, classes=1)
    found = by_kernels(kernels, inputs, nms_attributes())
    same(found, gold.detection_nms(*inputs, nms_attributes()))
    assert not any(result.any() for result in found)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_each_picture_has_its_own_content(kernels: Kernels, batch: int) -> None:
    pairs = [nms_inputs(20, seed=seed) for seed in (3, 4)]
    inputs = [np.concatenate(tensors) for tensors in zip(*pairs, strict=True)]
    inputs = [inputs[0][:batch], inputs[1][:batch], inputs[2][: 20 * batch], inputs[3][: 20 * batch]]
    inputs[0][:] = [(256, 320), (100, 90), (60, 300)][:batch]
    found = check(kernels, inputs, nms_attributes())
    assert (found[0] > 0).all()
    last = [inputs[0][-1:], inputs[1][-1:], inputs[2][-20:], inputs[3][-20:]]
    for result, alone in zip(found, by_kernels(kernels, last, nms_attributes()), strict=True):
        assert result[-1:].tobytes() == alone.tobytes()


# ----------------------------------------------------------------------------------------------------------- attributes
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
def test_each_attribute_is_honoured(kernels: Kernels, changes: dict[str, Any]) -> None:
    inputs = nms_inputs(37, seed=2)
    changed = check(kernels, inputs, nms_attributes(**{"detections_per_image": 80, **changes}))
    usual = gold.detection_nms(*inputs, nms_attributes(detections_per_image=80))
    assert usual[1].shape != changed[1].shape or not np.allclose(usual[1], changed[1])


@pytest.mark.parametrize("changes", [{"score_threshold": 1.0}, {"min_size": 1e6}], ids=str)
def test_thresholds_that_keep_nothing_give_zeros(kernels: Kernels, changes: dict[str, Any]) -> None:
    assert not any(result.any() for result in check(kernels, nms_inputs(37), nms_attributes(**changes)))


def test_a_score_of_exactly_the_threshold_goes(kernels: Kernels) -> None:
    inputs = nms_inputs(9, classes=2)
    inputs[2][:] = 3.0
    assert not check(kernels, inputs, nms_attributes(score_threshold=0.5))[0].any()
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert check(kernels, inputs, nms_attributes(score_threshold=below))[0].all()


def test_a_threshold_below_zero_takes_scores_of_zero(kernels: Kernels) -> None:
    inputs = nms_inputs(5, classes=3)
    inputs[2][:, 1] = -INF
    found = check(kernels, inputs, nms_attributes(score_threshold=-1.0, nms_threshold=1.0))
    assert found[0][0] == 10
    assert (found[2][0, 5:10] == 0).all()
    assert found[1][0, 9].any()


def test_an_iou_of_exactly_the_threshold_stays(kernels: Kernels) -> None:
    image_hw, boxes, logits, deltas = nms_inputs(2, classes=2)
    logits[:], deltas[:] = 0, 0
    boxes[:] = [[0, 0, 64, 64], [0, 0, 64, 32]]
    found = check(kernels, [image_hw, boxes, logits, deltas], nms_attributes(nms_threshold=0.5))
    np.testing.assert_array_equal(found[0], [2, 2])
    found = check(kernels, [image_hw, boxes, logits, deltas], nms_attributes(nms_threshold=0.49999))
    np.testing.assert_array_equal(found[0], [1, 1])


# ----------------------------------------------------------------------------------------------------------------- ties
def test_equal_scores_go_to_the_lower_proposal_and_class(kernels: Kernels) -> None:
    image_hw, boxes, logits, deltas = nms_inputs(12, classes=3)
    logits[:], deltas[:] = 0, 0
    boxes[:, :, :2] = np.arange(12).reshape(1, 12, 1) * 10
    boxes[:, :, 2:] = boxes[:, :, :2] + 8
    found = check(kernels, [image_hw, boxes, logits, deltas], nms_attributes(detections_per_image=7))
    np.testing.assert_array_equal(found[3][0], [1, 2, 1, 2, 1, 2, 1])
    np.testing.assert_array_equal(found[1][0, :, 0], [0, 0, 10, 10, 20, 20, 30])


def test_the_lower_of_two_equal_boxes_stays(kernels: Kernels) -> None:
    image_hw, boxes, logits, deltas = nms_inputs(40, classes=2)
    logits[:], deltas[:] = 0, 0
    boxes[:] = np.array([10, 10, 90, 90]) + np.arange(40).reshape(1, 40, 1) / 4
    found = check(kernels, [image_hw, boxes, logits, deltas], nms_attributes())
    np.testing.assert_array_equal(found[0], [1, 1])
    np.testing.assert_array_equal(found[1][0, 0], [10, 10, 90, 90])


@pytest.mark.parametrize("classes", [2, 30])
def test_saturated_scores_tie(kernels: Kernels, classes: int) -> None:
    inputs = nms_inputs(60, classes, seed=5)
    inputs[2][:] = np.where(np.arange(classes) == classes // 2, 200, -200)  # exactly 1, and 0
    num, _, scores, _ = check(kernels, inputs, nms_attributes())
    assert (scores[0, : num[0]] == 1).all()


def test_more_ties_than_shared_memory_holds(kernels: Kernels) -> None:
    # 29 classes keep 80 each, all with the same score: the best are told apart by their index alone
    inputs = nms_inputs(80, 30, seed=6)
    inputs[2][:] = 0
    inputs[1][:, :, :2] = np.arange(80).reshape(1, 80, 1) * 2
    inputs[1][:, :, 2:] = inputs[1][:, :, :2] + 1.5
    inputs[3][:] = 0
    attributes = nms_attributes(detections_per_image=100, score_threshold=0.01)
    num, *_, labels = check_many(kernels, inputs, attributes)
    np.testing.assert_array_equal(num, [100, 100])
    np.testing.assert_array_equal(labels[0], np.arange(100) % 29 + 1)


# ------------------------------------------------------------------------------------------------ numbers out of bounds
PADDING_BOXES = {
    "zeros": (0, 0, 0, 0),
    "no width": (9, 8, 9, 20),
    "upside down": (9, 20, 20, 8),
    "swapped both ways": (20, 20, 8, 8),  # its area is positive
    "nan": (NAN, 8, 20, 20),
    "all nan": (NAN, NAN, NAN, NAN),
    "infinite": (-INF, 8, INF, 20),
    "infinite corner": (0, 0, INF, INF),
}


@pytest.mark.parametrize("box", PADDING_BOXES.values(), ids=PADDING_BOXES.keys())
def test_padding_gives_no_detections(kernels: Kernels, box: tuple[float, ...]) -> None:
    inputs = nms_inputs(8, seed=4)
    inputs[1][:, 2:] = box
    inputs[2][:, 1] = 9
    inputs[3][:, 2:] = 3  # would blow up a box without area
    found = check(kernels, inputs, nms_attributes(min_size=0.0))
    assert (found[0] <= 2 * 4).all()
    assert all(np.isfinite(result).all() for result in found)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [2, 3], ids=["logits", "deltas"])
def test_poisoned_logits_and_deltas_are_no_candidates(
    kernels: Kernels, where: int, poison: np.float32, dtype: str
) -> None:
    inputs = nms_inputs(37, dtype=dtype, seed=6)
    inputs[where][np.random.default_rng(0).random(inputs[where].shape) < 0.1] = poison
    found = check(kernels, inputs, nms_attributes())
    assert all(np.isfinite(result).all() for result in found)
    assert (found[0] > 0).all()


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_nothing_but_poison_gives_zeros(kernels: Kernels, poison: np.float32) -> None:
    inputs = nms_inputs(9)
    inputs[2][:] = poison
    assert not any(result.any() for result in check(kernels, inputs, nms_attributes()))


def test_boxes_without_area_suppress_none(kernels: Kernels) -> None:
    inputs = nms_inputs(30, seed=7)
    inputs[0][:] = (30, 40)  # most boxes are clipped to nothing
    num, boxes, *_ = check(kernels, inputs, nms_attributes(min_size=0.0, detections_per_image=60))
    assert any(gold.is_padding(box) for box in boxes[0, : num[0]])


# ---------------------------------------------------------------------------------------------------------- large sizes
def spread(count: int, classes: int) -> list[Array]:
    """Small boxes on a large canvas, so that many are kept; scores far enough apart, or equal."""
    rng = np.random.default_rng(8)
    corner = rng.uniform(0, 2000, (1, count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 40, (1, count, 2))], axis=2).astype(np.float32)
    logits = np.zeros((count, classes), np.float32)
    logits[np.arange(count), rng.integers(1, classes, count)] = rng.permutation(count) / 512
    deltas = rng.normal(0, 1, (count, 4 * classes)).astype(np.float32)
    return [np.float32([[2048, 2048]]), boxes, logits, deltas]


@pytest.mark.parametrize(
    ("count", "classes", "most"), [(600, 12, 600), (1500, 2, 1500), (4000, 2, 100), (2500, 3, 2500)]
)
def test_more_than_threads_or_shared_memory_hold(kernels: Kernels, count: int, classes: int, most: int) -> None:
    changes = {"detections_per_image": most, "score_threshold": 0.01, "nms_threshold": 0.1}
    num, *_ = check_many(kernels, spread(count, classes), nms_attributes(**changes))
    assert num[0] > 0.3 * most


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_result_does_not_depend_on_the_order_of_threads(kernels: Kernels, seed: int) -> None:
    inputs = nms_inputs(100, 12)
    inputs[2][:] = np.round(inputs[2])
    reference = by_kernels(kernels, inputs, nms_attributes())
    for result, other in zip(by_kernels(kernels, inputs, nms_attributes(), seed), reference, strict=True):
        assert result.tobytes() == other.tobytes()


@pytest.mark.parametrize(("count", "classes", "most"), [(100, 12, 50), (2500, 2, 600)])
def test_no_two_threads_race(count: int, classes: int, most: int) -> None:
    racing = compile_kernels(detection_nms.SOURCE, detection_nms.Args, check="races")
    changes = {"detections_per_image": most, "score_threshold": 0.01}
    assert by_kernels(racing, spread(count, classes), nms_attributes(**changes))[0].all()


# ------------------------------------------------------------------------------------------------------------- refusals
def plan(attributes: dict[str, Any], classes: int = 5, deltas: int = 20, batch: int = 2) -> list[Any]:
    shapes = [(batch, 2), (batch, 9, 4), (9 * batch, classes), (9 * batch, deltas)]
    tensors = [Tensor(256, shape, "float32") for shape in shapes]
    return detection_nms.launches(attributes, tensors, [Tensor(256, (batch,), "int32")] * 4, 256)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"background": "middle"}, "first or last"),
        ({"class_agnostic": 2}, "0 or 1"),
        ({"class_agnostic": 1}, "needs 4 deltas"),
        ({"detections_per_image": 0}, "at least 1"),
    ],
    ids=str,
)
def test_what_the_kernels_cannot_do_is_refused(changes: dict[str, Any], words: str) -> None:
    assert len(plan(nms_attributes())) == 3
    with pytest.raises(PluginError, match=words):
        plan(nms_attributes(**changes))


def test_no_class_is_refused() -> None:
    with pytest.raises(PluginError, match="0 classes"):
        plan(nms_attributes(), classes=0, deltas=0)


def test_an_empty_batch_launches_nothing(kernels: Kernels) -> None:
    assert plan(nms_attributes(), batch=0) == []
    args = plan(nms_attributes())[0].args
    args.batch = 0
    with Executor(kernels) as gpu:
        assert gpu.launch_host(args, "float32") == []


@pytest.mark.parametrize("field", ["classes", "detections"])
def test_the_launcher_refuses_what_the_kernels_cannot_do(kernels: Kernels, field: str) -> None:
    args = plan(nms_attributes())[0].args
    setattr(args, field, 0)
    with Executor(kernels) as gpu, pytest.raises(KernelError, match="CUDA error 1"):
        gpu.launch_host(args, "float32")


def test_smaller_shapes_never_need_more_workspace() -> None:
    def size(batch: int, proposals: int) -> int:
        shapes = [(batch, 2), (batch, proposals, 4), (proposals * batch, 5), (proposals * batch, 20)]
        tensors = [Tensor(256, shape, "float32") for shape in shapes]
        return detection_nms.workspace_bytes(nms_attributes(detections_per_image=3000), tensors, [])

    sizes = [[size(batch, proposals) for proposals in (0, 1, 7, 8, 2048, 2049, 4096, 5000)] for batch in (1, 2)]
    assert (np.diff(sizes, axis=0) >= 0).all()
    assert (np.diff(sizes, axis=1) >= 0).all()
