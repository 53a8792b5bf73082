"""The gallery of pictures that disagree: which are kept, in what order, and how they are drawn."""

import cv2
import numpy as np

from edge_mrcnn.detections import Detections
from edge_mrcnn.evaluation.agreement import match_detections
from edge_mrcnn.evaluation.disagreement import DisagreementGallery, describe

NAMES = ("__background__", "mug")
HW = (60, 100)


def found(*scores: float, hw: tuple[int, int] = HW) -> Detections:
    boxes = np.array([[20 * place, 5, 20 * place + 18, 50] for place in range(len(scores))], np.float32).reshape(-1, 4)
    masks = np.ones((len(scores), 28, 28), np.float32)
    return Detections(boxes, np.array(scores), np.ones(len(scores)), hw, masks)


def fill(gallery: DisagreementGallery, *scores: float) -> None:
    """Pictures named by their place, on each of which a mug of that score is missed; none where it is 0."""
    for place, score in enumerate(scores):
        reference = found(*([score] if score else []))
        one = match_detections(reference, found())
        gallery.add(f"{place}.png", np.full((*HW, 3), place, np.uint8), {"int8": one})


def test_the_worst_are_kept_and_come_first() -> None:
    gallery = DisagreementGallery(3, "fp32", NAMES, 0.5)
    fill(gallery, 0.6, 0, 0.9, 0.7, 0.55, 0.8)
    drawn = gallery.draw()
    assert [one.name for one in drawn] == ["2.png", "5.png", "3.png"]
    assert [round(one.disagreement, 2) for one in drawn] == [0.9, 0.8, 0.7]
    assert drawn[0].what == "int8 misses a mug (0.90)"


def test_of_equal_ones_the_earlier_are_kept() -> None:
    gallery = DisagreementGallery(2, "fp32", NAMES, 0.5)
    fill(gallery, 0.75, 0.75, 0.75)
    assert [one.name for one in gallery.draw()] == ["0.png", "1.png"]


def test_pictures_that_agree_are_not_shown() -> None:
    gallery = DisagreementGallery(3, "fp32", NAMES, 0.5)
    same = match_detections(found(0.9), found(0.9))
    gallery.add("a.png", np.zeros((*HW, 3), np.uint8), {"int8": same})
    assert gallery.draw() == ()
    nothing = DisagreementGallery(0, "fp32", NAMES, 0.5)
    fill(nothing, 0.9)
    assert nothing.draw() == ()


def test_every_candidate_is_drawn_the_reference_first() -> None:
    gallery = DisagreementGallery(1, "fp32", NAMES, 0.5)
    reference = found(0.9, 0.8)
    agreements = {
        "fp16": match_detections(reference, reference),
        "int8": match_detections(reference, found(0.9, 0.1)),
    }
    gallery.add("a.png", np.full((*HW, 3), 90, np.uint8), agreements)
    (one,) = gallery.draw()
    assert list(one.jpeg) == ["fp32", "fp16", "int8"]
    pictures = {
        label: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for label, data in one.jpeg.items()
    }
    assert pictures["fp32"].shape == (*HW, 3)
    assert np.array_equal(pictures["fp32"], pictures["fp16"])
    changed = np.abs(pictures["int8"][30:48].astype(int) - 90).max(axis=(0, 2)) > 30  # columns, below the labels
    assert changed[2:16].any()
    assert changed[[20, 38]].all()  # the frame around the mug that is missed
    assert not changed[[*range(24, 34), *range(44, 100)]].any()  # which is not filled
    assert one.what == "fp16 agrees; int8 misses a mug (0.80)"


def test_large_pictures_are_shrunk_before_they_are_drawn() -> None:
    gallery = DisagreementGallery(1, "fp32", NAMES, 0.5)
    hw = (720, 1280)
    one = match_detections(found(0.9, hw=hw), found(hw=hw))
    gallery.add("a.png", np.zeros((*hw, 3), np.uint8), {"int8": one})
    data = gallery.draw()[0].jpeg["fp32"]
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (270, 480, 3)
    assert picture[4:15, 1:5].max() > 60  # the mask, at its shrunken place
    missing = cv2.imdecode(np.frombuffer(gallery.draw()[0].jpeg["int8"], np.uint8), cv2.IMREAD_COLOR)
    assert missing[2:19, 7, 2].max() > 120  # the red frame around it
    assert len(data) < 20_000


def test_the_words_name_each_candidate() -> None:
    reference = found(0.9)
    agreements = {"a": match_detections(reference, found()), "b": match_detections(reference, found(0.6))}
    assert describe(agreements, NAMES) == "a misses a mug (0.90); b gives a mug 0.60 instead of 0.90"
