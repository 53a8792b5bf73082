"""Annotated frames: right pixels, no surprises at odd sizes, fast enough."""

import time

import cv2
import numpy as np
import pytest

from edge_mrcnn import Detections, Frame, annotate
from edge_mrcnn.runtime.annotate import AnnotateOptions, _write_texts, annotated_picture, contact_sheet
from edge_mrcnn.runtime.labels import Label, _place, draw_labels
from edge_mrcnn.runtime.palette import PALETTE, color_of, is_light, mix

NAMES = ("__background__", "mug", "bottle", "bowl")
GREY = np.full((240, 320, 3), 90, np.uint8)
PLAIN = AnnotateOptions(labels=False)


def detections(boxes: list[tuple[float, ...]], image_hw: tuple[int, int] = (240, 320), **fields) -> Detections:
    count = len(boxes)
    defaults = {
        "score": np.linspace(0.9, 0.5, count),
        "class_id": np.arange(count) % 3 + 1,
        "mask": np.ones((count, 28, 28), np.float32),
    }
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), image_hw=image_hw, **(defaults | fields))


def test_the_frame_stays_as_it_was() -> None:
    image = GREY.copy()
    found = annotate(Frame(image), detections([(50, 50, 150, 150)]), NAMES)
    np.testing.assert_array_equal(image, GREY)
    assert found.shape == GREY.shape
    assert found.dtype == np.uint8
    assert (found != GREY).any()


def test_nothing_found_changes_nothing() -> None:
    found = annotate(GREY, Detections.empty((240, 320), 28), NAMES)
    np.testing.assert_array_equal(found, GREY)
    assert not np.shares_memory(found, GREY)


def test_masks_are_tinted_with_the_class_color() -> None:
    found = annotate(GREY, detections([(50, 50, 150, 150)]), NAMES, AnnotateOptions(labels=False, opacity=0.5))
    np.testing.assert_allclose(found[100, 100], np.array(color_of(1)) * 0.5 + 45, atol=1)
    assert found[200, 250].tolist() == [90, 90, 90]
    edge = found[100, 49:53].astype(int)
    assert np.abs(edge - mix(color_of(1), (255, 255, 255), 0.12)).sum(axis=1).min() < 30


def test_the_best_is_on_top() -> None:
    found = annotate(GREY, detections([(50, 50, 150, 150), (50, 50, 150, 150)]), NAMES, PLAIN)
    alone = annotate(GREY, detections([(50, 50, 150, 150)]), NAMES, PLAIN)
    np.testing.assert_array_equal(found[80:120, 80:120], alone[80:120, 80:120])


def test_holes_stay_open() -> None:
    ring = np.ones((1, 28, 28), np.float32)
    ring[:, 9:19, 9:19] = 0
    found = annotate(GREY, detections([(50, 50, 190, 190)], mask=ring), NAMES, PLAIN)
    assert found[120, 120].tolist() == [90, 90, 90]
    assert found[70, 70].tolist() != [90, 90, 90]


def test_boxes_where_there_are_no_masks() -> None:
    boxes = [(50, 50, 150, 150)]
    without = annotate(GREY, detections(boxes, mask=None), NAMES, PLAIN)
    assert np.abs(without[100, 50].astype(int) - color_of(1)).sum() < 40
    assert without[100, 100].tolist() == [90, 90, 90]
    empty = annotate(GREY, detections(boxes, mask=np.zeros((1, 28, 28))), NAMES, PLAIN)
    np.testing.assert_array_equal(empty, without)
    both = annotate(GREY, detections(boxes), NAMES, AnnotateOptions(labels=False, boxes=True))
    neither = annotate(GREY, detections(boxes, mask=None), NAMES, AnnotateOptions(labels=False, boxes=False))
    assert both[100, 100].tolist() != [90, 90, 90]
    np.testing.assert_array_equal(neither, GREY)


def test_colors_by_class_instance_and_track() -> None:
    boxes = [(10, 10, 90, 90), (110, 10, 190, 90)]
    fields = {"class_id": [2, 2], "track_id": [5, 9]}

    def tints(by: str) -> list[list[int]]:
        found = annotate(
            GREY, detections(boxes, **fields), NAMES, AnnotateOptions(labels=False, color_by=by, opacity=1.0)
        )
        return [found[50, 50].tolist(), found[50, 150].tolist()]

    assert tints("class") == [list(color_of(2))] * 2
    assert tints("instance") == [list(color_of(1)), list(color_of(2))]
    assert tints("track") == [list(color_of(5)), list(color_of(9))]
    fields["track_id"] = [0, 9]
    red, green, blue = tints("track")[0]
    assert max(red, green, blue) - min(red, green, blue) < 10  # grey: no number yet
    assert tints("track")[1] == list(color_of(9))


def test_labels_tell_numbers_of_tracks_but_no_zero() -> None:
    found = detections([(10, 10, 90, 90)] * 3, class_id=[1, 2, 9], track_id=[7, 0, 12], score=[0.9, 0.8, 0.7])
    assert _write_texts(found, NAMES, False) == ["#7 mug", "bottle", "#12 class 9"]


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (33, 20), (480, 640), (2160, 3840)])
def test_any_size(size: tuple[int, int]) -> None:
    height, width = size
    boxes = [(0, 0, width, height), (width / 3, height / 3, width * 2, height * 2), (-9, -9, 0.2, 0.2)]
    keypoints = np.tile([[width / 2, height / 2, 1], [np.nan, 0, 1]], (3, 1, 1))
    found = annotate(
        np.zeros((*size, 3), np.uint8), detections(boxes, size, keypoints=keypoints, track_id=[1, 2, 3]), NAMES
    )
    assert found.shape == (*size, 3)


def test_damaged_boxes_and_unknown_classes() -> None:
    boxes = [(np.nan, 0, 10, 10), (0, 0, np.inf, 10), (1e30, -1e30, 1e30, 1e30), (50, 50, 20, 20)]
    assert annotate(GREY, detections(boxes, class_id=[99, -1, 0, 1]), NAMES).shape == GREY.shape
    assert annotate(GREY, detections(boxes, mask=None), ()).shape == GREY.shape


def test_wrong_size() -> None:
    with pytest.raises(ValueError, match=r"are of a \(240, 320\) picture \(H, W\), got one of \(10, 10\)"):
        annotate(np.zeros((10, 10, 3), np.uint8), detections([(0, 0, 5, 5)]))


def drawn_at(picture: np.ndarray, x: float, y: float) -> bool:
    return bool((picture[int(y), int(x)] != GREY[0, 0]).any())


def test_keypoints_are_dots_with_a_dark_edge_and_lines_between() -> None:
    points = np.array([[[60.5, 60.5, 0.9], [120.5, 60.5, 0.8], [120.5, 120.5, 0.04], [60.5, 140.5, 0]]])
    found = detections([(50, 50, 150, 150)], mask=None, keypoints=points)
    look = AnnotateOptions(labels=False, boxes=False, skeleton=((0, 1), (1, 2), (0, 3)))
    picture = annotate(GREY, found, NAMES, look)
    np.testing.assert_allclose(picture[60, 60], mix(color_of(1), (255, 255, 255), 0.45), atol=2)
    np.testing.assert_allclose(picture[60, 90], color_of(1), atol=25)  # the line, in the colour of the class
    column = picture[50:71, 90].astype(int).sum(axis=1)
    assert column.min() < 200  # its edge is darker than the picture
    assert not any(drawn_at(picture, x, y) for x, y in ((120, 90), (120, 120), (60, 100), (60, 140)))
    everything = annotate(GREY, found, NAMES, AnnotateOptions(labels=False, boxes=False, keypoint_threshold=0))
    assert drawn_at(everything, 120, 120)
    assert not drawn_at(everything, 60, 140)  # 0: its class has no such keypoint
    assert not drawn_at(everything, 90, 60)
    none = annotate(GREY, found, NAMES, AnnotateOptions(labels=False, boxes=False, keypoints=False))
    np.testing.assert_array_equal(none, GREY)


def test_small_things_are_drawn_finer() -> None:
    ring = np.stack([np.cos(np.arange(6)), np.sin(np.arange(6)), np.ones(6)], axis=1)

    def ink(radius: float) -> int:
        points = ring * (radius, radius, 1) + (160, 120, 0)
        found = detections([(50, 50, 150, 150)], mask=None, keypoints=points[None])
        return int((annotate(GREY, found, NAMES, AnnotateOptions(labels=False, boxes=False)) != GREY).any(axis=2).sum())

    assert ink(11) < 0.7 * ink(60)


def test_the_keypoints_of_the_best_are_on_top() -> None:
    points = np.tile([[100.5, 100.5, 1.0]], (2, 1, 1))
    found = detections([(50, 50, 150, 150)] * 2, mask=None, keypoints=points)
    picture = annotate(GREY, found, NAMES, AnnotateOptions(labels=False, boxes=False))
    np.testing.assert_allclose(picture[100, 100], mix(color_of(1), (255, 255, 255), 0.45), atol=2)


@pytest.mark.parametrize("points", [[[1e30, -1e30, 1]], [[np.inf, np.nan, 1]], [[-50, -50, 1]]])
def test_keypoints_outside_and_damaged(points: list) -> None:
    found = detections([(50, 50, 150, 150)], mask=None, keypoints=np.array([[*points, [20, 20, 1]]]))
    look = AnnotateOptions(labels=False, boxes=False, skeleton=((0, 1),))
    assert annotate(GREY, found, NAMES, look).shape == GREY.shape


def test_a_skeleton_of_other_keypoints() -> None:
    found = detections([(50, 50, 150, 150)], keypoints=np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match=r"skeleton must name keypoints from 0 to 1, got \(\(1, 2\),\)"):
        annotate(GREY, found, NAMES, AnnotateOptions(skeleton=((1, 2),)))


@pytest.mark.parametrize(
    "options", [{"opacity": 1.5}, {"scale": 0}, {"color_by": "mood"}, {"keypoint_threshold": -0.1}]
)
def test_wrong_options(options: dict) -> None:
    with pytest.raises(ValueError, match=f"AnnotateOptions.{next(iter(options))}"):
        AnnotateOptions(**options)


def test_non_contiguous_pictures() -> None:
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    found = detections([(50, 50, 150, 150)])
    np.testing.assert_array_equal(
        annotate(image[:, ::-1], found, NAMES), annotate(np.ascontiguousarray(image[:, ::-1]), found, NAMES)
    )


def test_annotated_picture_draws_only_when_it_must() -> None:
    frame, found = Frame(GREY), detections([(50, 50, 150, 150)])
    given = np.zeros_like(GREY)
    assert annotated_picture(frame, found, given) is given
    assert annotated_picture(frame, found, lambda: given) is given
    np.testing.assert_array_equal(annotated_picture(frame, found, None, NAMES), annotate(frame, found, NAMES))


def test_twenty_detections_take_ten_milliseconds_of_one_core() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 1, (20, 2)) * (540, 380)
    y, x = np.mgrid[-1:1:28j, -1:1:28j]
    disc = np.tile((x**2 + y**2 < 0.9).astype(np.float32), (20, 1, 1))
    found = detections(np.concatenate([corner, corner + 100], 1).tolist(), (480, 640), mask=disc)
    image = np.full((480, 640, 3), 90, np.uint8)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        annotate(image, found, NAMES)
        times = []
        for _ in range(10):
            start = time.thread_time()
            annotate(image, found, NAMES)
            times.append(time.thread_time() - start)
    finally:
        cv2.setNumThreads(threads)
    # Twice the aim, so that a slow or busy machine does not fail; about 5 ms on a laptop core.
    assert min(times) < 0.020


def test_labels_keep_inside_and_apart() -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    taken = np.zeros((0, 4))
    for box in [(0, 0, 40, 40), (300, 220, 320, 240), (5, 5, 60, 60), (8, 8, 50, 50), (100, 2, 130, 238)]:
        x, y = _place(box, (60, 16), (320, 240), taken)
        assert 0 <= x <= 260
        assert 0 <= y <= 224
        assert not ((x < taken[:, 2]) & (taken[:, 0] < x + 60) & (y < taken[:, 3]) & (taken[:, 1] < y + 16)).any()
        taken = np.vstack([taken, (x, y, x + 60, y + 16)])
    draw_labels(image, [Label("mug 0.97", (100, 100, 150, 150), (255, 0, 0))], 9)
    ys, xs = np.nonzero(image.any(axis=2))
    assert 75 < ys.min() < ys.max() <= 100  # above its box
    assert 99 <= xs.min() <= 101


def test_a_label_larger_than_the_picture_is_left_out() -> None:
    image = np.zeros((10, 12, 3), np.uint8)
    draw_labels(image, [Label("mug 0.97", (1, 1, 5, 5), (255, 0, 0))], 9)
    assert not image.any()


def test_palette() -> None:
    assert len(set(PALETTE)) == len(PALETTE) == 16
    assert color_of(1) == PALETTE[0]
    assert color_of(17) == PALETTE[0]
    assert color_of(-3) in PALETTE
    assert is_light((250, 218, 66))
    assert not is_light((138, 88, 214))
    assert mix((0, 0, 0), (200, 100, 50), 0.5) == (100, 50, 25)


def test_contact_sheet() -> None:
    pictures = [np.full((48, 64, 3), level, np.uint8) for level in (50, 100, 150)] + [
        np.full((64, 48, 3), 200, np.uint8)
    ]
    sheet = contact_sheet(pictures, 3, cell_width=32, gap=4)
    assert sheet.shape == (4 + 2 * (24 + 4), 4 + 3 * (32 + 4), 3)
    assert [sheet[10, 10 + 36 * column, 0] for column in range(3)] == [50, 100, 150]
    assert sheet[40, 20, 0] == 200  # upright, fitted into its cell
    assert sheet[40, 5, 0] == 24
    assert contact_sheet(pictures[:1], 4, cell_width=32).shape[1] == 32 + 16
    with pytest.raises(ValueError, match="needs pictures"):
        contact_sheet([])
