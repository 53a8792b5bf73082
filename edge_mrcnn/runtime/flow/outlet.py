"""A sink with a thread of its own, so that neither the network nor another sink waits for it longer than it must."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from edge_mrcnn.runtime.flow.result import Result
from edge_mrcnn.runtime.sinks import Sink

logger = logging.getLogger(__name__)

_ROOM = 4
"""Results that wait for a sink that records; when there are as many, the network waits."""

_HANGS_S = 10.0
"""Who writes one frame for longer is said to hang."""


class Outlet:
    """Hands results to one sink, in a thread of its own, or in the main thread where the sink wants that.

    A `record` gets every result: up to four wait for it, then `put` waits. A `view` gets the newest result of each
    lane; those that a newer one overtook are counted. A sink that raises gets nothing more.

    Attributes:
        sink: The sink.
        error: What it raised, None while it works.
        written: Results written.
        dropped: Results that a view was too slow for.
    """

    def __init__(self, sink: Sink, own: bool, settle: Callable[[Result, bool], None], wake: threading.Event):
        """Take a sink.

        Args:
            sink: The sink.
            own: Close it with the outlet.
            settle: Called with each result when the sink is through with it; False where it was lost to a record.
            wake: Set whenever the main thread should look: the sink failed, wants to end, or waits for that thread.
        """
        self.sink = sink
        self.error: Exception | None = None
        self.written = self.dropped = 0
        self._own, self._settle, self._wake = own, settle, wake
        self._records = sink.kind == "record"
        self._waiting: dict[int, Result] = {}  # by number of the result, of views by lane
        self._count = 0
        self._busy = self._finishing = False
        self._begin = 0.0
        self._changed = threading.Condition()
        name = f"edge-mrcnn-sink-{sink.uri}"
        self._thread = None if sink.main_thread else threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        """Begin to write."""
        if self._thread is not None:
            self._thread.start()

    def put(self, result: Result) -> None:
        """Hand a result over; waits while a sink that records has too many."""
        with self._changed:
            if self._records:
                self._changed.wait_for(lambda: len(self._waiting) < _ROOM or self._is_out())
            missed: Result | None = result
            if not self._is_out():
                key = self._count if self._records else result.lane
                self._count += 1
                missed = self._waiting.get(key)
                self._waiting[key] = result
                self.dropped += missed is not None
                self._changed.notify_all()
        if missed is not None:
            self._settle(missed, True)
        if self._thread is None:
            self._wake.set()

    def pump(self) -> None:
        """Write what waits just now, where the sink wants the main thread; to be called there."""
        for _ in range(len(self._waiting) if self._thread is None else 0):  # no more: new ones may come for ever
            result = self._next(0)
            if result is not None:
                self._write(result)

    def finish(self) -> None:
        """Let the thread end when everything is written; does not wait for that."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def give_up(self) -> None:
        """Write nothing more, and let nobody wait for that."""
        self._fail(RuntimeError("the run was broken off"))
        self.finish()

    @property
    def trouble(self) -> str:
        """Why it failed, or that it hangs; empty while it works."""
        seconds = time.monotonic() - self._begin
        if self.error is None and self._busy and seconds > _HANGS_S:
            return f"has been writing one frame for {seconds:.0f} s"
        return str(self.error or "")

    @property
    def backlog(self) -> int:
        """Results that are not written yet."""
        with self._changed:
            return len(self._waiting) + self._busy

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing is left to write; False when time ran out before."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, timeout_s)

    def __enter__(self) -> Outlet:
        if self._own:
            self.sink.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join(0.0 if self._busy else None)
        if not self._own:
            return
        if self._busy:
            logger.warning("%s still writes: it is left behind", self.sink.uri)
            return
        try:
            self.sink.__exit__(kind, error, trace)
        except Exception as problem:
            if self.error is None:
                raise
            logger.warning("%s, which failed before: %s", self.sink.uri, problem)

    def _is_out(self) -> bool:
        return self.error is not None or (self.sink.wants_stop and not self._records)

    def _serve(self) -> None:
        while (result := self._next(None)) is not None:
            self._write(result)

    def _next(self, timeout_s: float | None) -> Result | None:
        """The result that waits longest; None at the end, or when time ran out."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._finishing, timeout_s)
            if not self._waiting:
                return None
            result = self._waiting.pop(next(iter(self._waiting)))
            self._busy, self._begin = True, time.monotonic()
            self._changed.notify_all()
            return result

    def _write(self, result: Result) -> None:
        try:
            picture = result.picture if self.sink.wants_picture else None
            self.sink.write(result.frame, result.detections, picture)
        except Exception as error:
            self._fail(error)
            self._settle(result, not self._records)
        else:
            self.written += 1
            result.written_ns = time.monotonic_ns()
            self._settle(result, True)
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        if self._finishing or self.sink.wants_stop or self.error is not None:
            self._wake.set()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self.error = self.error or error
            missed = list(self._waiting.values())
            self._waiting.clear()
            self._changed.notify_all()
        for result in missed:
            self._settle(result, not self._records)
