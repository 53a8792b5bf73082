"""PyramidRoiAlign: its kernels, as the plan and as the launcher start them, against gold and the function body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_mrcnn.gpu.kernels import pyramid_roi_align as plan
from edge_mrcnn.gpu.launches import Layout, Tensor
from tests import gold
from tests.plugins import roi_align_by_matrices as matrices
from tests.plugins.executor import Executor, KernelError, Kernels, Launched, compile_kernels
from tests.training.op_cases import LEVELS, feature_maps, random_rois, roi_attributes, run_body

Array = npt.NDArray[Any]
Faces = tuple[str, Layout, Layout]
"""Type of the features, their layout, the output's."""

FACES: list[Faces] = [
    ("float32", "linear", "linear"),
    ("float16", "linear", "linear"),
    ("float16", "linear", "hwc8"),
    ("float16", "hwc8", "linear"),
    ("float16", "hwc8", "hwc8"),
]
NAN, INF = np.nan, np.inf

every_face = pytest.mark.parametrize("face", FACES, ids="-".join)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compile_kernels(plan.SOURCE, plan.Args)


def run(
    kernels: Kernels, rois: Array, maps: Sequence[Array], attributes: dict[str, Any], face: Faces, seed: int = 0
) -> Array:
    """Pooled patches. Plan and launcher must launch the same and give the same bits, also in padded channels."""
    dtype, layout, pooled_layout = face
    size, channels = attributes["output_size"], maps[0].shape[1]
    shape = (rois.shape[0] * rois.shape[1], channels, size, size)
    with Executor(kernels, seed) as gpu:
        inputs = [gpu.array(rois).tensor, *(gpu.array(m.astype(dtype), layout).tensor for m in maps)]
        results, stored = [], []
        for by_plan in (True, False):
            pooled = gpu.empty(shape, dtype, pooled_layout)
            assert plan.workspace_bytes(attributes, inputs, [pooled.tensor]) == 0
            launches = plan.launches(attributes, inputs, [pooled.tensor], 0)
            if by_plan:
                gpu.run(launches)
            elif launches:
                assert gpu.workspace_bytes(launches[0].args) == 0
                assert gpu.launch_host(launches[0].args, dtype) == [Launched.of(launch) for launch in launches]
            padded = -(-channels // 8) * 8 if pooled_layout == "hwc8" else channels
            stored.append(gpu.read(pooled.address, shape[0] * size * size * padded * np.dtype(dtype).itemsize))
            results.append(pooled.read())
    assert stored[0] == stored[1]
    if pooled_layout == "hwc8":
        rows = np.frombuffer(stored[0], dtype).reshape(shape[0], size, size, padded)
        assert not rows[..., channels:].any()
    return results[0]


def assert_equal(found: Array, expected: Array) -> None:
    """Within 1e-5 in float32, and one unit in the last place more in float16."""
    rounding = 2.0**-10 if found.dtype == np.float16 else 0
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=1e-5, rtol=rounding)


def check(
    kernels: Kernels, rois: Array, maps: Sequence[Array], attributes: dict[str, Any], face: Faces, seed: int = 0
) -> Array:
    """Hold the kernels against gold and the body; gives the patches."""
    maps = [m.astype(face[0]) for m in maps]
    found = run(kernels, rois, maps, attributes, face, seed)
    assert_equal(found, gold.pyramid_roi_align(rois, maps, attributes))
    if found.size:
        assert_equal(found, run_body("PyramidRoiAlign", [rois, *maps], attributes)[0])
    return found


def check_by_matrices(
    kernels: Kernels, rois: Array, maps: Sequence[Array], attributes: dict[str, Any], face: Faces
) -> Array:
    """As `check`, against matrix products."""
    maps = [m.astype(face[0]) for m in maps]
    found = run(kernels, rois, maps, attributes, face)
    assert_equal(found, matrices.pyramid_roi_align(rois, maps, attributes))
    return found


def one_map(height: int, width: int, channels: int = 3, batch: int = 1) -> list[Array]:
    rng = np.random.default_rng(height * width)
    return [rng.normal(size=(batch, channels, height, width)).astype(np.float32)]


def boxes(*rows: Sequence[float]) -> Array:
    """Rois of one picture."""
    return np.array([rows], np.float32)


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("aligned", [0, 1])
def test_matrices_equal_gold(ratio: int, aligned: int) -> None:
    rois, maps = random_rois(6, seed=ratio), feature_maps(3)
    attributes = roi_attributes(3, sampling_ratio=ratio, aligned=aligned)
    expected = gold.pyramid_roi_align(rois, maps, attributes)
    np.testing.assert_allclose(matrices.pyramid_roi_align(rois, maps, attributes), expected, atol=1e-5, rtol=0)


@every_face
@pytest.mark.parametrize("levels", LEVELS)
def test_each_number_of_levels(kernels: Kernels, levels: int, face: Faces) -> None:
    found = check(kernels, random_rois(8, seed=levels), feature_maps(levels), roi_attributes(levels), face)
    assert found.any(axis=(1, 2, 3)).sum() > 10


@every_face
@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("channels", [1, 8, 20])
def test_channels_and_sizes(kernels: Kernels, channels: int, size: int, face: Faces) -> None:
    attributes = roi_attributes(4, output_size=size)
    check(kernels, random_rois(2, seed=size), feature_maps(4, channels=channels), attributes, face)


@every_face
@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("channels", [256, 264])
def test_many_channels(kernels: Kernels, channels: int, size: int, face: Faces) -> None:
    attributes = roi_attributes(4, output_size=size)
    check_by_matrices(kernels, random_rois(2, seed=5), feature_maps(4, channels=channels), attributes, face)


@every_face
def test_the_one_map_of_a_c4(kernels: Kernels, face: Faces) -> None:
    attributes = roi_attributes(1, output_size=14, strides=[16])
    rois = boxes((3, 5, 140, 90), (60, 20, 75, 50), (0, 0, 0, 0))
    found = check_by_matrices(kernels, rois, one_map(6, 9, channels=1024), attributes, face)
    assert found[:2].any(axis=(2, 3)).all()
    assert not found[2].any()


@every_face
@pytest.mark.parametrize("ratio", [0, 1, 2, 4])
@pytest.mark.parametrize("aligned", [0, 1])
def test_sampling(kernels: Kernels, ratio: int, aligned: int, face: Faces) -> None:
    attributes = roi_attributes(3, sampling_ratio=ratio, aligned=aligned)
    rois, maps = random_rois(4, seed=10 * ratio + aligned), feature_maps(3, channels=9)
    check_by_matrices(kernels, rois, maps, attributes, face)
    if face[1] == face[2]:
        check(kernels, rois[:, :1], maps, attributes, face)


@every_face
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 37])
def test_rois_and_pictures(kernels: Kernels, count: int, batch: int, face: Faces) -> None:
    maps = [np.concatenate([m, m[:1] + 1])[:batch] for m in feature_maps(4)]
    rois = np.concatenate([random_rois(count), random_rois(count, seed=1)])[:batch]
    attributes = roi_attributes(4, sampling_ratio=1)
    found = check(kernels, rois, maps, attributes, face)
    assert found.shape == (batch * count, 3, 7, 7)


@every_face
def test_a_thousand_rois(kernels: Kernels, face: Faces) -> None:
    check_by_matrices(kernels, random_rois(1000)[:1], [m[:1] for m in feature_maps(4)], roi_attributes(4), face)


@every_face
def test_no_pictures(kernels: Kernels, face: Faces) -> None:
    maps = [m[:0] for m in feature_maps(2)]
    assert run(kernels, np.zeros((0, 5, 4), np.float32), maps, roi_attributes(2), face).shape == (0, 3, 7, 7)


PADDING = (
    (0, 0, 0, 0),
    (10, 10, 10, 30),
    (10, 10, 30, 10),
    (30, 10, 10, 30),
    (10, 30, 30, 10),
    (30, 30, 10, 10),  # a positive product of two negative sides
    (NAN, 10, 30, 30),
    (10, NAN, 30, 30),
    (10, 10, NAN, 30),
    (10, 10, 30, NAN),
    (10, 10, INF, 30),
    (-INF, 10, 30, 30),
    (-INF, -INF, INF, INF),
    (INF, 10, INF, 30),
)


@every_face
@pytest.mark.parametrize("ratio", [0, 2])
def test_padding_is_zero(kernels: Kernels, ratio: int, face: Faces) -> None:
    rois = boxes((10, 10, 60, 50), *PADDING, (20, 20, 100, 90))
    maps = [m[:1] for m in feature_maps(3)]
    with np.errstate(invalid="ignore", over="ignore"):
        found = check(kernels, rois, maps, roi_attributes(3, sampling_ratio=ratio), face)
    assert not found[1:-1].any()
    assert found[0].any()
    assert found[-1].any()


@every_face
@pytest.mark.parametrize("ratio", [0, 2])
def test_an_infinite_area_is_padding(kernels: Kernels, ratio: int, face: Faces) -> None:
    """As in the function body; gold would count its samples one by one."""
    rois = boxes((-3e38, 10, 3e38, 30), (-1e20, -1e20, 1e20, 1e20), (-3e38, 0, 3e38, 1e-30))
    maps = [m[:1].astype(face[0]) for m in feature_maps(3)]
    attributes = roi_attributes(3, sampling_ratio=ratio)
    with np.errstate(over="ignore"):
        assert not run(kernels, rois, maps, attributes, face).any()
    assert not run_body("PyramidRoiAlign", [rois, *maps], attributes)[0].any()


@every_face
def test_padding_reads_no_feature(kernels: Kernels, face: Faces) -> None:
    with Executor(kernels) as gpu:
        rois = gpu.array(boxes(*PADDING)).tensor
        nowhere = Tensor(8, (1, 8, 64, 64), face[0], face[1])
        pooled = gpu.empty((len(PADDING), 8, 7, 7), face[0], face[2])
        gpu.run(plan.launches(roi_attributes(1), [rois, nowhere], [pooled.tensor], 0))
        assert not pooled.read().any()
        boxed = gpu.array(boxes((10, 10, 60, 50))).tensor
        with pytest.raises(KernelError):
            gpu.run(plan.launches(roi_attributes(1), [boxed, nowhere], [pooled.tensor], 0))


@every_face
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_boxes_far_out_and_huge_boxes(kernels: Kernels, ratio: int, face: Faces) -> None:
    rois = boxes(
        (-5000, -5000, -4000, -4500),
        (400, 10, 500, 60),
        (10, 400, 60, 500),
        (-30, -30, 5, 5),
        (310, 250, 340, 270),
        (-400, -300, 700, 600),
        (-20000, -20000, 20000, 20000),
        (-3000, 100, 3000, 101),
        (100, 50, 100.001, 50.001),
        (319.9, 255.9, 320, 256),
        (-1e6, -1e6, 1e6, 1e6),
    )
    maps = [m[:1] for m in feature_maps(3)]
    for aligned in (0, 1):
        attributes = roi_attributes(3, sampling_ratio=ratio, aligned=aligned)
        check_by_matrices(kernels, rois, maps, attributes, face)


@every_face
def test_a_box_beside_the_map_takes_nothing_from_it(kernels: Kernels, face: Faces) -> None:
    maps = [np.full_like(m, NAN) for m in one_map(16, 16, channels=9)]
    rois = boxes((2, -9, 8, -3), (2, 30, 8, 40), (-9, 2, -3, 8), (30, 2, 40, 8), (-9, -9, -3, -3))
    assert not run(kernels, rois, maps, roi_attributes(1, strides=[1]), face).any()


@every_face
def test_more_samples_than_one_can_count(kernels: Kernels, face: Faces) -> None:
    rois = boxes((-1e18, -1e18, 1e18, 1e18), (-1e30, 3, 1e8, 4), (0, 0, 3e38, 1e-3), (1e6, 0, 1e6 + 0.07, 30))
    maps = [np.ones_like(m[:1]) for m in feature_maps(1)]
    for aligned in (0, 1):
        found = run(kernels, rois, maps, roi_attributes(1, sampling_ratio=0, aligned=aligned), face)
        assert (found >= 0).all()
        assert (found <= 1).all()


@every_face
def test_level_thresholds_are_met_exactly(kernels: Kernels, face: Faces) -> None:
    attributes = roi_attributes(4, level_eps=0.0, canonical_scale=64.0, sampling_ratio=1)
    areas = [plan.least_area(stride, attributes) for stride in attributes["strides"][1:]]
    assert areas == [32.0**2, 64.0**2, 128.0**2]
    sides = [32.0, 64.0, 128.0]
    rois = boxes(
        *[(8, 8, 8 + s, 8 + s) for s in sides],
        *[(8, 8, 8 + s, 8 + np.nextafter(np.float32(s), np.float32(0))) for s in sides],
        *[(0, 0, s, np.nextafter(np.float32(s), np.float32(999))) for s in sides],
    )
    levels = [gold.roi_level(roi, attributes) for roi in rois[0]]
    assert levels == [1, 2, 3, *levels[3:6], 1, 2, 3]
    maps = [np.full_like(m[:1], level) for level, m in enumerate(feature_maps(4))]
    found = check(kernels, rois, maps, attributes, face)
    np.testing.assert_allclose(found.max(axis=(1, 2, 3)), levels, atol=2e-3)


@every_face
def test_thresholds_of_torchvision(kernels: Kernels, face: Faces) -> None:
    attributes = roi_attributes(4, sampling_ratio=1)
    sides = [np.float32(np.sqrt(plan.least_area(stride, attributes))) for stride in attributes["strides"][1:]]
    near = [s + np.float32(step) * np.spacing(s) for s in sides for step in range(-3, 4)]
    rois = boxes(*[(0, 0, side, side) for side in near])
    maps = [np.full_like(m[:1], level) for level, m in enumerate(feature_maps(4))]
    found = check(kernels, rois, maps, attributes, face).max(axis=(1, 2, 3))
    assert {round(float(level)) for level in found} == {0, 1, 2, 3}


@every_face
@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        (1, 2),
        (2, 0),  # a roi of more cells a bin than a table holds
        (3, 40),
        (28, 2),  # several blocks along the bin rows
        (56, 1),
        (65, 1),  # more bins than a table holds
        (128, 1),
    ],
)
def test_other_sizes(kernels: Kernels, size: int, ratio: int, face: Faces) -> None:
    maps = one_map(200, 301, channels=1 if size > 30 else 9)
    rois = boxes((1, 2, 302, 201), (3, 4, 20, 30), (-30, 50, 340, 60))[:, : 2 if size > 30 else 3]
    attributes = roi_attributes(1, strides=[1], output_size=size, sampling_ratio=ratio)
    check_by_matrices(kernels, rois, maps, attributes, face)


@every_face
def test_a_window_wider_than_a_block(kernels: Kernels, face: Faces) -> None:
    rois = boxes((5, 1, 690, 4), (5, 0, 520, 5), (5, 0, 518, 5), (5, 0, 515, 5), (100, 1, 300, 4))
    maps = one_map(6, 700, channels=20)
    check_by_matrices(kernels, rois, maps, roi_attributes(1, strides=[1]), face)


@every_face
def test_neighbouring_samples_share_cells(kernels: Kernels, face: Faces) -> None:
    """From bins much smaller than a cell to bins of several."""
    lengths = [0.2, 0.9, 1.5, 3, 6, 6.9, 7, 7.1, 10, 14, 15, 21, 28, 35, 50]
    rois = boxes(*[(20.3, 15.7, 20.3 + x, 15.7 + y) for x, y in zip(lengths, reversed(lengths), strict=True)])
    for aligned in (0, 1):
        attributes = roi_attributes(1, strides=[1], aligned=aligned)
        check_by_matrices(kernels, rois, one_map(72, 80, channels=9), attributes, face)


@every_face
def test_cells_of_one_row_or_column(kernels: Kernels, face: Faces) -> None:
    rois = boxes((-1, -1, 9, 1), (0, 0, 1, 1), (2, -0.5, 5, 0.5))
    for shape in ((1, 1), (1, 9), (9, 1)):
        check(kernels, rois, one_map(*shape), roi_attributes(1, strides=[1], sampling_ratio=1), face)


@every_face
def test_the_order_of_threads_does_not_matter(kernels: Kernels, face: Faces) -> None:
    rois, maps, attributes = random_rois(5), feature_maps(3, channels=20), roi_attributes(3)
    results = {run(kernels, rois, maps, attributes, face, seed).tobytes() for seed in range(6)}
    assert len(results) == 1


@pytest.mark.parametrize("size", [7, 14])
def test_no_races(size: int) -> None:
    racing = compile_kernels(plan.SOURCE, plan.Args, check="races")
    rois, maps = random_rois(3), feature_maps(3, channels=20)
    for face in FACES:
        check_by_matrices(racing, rois, maps, roi_attributes(3, output_size=size), face)


def test_the_launcher_refuses_what_the_kernels_cannot_do(kernels: Kernels) -> None:
    inputs = [Tensor(64, (1, 10, 4), "float32"), Tensor(64, (1, 8, 64, 64), "float16", "hwc8")]
    (launch,) = plan.launches(roi_attributes(1), inputs, [Tensor(64, (10, 8, 7, 7), "float16")], 0)
    with Executor(kernels) as gpu, pytest.raises(KernelError):
        gpu.launch_host(launch.args, "float32")
    launch.args.output_size = 129
    with Executor(kernels) as gpu, pytest.raises(KernelError):
        gpu.launch_host(launch.args, "float16")
