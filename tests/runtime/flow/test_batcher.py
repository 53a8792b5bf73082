"""Batches of real live sources: everybody gets a turn, and nobody waits for a camera that is not there."""

import statistics
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from edge_mrcnn import Frame
from edge_mrcnn.runtime.flow.batcher import Batcher
from edge_mrcnn.runtime.sources.pattern import PatternSource
from tests.runtime.flow.cameras import Camera, wait_for


@pytest.fixture
def running() -> Iterator:
    """Starts batchers, and stops them afterwards."""
    begun = []

    def start(*sources) -> Batcher:
        batcher = Batcher(sources, [source.name for source in sources])
        batcher.start()
        begun.append((batcher, sources))
        return batcher

    yield start
    for batcher, sources in begun:
        batcher.stop()
        for source in sources:
            source.close()


def names(batch: list[tuple[int, Frame]]) -> list[str]:
    return [frame.camera for _, frame in batch]


def test_with_room_for_one_cameras_take_turns(running) -> None:
    cameras = [Camera(name, fps=200) for name in ("a", "b", "c")]
    batcher = running(*(camera.source for camera in cameras))
    wait_for(lambda: all(camera.source.health.frames for camera in cameras))
    seen = []
    for _ in range(60):  # a network slower than the cameras
        (entry,) = batcher.take(1)
        seen.append(entry[1])
        time.sleep(0.01)
    assert set(Counter(frame.camera for frame in seen).values()) <= {19, 20, 21}
    for name in "abc":
        indices = [frame.index for frame in seen if frame.camera == name]
        assert indices == sorted(set(indices))


def test_a_batch_waits_for_cameras_that_are_there(running) -> None:
    first, second = Camera("first", fps=5), Camera("second", fps=5)
    batcher = running(first.source, second.source)
    batches = [batcher.take(2) for _ in range(5)]
    assert [sorted(names(batch)) for batch in batches[1:]] == [["first", "second"]] * 4


def test_a_dead_camera_delays_nobody(running) -> None:
    alive, dead = Camera("alive", fps=5), Camera("dead", fps=5, timeout_s=60)
    batcher = running(alive.source, dead.source)
    wait_for(lambda: dead.source.health.frames > 0)
    dead.stalled.set()
    time.sleep(0.5)  # more than two frame periods: it is not expected any more
    ages = []
    for _ in range(9):
        batch = batcher.take(2)
        if names(batch) == ["alive"]:
            ages.append(time.monotonic_ns() - batch[0][1].captured_ns)
    assert len(ages) >= 7
    assert statistics.median(ages) < 0.1e9, "it waited for the dead camera's frame period of 0.2 s"
    dead.stalled.clear()


def test_a_seldom_camera_is_not_waited_for_before_its_time(running) -> None:
    often, seldom = Camera("often", fps=5), Camera("seldom", fps=0.5)
    batcher = running(often.source, seldom.source)
    while "seldom" not in names(batcher.take(2)):
        pass
    ages = []
    for _ in range(7):
        ((_, frame),) = batcher.take(2)
        ages.append(time.monotonic_ns() - frame.captured_ns)
    assert statistics.median(ages) < 0.1e9, "it waited a frame period of 0.2 s for what comes every 2 s"


def test_what_has_waited_long_goes_at_once(running) -> None:
    """A camera that is due is not waited for when the network has kept the other's frame waiting already."""
    often, seldom = Camera("often", fps=20), Camera("seldom", fps=0.7, timeout_s=60)
    batcher = running(often.source, seldom.source)
    while "seldom" not in names(batcher.take(2)):
        pass
    wait_for(lambda: batcher.lanes[0].wait(0))
    often.stalled.set()
    time.sleep(0.2)  # its frame in the mailbox is now older than its period
    begin = time.monotonic()
    assert names(batcher.take(2)) == ["often"]
    assert time.monotonic() - begin < 0.5
    often.stalled.clear()


@pytest.mark.parametrize("pause_s", [0, 0.02])
def test_files_fill_every_batch(running, pause_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = PatternSource.draw
    monkeypatch.setattr(PatternSource, "draw", lambda self, index: time.sleep(pause_s) or draw(self, index))
    batcher = running(PatternSource((8, 8), frames=4, name="one"), PatternSource((8, 8), frames=3, name="two"))
    batches = [batcher.take(3) for _ in range(4)]
    assert [names(batch) for batch in batches] == [["one"] * 3, ["one", "two", "two"], ["two"], []]


def test_a_file_beside_a_camera_takes_nothing_from_it(running) -> None:
    camera = Camera("camera", fps=40)
    batcher = running(camera.source, PatternSource((8, 8), name="file"))
    wait_for(lambda: camera.source.health.frames > 0)
    seen: list[str] = []
    while seen.count("camera") < 20:
        seen += names(batcher.take(1))
        time.sleep(0.005)
    assert seen.count("file") > 20
    assert camera.source.health.frames - seen.count("camera") <= 6  # few were overtaken by newer ones


def test_what_was_read_can_be_taken_after_the_stop(running) -> None:
    camera = Camera("camera")
    batcher = running(camera.source, PatternSource((8, 8), frames=9, name="file"))
    wait_for(lambda: camera.source.health.frames > 0 and batcher.lanes[1].wait(0))
    batcher.ask_to_stop()
    left = []
    while batch := batcher.take(1):
        left += names(batch)
    assert "camera" in left
    assert "file" in left
