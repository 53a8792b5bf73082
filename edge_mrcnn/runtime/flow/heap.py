"""Memory that was freed goes back to the system, so that a run of months holds what it uses and no more."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

EVERY_S = 10.0


@contextlib.contextmanager
def give_memory_back(every_s: float = EVERY_S) -> Iterator[None]:
    """Let the C library give back what is free, now and then while the block lasts.

    glibc keeps what a thread frees for that thread. With a thread for each camera and sink, what each of them needed at
    its worst moment adds up, and the sum grows for hours, as `edge-mrcnn soak` shows. Giving it back takes a few
    milliseconds, in a thread of its own. Where the C library is another, nothing is done.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        yield
        return
    over = threading.Event()

    def work() -> None:
        while not over.wait(every_s):
            trim(0)

    thread = threading.Thread(target=work, name="edge-mrcnn-heap", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
