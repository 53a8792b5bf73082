"""The tracker: the same number for the same thing, whatever comes between."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_mrcnn import Detections, Detector, Tracker, TrackerOptions

HW = (480, 640)
FPS = 15.0
FRAME_NS = round(1e9 / FPS)
MODEL = Path(__file__).parents[2] / "samples" / "tabletop" / "model.onnx"


def seen(
    centers: Sequence[tuple[float, float]],
    side: float = 40,
    *,
    score: npt.ArrayLike = 0.9,
    class_id: npt.ArrayLike = 1,
    masks: bool = False,
) -> Detections:
    """Square boxes around points, with masks that fill them where asked for."""
    middle = np.array(centers, np.float32).reshape(-1, 2)
    boxes = np.concatenate([middle - side / 2, middle + side / 2], axis=1)
    count = len(middle)
    scores, classes = np.broadcast_to(score, count), np.broadcast_to(class_id, count)
    mask = np.ones((count, 28, 28), np.float32) if masks else None
    return Detections(boxes, scores.astype(np.float32), classes.astype(np.int32), HW, mask)


NOTHING = seen([])


def numbers(found: Detections) -> list[int]:
    assert found.track_id is not None
    return [int(number) for number in found.track_id]


def run(
    frames: Sequence[Detections], options: TrackerOptions | None = None, step_ns: int = FRAME_NS
) -> list[list[int]]:
    tracker = Tracker(options)
    return [numbers(tracker.update(found, index * step_ns)) for index, found in enumerate(frames)]


def test_sure_things_get_a_number_in_their_second_frame_and_keep_it() -> None:
    assert run([seen([(100 + 5 * step, 100)]) for step in range(10)]) == [[0]] + [[1]] * 9


@pytest.mark.parametrize(("score", "frames"), [(1.0, 2), (0.9, 2), (0.75, 3), (0.6, 6)])
def test_doubtful_things_get_a_number_later(score: float, frames: int) -> None:
    given = run([NOTHING, *[seen([(100, 100)], score=score)] * 10])[1:]
    assert given == [[0]] * (frames - 1) + [[1]] * (11 - frames)


def test_sure_things_of_the_first_frame_get_a_number_at_once() -> None:
    """All is new then; what comes later is more often a mistake."""
    both = seen([(100, 100), (300, 100)], score=[0.95, 0.8])
    assert run([both] * 2) == [[1, 0], [1, 2]]
    assert run([NOTHING, both])[1] == [0, 0]


def test_confirm_0_gives_numbers_at_once() -> None:
    assert run([seen([(100, 100), (300, 100)], score=0.5)], TrackerOptions(confirm=0)) == [[1, 2]]


def test_only_the_track_id_changes() -> None:
    rng = np.random.default_rng(0)
    found = seen([(100, 100), (300, 200)], score=[0.3, 0.9], class_id=[2, 5], masks=True)
    found = dataclasses.replace(found, keypoints=rng.uniform(0, 100, (2, 4, 3)).astype(np.float32))
    tracked = Tracker().update(found, 0)
    for item in dataclasses.fields(Detections):
        if item.name != "track_id":
            np.testing.assert_array_equal(getattr(tracked, item.name), getattr(found, item.name))
    assert found.track_id is None


def test_keypoints_stay_with_their_things_and_masks_are_not_needed() -> None:
    tracker = Tracker()
    for step in range(3):
        found = seen([(100 + 5 * step, 100), (300, 200)])
        points = np.concatenate([found.xyxy.reshape(2, 2, 2), np.full((2, 2, 1), 0.5)], axis=2)
        found = dataclasses.replace(found, keypoints=points)
        numbered = tracker.update(found, step * FRAME_NS)
        np.testing.assert_array_equal(numbered.keypoints, found.keypoints)
        assert numbered.mask is None
    assert numbers(numbered) == [1, 2]
    np.testing.assert_array_equal(numbered[1].keypoints[0, 0, :2], found.xyxy[1, :2])


def test_order_of_the_detections_does_not_matter() -> None:
    centers = [(100.0, 100.0), (200.0, 100.0), (300.0, 300.0)]
    tracker = Tracker()
    tracker.update(seen(centers), 0)
    first = numbers(tracker.update(seen(centers), FRAME_NS))
    assert numbers(tracker.update(seen(centers[::-1]), 2 * FRAME_NS)) == first[::-1]
    assert sorted(first) == [1, 2, 3]


@pytest.mark.parametrize("classes", [(1, 1), (1, 2)], ids=["same class", "two classes"])
def test_things_that_cross_keep_their_numbers(classes: tuple[int, int]) -> None:
    """Two pass each other on one line, 30 pixels above each other, at 6 pixels a frame."""
    frames = [seen([(100 + 6 * step, 200), (400 - 6 * step, 230)], class_id=classes) for step in range(50)]
    assert set(map(tuple, run(frames)[1:])) == {(1, 2)}


@pytest.mark.parametrize("gap", [1, 5, 15, 28])
@pytest.mark.parametrize("pixels", [0, 4])
def test_a_thing_comes_back_with_its_number(gap: int, pixels: int) -> None:
    """After some frames behind something, standing still or on its way."""
    frames = [seen([(100 + pixels * step, 100)]) for step in range(15)]
    back = [seen([(100 + pixels * (15 + gap), 100)])]
    assert run([*frames, *[NOTHING] * gap, *back])[-1] == [1]


def test_a_thing_that_shrinks_behind_another_comes_back_with_its_number() -> None:
    full = np.array([200, 100, 280, 180], np.float32)

    def hidden(share: float) -> Detections:
        box = full.copy()
        box[2] -= share * 80
        return Detections(box[None], np.array([0.9], np.float32), np.ones(1, np.int32), HW)

    frames = [hidden(0)] * 5 + [hidden(0.1 * step) for step in range(9)] + [NOTHING] * 10 + [hidden(0)]
    assert run(frames)[-1] == [1]


def test_a_thing_out_of_sight_for_too_long_is_a_new_one() -> None:
    frames = [seen([(100, 100)])] * 5
    gap = [NOTHING] * round(2.2 * FPS)
    assert run([*frames, *gap, *frames])[-1] == [2]
    assert run([*frames, *gap, *frames], TrackerOptions(lost_s=3))[-1] == [1]


def test_another_class_in_the_same_place_after_a_while_is_another_thing() -> None:
    frames = [seen([(100, 100)])] * 5 + [NOTHING] * 10 + [seen([(120, 120)], class_id=2)] * 3
    assert run(frames)[-1] == [2]


def test_the_camera_pans() -> None:
    """Everything moves by 25 pixels a frame, more than half of a box; one thing is hidden for five frames."""
    things = np.array([[500, 100], [560, 200], [620, 300], [700, 150]], np.float64)
    frames = []
    for step in range(20):
        rows = [0, 1, 3] if 10 <= step < 15 else [0, 1, 2, 3]
        frames.append(seen([(x - 25 * step, y) for x, y in things[rows]]))
    given = run(frames)
    assert given[2] == given[9] == given[19] == [1, 2, 3, 4]
    assert given[12] == [1, 2, 4]


@pytest.mark.parametrize("kept", [2, 3, 5])
def test_dropped_frames(kept: int) -> None:
    """Things move 120 pixels a second, and one frame in `kept` of 15 a second arrives."""
    tracker, given = Tracker(), []
    for index in range(0, 90, kept):
        found = seen([(50 + 8 * index, 100), (600 - 8 * index, 300)])
        given.append(numbers(tracker.update(found, index * FRAME_NS)))
    assert given[2:] == [[1, 2]] * (len(given) - 2)


def test_a_changing_rate() -> None:
    """Motion is by the clock: 100 pixels a second at 30, then 4, then 60 frames a second."""
    times = np.cumsum([1 / 30] * 30 + [1 / 4] * 8 + [1 / 60] * 60)
    tracker = Tracker()
    given = [numbers(tracker.update(seen([(100 + 100 * t, 200)]), round(t * 1e9))) for t in times]
    assert given[1:] == [[1]] * (len(times) - 1)


def test_without_a_time_frames_are_a_thirtieth_of_a_second_apart() -> None:
    timed, untimed = Tracker(), Tracker()
    for index in range(40):
        found = seen([(100 + 5 * index, 100)]) if index % 7 else NOTHING
        assert numbers(timed.update(found, round(index * 33_333_333))) == numbers(untimed.update(found))


@pytest.mark.parametrize("leap_s", [-100, 100])
def test_after_a_leap_of_the_clock_everything_is_new(leap_s: int) -> None:
    tracker = Tracker()
    times = [200 * 10**9 + index * FRAME_NS for index in range(5)]
    times += [time_ns + leap_s * 10**9 for time_ns in times]
    given = [numbers(tracker.update(seen([(100, 100)]), time_ns)) for time_ns in times]
    assert given == [[0], [1], [1], [1], [1], [0], [2], [2], [2], [2]]


def test_stamps_that_repeat_or_step_back_a_little_do_no_harm() -> None:
    tracker = Tracker()
    times = np.array([0, 1, 1, 2, 1.5, 3, 4, 4, 5]) * FRAME_NS
    given = [numbers(tracker.update(seen([(100 + index, 100)]), round(t))) for index, t in enumerate(times)]
    assert given[1:] == [[1]] * 8


def test_the_class_may_flicker() -> None:
    classes = [1, 1, 1, 2, 1, 2, 2, 1, 1, 1]
    assert run([seen([(100 + 3 * index, 100)], class_id=label) for index, label in enumerate(classes)])[1:] == [[1]] * 9


def test_a_lasting_change_of_class_is_taken_over() -> None:
    """It is found by its new class when it comes back elsewhere."""
    frames = [seen([(100, 100)], class_id=1)] * 3 + [seen([(100, 100)], class_id=2)] * 8
    frames += [NOTHING] * 5 + [seen([(135, 120)], class_id=2)]
    assert run(frames)[-1] == [1]


def test_weak_detections_continue_tracks_but_begin_none() -> None:
    weak, strong = seen([(100, 100)], score=0.2), seen([(100, 100)])
    assert run([weak] * 5) == [[0]] * 5
    assert run([strong, strong, weak, weak, strong]) == [[0], [1], [1], [1], [1]]


def slide_behind(score: float) -> list[Detections]:
    """The second of two things slides behind the first, is seen there for five frames with `score`, and comes out."""
    way = [*range(200, 100, -5), *[102] * 5, *range(105, 200, 5)]
    return [seen([(100, 100), (x, 100)], score=[0.9, score if x == 102 else 0.9], class_id=[1, 2]) for x in way]


@pytest.mark.parametrize("score", [0.95, 0.3], ids=["confident", "weak"])
def test_a_second_view_continues_no_hidden_track(score: float) -> None:
    """It shows the thing in front, by the class of the one behind; that one has its number again when it comes out."""
    given = run(slide_behind(score))
    assert given[20:25] == [[1, 0]] * 5
    assert given[10] == given[-1] == [1, 2]


def test_what_has_no_number_yet_takes_only_what_the_others_leave() -> None:
    """A thing leaps and is called by another class for a frame."""
    frames = [seen([(100, 100)], class_id=2)] * 5
    frames += [seen([(135, 100)], class_id=1, score=0.7), seen([(136, 100)], class_id=2, score=0.7)]
    assert run(frames)[-2:] == [[0], [1]]


def test_flashes_get_no_number() -> None:
    rng = np.random.default_rng(0)
    frames = [seen([tuple(rng.uniform(40, 440, 2))], side=20, class_id=int(rng.integers(1, 9))) for _ in range(30)]
    interleaved = [frame for flash in frames for frame in (flash, NOTHING)]
    assert not any(map(any, run(interleaved)))


def test_a_second_view_of_a_thing_gets_no_number() -> None:
    """Whichever of the two classes is ahead in a frame."""
    frames = [seen([(100, 100), (102, 101)], score=[0.9, 0.8], class_id=[1, 2], masks=True)] * 5
    frames += [seen([(102, 101), (100, 100)], score=[0.95, 0.7], class_id=[2, 1], masks=True)] * 3
    assert run(frames) == [[0, 0]] + [[1, 0]] * 4 + [[0, 1]] * 3


def test_a_part_of_a_thing_gets_no_number() -> None:
    boxes = np.array([[50, 50, 150, 150], [75, 75, 105, 105]], np.float32)
    scores, classes = np.array([0.9, 0.8], np.float32), np.array([1, 2], np.int32)
    both = Detections(boxes, scores, classes, HW, np.ones((2, 28, 28), np.float32))
    assert run([both] * 5)[-1] == [1, 0]


def test_a_thing_before_another_has_a_number_of_its_own() -> None:
    """Its box lies inside the other's, but the other's mask has a hole there."""
    masks = np.ones((2, 28, 28), np.float32)
    masks[0, 8:20, 8:20] = 0
    boxes = np.array([[100, 100, 200, 200], [130, 130, 170, 170]], np.float32)
    both = Detections(boxes, np.array([0.95, 0.9], np.float32), np.array([1, 2], np.int32), HW, masks)
    assert run([both] * 5)[-1] == [1, 2]


def test_numbers_count_up_and_are_never_used_again() -> None:
    rng = np.random.default_rng(1)
    tracker, given = Tracker(TrackerOptions(lost_s=0.1)), []
    for burst in range(50):
        things = [(60 + 90 * column, float(rng.uniform(50, 400))) for column in range(burst % 6)]
        for index in range(4):
            now = numbers(tracker.update(seen(things), (burst * 30 + index) * FRAME_NS))
        given += now
    assert given == list(range(1, len(given) + 1))


def test_no_detections() -> None:
    tracker = Tracker()
    for index in range(3):
        tracked = tracker.update(Detections.empty(HW, 28), index * FRAME_NS)
        assert tracked.track_id is not None
        assert tracked.track_id.shape == (0,)
        assert tracked.track_id.dtype == np.int32


def test_broken_boxes_get_no_number_and_harm_no_other() -> None:
    nan, inf = np.nan, np.inf
    boxes = [
        [nan, 0, 10, 10],
        [10, 10, 50, 50],
        [0, 0, inf, 10],
        [20, 20, 20, 40],
        [50, 50, 40, 40],
        [300, 300, 340, 340],
    ]
    scores = [0.9, 0.9, 0.9, 0.9, 0.9, nan]
    found = Detections(
        np.array(boxes, np.float32),
        np.array(scores, np.float32),
        np.ones(6, np.int32),
        HW,
        np.ones((6, 28, 28), np.float32),
    )
    with np.errstate(all="raise"):
        assert run([found] * 4) == [[0] * 6] + [[0, 1, 0, 0, 0, 0]] * 3


def test_300_detections() -> None:
    grid = [(16 + 32 * column, 16 + 32 * row) for row in range(15) for column in range(20)]
    frames = [seen([(x + step, y) for x, y in grid], side=30, masks=True) for step in range(4)]
    given = run(frames)
    assert sorted(given[1]) == list(range(1, 301))
    assert given[1] == given[2] == given[3]


def wander(seed: int, frames: int) -> list[Detections]:
    """Things that wander, vanish and return, with masks and scores of all kinds."""
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(50, 430, (12, 2)), rng.normal(0, 4, (12, 2))
    result = []
    for _ in range(frames):
        place = np.clip(place + speed + rng.normal(0, 1, place.shape), 20, 460)
        rows = rng.permutation(12)[: rng.integers(0, 13)]
        shown = [(float(x), float(y)) for x, y in place[rows]]
        result.append(seen(shown, score=rng.uniform(0.1, 1, len(rows)), class_id=rows % 4 + 1, masks=True))
    return result


def test_the_same_calls_give_the_same_numbers() -> None:
    frames = wander(3, 150)
    assert run(frames) == run(frames)


def test_a_number_is_given_once_a_frame() -> None:
    for given in run(wander(4, 150)):
        positive = [number for number in given if number]
        assert len(set(positive)) == len(positive)


@pytest.mark.parametrize("frames", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_what_is_gone_is_forgotten(frames: int) -> None:
    """Flickering things; in the end with a clock that stands still, so that nothing ever seems to be gone for long."""
    rng = np.random.default_rng(5)
    pool = []
    for _ in range(500):
        shown = [(float(x), float(y)) for x, y in rng.uniform(20, 460, (2, 2))]
        pool.append(seen(shown, side=10, class_id=int(rng.integers(1, 9))))
    tracker = Tracker(TrackerOptions(confirm=0))
    most = 0
    for index in range(frames):
        tracker.update(pool[index % 500], index * FRAME_NS)
        most = max(most, len(tracker._tracks))
    assert 2 < most < 100
    for index in range(600):
        tracker.update(pool[index % 500], frames * FRAME_NS)
    assert len(tracker._tracks) <= 1002


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lost_s": 0}, "lost_s"),
        ({"start_score": 1}, "start_score"),
        ({"start_score": -0.1}, "start_score"),
        ({"confirm": -1}, "confirm"),
    ],
)
def test_options_out_of_range(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrackerOptions(**changed)


@pytest.mark.render
def test_a_generated_clip(tmp_path: Path) -> None:
    """Two seconds of falling and pushed things seen by a moving camera, with the bundled model."""
    pytest.importorskip("motmetrics", reason="motmetrics, which measures IDF1, is not installed")
    from benchmarks.tracking import detect, read_truth, score, track
    from edge_mrcnn.training.tabletop.clip_writer import write_clip

    write_clip(tmp_path / "clip", seed=108, duration_s=2)
    with Detector(MODEL, threshold=0.1) as detector:
        frames = detect(tmp_path / "clip", detector)
    found = score(read_truth(tmp_path / "clip"), track(frames, FPS, TrackerOptions()))
    assert found["idf1"] > 0.88
    assert found["num_switches"] <= 5
