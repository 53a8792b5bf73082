"""Sources: a URI is the whole configuration of where frames come from.

| URI | what it is |
|---|---|
| `photo.jpg` | one picture: jpg png bmp tif webp |
| `photos/` | the pictures of a folder, sorted by name, without those of its subfolders |
| `photos/*.png` | a glob (quoted, or the shell expands it) |
| `photos/frame_%04d.png` | a numbered sequence, from its first number on |
| `clip.mp4` | a video file |
| `file:///path/clip.mp4?live=1&loop=1` | the same at its own pace, like a camera; `loop`: again and again |
| `drive.mcap`, `drive.bag`, `drive/`, `bag:///path/drive.mcap?topic=/front/image_raw` | a camera of a ROS bag |
| `/dev/video0`, `/dev/v4l/by-id/...` | a camera of this machine |
| `v4l2:///dev/video0?width=1280&height=720&fps=30&fourcc=MJPG` | the same, told what to give |
| `rtsp://user:password@host/path?transport=tcp`, `rtsps://` | a network camera; `transport=udp` on request |
| `http://host/video.mjpg`, `https://` | Motion JPEG, MPEG-TS, HLS and what else FFmpeg reads over HTTP |
| `csi://0?width=1280&height=720&fps=30&flip=0` | a CSI camera of a Jetson |
| `gst://v4l2src device=/dev/video0` | a camera by a GStreamer pipeline of your own |
| `test://640x480?fps=30&seed=0` | a moving test pattern, width x height, as a camera |
| `test://640x480?frames=30` | the same as a video of 30 frames |

All with a query take `name` (what it is called in records, topics and on pages; made from the file, host or device when
not given) and `frame_id` (its coordinate frame in ROS). Cameras also take `drop` (`auto` and `oldest`: who is slow gets
the newest frame; `never`: the camera waits), and those that can be lost `timeout_s` (5: what gives nothing for so long
counts as lost). With `decode=hardware`, videos and `rtsp://` are decoded by a Jetson. What else stands in the query of
`rtsp://` and `http://` is the server's. A path without a scheme has no query.

Other packages add schemes by `register_source` or the entry points `edge_mrcnn.sources`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth
from edge_mrcnn.runtime.uri import redact

ENTRY_POINTS = "edge_mrcnn.sources"
"""Group of entry points by which installed packages add sources: the name is the scheme, the object an `Opener`."""


class Source(Protocol):
    """Where frames come from: a context manager that yields frames.

    Attributes:
        uri: What was opened.
        fps: Frames per second, None where there is no rate.
        length: Number of frames, None where it is unknown or has no end.
        live: Frames come in their own time and are lost when nobody takes them.
        skipped: Pictures that could not be read so far.
        name: Of the camera: `name=` of the URI's query, else what tells it from others, such as `video0`.
        drop: What happens to frames that nobody takes in time: `auto`, `oldest` or `never`.
        health: How it is doing; may be read from any thread.
    """

    @property
    def name(self) -> str:
        """Name of the camera or stream."""

    @property
    def drop(self) -> Drop:
        """What happens to frames that nobody takes in time."""

    @property
    def health(self) -> SourceHealth:
        """How it is doing."""

    @property
    def uri(self) -> str:
        """What was opened."""

    @property
    def fps(self) -> float | None:
        """Frames per second, None where there is no rate."""

    @property
    def length(self) -> int | None:
        """Number of frames, None where it is unknown or has no end."""

    @property
    def live(self) -> bool:
        """Frames come in their own time and are lost when nobody takes them."""

    @property
    def skipped(self) -> int:
        """Pictures that could not be read so far."""

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order.

        Raises:
            StreamError: The source broke.
        """

    def close(self) -> None:
        """Give back files and devices. A second call does nothing."""

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


Opener = Callable[[str], Source]
"""Opens a source, given the whole URI. Errors name it by `edge_mrcnn.runtime.uri.redact` only."""


def open_source(uri: str | Path, *, strict: bool = False) -> Source:
    """Open a picture, folder, glob, video, camera or test pattern.

    Args:
        uri: A path, a glob or a URI, as the table above says.
        strict: Raise at the first picture of a folder or glob that cannot be read, rather than skip it with a warning.

    Returns:
        The source; the caller closes it.

    Raises:
        ModuleNotFoundError: A package that reads such sources is missing; the message says how to install it.
        StreamError: It is missing, empty, unreadable or holds no pictures.
        ValueError: The scheme, an option or a value in the URI is unknown; the message lists the known ones.

    Example:
        >>> with open_source("test://64x48?frames=3") as source:
        ...     [frame.index for frame in source]
        [0, 1, 2]
    """
    text = str(uri)
    scheme = text.partition("://")[0].lower() if "://" in text else "file"
    if scheme == "file":
        from edge_mrcnn.runtime.sources.paths import open_file

        return open_file(text, strict)
    return _opener(scheme, text)(text)


def register_source(scheme: str, opener: Opener | str) -> None:
    """Make `open_source` know a scheme, or open one in another way.

    Args:
        scheme: What stands before `://`.
        opener: What opens the source, or where it is, as `package.module:function`, imported when it is needed.

    Example:
        >>> register_source("demo", lambda uri: open_source("test://64x48?frames=1"))
        >>> len(list(open_source("demo://")))
        1
    """
    _SCHEMES[scheme.lower()] = opener


def known_schemes() -> tuple[str, ...]:
    """What `open_source` knows besides paths, sorted."""
    return tuple(sorted({"file", *_SCHEMES, *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))}))


def _opener(scheme: str, uri: str) -> Opener:
    found: Any = _SCHEMES.get(scheme)
    if found is None:
        points = [point for point in metadata.entry_points(group=ENTRY_POINTS) if point.name == scheme]
        if not points:
            known = ", ".join(f"{name}://" for name in known_schemes())
            raise ValueError(f"unknown scheme {scheme}:// in {redact(uri)!r}; known: {known}")
        found = points[0].load()
    if isinstance(found, str):
        module, _, name = found.partition(":")
        found = getattr(importlib.import_module(module), name)
    opener: Opener = found
    return opener


_HERE = "edge_mrcnn.runtime.sources"
_SCHEMES: dict[str, Opener | str] = {
    "bag": f"{_HERE}.bag:open_bag",
    "csi": f"{_HERE}.gstreamer:open_csi",
    "gst": f"{_HERE}.gstreamer:open_pipeline",
    "http": f"{_HERE}.network:open_network",
    "https": f"{_HERE}.network:open_network",
    "mcap": f"{_HERE}.bag:open_bag",
    "rtsp": f"{_HERE}.network:open_network",
    "rtsps": f"{_HERE}.network:open_network",
    "test": f"{_HERE}.pattern:open_pattern",
    "v4l2": f"{_HERE}.camera:open_camera",
}
"""What opens each scheme, imported when it is needed."""
