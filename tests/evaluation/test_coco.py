"""COCO average precision: hand-made cases whose figures follow from the definition."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from edge_mrcnn.errors import StreamError
from edge_mrcnn.evaluation.coco import EvalOptions, average_precision, evaluate
from edge_mrcnn.runtime.detector import Detector
from tests.evaluation.scripted import CANVAS, ScriptedRunner

CATEGORIES = [{"id": 7, "name": "mug"}, {"id": 3, "name": "bottle"}]
NAMES = ("__background__", "bottle", "mug")  # labels 1 and 2: another order than the data's ids


def box_truth(*boxes: tuple[int, list[float]]) -> dict:
    """One picture with boxes (category, xywh); annotation ids from 0, which pycocotools alone gets wrong."""
    annotations = [
        {"id": row, "image_id": 1, "category_id": category, "bbox": box} for row, (category, box) in enumerate(boxes)
    ]
    return {"images": [{"id": 1}], "annotations": annotations, "categories": CATEGORIES}


def result(category: int, box: list[float], score: float = 0.9) -> dict:
    return {"image_id": 1, "category_id": category, "bbox": box, "score": score}


@pytest.mark.parametrize(
    ("shift", "ap"),
    [
        (0, 100.0),
        (20, 40.0),  # IoU 80 / 120: matched at 0.50, 0.55, 0.60, 0.65 of ten thresholds
        (30, 10.0),  # IoU 70 / 130 = 0.54: matched at 0.50 only
        (40, 0.0),  # IoU 60 / 140 = 0.43
    ],
)
def test_a_shifted_box_scores_by_the_thresholds_it_reaches(shift: float, ap: float) -> None:
    scores = average_precision(box_truth((7, [0, 0, 100, 100])), [result(7, [shift, 0, 100, 100])]).box
    assert scores.ap == pytest.approx(ap)
    assert scores.ap_large == pytest.approx(ap)
    assert scores.ap_small is None
    assert scores.ap50 == pytest.approx(100.0 if ap else 0.0)
    assert scores.per_class == {"mug": pytest.approx(ap), "bottle": None}


def test_a_better_scored_false_positive_halves_precision() -> None:
    truth = box_truth((7, [0, 0, 100, 100]))
    found = [result(7, [300, 300, 100, 100], 0.9), result(7, [0, 0, 100, 100], 0.5)]
    assert average_precision(truth, found).box.ap == pytest.approx(50.0)
    found[0]["score"] = 0.1  # ranked last, it costs nothing
    assert average_precision(truth, found).box.ap == pytest.approx(100.0)


def test_half_of_the_objects_found_is_half_of_the_recall() -> None:
    truth = box_truth((7, [0, 0, 100, 100]), (7, [200, 0, 100, 100]))
    scores = average_precision(truth, [result(7, [0, 0, 100, 100])]).box
    assert scores.ar100 == pytest.approx(50.0)
    assert scores.ap == pytest.approx(100 * 51 / 101)  # recall points 0.00 to 0.50 of 101


def test_no_result_is_no_precision_and_no_annotation_is_no_figure() -> None:
    assert average_precision(box_truth((7, [0, 0, 9, 9])), []).box.ap == 0.0
    assert average_precision(box_truth(), [result(7, [0, 0, 9, 9])]).box.ap is None


def test_mask_precision_looks_at_pixels_and_sizes_of_masks(capfd: pytest.CaptureFixture[str]) -> None:
    from pycocotools import mask as rle

    full, quarter = np.zeros((64, 96), np.uint8), np.zeros((64, 96), np.uint8)
    full[0:40, 0:40] = 1
    quarter[0:20, 0:20] = 1
    truth = box_truth((7, [0, 0, 40, 40]))
    truth["images"][0] |= {"height": 64, "width": 96}
    truth["annotations"][0]["segmentation"] = [[0, 0, 40, 0, 40, 40, 0, 40]]
    good, bad = (
        result(7, [0, 0, 40, 40]) | {"segmentation": rle.encode(np.asfortranarray(m))} for m in (full, quarter)
    )
    assert average_precision(truth, [good]).mask.ap == pytest.approx(100.0)
    assert average_precision(truth, [bad]).mask.ap == 0.0
    assert average_precision(truth, [bad]).box.ap == pytest.approx(100.0)
    # The bad mask is small: it does not count among the medium ones, where its box would put it.
    both = average_precision(truth, [bad | {"score": 0.95}, good]).mask
    assert both.ap_medium == pytest.approx(100.0)
    assert both.ap == pytest.approx(50.0)
    assert average_precision(truth, [result(7, [0, 0, 40, 40])]).mask is None
    assert capfd.readouterr().out == ""


def test_results_of_unknown_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="image_id 9"):
        average_precision(box_truth((7, [0, 0, 9, 9])), [result(7, [0, 0, 9, 9]) | {"image_id": 9}])


@pytest.fixture
def data(tmp_path):
    """Two pictures with a mug and a bottle; the second picture lies beside the file and not in `images`."""
    (tmp_path / "images").mkdir()
    picture = np.full((*CANVAS, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), picture)
    cv2.imwrite(str(tmp_path / "b.png"), picture)
    content = {
        "images": [{"id": 5, "file_name": "a.png", "height": 64, "width": 96}, {"id": 6, "file_name": "b.png"}],
        "categories": CATEGORIES,
        "annotations": [
            {"id": 0, "image_id": 5, "category_id": 7, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0},
            {"id": 1, "image_id": 6, "category_id": 3, "bbox": [10, 20, 50, 40], "area": 2000, "iscrowd": 0},
        ],
    }
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    content["images"][1] |= {"height": 64, "width": 96}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


MUG, BOTTLE = (2, 0.9, (8, 8, 48, 48)), (1, 0.8, (10, 20, 60, 60))


def scripted(*script, names=NAMES) -> Detector:
    return Detector(ScriptedRunner(script, names), threshold=None)


def test_perfect_detections_matched_by_name_give_100(data) -> None:
    found = evaluate(scripted([MUG], [BOTTLE]), data, model="model.onnx")
    assert found.box.ap == pytest.approx(100.0)
    assert found.mask.ap > 90  # a patch of ones loses part of a pixel at its rim, as torchvision pastes it
    assert (found.pictures, found.detections, found.backend, found.model) == (2, 2, "scripted", "model.onnx")
    read = json.loads(found.to_json())
    assert read["box"]["per_class"] == {"mug": pytest.approx(100.0), "bottle": pytest.approx(100.0)}
    text = "\n".join(found.lines())
    assert "boxes" in text
    assert "2 pictures, 2 detections" in text
    assert max(map(len, found.lines())) <= 120


def test_labels_taken_by_number_would_score_nothing(data) -> None:
    assert evaluate(scripted([(1, *MUG[1:])], [(2, *BOTTLE[1:])]), data).box.ap == 0.0


def test_limit_takes_the_first_pictures_with_their_annotations(data) -> None:
    found = evaluate(scripted([MUG], [BOTTLE]), data, EvalOptions(limit=1))
    assert (found.pictures, found.box.ap, found.box.per_class["bottle"]) == (1, pytest.approx(100.0), None)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        EvalOptions(limit=0)


def test_common_classes_leave_out_what_one_side_lacks(data) -> None:
    names = ("__background__", "N/A", "mug", "spoon")
    found = evaluate(scripted([MUG, (3, 0.99, (8, 8, 48, 48))], [], names=names), data, EvalOptions(classes="common"))
    assert found.detections == 1
    assert found.box.per_class == {"mug": pytest.approx(100.0)}


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (
            ("__background__", "mug"),
            ["1 classes", "2 categories", "class-count mismatch", "the data: bottle", "common"],
        ),
        (("__background__", "mug", "jar"), ["the names differ", "model: jar", "data: bottle", "1 names in common"]),
        (("__background__", "a", "b"), ["no name is in common", "edge-mrcnn train"]),
    ],
)
def test_other_classes_are_named(data, names, parts) -> None:
    with pytest.raises(StreamError) as caught:
        evaluate(scripted([MUG], names=names), data)
    for part in parts:
        assert part in str(caught.value)


def _rewrite(**changes):
    def apply(path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "there is no annotation file"),
        (lambda path: path.write_text('{"images": ['), "not valid JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot read the annotation file"),
        (lambda path: path.write_text("[1, 2]"), "has no images"),
        (_rewrite(annotations=[]), "has no annotations"),
        (_rewrite(categories=[]), "has no categories"),
        (_rewrite(annotations=[{"image_id": 5, "category_id": 7}]), r"annotations\[0\] lacks bbox"),
        (_rewrite(annotations=[{"image_id": 8, "category_id": 7, "bbox": [0, 0, 1, 1]}]), "image_id 8, in no images"),
        (_rewrite(categories=[{"id": 3, "name": "mug"}, {"id": 7, "name": "mug"}]), "share a name"),
        (_rewrite(categories=[{"id": 3, "name": "mug"}, {"id": 3, "name": "jar"}]), "share an id"),
        (lambda path: (path.parent / "b.png").unlink(), "1 of 2 pictures .* missing: b.png"),
        (_rewrite(images=[{"id": i, "file_name": "a.png", "height": 48, "width": 96} for i in (5, 6)]), "says 48x96"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unusable_data_is_refused_with_the_reason(data, spoil, message) -> None:
    spoil(data)
    with pytest.raises(StreamError, match=message):
        evaluate(scripted([MUG]), data)
