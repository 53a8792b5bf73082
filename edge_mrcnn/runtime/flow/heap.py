"""Memory that was freed goes back to the system, so that a run of months holds what it uses and no more."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

EVERY_S = 10.0

LARGE_BYTES = 256 * 1024
"""Blocks from this size on, such as pictures, come from the system and go back to it when they are freed."""

_M_MMAP_THRESHOLD = -3
"""Source: glibc's malloc.h."""


@contextlib.contextmanager
def give_memory_back(every_s: float = EVERY_S) -> Iterator[None]:
    """Let the C library give back what is free: large blocks at once, others now and then while the block lasts.

    glibc keeps what a thread frees for that thread, and after it has seen a large block freed it keeps blocks of that
    size as well: pictures lie among small things, and the gaps between them grow for hours, as `edge-mrcnn soak` shows.
    With a fixed limit pictures never come to lie there; that stays so for the process. Giving the rest back takes a few
    milliseconds, in a thread of its own. Where the C library is another, nothing is done.
    """
    library = ctypes.CDLL(None)
    trim, tune = getattr(library, "malloc_trim", None), getattr(library, "mallopt", None)
    if trim is None or tune is None:
        yield
        return
    tune(_M_MMAP_THRESHOLD, LARGE_BYTES)
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
