"""Batches of the newest frames of all cameras, in which nobody waits for a camera that is not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources import Source
from edge_mrcnn.runtime.sources.lane import Lane
from edge_mrcnn.runtime.sources.playlist import Playlist

DEFAULT_FPS = 30.0
"""Of cameras that do not say."""

_LOOK_S = 0.5
"""How long to sleep where nothing but a lane's bell can bring something new; a longer stop than the bell needs."""

_STOP_S = 2.0
"""For all lanes together to stop: a reader may be inside a library that waits for the network."""


class Batcher:
    """Takes frames from sources, each live one in a lane of its own, the others one after the other in one lane.

    The newest frame of each camera goes into a batch. Where some are missing it waits for those whose next frame is
    due, but no frame waits for more than the frame period of the fastest camera: one that has waited so long already,
    because the network was busy, goes at once. Cameras take turns in who comes first, so that none starves where a
    batch has no room for all. Files alone fill every batch.

    Attributes:
        lanes: One for each live source, then one for all others.
    """

    def __init__(self, sources: Sequence[Source], names: Sequence[str]) -> None:
        """Make the lanes; nothing is read before `start`.

        Args:
            sources: At least one.
            names: What `Frame.camera` becomes, one for each source.
        """
        self._bell = threading.Event()
        live = [(source, name) for source, name in zip(sources, names, strict=True) if source.live]
        files = [(source, name) for source, name in zip(sources, names, strict=True) if not source.live]
        self._names: list[str | None] = [name for _, name in live]
        self.lanes = [Lane(source, self._bell.set) for source, _ in live]
        if files:
            self.lanes.append(Lane(Playlist(*zip(*files, strict=True)), self._bell.set))
            self._names.append(None)  # a playlist gives its frames their names
        self._first = 0
        self._last_ns = [0] * len(self.lanes)

    def start(self) -> None:
        """Begin to read."""
        for lane in self.lanes:
            lane.start()

    def ask_to_stop(self) -> None:
        """Let no lane read on, without waiting for that; what was read can still be taken."""
        for lane in self.lanes:
            lane.stop(0)
        self._bell.set()

    def stop(self) -> None:
        """End the readers."""
        self.ask_to_stop()
        end = time.monotonic() + _STOP_S
        for lane in self.lanes:
            lane.stop(max(end - time.monotonic(), 0.01))

    def take(self, room: int) -> list[tuple[int, Frame]]:
        """The next batch; waits for it.

        Args:
            room: Most frames in it.

        Returns:
            Each frame with the number of its lane; nothing when all lanes have ended.
        """
        batch: list[tuple[int, Frame]] = []
        while True:
            self._bell.clear()  # before looking: what comes after that rings it again
            self._fill(batch, room)
            patience_s = self._patience_s(batch) if len(batch) < room else 0.0
            if patience_s <= 0:
                return batch
            self._bell.wait(patience_s)

    def _fill(self, batch: list[tuple[int, Frame]], room: int) -> None:
        """Take what is there: one frame of each lane in turn, then more of those that keep several."""
        found = True
        while found and len(batch) < room:
            found = False
            for number in [*range(self._first, len(self.lanes)), *range(self._first)]:
                frame = self.lanes[number].take() if len(batch) < room else None
                if frame is not None:
                    found = True
                    batch.append((number, self._named(number, frame)))
                    self._last_ns[number] = frame.captured_ns
                    self._first = (number + 1) % len(self.lanes)

    def _named(self, number: int, frame: Frame) -> Frame:
        name = self._names[number]
        return frame if name is None or frame.camera == name else replace(frame, camera=name)

    def _patience_s(self, batch: Sequence[tuple[int, Frame]]) -> float:
        """How much longer a batch with room may wait."""
        going = [number for number, lane in enumerate(self.lanes) if not lane.ended]
        cameras = [number for number in going if self.lanes[number].source.live]
        if not batch or not cameras:
            return _LOOK_S if going else 0.0
        now_ns = time.monotonic_ns()
        latest_ns = min(frame.captured_ns for _, frame in batch) + min(map(self._period_ns, cameras))
        there = {number for number, _ in batch}
        expected = any(self._is_due(number, now_ns, latest_ns) for number in cameras if number not in there)
        return (latest_ns - now_ns) / 1e9 if expected else 0.0

    def _is_due(self, number: int, now_ns: int, latest_ns: float) -> bool:
        """Whether a camera's next frame should come in time, and is not so late that something must be wrong."""
        last_ns, period_ns = self._last_ns[number], self._period_ns(number)
        return last_ns + period_ns <= latest_ns and now_ns < last_ns + 2 * period_ns

    def _period_ns(self, number: int) -> float:
        return 1e9 / (self.lanes[number].source.fps or DEFAULT_FPS)
