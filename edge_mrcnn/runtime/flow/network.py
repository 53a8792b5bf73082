"""The thread in which frames become results: batches, the network, tracks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge_mrcnn.detections import Detections
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.detector import Detector, PendingDetections
from edge_mrcnn.runtime.flow.batcher import Batcher
from edge_mrcnn.runtime.flow.result import Draw, Result
from edge_mrcnn.runtime.metrics import Timings
from edge_mrcnn.runtime.tracker import Tracker, TrackerOptions


@dataclass(frozen=True)
class _Begun:
    """A batch in the detector."""

    batch: list[tuple[int, Frame]]
    begin_ns: int
    pending: PendingDetections


class NetworkThread:
    """Takes batches, finds instances, numbers them and delivers the results, in order.

    A GPU works on its own: of files, the next batch is handed to it while the results of the one before are delivered.
    Of cameras it is not: a frame that waits for the GPU could be a newer one.

    Attributes:
        done: Everything is delivered, or `error` is set.
        error: What broke it off.
        frames: Frames delivered.
    """

    def __init__(
        self,
        detector: Detector,
        batcher: Batcher,
        deliver: Callable[[Result], None],
        *,
        draw: Draw,
        masks: bool,
        max_frames: int | None,
        tracked: frozenset[str],
        threshold: float,
        wake: threading.Event,
    ) -> None:
        """Connect the parts; nothing happens before `start`.

        Args:
            detector: Used by this thread alone while it runs.
            batcher: Where frames come from.
            deliver: Takes each result; the thread waits while it does not return.
            draw: Draws the picture of a result.
            masks: Keep the masks.
            max_frames: Frames to deliver at most.
            tracked: Cameras whose detections are numbered from frame to frame.
            threshold: Detections with a lower score are dropped, but for those that continue a track.
            wake: Set at the end.
        """
        self.done = False
        self.error: Exception | None = None
        self.frames = 0
        self._detector, self._batcher, self._deliver = detector, batcher, deliver
        self._draw, self._masks, self._max_frames, self._wake = draw, masks, max_frames, wake
        self._tracked, self._threshold = tracked, threshold
        self._trackers: dict[str, Tracker] = {}
        self._taken = 0
        self._thread = threading.Thread(target=self._run, name="edge-mrcnn-network", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop()
        except Exception as error:  # carried over to the main thread
            self.error = error
        self.done = True
        self._wake.set()

    def _loop(self) -> None:
        cameras = any(lane.source.live for lane in self._batcher.lanes)
        ahead = 1 if self._detector.overlaps and not cameras else 0
        begun: deque[_Begun] = deque()
        while True:
            batch = self._batcher.take(room) if (room := self._room()) else []
            if batch:
                self._taken += len(batch)
                frames = [frame for _, frame in batch]
                begun.append(_Begun(batch, time.monotonic_ns(), self._detector.submit(frames)))
            if not begun:
                return
            if not batch or len(begun) > ahead:
                self._end(begun.popleft())

    def _room(self) -> int:
        room = self._detector.batch
        return room if self._max_frames is None else min(room, self._max_frames - self._taken)

    def _end(self, begun: _Begun) -> None:
        found, timings = begun.pending.result()
        for (lane, frame), detections in zip(begun.batch, found, strict=True):
            begin = time.perf_counter_ns()
            numbered = self._number(frame, detections, lane)
            track_ns = time.perf_counter_ns() - begin
            kept = numbered if self._masks else replace(numbered, mask=None)
            stages = (begun.begin_ns - frame.captured_ns, *_shares(timings), track_ns)
            now_ns = time.monotonic_ns()
            self._deliver(Result(frame, kept, lane, self._draw, stages, now_ns, now_ns, 0))
            self.frames += 1

    def _number(self, frame: Frame, detections: Detections, lane: int) -> Detections:
        """Detections with their tracks' numbers; each camera has a tracker of its own from its first frame on."""
        if frame.camera not in self._tracked:
            return detections[detections.score >= self._threshold]
        if frame.camera not in self._trackers:
            start_score = min(max(self._threshold, TrackerOptions.start_score), 0.99)
            self._trackers[frame.camera] = Tracker(TrackerOptions(start_score=start_score))
        # A camera's stamps may jump with somebody's clock; of files only the position counts.
        time_ns = frame.captured_ns if self._batcher.lanes[lane].source.live else frame.stamp_ns
        numbered = self._trackers[frame.camera].update(detections, time_ns)
        return numbered[(numbered.score >= self._threshold) | (np.asarray(numbered.track_id) > 0)]


def _shares(timings: Timings) -> tuple[int, int, int]:
    """Time of letterboxing, network and boxes for each frame of a batch."""
    count = max(timings.frames, 1)
    return timings.pre_ns // count, timings.infer_ns // count, timings.post_ns // count
