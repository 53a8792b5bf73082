"""COCO keypoint AP: hand-made cases whose figures follow from the definition, and keypoints matched by name."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from edge_mrcnn import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.evaluation.coco import average_precision, evaluate, run_cocoeval, to_results
from edge_mrcnn.evaluation.keypoints import PERSON, PERSON_SIGMAS, keypoint_sigmas, match_keypoints
from edge_mrcnn.runtime.detector import Detector
from tests.evaluation.scripted import CANVAS, ScriptedRunner

POINTS = ("rim", "handle")
CATEGORIES = [
    {"id": 7, "name": "mug", "keypoints": [*POINTS]},
    {"id": 3, "name": "bottle", "keypoints": [*POINTS]},
]
BOX = [100.0, 100.0, 100.0, 100.0]


def truth(*things: tuple[int, list[float]], categories: list | None = None, **fields) -> dict:
    annotations = [
        {
            "id": row,
            "image_id": 1,
            "category_id": category,
            "bbox": BOX,
            "area": 10_000.0,
            "keypoints": points,
            **fields,
        }
        for row, (category, points) in enumerate(things)
    ]
    return {"images": [{"id": 1}], "annotations": annotations, "categories": categories or CATEGORIES}


def result(category: int, points: list[float], score: float = 0.9) -> dict:
    return {"image_id": 1, "category_id": category, "bbox": BOX, "score": score, "keypoints": points}


def distance_of(oks: float, sigma: float = 0.05, area: float = 10_000.0) -> float:
    """How far a lone keypoint is off at such a similarity."""
    return float(np.sqrt(-np.log(oks) * 2 * area * (2 * sigma) ** 2))


@pytest.mark.parametrize(
    ("oks", "ap"),
    [
        (1.0, 100.0),
        (0.96, 100.0),
        (0.93, 90.0),  # all of ten thresholds but 0.95
        (0.77, 60.0),  # 0.50 to 0.75
        (0.52, 10.0),
        (0.48, 0.0),
    ],
)
def test_a_keypoint_scores_by_the_thresholds_its_similarity_reaches(oks: float, ap: float) -> None:
    found = [150 + distance_of(oks), 150, 1, 0, 0, 0]
    scores = average_precision(truth((7, [150, 150, 2, 0, 0, 0])), [result(7, found)]).keypoint
    assert scores.ap == pytest.approx(ap)
    assert scores.ap50 == pytest.approx(100.0 if ap else 0.0)
    assert scores.ap_large == pytest.approx(ap)
    assert scores.ap_small is None
    assert scores.per_class == {"mug": pytest.approx(ap), "bottle": None}


def test_similarity_is_the_mean_over_what_is_labelled() -> None:
    far = 150 + distance_of(0.5)
    both = truth((7, [150, 150, 2, 120, 120, 1]))
    # (1 + 0.5) / 2 = 0.75 reaches six thresholds; the handle alone would reach one.
    assert average_precision(both, [result(7, [far, 150, 1, 120, 120, 1])]).keypoint.ap == pytest.approx(60.0, abs=10)
    one = truth((7, [150, 150, 2, 120, 120, 0]))
    assert average_precision(one, [result(7, [150, 150, 1, 990, 990, 1])]).keypoint.ap == pytest.approx(100.0)


def test_sigmas_are_the_categorys_own() -> None:
    own = [{**CATEGORIES[0], "sigmas": [0.1, 0.1]}, CATEGORIES[1]]
    found = [150 + distance_of(0.77), 150, 1, 0, 0, 0]
    both = truth((7, [150, 150, 2, 0, 0, 0]), (3, [150, 150, 2, 0, 0, 0]), categories=own)
    scores = average_precision(both, [result(7, found), result(3, found)]).keypoint
    # A sigma of twice the size takes the similarity to its fourth root: 0.937.
    assert scores.per_class == {"mug": pytest.approx(90.0), "bottle": pytest.approx(60.0)}


def test_cocos_sigmas_are_for_cocos_persons() -> None:
    person = {"id": 1, "name": "person", "keypoints": [*PERSON]}
    runner = __import__("pycocotools.cocoeval", fromlist=["Params"]).Params("keypoints")
    np.testing.assert_allclose(keypoint_sigmas([person], 17)[1], runner.kpt_oks_sigmas)
    assert len(PERSON) == len(PERSON_SIGMAS) == 17
    other = {**person, "keypoints": [f"p{number}" for number in range(17)]}
    np.testing.assert_array_equal(keypoint_sigmas([other], 17)[1], np.full(17, 0.05))


def test_the_figure_is_pycocotools_own_on_persons() -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(4)
    images = [{"id": number} for number in range(6)]
    annotations, results = [], []
    for number in range(30):
        corner, size = rng.uniform(0, 300, 2), rng.uniform(40, 200, 2)
        points = np.column_stack([corner + rng.uniform(0, 1, (17, 2)) * size, rng.integers(0, 3, 17)])
        box = [*corner.tolist(), *size.tolist()]
        row = {"image_id": number % 6, "category_id": 1, "bbox": box}
        area = float(size.prod()) * 0.6
        labelled = {"num_keypoints": int((points[:, 2] > 0).sum()), "keypoints": points.ravel().tolist()}
        annotations.append({**row, **labelled, "id": number + 1, "area": area, "iscrowd": 0})
        points[:, :2] += rng.normal(0, 0.03 * np.sqrt(area), (17, 2))
        points[:, 2] = 1
        results.append({**row, "keypoints": points.ravel().tolist(), "score": float(rng.uniform(0.1, 1))})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": [*PERSON]}],
    }
    ours = average_precision(content, results).keypoint
    side = COCO()
    side.dataset = json.loads(json.dumps(content))
    side.createIndex()
    # COCO's format for keypoints has no box: with one, pycocotools would sort results by the size of that.
    plain = [{name: value for name, value in row.items() if name != "bbox"} for row in results]
    theirs = COCOeval(side, side.loadRes(plain), "keypoints")
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    expected = [100 * value for value in theirs.stats[:6]]
    assert [ours.ap, ours.ap50, ours.ap75, ours.ap_medium, ours.ap_large, ours.ar100] == pytest.approx(
        expected, abs=1e-3
    )
    assert 5 < ours.ap < 95


def test_what_a_network_does_not_give_has_no_figure() -> None:
    labelled = truth((7, [150, 150, 2, 0, 0, 0]), segmentation=[[100, 100, 200, 100, 200, 200]])
    labelled["images"][0] |= {"height": 300, "width": 300}
    assert set(run_cocoeval(labelled, [], ("bbox", "keypoints"))) == {"bbox", "keypoints"}
    assert set(run_cocoeval(labelled, [], ("bbox", "segm"))) == {"bbox", "segm"}
    assert set(run_cocoeval(labelled, [], ("bbox",))) == {"bbox"}
    assert set(run_cocoeval(truth((7, [0] * 6)), [result(7, [1, 1, 1] * 2)])) == {"bbox"}  # nothing is labelled


def test_what_the_class_does_not_have_is_zero_in_results() -> None:
    points = np.array([[[10.5, 20.5, 0.01], [30, 40, 0]]], np.float32)
    found = Detections([[0, 0, 50, 50]], [0.9], [2], (64, 96), keypoints=points)
    (row,) = to_results(found, 5, {2: 7})
    assert row["keypoints"] == [10.5, 20.5, 1.0, 0.0, 0.0, 0.0]
    assert "segmentation" not in row


def test_keypoints_are_put_into_the_networks_order() -> None:
    content = truth((7, [1, 2, 2, 3, 4, 1]), (3, [5, 6, 2]))
    content["categories"] = [
        {"id": 7, "name": "mug", "keypoints": ["handle", "rim"], "sigmas": [0.1, 0.2]},
        {"id": 3, "name": "bottle", "keypoints": ["rim"]},
    ]
    matched = match_keypoints(content, POINTS, "equal", Path("val.json"))
    assert [row["keypoints"] for row in matched["annotations"]] == [[3, 4, 1, 1, 2, 2], [5, 6, 2, 0, 0, 0]]
    assert [row["num_keypoints"] for row in matched["annotations"]] == [2, 1]
    sigmas = keypoint_sigmas(matched["categories"], 2)
    np.testing.assert_allclose([sigmas[7], sigmas[3]], [[0.2, 0.1], [0.05, 0.05]])
    assert content["annotations"][0]["keypoints"] == [1, 2, 2, 3, 4, 1]
    assert match_keypoints(content, (), "equal", Path("val.json")) == content
    without = truth((7, [0] * 6), categories=[{"id": 7, "name": "mug"}])
    assert match_keypoints(without, POINTS, "equal", Path("val.json")) == without


@pytest.mark.parametrize(
    ("names", "mode", "said"),
    [
        (("rim", "foot"), "equal", r"the keypoints rim, foot, val.json has handle, rim; .*--classes common"),
        (("rim",), "equal", "--classes common"),
        (("nose", "tail"), "common", "take the model's own data"),
    ],
)
def test_other_keypoints_are_refused(names: tuple[str, ...], mode: str, said: str) -> None:
    with pytest.raises(StreamError, match=said):
        match_keypoints(truth((7, [1, 2, 2, 3, 4, 1])), names, mode, Path("val.json"))


def test_common_keypoints_leave_out_the_others() -> None:
    matched = match_keypoints(truth((7, [1, 2, 2, 3, 4, 1])), ("foot", "handle"), "common", Path("val.json"))
    assert matched["annotations"][0]["keypoints"] == [0, 0, 0, 3, 4, 1]


@pytest.mark.parametrize(
    ("points", "categories", "said"),
    [
        ([1, 2, 2], CATEGORIES, "annotation 0 must have 6 finite numbers in keypoints.*got 3"),
        ([1, 2, 2, float("nan"), 4, 1], CATEGORIES, "6 finite numbers"),
        ([1, 2, 2, 3, 4, 1], [{**CATEGORIES[0], "sigmas": [0.1]}], r"mug must have 2 positive sigmas.*got \[0.1\]"),
        ([1, 2, 2, 3, 4, 1], [{**CATEGORIES[0], "sigmas": [0.1, 0]}], "positive sigmas"),
    ],
)
def test_damaged_keypoints_are_refused(points: list, categories: list, said: str) -> None:
    with pytest.raises(StreamError, match=said):
        match_keypoints(truth((7, points), categories=categories), POINTS, "equal", Path("val.json"))


class PointingRunner(ScriptedRunner):
    """Boxes without masks; each keypoint's map is highest at the middle of its box."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.spec = self.spec.__class__(
            **{
                **{field: getattr(self.spec, field) for field in ("name", "input_hw", "class_names", "detections")},
                "mask_size": 0,
                "keypoint_names": POINTS,
                "keypoint_size": 56,
                "keypoint_labels": ((1, 2), (2,)),
            }
        )

    def infer(self, feeds, outputs=None) -> dict:
        found = super().infer(feeds, outputs)
        del found["masks"]
        y, x = np.mgrid[:56, :56] - 27.5
        peak = 12 * np.exp(-(x**2 + y**2) / 18)
        return found | {"keypoint_logits": np.broadcast_to(peak, (1, 5, 2, 56, 56)).astype(np.float32)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.full((*CANVAS, 3), 90, np.uint8))
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": 64, "width": 96}],
        "categories": CATEGORIES,
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 7, "bbox": [8, 8, 40, 40], "keypoints": [28, 28, 2, 28, 28, 1]},
            {"id": 2, "image_id": 5, "category_id": 3, "bbox": [50, 8, 40, 40], "keypoints": [70, 36, 2, 0, 0, 0]},
        ],
    }
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row |= {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "area": 1600, "iscrowd": 0}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def test_a_network_of_keypoints_is_evaluated_and_shown_without_masks(data: Path) -> None:
    script = [[(2, 0.9, (8, 8, 48, 48)), (1, 0.8, (50, 8, 90, 48))]]
    runner = PointingRunner(script, ("__background__", "bottle", "mug"))
    found = evaluate(Detector(runner, threshold=None), data)
    assert found.mask is None
    assert found.box.ap == pytest.approx(100.0)
    assert found.keypoint.per_class["mug"] == pytest.approx(100.0)
    # 8 px off: exp(-64 / (2 * 1600 * 0.01)) = 0.135
    assert found.keypoint.per_class["bottle"] == 0.0
    assert found.keypoint.ap == pytest.approx(50.0)
    text = "\n".join(found.lines())
    assert "keypoints" in text
    assert "keypoint AP" in text
    assert "mask" not in text
    assert json.loads(found.to_json())["keypoint"]["ap"] == pytest.approx(50.0)


def test_no_detection_is_no_precision_of_keypoints_and_no_figure_of_masks(data: Path) -> None:
    found = evaluate(Detector(PointingRunner([[]], ("__background__", "bottle", "mug")), threshold=None), data)
    assert (found.box.ap, found.mask, found.keypoint.ap) == (0.0, None, 0.0)


def test_a_network_without_keypoints_has_no_figure_of_them(data: Path) -> None:
    runner = ScriptedRunner([[(2, 0.9, (8, 8, 48, 48))]], ("__background__", "bottle", "mug"))
    found = evaluate(Detector(runner, threshold=None), data)
    assert found.keypoint is None
    assert found.mask is not None
    assert "keypoint" not in "\n".join(found.lines())
