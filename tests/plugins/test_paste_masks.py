"""paste_masks: the kernel against `edge_mrcnn.runtime.paste.paste_instance_map`, which runs on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_mrcnn.gpu.kernels import paste_masks as plan
from edge_mrcnn.gpu.launches import Tensor
from edge_mrcnn.runtime.paste import paste_instance_map
from edge_mrcnn.runtime.preprocess import Geometry, fit
from tests.plugins.executor import Executor, KernelError, Kernels, Launched, compile_kernels

Array = npt.NDArray[Any]
Map = npt.NDArray[np.uint16]
CANVAS = (120, 160)
NAN, INF = np.nan, np.inf

ROUNDING = 1e-5
"""Of a probability: a pixel so near to the threshold may fall on either side."""


@dataclass(frozen=True)
class Results:
    """What a network gives: masks `(B, D, M, M)`, boxes `(B, D, 4)`, scores `(B, D)`, num_detections `(B,)`."""

    masks: Array
    boxes: Array
    scores: Array
    num_detections: Array


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return compile_kernels(plan.SOURCE, plan.Args)


def random_results(
    batch: int, detections: int, mask_size: int = 28, dtype: str = "float32", seed: int = 0, spread: float = 60
) -> Results:
    """Smooth masks in boxes of all sizes, some of them reaching out of the canvas, best first."""
    rng = np.random.default_rng(seed)
    knots = rng.normal(0, 1, (batch, detections, mask_size, mask_size))
    smooth = sum(np.roll(knots, shift, axis) for shift in (-1, 0, 1) for axis in (2, 3))
    centre = rng.uniform((-10, -10), (CANVAS[1] + 10, CANVAS[0] + 10), (batch, detections, 2))
    half = rng.exponential(spread / 2, (batch, detections, 2)) + 0.5
    return Results(
        (1 / (1 + np.exp(-0.8 * smooth - 0.5))).astype(dtype),
        np.concatenate([centre - half, centre + half], -1).astype(np.float32),
        np.sort(rng.uniform(0.05, 1, (batch, detections)))[:, ::-1].astype(np.float32),
        np.full(batch, detections, np.int32),
    )


def run(
    kernels: Kernels, results: Results, sizes: Sequence[tuple[int, int]], seed: int = 0, **options: float
) -> list[Map]:
    """The maps of the pictures, as the plan makes them; the launcher must make the same."""
    contents = [fit(hw, CANVAS).content_hw for hw in sizes]
    made: list[list[Map]] = []
    with Executor(kernels, seed) as gpu:
        given = (results.masks, results.boxes, results.scores, results.num_detections)
        inputs = [gpu.array(values).tensor for values in given]
        for by_plan in (True, False):
            maps = [gpu.empty(hw, "uint16") for hw in sizes]
            launches = plan.launches(*inputs, [m.tensor for m in maps], contents, **options)
            if by_plan:
                gpu.run(launches)
            else:
                dtype = results.masks.dtype.name
                launched = [one for launch in launches for one in gpu.launch_host(launch.args, dtype)]
                assert launched == [Launched.of(launch) for launch in launches]
            made.append([m.read() for m in maps])
    for one, other in zip(*made, strict=True):
        assert one.tobytes() == other.tobytes()
    return made[0]


def paste_on_cpu(results: Results, picture: int, hw: tuple[int, int], score_threshold: float, threshold: float) -> Map:
    """The map of one picture by the runtime's functions; rows keep the network's numbers."""
    count = results.num_detections[picture]
    boxes, scores = results.boxes[picture, :count], results.scores[picture, :count]
    rows = np.flatnonzero((scores >= np.float32(score_threshold)) & np.isfinite(boxes).all(axis=1))
    with np.errstate(over="ignore"):
        xyxy = Geometry(hw, fit(hw, CANVAS).content_hw).unletterbox_boxes(boxes[rows])
    pasted = paste_instance_map(results.masks[picture][rows].astype(np.float32), xyxy, hw, threshold)
    return np.concatenate([[0], rows + 1]).astype(np.uint16)[pasted]


def check(
    kernels: Kernels,
    results: Results,
    sizes: Sequence[tuple[int, int]],
    score_threshold: float = 0.0,
    threshold: float = 0.5,
    seed: int = 0,
) -> list[Map]:
    """Hold the kernel against the CPU; where a slightly other threshold changes the pixel, both answers are right."""
    found = run(kernels, results, sizes, seed, score_threshold=score_threshold, threshold=threshold)
    for picture, (hw, instances) in enumerate(zip(sizes, found, strict=True)):
        lower, exact, upper = (
            paste_on_cpu(results, picture, hw, score_threshold, threshold + step) for step in (-ROUNDING, 0, ROUNDING)
        )
        clear = (lower == exact) & (exact == upper)
        assert clear.mean() > 0.995
        np.testing.assert_array_equal(instances[clear], exact[clear])
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mask_size", [1, 7, 14, 28])
def test_random_detections(kernels: Kernels, mask_size: int, dtype: str) -> None:
    results = random_results(1, 20, mask_size, dtype, seed=mask_size)
    (found,) = check(kernels, results, [(240, 320)])
    assert len(np.unique(found)) > 5


@pytest.mark.parametrize(
    "hw",
    [(120, 160), (60, 80), (239, 321), (33, 65), (32, 64), (1, 1), (1, 90), (70, 1), (300, 77), (31, 500)],
    ids=str,
)
def test_sizes_of_pictures(kernels: Kernels, hw: tuple[int, int]) -> None:
    check(kernels, random_results(1, 12, 14, seed=hw[0]), [hw])


def test_a_batch_of_different_sizes(kernels: Kernels) -> None:
    results = random_results(4, 15, 14)
    results.num_detections[:] = (15, 0, 7, 1)
    found = check(kernels, results, [(240, 320), (50, 40), (97, 131), (10, 300)])
    assert not found[1].any()
    assert found[2].max() <= 7


def test_fewer_pictures_than_the_batch(kernels: Kernels) -> None:
    check(kernels, random_results(3, 10, 14), [(70, 90), (64, 64)])


def test_more_pictures_than_a_launch_takes(kernels: Kernels) -> None:
    batch = plan.MAX_PICTURES + 3
    for dtype in ("float32", "float16"):
        check(kernels, random_results(batch, 4, 7, dtype), [(20 + i, 40) for i in range(batch)])


@pytest.mark.parametrize("detections", [0, 1, 256, 257, 600])
def test_numbers_of_detections(kernels: Kernels, detections: int) -> None:
    """More than a block looks at together, so that some pixels wait for a later round."""
    (found,) = check(kernels, random_results(1, detections, 7, spread=6), [(120, 160)])
    assert found.max() <= detections
    if detections > 256:
        assert found.max() > 256


def test_the_first_of_many_on_one_pixel_wins(kernels: Kernels) -> None:
    results = random_results(1, 300, 14, seed=3, spread=300)
    results.masks[:, ::2] = 0  # every other one covers nothing
    (found,) = check(kernels, results, [(120, 160)])
    assert not (found % 2).any()
    assert found.any()


def test_num_detections_is_no_more_than_there_are(kernels: Kernels) -> None:
    results = random_results(2, 6, 14)
    usual = run(kernels, results, [(60, 80)] * 2)
    for strange in (replace(results, num_detections=np.array([7, 2**31 - 1], np.int32)),):
        for one, other in zip(run(kernels, strange, [(60, 80)] * 2), usual, strict=True):
            np.testing.assert_array_equal(one, other)
    for none in run(kernels, replace(results, num_detections=np.array([0, -5], np.int32)), [(60, 80)] * 2):
        assert not none.any()


@pytest.mark.parametrize("score_threshold", [0.0, 0.5, 1.5])
def test_low_scores_do_not_count(kernels: Kernels, score_threshold: float) -> None:
    results = random_results(1, 20, 14)
    results.scores[0, 3] = NAN
    (found,) = check(kernels, results, [(100, 130)], score_threshold)
    assert 4 not in found
    assert found.any() == (score_threshold < 1)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.5])
def test_mask_threshold(kernels: Kernels, threshold: float) -> None:
    results = random_results(1, 10, 14)
    (found,) = run(kernels, results, [(100, 130)], threshold=threshold)
    if threshold > 0:
        check(kernels, results, [(100, 130)], threshold=threshold)
    assert found.any() == (threshold < 1)


STRANGE_BOXES = (
    (NAN, 10, 50, 60),
    (10, 10, INF, 60),
    (-INF, 10, 50, 60),
    (10, NAN, 50, NAN),
    (50, 60, 10, 10),  # inside out
    (50, 10, 10, 60),
    (30, 30, 30, 30),  # no area: still a pixel
    (-500, -500, -400, -400),
    (500, 20, 900, 60),
    (20, 500, 60, 900),
    (-1e9, -1e9, 1e9, 1e9),
    (-3e38, 20, 3e38, 30),
    (-30, -30, 20, 20),
    (150, 110, 200, 200),
    (40.2, 40.7, 40.9, 41.1),
    (0, 0, 160, 120),
    (0, 60, 160, 60.5),
)


@pytest.mark.parametrize("hw", [(120, 160), (240, 320), (45, 60)])
def test_strange_boxes(kernels: Kernels, hw: tuple[int, int]) -> None:
    for row in range(len(STRANGE_BOXES)):
        box = np.array([[STRANGE_BOXES[row], (100, 50, 130, 80)]], np.float32)
        results = replace(random_results(1, 2, 14, seed=row), boxes=box)
        (found,) = check(kernels, results, [hw])
        assert 2 in found or row in (10, 15)
    every = replace(random_results(1, len(STRANGE_BOXES), 14), boxes=np.array([STRANGE_BOXES], np.float32))
    check(kernels, every, [hw])


def test_nan_probabilities_cover_nothing(kernels: Kernels) -> None:
    results = random_results(1, 2, 14)
    results.masks[0, 0] = NAN
    results.boxes[0] = (20, 20, 100, 100)
    (found,) = run(kernels, results, [(120, 160)])
    assert set(np.unique(found)) == {0, 2}


def test_boxes_at_edges_of_tiles(kernels: Kernels) -> None:
    edges = [(a, b, a + w, b + h) for a in (62, 63, 64, 65) for b in (30, 31, 32, 33) for w, h in ((1, 1), (3, 70))]
    results = replace(random_results(1, len(edges), 7, seed=1), boxes=np.array([edges], np.float32))
    results.masks[:] = 0.9
    (found,) = check(kernels, results, [(120, 160)])
    assert found.any()


def test_the_order_of_threads_does_not_matter(kernels: Kernels) -> None:
    results = random_results(2, 40, 14)
    maps = {
        b"".join(m.tobytes() for m in run(kernels, results, [(100, 130), (64, 64)], seed=seed)) for seed in range(4)
    }
    assert len(maps) == 1


def test_no_races() -> None:
    racing = compile_kernels(plan.SOURCE, plan.Args, check="races")
    check(racing, random_results(2, 300, 7, spread=20), [(50, 70), (33, 65)])


def tensors(**changes: Tensor) -> dict[str, Tensor]:
    usual = {
        "masks": Tensor(64, (2, 5, 14, 14), "float32"),
        "boxes": Tensor(64, (2, 5, 4), "float32"),
        "scores": Tensor(64, (2, 5), "float32"),
        "num_detections": Tensor(64, (2,), "int32"),
    }
    return {**usual, **changes}


MAP = Tensor(64, (30, 40), "uint16")


@pytest.mark.parametrize(
    ("changes", "maps", "contents", "message"),
    [
        ({"masks": Tensor(64, (2, 5, 14, 15), "float32")}, [MAP], [(30, 40)], "do not fit"),
        ({"boxes": Tensor(64, (2, 4, 4), "float32")}, [MAP], [(30, 40)], "do not fit"),
        ({"scores": Tensor(64, (2, 4), "float32")}, [MAP], [(30, 40)], "do not fit"),
        ({"masks": Tensor(64, (2, 5, 14, 14), "int8")}, [MAP], [(30, 40)], "float32 or float16"),
        ({"num_detections": Tensor(64, (1,), "int32")}, [MAP], [(30, 40)], "do not fit"),
        ({}, [MAP], [], "1 maps and 0 contents"),
        ({}, [MAP] * 3, [(30, 40)] * 3, "3 maps and 3 contents"),
        ({}, [Tensor(64, (30, 0), "uint16")], [(30, 40)], "with a pixel at least"),
        ({}, [Tensor(64, (30, 40), "int32")], [(30, 40)], "uint16"),
    ],
)
def test_wrong_arguments_are_refused(
    changes: dict[str, Tensor], maps: list[Tensor], contents: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan.launches(**tensors(**changes), instances=maps, contents=contents)


def test_a_map_counts_up_to_its_16_bits() -> None:
    many = {
        "masks": Tensor(64, (2, 65536, 14, 14), "float32"),
        "boxes": Tensor(64, (2, 65536, 4), "float32"),
        "scores": Tensor(64, (2, 65536), "float32"),
    }
    with pytest.raises(ValueError, match="65535 detections"):
        plan.launches(**tensors(**many), instances=[MAP], contents=[(30, 40)])


def test_no_pictures() -> None:
    assert plan.launches(**tensors(), instances=[], contents=[]) == []


def test_the_launcher_refuses_what_the_kernel_cannot_do(kernels: Kernels) -> None:
    (launch,) = plan.launches(**tensors(), instances=[MAP], contents=[(30, 40)])
    launch.args.count = plan.MAX_PICTURES + 1
    with Executor(kernels) as gpu, pytest.raises(KernelError):
        gpu.launch_host(launch.args, "float32")
