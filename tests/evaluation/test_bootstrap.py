"""The bootstrap against pycocotools itself, on real detections and on odd ones, and its intervals against the truth."""

import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from edge_mrcnn.evaluation.bootstrap import ClassMatches, Matches, ap_drops, paired_drops, resample_weights
from edge_mrcnn.evaluation.coco import run_cocoeval, to_results
from edge_mrcnn.evaluation.dataset import LabelledSet
from edge_mrcnn.runtime.detector import Detector

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop"
CATEGORIES = [{"id": 7, "name": "mug"}, {"id": 3, "name": "bottle"}, {"id": 9, "name": "bowl"}]


def coco_ap(evaluation) -> float:
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return 100 * float(precision[precision > -1].mean())


def ones(matches: Matches) -> float:
    return float(matches.average_precision(np.ones((1, matches.pictures), np.int32))[0])


def repeat(truth: dict, results: list[dict], weights: np.ndarray) -> tuple[dict, list[dict]]:
    """The data set in which each picture stands as often as its weight says."""
    images, annotations, found = [], [], []
    for place, image in enumerate(truth["images"]):
        for copy in range(weights[place]):
            new = {"image_id": 1000 * (place + 1) + copy}
            images.append(image | {"id": new["image_id"]})
            annotations += [row | new for row in truth["annotations"] if row["image_id"] == image["id"]]
            found += [row | new for row in results if row["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, found


@pytest.fixture(scope="module")
def real() -> tuple[dict, list[dict]]:
    """Truth and the bundled model's detections on twelve pictures."""
    with Detector(TABLETOP / "model.onnx", threshold=None, threads=1) as detector:
        labelled = LabelledSet.read(TABLETOP / "val" / "annotations.json", detector.class_names, "equal", 12)
        found = [to_results(detector(frame), image["id"], labelled.categories) for image, frame in labelled.frames()]
    return dict(labelled.truth), [row for rows in found for row in rows]


def test_on_real_detections_it_is_pycocotools_to_the_last_digits(real) -> None:
    evaluations = run_cocoeval(*real)
    assert set(evaluations) == {"bbox", "segm"}
    for evaluation in evaluations.values():
        assert 40 < coco_ap(evaluation) < 100
        assert ones(Matches.of(evaluation)) == pytest.approx(coco_ap(evaluation), abs=1e-9)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_weight_is_so_many_copies_of_a_picture(real, seed: int) -> None:
    weights = resample_weights(12, 1, seed)
    for kind, evaluation in run_cocoeval(*real).items():
        copies = run_cocoeval(*repeat(*real, weights[0]))[kind]
        assert Matches.of(evaluation).average_precision(weights)[0] == pytest.approx(coco_ap(copies), abs=1e-9)


def odd_set(annotations: list[tuple], results: list[tuple], pictures: int = 3) -> tuple[dict, list[dict]]:
    """Annotations `(picture, category, x, more)` and results `(picture, category, x, score)`: 40 x 40 boxes at x."""
    truth = {
        "images": [{"id": place} for place in range(1, pictures + 1)],
        "categories": CATEGORIES,
        "annotations": [
            {"image_id": picture, "category_id": category, "bbox": [x, 0, 40, 40], **more}
            for picture, category, x, more in annotations
        ],
    }
    return truth, [
        {"image_id": picture, "category_id": category, "bbox": [x, 0, 40, 40], "score": score}
        for picture, category, x, score in results
    ]


ODD = {
    "no detections": ([(1, 7, 0, {}), (2, 7, 0, {})], []),
    "detections of a class without truth": ([(1, 7, 0, {})], [(1, 7, 3, 0.9), (2, 3, 0, 0.8), (3, 9, 0, 0.7)]),
    "one class without detections": ([(1, 7, 0, {}), (2, 3, 0, {})], [(1, 7, 9, 0.9)]),
    "crowds": (
        [(1, 7, 0, {"iscrowd": 1}), (1, 7, 200, {}), (2, 7, 0, {}), (3, 3, 0, {"iscrowd": 1})],
        [(1, 7, 0, 0.9), (1, 7, 5, 0.8), (1, 7, 200, 0.7), (2, 7, 8, 0.6), (3, 3, 0, 0.5), (3, 3, 90, 0.4)],
    ),
    "ties between pictures": (
        [(1, 7, 0, {}), (2, 7, 0, {}), (3, 7, 0, {}), (3, 7, 90, {})],
        [(3, 7, 0, 0.5), (3, 7, 200, 0.4), (1, 7, 200, 0.5), (2, 7, 0, 0.5), (2, 7, 12, 0.4), (1, 7, 6, 0.4)],
    ),
    "more than a hundred detections": (
        [(1, 7, 0, {}), (2, 7, 0, {})],
        [(1, 7, 50 * k, 0.9 - k / 1000) for k in range(1, 110)] + [(1, 7, 0, 0.1), (2, 7, 2, 0.2)],
    ),
    "a false positive before every hit": (
        [(1, 7, 0, {}), (2, 7, 0, {}), (3, 7, 0, {})],
        [(1, 7, 300, 0.99), (1, 7, 0, 0.9), (2, 7, 300, 0.8), (2, 7, 0, 0.7), (3, 7, 300, 0.6), (3, 7, 0, 0.5)],
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_sets(case: str) -> None:
    truth, results = odd_set(*ODD[case])
    evaluation = run_cocoeval(truth, results)["bbox"]
    matches = Matches.of(evaluation)
    assert ones(matches) == pytest.approx(coco_ap(evaluation), abs=1e-9)
    for weights in ([1, 0, 2], [0, 3, 1], [2, 2, 1]):
        copies = run_cocoeval(*repeat(truth, results, np.array(weights)))["bbox"]
        precision = copies.eval["precision"][:, :, :, 0, -1]
        found = matches.average_precision(np.array([weights]))[0]
        if (precision > -1).any():
            assert found == pytest.approx(coco_ap(copies), abs=1e-9), weights
        else:
            assert np.isnan(found), weights


def test_without_truth_there_is_no_figure() -> None:
    matches = Matches.of(run_cocoeval(*odd_set([], [(1, 7, 0, 0.9)]))["bbox"])
    assert np.isnan(ones(matches))
    with pytest.raises(ValueError, match="truth of at least one class"):
        paired_drops(matches, [matches])


def test_random_sets_agree_with_pycocotools() -> None:
    rng = np.random.default_rng(5)
    for _ in range(8):
        draws = zip(rng.integers(1, 7, 25), rng.choice([7, 3, 9], 25), rng.integers(0, 6, 25) * 60, strict=True)
        places = [tuple(int(value) for value in draw) for draw in draws]
        truth = [(*place, {"iscrowd": int(rng.random() < 0.1)}) for place in places]
        found = [
            (picture, category, x + int(rng.integers(0, 24)), round(float(rng.random()), 1))
            for picture, category, x in places
            for _ in range(int(rng.integers(0, 3)))
        ]
        evaluation = run_cocoeval(*odd_set(truth, found, pictures=6))["bbox"]
        assert ones(Matches.of(evaluation)) == pytest.approx(coco_ap(evaluation), abs=1e-9)


def test_a_resample_draws_as_many_pictures_as_there_are() -> None:
    weights = resample_weights(20, 50, seed=3)
    assert weights.shape == (50, 20)
    assert (weights.sum(axis=1) == 20).all()
    assert np.array_equal(weights, resample_weights(20, 50, seed=3))
    assert not np.array_equal(weights, resample_weights(20, 50, seed=4))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        resample_weights(0)
    matches = synthetic(np.random.default_rng(0), 10)
    with pytest.raises(ValueError, match=r"shape \(S, 10\), got \(1, 9\)"):
        matches.average_precision(np.ones((1, 9), np.int32))
    with pytest.raises(ValueError, match="the reference's 10 pictures, got 9"):
        paired_drops(matches, [synthetic(np.random.default_rng(0), 9)])


def test_the_same_detections_cost_exactly_nothing(real) -> None:
    matches = {kind: Matches.of(evaluation) for kind, evaluation in run_cocoeval(*real).items()}
    same, boxes_only = ap_drops(matches, [matches, {"bbox": matches["bbox"]}], resamples=50)
    for interval in (same.box, same.mask, boxes_only.box):
        assert (interval.value, interval.low, interval.high) == (0, 0, 0)
    assert boxes_only.mask is None


def test_a_worse_candidate_costs_and_a_better_one_gains(real) -> None:
    truth, results = real
    worse = [row for place, row in enumerate(results) if place % 3]
    reference, candidate = (Matches.of(run_cocoeval(truth, rows)["bbox"]) for rows in (results, worse))
    (drop,) = paired_drops(reference, [candidate], resamples=200)
    assert 0 < drop.low < drop.value < drop.high
    assert drop.value == pytest.approx(ones(reference) - ones(candidate))
    (gain,) = paired_drops(candidate, [reference], resamples=200)
    assert (gain.value, gain.low, gain.high) == pytest.approx((-drop.value, -drop.high, -drop.low))


def synthetic(rng: np.random.Generator, pictures: int, classes: int = 1, lost: np.ndarray | None = None) -> Matches:
    """Two to six objects of each class on each picture, found with shaky boxes, and one false alarm for each three.

    `lost` says by picture which share of its hits is gone: a degradation whose effect is known on many pictures.
    """
    found = []
    for _ in range(classes):
        truth = rng.integers(2, 7, pictures)
        picture = np.repeat(np.arange(pictures), truth)
        reach = rng.integers(0, 4, len(picture))  # thresholds each hit reaches
        hit = np.arange(3)[:, None] < reach
        alarms = rng.integers(0, pictures, len(picture) // 3)
        score = np.concatenate([rng.normal(0.6, 0.2, len(picture)), rng.normal(0.4, 0.2, len(alarms))])
        draw = rng.random(len(picture))
        if lost is not None:
            hit = hit & (draw >= lost[picture])
        hit = np.concatenate([hit, np.zeros((3, len(alarms)), bool)], axis=1)
        order = np.argsort(-score, kind="stable")
        where = np.concatenate([picture, alarms])[order]
        found.append(ClassMatches(where, hit[:, order], np.ones_like(hit), truth))
    return Matches(pictures, np.linspace(0, 1, 101), tuple(found))


def pair(seed: int, pictures: int) -> tuple[Matches, Matches]:
    lost = np.random.default_rng((seed, 1)).choice([0.0, 0.1], pictures)
    return synthetic(np.random.default_rng(seed), pictures), synthetic(np.random.default_rng(seed), pictures, lost=lost)


def test_the_interval_covers_the_known_effect() -> None:
    reference, candidate = pair(0, 20000)
    effect = ones(reference) - ones(candidate)
    assert 1 < effect < 10
    trials = 100
    intervals = [paired_drops(*((a, [b])), resamples=200)[0] for a, b in (pair(1 + k, 60) for k in range(trials))]
    covered = sum(one.low <= effect <= one.high for one in intervals)
    assert 0.88 * trials <= covered <= trials, covered  # 95 % wanted; 0.88 is three and a half standard errors below
    assert np.mean([one.high - one.low for one in intervals]) < 4


def test_pairing_narrows_the_interval() -> None:
    reference, candidate = pair(3, 200)
    other, _ = pair(4, 200)  # as good as the reference, on other pictures
    (paired,), (unpaired,) = paired_drops(reference, [candidate], 300), paired_drops(other, [candidate], 300)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_a_thousand_resamples_of_a_thousand_pictures_take_seconds() -> None:
    rng = np.random.default_rng(0)
    matches = synthetic(rng, 1000, classes=10)
    start = time.process_time()
    paired_drops(matches, [matches], resamples=100)
    assert time.process_time() - start < 6  # a tenth of the resamples in a tenth of a minute
