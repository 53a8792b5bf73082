"""SIGINT and SIGTERM as a wish to end, rather than an exception anywhere."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Caught:
    """The signal that came.

    Attributes:
        name: Such as `SIGTERM`; empty while none came.
    """

    name = ""


@contextlib.contextmanager
def catch_signals() -> Iterator[Caught]:
    """Notice SIGINT and SIGTERM in the block; the handlers before are restored after it.

    The second signal ends the process at once, even inside a library that hangs. Nothing is done outside the
    main thread, where Python allows no handlers, nor for a signal that the process ignores.

    Yields:
        The signal that came. It only keeps a name: a handler may run in the middle of anything.
    """
    caught = Caught()
    before: dict[signal.Signals, Any] = {}

    def notice(number: int, frame: FrameType | None) -> None:
        caught.name = signal.Signals(number).name
        for one in before:
            signal.signal(one, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, notice)
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
