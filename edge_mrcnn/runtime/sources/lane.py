"""A source read by a thread of its own: whoever takes the frames waits for no camera, and no camera for another."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.live import Drop, LiveSource, SourceHealth, as_drop

if TYPE_CHECKING:
    from edge_mrcnn.runtime.sources import Source

logger = logging.getLogger(__name__)

_ROOM = 4
"""Frames that wait where none may be dropped: enough to read on while a batch is worked on."""


class Lane:
    """Reads one source in a thread of its own; what nobody has taken yet waits in a mailbox.

    With `oldest` the mailbox holds one frame, and a newer one takes its place; with `never` it holds a few, and the
    reader waits while it is full.

    Attributes:
        source: Where the frames come from. It is not closed here.
        error: What ended the source, None where it ended by itself or goes on. Live sources come back by themselves.

    Example:
        >>> from edge_mrcnn.runtime.sources import open_source
        >>> with open_source("test://64x48?frames=2") as source:
        ...     lane = Lane(source)
        ...     lane.start()
        ...     while not lane.ended:
        ...         frame = lane.take() if lane.wait(1.0) else None
        ...         if frame is not None:
        ...             print(frame.index)
        0
        1
    """

    def __init__(self, source: Source, notify: Callable[[], None] | None = None, drop: Drop | None = None) -> None:
        """Take a source; nothing is read before `start`.

        Args:
            source: Read by this lane alone.
            notify: Called in the reader's thread whenever a frame was put and once at the end; it must return at once.
            drop: What happens to frames that nobody takes in time; the source's own policy when not given.

        Raises:
            ValueError: The policy is unknown.
        """
        policy = as_drop(drop or source.drop)
        self.source = source
        self.error: Exception | None = None
        self._newest_only = policy == "oldest" or (policy == "auto" and source.live)
        self._notify = notify
        self._mailbox: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._over = False
        self._dropped = 0
        name = f"edge-mrcnn-read-{source.name}"
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def take(self) -> Frame | None:
        """The next frame, without waiting; None when there is none now."""
        with self._changed:
            frame = self._mailbox.popleft() if self._mailbox else None
            self._changed.notify_all()
        return frame

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is a frame to take or nothing will come any more; False when time ran out before."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._mailbox) or self._over, timeout_s)

    @property
    def ended(self) -> bool:
        """The mailbox is empty and nothing will come any more."""
        with self._changed:
            return self._over and not self._mailbox

    @property
    def dropped(self) -> int:
        """Frames that nobody took in time."""
        return self._dropped

    @property
    def health(self) -> SourceHealth:
        """How the source is doing, with the frames that were dropped here."""
        found = self.source.health
        return replace(found, dropped=found.dropped + self._dropped)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Read no more; frames in the mailbox stay to be taken. A second call waits again.

        Args:
            timeout_s: How long to wait for the reader, which may be inside a library that waits for the network. After
                that it is left behind with a warning, and ends as soon as the library returns. With 0 it is only
                asked to stop: of many lanes, ask all before waiting for each.
        """
        with self._changed:
            self._over = True
            self._stopping.set()
            self._changed.notify_all()
        if self._thread.ident is None or timeout_s <= 0:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("%s did not stop within %g s: its reader is left behind", self.source.uri, timeout_s)

    def _read(self) -> None:
        try:
            self._read_all()
        except Exception as error:  # carried over to whoever takes
            self.error = error
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._notify is not None:
            self._notify()

    def _read_all(self) -> None:
        source = self.source
        frames: Iterator[Frame] = source.read_on(self._stopping) if isinstance(source, LiveSource) else iter(source)
        try:
            for frame in frames:
                if not self._put(frame):
                    break
        finally:
            if isinstance(frames, Generator):  # it ends here, in the thread that ran it
                frames.close()

    def _put(self, frame: Frame) -> bool:
        """Put a frame into the mailbox, as the policy says; False when the lane is being stopped."""
        with self._changed:
            if not self._newest_only:
                self._changed.wait_for(lambda: len(self._mailbox) < _ROOM or self._stopping.is_set())
            if self._stopping.is_set():
                self._dropped += 1  # it came too late; what is in the mailbox stays there
                return False
            if self._newest_only:
                self._dropped += len(self._mailbox)
                self._mailbox.clear()
            self._mailbox.append(frame)
            self._changed.notify_all()
        if self._notify is not None:
            self._notify()
        return True
