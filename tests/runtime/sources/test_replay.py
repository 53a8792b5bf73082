"""Videos and the test pattern played at their own pace."""

import itertools
import threading
import time

import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources import open_source
from edge_mrcnn.runtime.sources.lane import Lane
from edge_mrcnn.runtime.sources.pattern import PatternSource
from edge_mrcnn.runtime.sources.replay import Replay


def test_the_pattern_is_a_camera() -> None:
    with open_source("test://64x48?fps=100&name=Left&frame_id=optical&seed=3") as source:
        assert (source.live, source.length, source.fps, source.drop, source.name) == (True, None, 100, "auto", "left")
        begin_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        frames = list(itertools.islice(source, 41))
        end_ns = time.monotonic_ns()
    received = [frame.captured_ns for frame in frames]
    assert begin_ns <= received[0]
    assert received[-1] <= end_ns
    assert received[-1] - received[0] >= 0.3e9
    assert received == sorted(received)
    assert {(frame.stamp_source, frame.camera, frame.frame_id) for frame in frames} == {("host", "left", "optical")}
    assert all(0 <= frame.stamp_ns - wall_ns < 60e9 for frame in frames)
    assert [frame.index for frame in frames] == list(range(41))
    np.testing.assert_array_equal(frames[7].image, PatternSource((64, 48), fps=100, seed=3).draw(7))


def test_with_frames_it_is_a_video() -> None:
    with open_source("test://64x48?frames=3&fps=1&frame_id=optical") as source:
        assert (source.live, source.length) == (False, 3)
        assert [frame.stamp_ns for frame in source] == [0, 10**9, 2 * 10**9]
        assert (source.health.state, source.health.frames, source.health.image_hw) == ("ended", 3, (48, 64))


@pytest.mark.parametrize(
    ("uri", "live", "length"), [("test://9x9?frames=3&live=1", True, 3), ("test://9x9?live=0", False, None)]
)
def test_live_may_be_said(uri: str, live: bool, length: int | None) -> None:
    with open_source(uri) as source:
        assert (source.live, source.length) == (live, length)
        if length:
            assert len(list(source)) == length
            assert source.health.state == "ended"


def test_a_camera_keeps_the_newest() -> None:
    with open_source("test://64x48?fps=200") as source:
        lane = Lane(source)
        lane.start()
        assert lane.wait(10)
        deadline = time.monotonic() + 10
        while lane.dropped < 5:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        frame = lane.take()
        assert frame is not None
        assert frame.index >= 5
        lane.stop()
        assert lane.health.frames >= lane.dropped + 1


def test_who_is_late_is_not_flooded() -> None:
    """After a pause the next frames come at the source's pace, not all at once."""
    with open_source("test://16x16?fps=50&drop=never") as source:
        frames = iter(source)
        next(frames)
        time.sleep(0.5)
        received = [next(frames).captured_ns for _ in range(6)]
    assert received[-1] - received[0] >= 0.05e9


def test_a_loop_begins_again() -> None:
    opened = []

    def again() -> PatternSource:
        opened.append(PatternSource((16, 16), frames=3, fps=20))
        return opened[-1]

    with Replay(again, loop=True) as source:
        assert source.length is None
        frames = list(itertools.islice(source, 8))
    assert [frame.index for frame in frames] == list(range(8))
    assert len(opened) == 3
    np.testing.assert_array_equal(frames[0].image, frames[3].image)
    assert frames[-1].captured_ns - frames[0].captured_ns > 0.3e9  # a frame's time between two rounds, too


def test_closing_ends_the_wait() -> None:
    with open_source("test://16x16?fps=0.01") as source:
        frames = iter(source)
        next(frames)
        threading.Timer(0.1, source.close).start()
        assert list(frames) == []
        assert source.health.state == "ended"


def test_what_breaks_in_a_later_round() -> None:
    rounds = iter([PatternSource((16, 16), frames=1, fps=100)])

    def again() -> PatternSource:
        for source in rounds:
            return source
        raise StreamError("the file is gone")

    with Replay(again, loop=True) as source, pytest.raises(StreamError, match="the file is gone"):
        list(source)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("test://16x16?live=yes", "option live .* cannot be 'yes'; expected 0 or 1"),
        ("test://16x16?frames=3&drop=oldest", "files never drop frames; with live=1"),
        ("test://16x16?drop=newest", "option drop .* cannot be 'newest'; expected one of auto, oldest, never"),
    ],
)
def test_wrong_options(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(uri)


def test_a_clock_runs_where_there_is_room() -> None:
    """Letters are the brightest there is, but for one shape, which is not in this corner yet."""
    corner = (slice(440, 475), slice(10, 140))
    first, second = (PatternSource((640, 480)).draw(index)[corner] > 215 for index in (0, 1))
    assert 100 < first.all(axis=2).sum() < 1500
    assert (first != second).any()
