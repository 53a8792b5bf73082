"""What a person or a log sees of a run: a line or a line of JSON a second, or a progress bar."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

from edge_mrcnn.runtime.flow.monitor import Monitor
from edge_mrcnn.runtime.metrics import CameraStatus, Percentiles, RunStatus

Show = Literal["auto", "line", "json", "off"]
"""What is shown on stderr while a run goes on. `auto`: of live sources a line a second on a terminal and a line of JSON
elsewhere; of files a progress bar on a terminal and nothing elsewhere."""

_EVERY_S = 1.0
_WIDEST = 100
_CLEAR = "\r\x1b[K"


@contextlib.contextmanager
def display(show: Show, monitor: Monitor, *, live: bool, total: int | None) -> Iterator[Callable[[], None]]:
    """Show how a run is doing.

    Args:
        show: What to show.
        monitor: Of the run.
        live: A source is live.
        total: Frames in all, None where that is unknown.

    Yields:
        What to call now and then, many times a second, in one thread.
    """
    terminal = sys.stderr.isatty()
    kind = show if show != "auto" else ("line" if terminal else "json") if live else ("bar" if terminal else "off")
    if kind == "bar":
        from tqdm import tqdm

        with tqdm(total=total, unit=" frames", dynamic_ncols=True) as bar:
            yield lambda: bar.update(monitor.frames - bar.n) and None
    elif kind == "line" and terminal:
        with _above_the_line():
            yield _each_second(lambda: sys.stderr.write(_CLEAR + status_line(monitor.status(), _columns())))
            sys.stderr.write(_CLEAR + status_line(monitor.status(), _columns()) + "\n")
    elif kind in ("line", "json"):
        tell = status_line if kind == "line" else RunStatus.to_json
        yield _each_second(lambda: sys.stderr.write(tell(monitor.status()) + "\n"))
    else:
        yield lambda: None


def status_line(status: RunStatus, columns: int = _WIDEST) -> str:
    """A run in one line of at most `columns` characters.

    Cameras that are not live are named first; the others follow as far as there is room, which there is when they are
    few, and are counted where there is not.

    Example:
        >>> status_line(RunStatus("net", "cpu", 3671.0, 0.0, (), (), {}, True))
        '1:01:11  0.0 fps'
    """
    parts = [_clock(status.uptime_s), f"{status.fps:.1f} fps"]
    total = status.stages_ms.get("total")
    if total is not None:
        parts.append(f"{_latency(total)} ms")
    dropped = sum(camera.dropped for camera in status.cameras)
    parts += [f"{dropped} dropped"] if dropped else []
    parts += [f"TROUBLE {sink.uri}" for sink in status.sinks if sink.error]
    line = "  ".join(parts)
    for cameras in (_each(status.cameras), _together(status.cameras)):
        longer = "  ".join([line, *cameras])
        if len(longer) <= columns:
            return longer
    return longer[: columns - 1] + "…"


def _each(cameras: tuple[CameraStatus, ...]) -> list[str]:
    """Every camera with its rate or state."""
    if len(cameras) < 2 and all(camera.state == "live" for camera in cameras):
        return []
    return ["|", *(f"{camera.name} {_rate(camera)}" for camera in cameras)]


def _together(cameras: tuple[CameraStatus, ...]) -> list[str]:
    """Live cameras as a number, and the others by name."""
    live = [camera for camera in cameras if camera.state == "live"]
    others = [f"{camera.name} {_rate(camera)}" for camera in cameras if camera.state != "live"]
    slowest = f" ({min(camera.fps for camera in live):.1f}+ fps)" if live else ""
    return ["|", f"{len(live)}/{len(cameras)} live{slowest}", *others]


def _rate(camera: CameraStatus) -> str:
    return f"{camera.fps:.1f}" if camera.state == "live" else camera.state.upper()


def _latency(found: Percentiles) -> str:
    return f"{found.p50:.0f}/{found.p95:.0f}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"


def _columns() -> int:
    """One less than the terminal has: a full line makes some terminals begin a new one."""
    return min(shutil.get_terminal_size().columns - 1, _WIDEST)


def _each_second(tell: Callable[[], object]) -> Callable[[], None]:
    due = time.monotonic() + _EVERY_S

    def tick() -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + _EVERY_S
            with contextlib.suppress(OSError):  # nobody reads it any more: no reason to stop
                tell()
                sys.stderr.flush()

    return tick


@contextlib.contextmanager
def _above_the_line() -> Iterator[None]:
    """Clear the line before anything is logged, so that warnings stand above it."""

    def clear(record: logging.LogRecord) -> bool:
        sys.stderr.write(_CLEAR)
        return True

    handlers = [one for one in logging.getLogger().handlers if getattr(one, "stream", None) is sys.stderr]
    for handler in handlers:
        handler.addFilter(clear)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(clear)
