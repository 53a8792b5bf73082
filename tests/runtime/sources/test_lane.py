"""Lanes: what waits, what is dropped, and how they end."""

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.lane import Lane
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth

PIXELS = np.zeros((2, 2, 3), np.uint8)


class Numbers:
    """Numbered frames; before each the reader is told to go on."""

    uri = "numbers"
    name = "numbers"
    fps = None
    skipped = 0

    def __init__(self, count: int, live: bool = False, fails: bool = False, drop: Drop = "auto") -> None:
        self.length = count
        self.live = live
        self.drop = drop
        self.given = 0
        self.finished_in = ""
        self._fails = fails

    @property
    def health(self) -> SourceHealth:
        return SourceHealth(frames=self.given, dropped=100)

    def __iter__(self) -> Iterator[Frame]:
        try:
            for index in range(self.length):
                self.given += 1
                yield Frame(PIXELS, index=index)
            if self._fails:
                raise StreamError("the numbers broke")
        finally:
            self.finished_in = threading.current_thread().name

    def close(self) -> None: ...

    def __enter__(self) -> "Numbers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def drain(lane: Lane) -> list[int]:
    found = []
    while not lane.ended:
        assert lane.wait(10)
        frame = lane.take()
        if frame is not None:
            found.append(frame.index)
    return found


def test_never_gives_every_frame_in_order_and_reads_only_a_few_ahead() -> None:
    source = Numbers(20)
    lane = Lane(source)
    assert not lane.wait(0)
    lane.start()
    wait_for(lambda: source.given == 5)  # four in the mailbox, one in hand
    assert not lane.ended
    assert drain(lane) == list(range(20))
    assert lane.error is None
    assert lane.dropped == 0
    assert lane.take() is None


def test_oldest_keeps_the_newest_and_counts_the_rest() -> None:
    lane = Lane(Numbers(10, live=True))
    lane.start()
    wait_for(lambda: lane.dropped == 9)
    assert lane.health.dropped == 109  # with those of the source itself
    assert drain(lane) == [9]


@pytest.mark.parametrize(
    ("live", "own", "asked", "drops"),
    [
        (False, "auto", None, False),
        (True, "auto", None, True),
        (True, "never", None, False),
        (False, "oldest", None, True),
        (True, "auto", "never", False),
        (True, "never", "oldest", True),
    ],
)
def test_policies(live: bool, own: Drop, asked: Drop | None, drops: bool) -> None:
    source = Numbers(30, live=live, drop=own)
    lane = Lane(source, drop=asked)
    lane.start()
    wait_for(lambda: source.given == (30 if drops else 5))
    assert (len(drain(lane)) < 30) == drops


def test_an_unknown_policy() -> None:
    with pytest.raises(ValueError, match="drop must be one of auto, oldest, never, got 'newest'"):
        Lane(Numbers(1), drop="newest")  # type: ignore[arg-type]


def test_an_error_is_told_after_the_last_frame() -> None:
    lane = Lane(Numbers(2, fails=True))
    lane.start()
    assert drain(lane) == [0, 1]
    assert str(lane.error) == "the numbers broke"


def test_who_takes_is_notified_of_every_frame_and_of_the_end() -> None:
    told = []
    lane = Lane(Numbers(3, fails=True), notify=lambda: told.append(threading.current_thread().name))
    lane.start()
    wait_for(lambda: len(told) == 4)
    assert set(told) == {"edge-mrcnn-read-numbers"}
    assert lane.wait(0)


@pytest.mark.parametrize("live", [False, True])
def test_stop_keeps_what_was_accepted_and_ends_the_reader_in_its_own_thread(live: bool) -> None:
    source = Numbers(10**9, live=live)
    lane = Lane(source)
    lane.start()
    assert lane.wait(10)
    lane.stop(0)
    lane.stop(10)
    assert not lane.ended
    given = source.given
    left = drain(lane)
    assert left[-1] in (given - 1, given - 2)  # the one in hand is given up
    assert len(left) == 1 if live else 4
    assert source.given == given
    assert source.finished_in == "edge-mrcnn-read-numbers"
    assert lane.error is None


def test_stop_before_start() -> None:
    lane = Lane(Numbers(1))
    lane.stop()
    assert lane.ended


def test_a_reader_that_hangs_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    class Hanging(Numbers):
        def __iter__(self) -> Iterator[Frame]:
            yield Frame(PIXELS)
            release.wait(30)

    lane = Lane(Hanging(1))
    lane.start()
    assert lane.wait(10)
    lane.stop(0.05)
    release.set()
    assert "numbers did not stop within 0.05 s" in caplog.text
    assert not lane.ended
    assert drain(lane) == [0]
