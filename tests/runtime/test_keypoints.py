"""Keypoints out of heatmaps: torchvision's places, detectron2's scores, and no map or box that they trip over."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_mrcnn.runtime import keypoints
from edge_mrcnn.runtime.keypoints import decode_keypoints, restrict_keypoints
from edge_mrcnn.runtime.preprocess import Geometry

SIDE = 56

BOXES = {
    "tiny": [(3.2, 4.1, 3.9, 4.4), (10, 10, 11, 11), (0.5, 7.25, 6.75, 9.5), (40, 40, 40, 40)],
    "smaller than the map": [(5.5, 6.5, 35.1, 50.9), (100.3, 80.2, 131.9, 101.0), (0, 0, 55, 54.5)],
    "as large as the map": [(0, 0, 56, 56), (10.25, 20.75, 66.25, 76.75), (10, 20, 65.5, 75.5)],
    "larger": [(10.4, 20.7, 250.1, 400.3), (0, 0, 639.9, 479.2), (300, 100, 420, 431)],
    "huge": [(0, 0, 1900.5, 1070.25), (-200, -300, 1500, 1200)],
    "thin": [(10, 10, 12.5, 400), (10, 10, 500, 13.25), (5, 5, 5.2, 300)],
    "partly outside": [(-30.5, -12.25, 60, 44), (600, 400, 700, 520), (-90, -90, -10, -20)],
}
KINDS = ("peak", "several", "flat", "noise", "border")


def heatmaps(kind: str, count: int, seed: int, points: int = 4) -> np.ndarray:
    """Logits `(N, K, 56, 56)`; all but `noise` smooth, as a network's are, which doubles a 28 x 28 map."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    maps = 0.4 * rng.standard_normal((count, points, SIDE // 2, SIDE // 2))
    maps = np.stack([[cv2.resize(one, (SIDE, SIDE)) for one in each] for each in maps])
    for _ in range({"several": 4, "noise": 0, "flat": 0}.get(kind, 1)):
        low, high = ((0, 3) if kind == "border" else (2, SIDE - 2)) if rng.random() < 0.5 else (SIDE - 4, SIDE)
        if kind != "border":
            low, high = 2, SIDE - 2
        center = rng.uniform(low, high, (2, count, points, 1, 1))
        width = rng.uniform(1.5, 5, (count, points, 1, 1))
        maps = maps + 10 * np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * width**2))
    return (8 * rng.standard_normal(maps.shape) if kind == "noise" else maps).astype(np.float32)


def gold(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The definition in float64, pixel by pixel: no part of it is left out and nothing is estimated."""
    found = np.zeros((*maps.shape[:2], 3))
    for row, (x0, y0, x1, y1) in enumerate(boxes.astype(np.float64)):
        width, height = max(x1 - x0, 1.0), max(y1 - y0, 1.0)
        columns, lines = int(np.ceil(width)), int(np.ceil(height))
        down, across = bicubic(lines), bicubic(columns)
        for point, plane in enumerate(maps[row].astype(np.float64)):
            whole = down @ plane @ across.T
            y, x = np.unravel_index(whole.argmax(), whole.shape)
            score = 1 / np.exp(plane - whole.max()).sum()
            found[row, point] = (x + 0.5) * width / columns + x0, (y + 0.5) * height / lines + y0, min(score, 1)
    return found


def bicubic(length: int) -> np.ndarray:
    """`(length, 56)` weights of Keys' kernel with a = -0.75."""
    matrix = np.zeros((length, SIDE))
    for place in range(length):
        at = (place + 0.5) * SIDE / length - 0.5
        for pixel in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            d = abs(at - pixel)
            weight = 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[place, min(max(pixel, 0), SIDE - 1)] += weight
    return matrix


def off(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Distances in pixels."""
    return np.hypot(*(ours[..., axis].astype(np.float64) - theirs[..., axis] for axis in (0, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_places_and_scores_are_those_of_the_definition(kind: str) -> None:
    boxes = np.array([box for name in BOXES if name != "huge" for box in BOXES[name]], np.float32)
    maps = heatmaps(kind, len(boxes), seed=3)
    ours, wanted = decode_keypoints(maps, boxes), gold(maps, boxes)
    # Float32 decides otherwise where two neighbours are as high as each other up to its rounding.
    assert (off(ours, wanted) < 0.01).mean() >= (0.9 if kind == "flat" else 0.97)
    np.testing.assert_allclose(ours[..., 2], wanted[..., 2], rtol=1e-3, atol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("sizes", BOXES)
def test_places_are_torchvisions(sizes: str) -> None:
    torch = pytest.importorskip("torch")
    roi_heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    boxes = np.tile(np.array(BOXES[sizes], np.float32), (2 if sizes == "huge" else 6, 1))
    distances = []
    for seed, kind in enumerate(KINDS):
        maps = heatmaps(kind, len(boxes), seed)
        points, logits = roi_heads.heatmaps_to_keypoints(torch.from_numpy(maps), torch.from_numpy(boxes))
        ours = decode_keypoints(maps, boxes)
        distances.append(off(ours, points.numpy()).ravel())
        total = np.exp(maps.astype(np.float64) - logits.numpy()[..., None, None]).sum(axis=(2, 3))
        np.testing.assert_allclose(ours[..., 2], np.minimum(1 / total, 1), rtol=1e-3, atol=1e-6)
    every = np.concatenate(distances)
    assert (every < 0.5).mean() >= 0.99
    assert (every < 0.01).mean() >= 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_looked_at_holds_no_peak(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    corner = rng.uniform(-50, 400, (12, 2))
    boxes = np.concatenate([corner, corner + np.exp(rng.uniform(0, 6, (12, 2)))], axis=1).astype(np.float32)
    maps = heatmaps(kind, len(boxes), seed=8)
    monkeypatch.setattr(keypoints, "_WHOLE_PIXELS", 10**9)
    whole = decode_keypoints(maps, boxes)
    looked: list[int] = []
    spans = keypoints._Axis.spans
    monkeypatch.setattr(
        keypoints._Axis,
        "spans",
        lambda axis, possible: [looked.append(end - begin) or (begin, end) for begin, end in spans(axis, possible)],
    )
    monkeypatch.setattr(keypoints, "_WHOLE_PIXELS", 0)
    parts = decode_keypoints(maps, boxes)
    assert (off(parts, whole) < 0.01).mean() >= (0.95 if kind == "flat" else 0.999)
    np.testing.assert_allclose(parts[..., 2], whole[..., 2], rtol=1e-4)
    # Most of a map with one peak is left out; of noise little.
    sides = np.ceil(np.maximum(boxes[:, 2:] - boxes[:, :2], 1)).sum() * maps.shape[1]
    assert sum(looked) < (0.5 if kind == "peak" else 1.01) * sides


def test_limits_hold_for_every_pixel_of_random_maps() -> None:
    maps = heatmaps("noise", 1, seed=1, points=6)[0]
    limits = keypoints._limits(maps).astype(np.float64)
    axis = bicubic(700)
    cells = np.floor((np.arange(700) + 0.5) * SIDE / 700 - 0.5).astype(int) + 1
    tightest = np.inf
    for plane, limit in zip(maps.astype(np.float64), limits, strict=True):
        spare = limit[cells][:, cells] - axis @ plane @ axis.T
        assert spare.min() >= -1e-4
        tightest = min(tightest, spare.min())
    assert tightest < 5  # a bound that nothing comes near would rule nothing out


def test_a_peak_at_a_pixel_and_between_two() -> None:
    maps = np.zeros((1, 2, SIDE, SIDE), np.float32)
    maps[0, 0, 30, 20] = 12
    maps[0, 1, 30, 20:22] = 12
    found = decode_keypoints(maps, np.array([[100, 200, 100 + 280, 200 + 280]], np.float32))[0]
    np.testing.assert_allclose(found[0, :2], [100 + 102.5, 200 + 152.5])  # the middle of five pixels
    np.testing.assert_allclose(found[1, :2], [100 + 105, 200 + 152.5], atol=0.51)
    assert found[0, 2] == pytest.approx(1 / (1 + (SIDE**2 - 1) * np.exp(-12)), rel=0.01)
    assert found[1, 2] == 1  # bicubic overshoots: without a limit it would be more


def test_an_even_map_is_no_keypoint() -> None:
    found = decode_keypoints(np.full((1, 1, SIDE, SIDE), 3.0), np.array([[10, 20, 110, 220]]))[0, 0]
    assert found[2] == pytest.approx(1 / SIDE**2, rel=1e-3)
    assert 10 < found[0] < 110
    assert 20 < found[1] < 220


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_has_the_score_zero_and_spoils_no_other(value: float) -> None:
    maps = heatmaps("peak", 2, seed=0)
    boxes = np.array([[10, 10, 90, 130], [0, 0, 40, 30]], np.float32)
    sound = decode_keypoints(maps, boxes)
    maps[0, 1, 5, 5] = value
    found = decode_keypoints(maps, boxes)
    assert np.isfinite(found).all()
    assert found[0, 1, 2] == 0
    assert 10 <= found[0, 1, 0] <= 90
    assert 10 <= found[0, 1, 1] <= 130
    rest = np.ones((2, 4), bool)
    rest[0, 1] = False
    np.testing.assert_array_equal(found[rest], sound[rest])


def test_logits_as_large_as_float32_can_hold() -> None:
    maps = heatmaps("peak", 1, seed=0) * 1e30
    with np.errstate(over="raise", invalid="raise"):
        found = decode_keypoints(maps, np.array([[0, 0, 20, 20]], np.float32))
    assert np.isfinite(found).all()


def test_a_box_larger_than_any_canvas_takes_no_more_memory() -> None:
    maps = heatmaps("peak", 1, seed=0)
    small = decode_keypoints(maps, np.array([[0, 0, 4000, 4000]], np.float32))
    large = decode_keypoints(maps, np.array([[0, 0, 4e8, 4e8]], np.float32))
    np.testing.assert_allclose(large[..., :2] / 1e5, small[..., :2], atol=2)


def test_none_and_one() -> None:
    assert decode_keypoints(np.zeros((0, 17, SIDE, SIDE)), np.zeros((0, 4))).shape == (0, 17, 3)
    assert decode_keypoints(np.zeros((2, 0, SIDE, SIDE)), np.zeros((2, 4))).shape == (2, 0, 3)
    assert decode_keypoints(np.zeros((1, 1, 1, 1)), np.array([[0, 0, 9, 9]])).shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("maps", "boxes", "said"),
    [
        ((2, 3, 56, 28), (2, 4), r"heatmaps must have shape \(N, K, S, S\), got \(2, 3, 56, 28\)"),
        ((2, 3, 56), (2, 4), r"heatmaps must have shape"),
        ((2, 3, 56, 56), (3, 4), r"boxes must have shape \(2, 4\), got \(3, 4\)"),
    ],
)
def test_wrong_shapes(maps: tuple[int, ...], boxes: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decode_keypoints(np.zeros(maps), np.zeros(boxes))


def test_boxes_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match=r"boxes must be finite, got \[0.0, nan, 1.0, 1.0\]"):
        decode_keypoints(np.zeros((1, 1, 56, 56)), np.array([[0, np.nan, 1, 1]]))


def test_a_class_has_only_its_own_keypoints() -> None:
    found = np.ones((3, 2, 3), np.float32)
    kept = restrict_keypoints(found, np.array([1, 2, 3]), ((1,), (1, 3)))
    np.testing.assert_array_equal(kept[..., 2], [[1, 1], [0, 0], [0, 1]])
    np.testing.assert_array_equal(kept[..., :2], found[..., :2])
    assert found.min() == 1
    assert restrict_keypoints(found, np.array([1, 2, 3]), ()) is found


def test_points_go_back_to_the_picture_as_boxes_do() -> None:
    geometry = Geometry((480, 641), (100, 133))
    points = np.array([[[13.3, 50, 0.7], [140, -3, 0.2]]], np.float32)
    found = geometry.unletterbox_points(points)
    np.testing.assert_allclose(found[0, 0], [13.3 * 641 / 133, 240, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found[0, 1], [140 * 641 / 133, -14.4, 0.2], rtol=1e-6)  # outside stays outside
    assert points[0, 0, 0] == np.float32(13.3)
