"""The main thread's part in a run: it starts and ends everything else, and otherwise looks after it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from edge_mrcnn.runtime.flow.batcher import Batcher
from edge_mrcnn.runtime.flow.network import NetworkThread
from edge_mrcnn.runtime.flow.outlet import Outlet
from edge_mrcnn.runtime.flow.signals import Caught

logger = logging.getLogger(__name__)

OnSinkError = Literal["stop", "go-on"]
"""What becomes of a run when a sink that records fails. A view that fails never ends a run, unless no sink is left."""

_LOOK_S = 0.1
"""How often signals and the caller's wish to stop are looked at; everything else wakes the main thread."""

_VIEW_S = 2.0
"""How long a view may take to show the last results; then it is left behind."""

_REMIND_S = 5.0


class Supervisor:
    """Runs a run.

    Attributes:
        interrupted: A signal or the caller ended it.
    """

    def __init__(
        self,
        batcher: Batcher,
        network: NetworkThread,
        outlets: Sequence[Outlet],
        wake: threading.Event,
        on_sink_error: OnSinkError,
    ) -> None:
        """Take the parts; nothing runs before `run`."""
        self.interrupted = False
        self._batcher, self._network, self._outlets, self._wake = batcher, network, outlets, wake
        self._on_sink_error = on_sink_error
        self._stopping = False
        self._noticed: set[int] = set()

    def run(self, caught: Caught, stop: threading.Event | None, tick: Callable[[], None]) -> None:
        """Go on until everything is read, found and written, or somebody wants it to end.

        Args:
            caught: The signal that came.
            stop: The caller's wish to end.
            tick: Called many times a second.

        Raises:
            Exception: What broke the run off; everything that could still be written is written.
        """
        try:
            for outlet in self._outlets:
                outlet.start()
            self._network.start()
            self._batcher.start()
            while not self._network.done:
                self._look(caught, stop)
                self._attend(tick)
            self._batcher.ask_to_stop()
            self._flush(tick)
        except BaseException:
            for outlet in self._outlets:
                outlet.give_up()
            raise
        finally:
            self._batcher.stop()
            self._network.join()
        error = self._error()
        if error is not None:
            raise error

    def _attend(self, tick: Callable[[], None]) -> None:
        """Sleep until there is something to do, and do the main thread's part."""
        self._wake.wait(_LOOK_S)
        self._wake.clear()
        for outlet in self._outlets:
            outlet.pump()
        tick()

    def _look(self, caught: Caught, stop: threading.Event | None) -> None:
        """Find out whether the run should end."""
        self._notice_errors()
        if self._stopping:
            return
        if caught.name or (stop is not None and stop.is_set()):
            self.interrupted = True
            reason = f"{caught.name}; once more to leave at once" if caught.name else "asked to"
            logger.warning("ending (%s): writing what was begun", reason)
        broken = any(lane.error is not None and not lane.source.live for lane in self._batcher.lanes)
        enough = any(outlet.sink.wants_stop for outlet in self._outlets)
        if self.interrupted or broken or enough or self._sink_error() is not None:
            self._stopping = True
            self._batcher.ask_to_stop()

    def _notice_errors(self) -> None:
        """Say once what failed, where the run goes on without it."""
        fatal = self._sink_error()
        failed = [(lane.source.uri, lane.error) for lane in self._batcher.lanes if lane.source.live]
        failed += [(outlet.sink.uri, outlet.error) for outlet in self._outlets if outlet.error is not fatal]
        for uri, error in failed:
            if error is not None and id(error) not in self._noticed:
                self._noticed.add(id(error))
                logger.warning("going on without %s: %s", uri, error)
        for outlet in self._outlets:
            hangs = outlet.error is None and bool(outlet.trouble)
            if hangs and id(outlet) not in self._noticed:
                logger.warning("%s %s", outlet.sink.uri, outlet.trouble)
            (self._noticed.add if hangs else self._noticed.discard)(id(outlet))

    def _sink_error(self) -> Exception | None:
        """The failure of a sink that ends the run."""
        failed = [outlet for outlet in self._outlets if outlet.error is not None]
        if not failed:
            return None
        records = [outlet.error for outlet in failed if outlet.sink.kind == "record"]
        if records and self._on_sink_error == "stop":
            return records[0]
        return failed[-1].error if len(failed) == len(self._outlets) else None

    def _flush(self, tick: Callable[[], None]) -> None:
        """Wait until every result is written, however long a record takes."""
        for outlet in self._outlets:
            outlet.finish()
        begin = reminded = time.monotonic()
        while any(outlet.backlog for outlet in self._outlets):
            self._attend(tick)
            now = time.monotonic()
            late = [outlet for outlet in self._outlets if outlet.sink.kind == "record" and outlet.backlog]
            if not late and now - begin > _VIEW_S:
                break
            if late and now - reminded > _REMIND_S:
                reminded = now
                logger.warning(
                    "still waiting for %s; Ctrl-C leaves at once",
                    ", ".join(f"{outlet.sink.uri} ({outlet.backlog} frames)" for outlet in late),
                )
        tick()

    def _error(self) -> Exception | None:
        """What the caller is told: the cause before what came of it."""
        if self._network.error is not None:
            return self._network.error
        lanes = [lane for lane in self._batcher.lanes if lane.error is not None]
        broken = [lane.error for lane in lanes if not lane.source.live or not self._stopping]
        return broken[0] if broken else self._sink_error()
