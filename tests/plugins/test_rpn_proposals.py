"""RpnProposals: gold, function body, and the kernels as the Python plan and as the C++ launcher start them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.kernels import rpn_proposals
from edge_mrcnn.gpu.launches import Layout, Tensor
from tests import gold
from tests.plugins.executor import Executor, KernelError, Kernels, compile_kernels
from tests.plugins.faces import Array, run_kernels
from tests.training.op_cases import LEVELS, pad_rows, rpn_attributes, rpn_inputs, run_body

PIXELS = 1e-3
NAN, INF = np.float32("nan"), np.float32("inf")
VARIANTS: list[tuple[str, Layout]] = [("float32", "linear"), ("float16", "linear"), ("float16", "hwc8")]
VARIANT_NAMES = ["f32", "f16", "f16-hwc8"]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compile_kernels(rpn_proposals.SOURCE, rpn_proposals.Args)


def by_kernels(
    kernels: Kernels, inputs: list[Array], attributes: dict[str, Any], layout: Layout = "linear", seed: int = 0
) -> Array:
    return run_kernels(kernels, rpn_proposals, "RpnProposals", attributes, inputs, layout, seed)[0]


def by_body(inputs: list[Array], attributes: dict[str, Any]) -> Array:
    (found,) = run_body("RpnProposals", inputs, attributes)
    return pad_rows(found, attributes["post_nms_top_n"])


def by_gold(inputs: list[Array], attributes: dict[str, Any]) -> Array:
    levels = len(inputs) // 2
    return gold.rpn_proposals(inputs[0], inputs[1 : levels + 1], inputs[levels + 1 :], attributes)


def check(kernels: Kernels, inputs: list[Array], attributes: dict[str, Any], layout: Layout = "linear") -> Array:
    """Hold the kernels against gold and body; gives the proposals."""
    found = by_kernels(kernels, inputs, attributes, layout)
    np.testing.assert_allclose(found, by_gold(inputs, attributes), atol=PIXELS, rtol=0)
    np.testing.assert_allclose(found, by_body(inputs, attributes), atol=PIXELS, rtol=0)
    return found


def rounded(inputs: list[Array], step: float = 1 / 32) -> list[Array]:
    """Logits at least that far apart or equal, so that no order depends on the last bit of exp."""
    levels = len(inputs) // 2
    for logits in inputs[1 : levels + 1]:
        logits[:] = np.round(logits / step) * step
    return inputs


def many_anchors(step: float, levels: int = 1, canvas: tuple[int, int] = (256, 384)) -> list[Array]:
    """4608 anchors in the first level; a small step makes many ties."""
    return rounded(rpn_inputs(levels, seed=11, canvas=canvas), step)


# --------------------------------------------------------------------------------------------------- shapes and layouts
@pytest.mark.parametrize(("dtype", "layout"), VARIANTS, ids=VARIANT_NAMES)
@pytest.mark.parametrize("levels", LEVELS)
def test_each_number_of_levels(kernels: Kernels, levels: int, dtype: str, layout: Layout) -> None:
    found = check(kernels, rounded(rpn_inputs(levels, dtype, seed=levels)), rpn_attributes(levels), layout)
    assert found[0].any(axis=1).sum() > 5


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_each_picture_has_its_own_content(kernels: Kernels, batch: int) -> None:
    pairs = [rounded(rpn_inputs(3, seed=seed)) for seed in (5, 6)]
    inputs = [np.concatenate(tensors)[:batch].copy() for tensors in zip(*pairs, strict=True)]
    inputs[0][:] = [(96, 128), (50, 60), (80, 20)][:batch]
    found = check(kernels, inputs, rpn_attributes(3))
    assert (found.max(axis=(1, 2)) <= inputs[0].max(axis=1)).all()
    alone = by_kernels(kernels, [x[-1:] for x in inputs], rpn_attributes(3))
    assert found[-1:].tobytes() == alone.tobytes()


@pytest.mark.parametrize("layout", ["linear", "hwc8"])
@pytest.mark.parametrize("anchors", [1, 8, 15])
def test_each_number_of_anchors_a_cell(kernels: Kernels, anchors: int, layout: Layout) -> None:
    rng = np.random.default_rng(anchors)
    grids = [(5, 7), (3, 4)]
    logits = [rng.integers(-9, 9, (1, anchors, *grid)).astype(np.float16) for grid in grids]
    deltas = [rng.normal(0, 0.4, (1, 4 * anchors, *grid)).astype(np.float16) for grid in grids]
    corner = rng.uniform(-30, -5, (2 * anchors, 2))
    cells = np.concatenate([corner, -corner], axis=1).astype(np.float32)
    attributes = rpn_attributes(2, cell_anchors=cells.ravel().tolist())
    check(kernels, [np.float32([[40, 56]]), *logits, *deltas], attributes, layout)


@pytest.mark.parametrize("rule", ["grid", "fixed"])
def test_uneven_grids_follow_the_stride_rule(kernels: Kernels, rule: str) -> None:
    # 120 rows of pixels: 15, 8, 4 and 2 cells; 120 // 8 = 15 and not 16
    inputs = rounded(rpn_inputs(4, canvas=(120, 136)))
    found = check(kernels, inputs, rpn_attributes(4, stride_rule=rule))
    other = by_kernels(kernels, inputs, rpn_attributes(4, stride_rule="fixed" if rule == "grid" else "grid"))
    assert not np.allclose(found, other)


@pytest.mark.parametrize("count", [1, 37, 1000])
def test_each_number_of_proposals(kernels: Kernels, count: int) -> None:
    inputs = many_anchors(1 / 32, levels=2)
    attributes = rpn_attributes(2, pre_nms_top_n=count, post_nms_top_n=count, nms_threshold=0.5)
    found = by_kernels(kernels, inputs, attributes)
    np.testing.assert_allclose(found, by_body(inputs, attributes), atol=PIXELS, rtol=0)
    assert found[0].any(axis=1).sum() > 0.6 * count


# ----------------------------------------------------------------------------------------------------------- attributes
@pytest.mark.parametrize(
    "changes",
    [
        {"box_weights": [10.0, 10.0, 5.0, 5.0]},
        {"box_weights": [0.5, 0.6, 0.7, 0.8]},
        {"bbox_xform_clip": 0.1},
        {"pre_nms_top_n": 7},
        {"pre_nms_top_n": 1000, "post_nms_top_n": 1000},  # more than there are
        {"post_nms_top_n": 3},
        {"nms_threshold": 0.3},
        {"nms_threshold": 0.0},
        {"score_threshold": 0.95},
        {"min_size": 40.0},
    ],
    ids=str,
)
def test_each_attribute_is_honoured(kernels: Kernels, changes: dict[str, Any]) -> None:
    inputs = rounded(rpn_inputs(3, seed=7))
    changed = check(kernels, inputs, rpn_attributes(3, **changes))
    usual = by_gold(inputs, rpn_attributes(3))
    assert usual.shape != changed.shape or not np.allclose(usual, changed)


@pytest.mark.parametrize("changes", [{"score_threshold": 1.5}, {"min_size": 1e6}], ids=str)
def test_thresholds_that_keep_nothing_give_zeros(kernels: Kernels, changes: dict[str, Any]) -> None:
    assert not check(kernels, rpn_inputs(2), rpn_attributes(2, **changes)).any()


def test_a_score_of_exactly_the_threshold_stays(kernels: Kernels) -> None:
    inputs = rpn_inputs(1)
    inputs[1][:], inputs[2][:] = -0.125, 0
    inputs[1][:, :, 4:8, 5:10] = 0  # a probability of 0.5
    found = check(kernels, inputs, rpn_attributes(1, score_threshold=0.5, nms_threshold=1.0, pre_nms_top_n=100))
    assert (found.any(axis=2).sum(axis=1) == [50, 50]).all()
    found = check(kernels, inputs, rpn_attributes(1, score_threshold=0.50001, nms_threshold=1.0))
    assert not found.any()


def test_a_side_of_exactly_the_least_size_stays(kernels: Kernels) -> None:
    inputs = rpn_inputs(1)
    inputs[2][:] = 0
    narrow = min(x2 - x1 for x1, _, x2, _ in np.reshape(rpn_attributes(1)["cell_anchors"], (-1, 4)))
    changes = {"nms_threshold": 1.0, "pre_nms_top_n": 576, "post_nms_top_n": 576}
    exactly = check(kernels, inputs, rpn_attributes(1, min_size=narrow, **changes))
    more = float(np.nextafter(np.float32(narrow), np.float32(99)))
    above = check(kernels, inputs, rpn_attributes(1, min_size=more, **changes))
    assert exactly[0].any(axis=1).sum() > above[0].any(axis=1).sum() > 0


# ----------------------------------------------------------------------------------------------------------------- ties
def test_equal_logits_go_to_the_lower_level_and_cell(kernels: Kernels) -> None:
    inputs = rpn_inputs(2)
    for x in inputs[1:]:
        x[:] = 0
    found = check(kernels, inputs, rpn_attributes(2, nms_threshold=1.0, pre_nms_top_n=4, post_nms_top_n=6))
    # the first cell's three anchors, then the second cell's first, then level 1
    np.testing.assert_array_equal(found[0, :5, 2], [23, 16, 11, 8 + 23, 45])


@pytest.mark.parametrize("count", [1, 1000, 2048, 2500, 4096])
def test_all_logits_equal_over_many_cells(kernels: Kernels, count: int) -> None:
    # all keys agree in all bits but those of the index; more than 2048 do not fit shared memory
    inputs = many_anchors(1.0)
    inputs[1][:], inputs[2][:] = -3, 0
    attributes = rpn_attributes(1, pre_nms_top_n=count, post_nms_top_n=count, nms_threshold=1.0, min_size=0.0)
    found = by_kernels(kernels, inputs, attributes)
    np.testing.assert_array_equal(found, by_body(inputs, attributes))
    inputs[1].reshape(2, -1)[:, ::40] = 5  # and some that are better
    found = by_kernels(kernels, inputs, attributes)
    np.testing.assert_array_equal(found, by_body(inputs, attributes))


@pytest.mark.parametrize("step", [1.0, 0.25])
def test_many_ties_at_the_border(kernels: Kernels, step: float) -> None:
    inputs = many_anchors(step)
    attributes = rpn_attributes(1, pre_nms_top_n=1500, post_nms_top_n=300)
    found = by_kernels(kernels, inputs, attributes)
    np.testing.assert_allclose(found, by_body(inputs, attributes), atol=PIXELS, rtol=0)


def test_logits_that_differ_in_their_last_bits(kernels: Kernels) -> None:
    inputs = many_anchors(1.0)
    order = np.random.default_rng(4).permutation(inputs[1].size)
    inputs[1][:] = (1 + order.reshape(inputs[1].shape) * np.float32(2**-23)).astype(np.float32)
    inputs[2][:] = 0
    attributes = rpn_attributes(1, pre_nms_top_n=50, post_nms_top_n=50, nms_threshold=1.0, min_size=0.0)
    found = by_kernels(kernels, inputs, attributes)
    chosen = np.argsort(-inputs[1][0].transpose(1, 2, 0).ravel(), kind="stable")[:50]
    cells = np.reshape(attributes["cell_anchors"], (3, 4))[chosen % 3]
    centres = np.stack([chosen // 3 % 48 * 8, chosen // 3 // 48 * 8] * 2, axis=1)
    expected = np.clip(cells + centres, 0, (384, 256, 384, 256))
    # probabilities tie, so that suppression ranks by logit: the chosen ones in order
    np.testing.assert_array_equal(found[0], expected)


def test_minus_zero_equals_zero(kernels: Kernels) -> None:
    inputs = rpn_inputs(1)
    inputs[1][:] = 0
    attributes = rpn_attributes(1, nms_threshold=1.0)
    expected = check(kernels, inputs, attributes)
    inputs[1].reshape(-1)[::3] = -0.0
    np.testing.assert_array_equal(check(kernels, inputs, attributes), expected)


@pytest.mark.parametrize("low", [20, 30])
def test_ranking_of_levels_is_by_probability(kernels: Kernels, low: int) -> None:
    inputs = rpn_inputs(2)
    inputs[1][:], inputs[2][:] = low, 50 - low  # both have a probability of exactly 1 in float32
    found = check(kernels, inputs, rpn_attributes(2, nms_threshold=1.0, pre_nms_top_n=3))
    inputs[1][:], inputs[2][:] = 50 - low, low
    assert (
        found.tobytes() == by_kernels(kernels, inputs, rpn_attributes(2, nms_threshold=1.0, pre_nms_top_n=3)).tobytes()
    )


def test_five_levels_of_ties_are_merged_in_order(kernels: Kernels) -> None:
    inputs = rounded(rpn_inputs(5, seed=8), step=1.0)
    check(kernels, inputs, rpn_attributes(5, nms_threshold=0.9, post_nms_top_n=200))


# ------------------------------------------------------------------------------------------------ numbers out of bounds
@pytest.mark.parametrize(("dtype", "layout"), VARIANTS, ids=VARIANT_NAMES)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_poisoned_deltas_and_logits_are_no_candidates(
    kernels: Kernels, poison: np.float32, dtype: str, layout: Layout
) -> None:
    inputs = rounded(rpn_inputs(3, dtype, seed=3))
    rng = np.random.default_rng(0)
    for x in inputs[1:]:
        x[rng.random(x.shape) < 0.1] = poison
    found = check(kernels, inputs, rpn_attributes(3), layout)
    assert np.isfinite(found).all()
    assert found[0].any()


def test_finite_deltas_whose_boxes_are_not_finite_are_no_candidates(kernels: Kernels) -> None:
    inputs = rounded(rpn_inputs(1, seed=3))
    inputs[2][:, :8] = np.where(inputs[2][:, :8] > 0.3, np.float32(3e38), inputs[2][:, :8])
    with np.errstate(over="ignore", invalid="ignore"):
        found = check(kernels, inputs, rpn_attributes(1, min_size=0.0))
    assert found[0].any()


@pytest.mark.parametrize("poison", [NAN, -INF])
def test_no_candidate_at_all_gives_zeros(kernels: Kernels, poison: np.float32) -> None:
    inputs = rpn_inputs(2)
    for x in inputs[1:3]:
        x[:] = poison
    assert not check(kernels, inputs, rpn_attributes(2, min_size=0.0)).any()


def test_fewer_candidates_than_wanted(kernels: Kernels) -> None:
    inputs = rounded(rpn_inputs(2, seed=9))
    inputs[1][inputs[1] < 3] = -INF  # some of level 0 are left, none of level 1
    inputs[2][:] = NAN
    found = check(kernels, inputs, rpn_attributes(2, nms_threshold=1.0))
    assert 0 < found[0].any(axis=1).sum() < 50


def test_boxes_without_area_suppress_none(kernels: Kernels) -> None:
    inputs = rounded(rpn_inputs(2, seed=10))
    inputs[0][:] = (20, 24)  # most anchors are clipped to nothing
    found = check(kernels, inputs, rpn_attributes(2, min_size=0.0, post_nms_top_n=100))
    assert any(gold.is_padding(box) for box in found[0])


@pytest.mark.parametrize("logit", [-100, -88, 88, 1000])
def test_logits_beyond_the_range_of_exp(kernels: Kernels, logit: int) -> None:
    inputs = rpn_inputs(2, seed=2)
    inputs[1][:] = logit
    inputs[2][:] = rounded(inputs[2:3] + inputs[2:3])[0]
    check(kernels, inputs, rpn_attributes(2))


# ---------------------------------------------------------------------------------------------------------- large sizes
@pytest.mark.parametrize(("post", "least"), [(50, 50), (4200, 1500)])
def test_more_candidates_than_shared_memory_holds(kernels: Kernels, post: int, least: int) -> None:
    inputs = many_anchors(1 / 32, levels=2, canvas=(256, 448))
    attributes = rpn_attributes(2, pre_nms_top_n=5000, post_nms_top_n=post, nms_threshold=0.6)
    found = by_kernels(kernels, inputs, attributes)
    np.testing.assert_allclose(found, by_body(inputs, attributes), atol=PIXELS, rtol=0)
    assert found[0].any(axis=1).sum() >= least


def test_a_c4_has_fifteen_anchors_a_cell_and_six_thousand_candidates_on_one_level(kernels: Kernels) -> None:
    rng = np.random.default_rng(3)
    grid = (20, 22)
    logits = rng.permutation(15 * 20 * 22).reshape(1, 15, *grid).astype(np.float32) / 512 - 6
    deltas = rng.normal(0, 0.3, (1, 60, *grid)).astype(np.float32)
    sides = np.array([(s * r**-0.5, s * r**0.5) for r in (0.5, 1.0, 2.0) for s in (32, 64, 128, 256, 512)], np.float32)
    cells = np.concatenate([-sides, sides], axis=1) / 2
    changes = {"strides": [16], "pre_nms_top_n": 6000, "post_nms_top_n": 300, "nms_threshold": 0.7, "min_size": 1e-3}
    attributes = rpn_attributes(1, cell_anchors=cells.ravel().tolist(), **changes)
    inputs = [np.float32([[320, 352]]), logits, deltas]
    found = by_kernels(kernels, inputs, attributes)
    np.testing.assert_allclose(found, by_body(inputs, attributes), atol=PIXELS, rtol=0)
    assert found[0].any(axis=1).sum() > 100


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_result_does_not_depend_on_the_order_of_threads(kernels: Kernels, seed: int) -> None:
    inputs = many_anchors(1 / 4, levels=2)
    attributes = rpn_attributes(2, pre_nms_top_n=200, post_nms_top_n=100)
    reference = by_kernels(kernels, inputs, attributes)
    assert reference.tobytes() == by_kernels(kernels, inputs, attributes, seed=seed).tobytes()


@pytest.mark.parametrize("layout", ["linear", "hwc8"])
def test_no_two_threads_race(layout: Layout) -> None:
    racing = compile_kernels(rpn_proposals.SOURCE, rpn_proposals.Args, check="races")
    inputs = rpn_inputs(5, "float16", canvas=(160, 256))
    attributes = rpn_attributes(5, pre_nms_top_n=300, post_nms_top_n=200)
    assert by_kernels(racing, inputs, attributes, layout).any()
    by_kernels(racing, many_anchors(0.25), rpn_attributes(1, pre_nms_top_n=2500, post_nms_top_n=500))


# ------------------------------------------------------------------------------------------------------------- refusals
def plan(attributes: dict[str, Any], anchors: int = 3, batch: int = 2) -> list[Any]:
    grids = [(12, 16), (6, 8)]
    tensors = [Tensor(256, (batch, 2), "float32")]
    tensors += [Tensor(256, (batch, anchors, *grid), "float32") for grid in grids]
    tensors += [Tensor(256, (batch, 4 * anchors, *grid), "float32") for grid in grids]
    out = Tensor(256, (batch, attributes["post_nms_top_n"], 4), "float32")
    return rpn_proposals.launches(attributes, tensors, [out], 256)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stride_rule": "guess"}, "grid or fixed"),
        ({"cell_anchors": [0.0] * 20}, "takes 24"),
        ({"strides": [8]}, "2 strides"),
        ({"pre_nms_top_n": 0}, "pre_nms_top_n must be at least 1"),
        ({"post_nms_top_n": 0}, "post_nms_top_n must be at least 1"),
    ],
    ids=str,
)
def test_what_the_kernels_cannot_do_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        plan(rpn_attributes(2, **changes))


def test_more_cell_anchors_than_the_parameter_holds_are_refused() -> None:
    assert len(plan(rpn_attributes(2, cell_anchors=[0.0] * 512), anchors=64)) == 5
    with pytest.raises(PluginError, match="takes 128"):
        plan(rpn_attributes(2, cell_anchors=[0.0] * 520), anchors=65)


def test_maps_that_do_not_fit_each_other_are_refused() -> None:
    shapes = [(1, 2), (1, 3, 12, 16), (1, 3, 6, 8), (1, 12, 12, 16), (1, 12, 6, 8)]
    for at, wrong in ((2, (1, 4, 6, 8)), (3, (1, 3, 12, 16)), (4, (1, 12, 6, 9))):
        tensors = [Tensor(256, wrong if i == at else shape, "float32") for i, shape in enumerate(shapes)]
        with pytest.raises(PluginError, match="on another"):
            rpn_proposals.workspace_bytes(rpn_attributes(2), tensors, [])


def test_an_empty_batch_launches_nothing(kernels: Kernels) -> None:
    assert plan(rpn_attributes(2), batch=0) == []
    args = plan(rpn_attributes(2))[0].args
    args.batch = 0
    with Executor(kernels) as gpu:
        assert gpu.launch_host(args, "float32") == []


@pytest.mark.parametrize(
    ("field", "value"), [("levels", 0), ("levels", 6), ("pre_nms_top_n", 0), ("post_nms_top_n", 0), ("channels", 65)]
)
def test_the_launcher_refuses_what_the_kernels_cannot_do(kernels: Kernels, field: str, value: int) -> None:
    args = plan(rpn_attributes(2))[0].args
    if field == "channels":
        for level in range(2):
            args.objectness[level].channels, args.deltas[level].channels = value, 4 * value
    else:
        setattr(args, field, value)
    with Executor(kernels) as gpu, pytest.raises(KernelError, match="CUDA error 1"):
        gpu.launch_host(args, "float32")


@pytest.mark.parametrize("field", ["channels", "height", "width"])
def test_the_launcher_refuses_maps_that_do_not_fit(kernels: Kernels, field: str) -> None:
    args = plan(rpn_attributes(2))[0].args
    setattr(args.deltas[1], field, 5)
    with Executor(kernels) as gpu, pytest.raises(KernelError, match="CUDA error 1"):
        gpu.launch_host(args, "float16")


def test_smaller_shapes_never_need_more_workspace() -> None:
    def size(batch: int, cells: int) -> int:
        shapes = [(batch, 2), (batch, 3, cells, cells), (batch, 12, cells, cells)]
        tensors = [Tensor(256, shape, "float16") for shape in shapes]
        return rpn_proposals.workspace_bytes(rpn_attributes(1, pre_nms_top_n=3000), tensors, [])

    sizes = [[size(batch, cells) for cells in (1, 20, 26, 27, 32, 40)] for batch in (1, 2)]
    assert (np.diff(sizes, axis=0) >= 0).all()
    assert (np.diff(sizes, axis=1) >= 0).all()
