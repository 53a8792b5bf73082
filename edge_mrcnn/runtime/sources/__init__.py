"""Sources: a URI is the whole configuration of where frames come from.

| URI | what it is |
|---|---|
| `photo.jpg` | one picture: jpg png bmp tif webp |
| `photos/` | the pictures of a folder, sorted by name, without those of its subfolders |
| `photos/*.png` | a glob (quoted, or the shell expands it) |
| `clip.mp4` | a video file |
| `/dev/video0`, `v4l2:///dev/video0?width=1280&height=720&fps=30&fourcc=MJPG` | a camera of this machine |
| `test://640x480?frames=30&fps=30&seed=0` | a moving test pattern, width x height |
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import cv2

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.files import DeviceSource, VideoSource
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth
from edge_mrcnn.runtime.sources.pattern import PatternSource
from edge_mrcnn.runtime.sources.pictures import PICTURE_SUFFIXES, PictureSource


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


def open_source(uri: str | Path, *, strict: bool = False) -> Source:
    """Open a picture, folder, glob, video, camera or test pattern.

    Args:
        uri: A path, a glob or a URI, as the table above says.
        strict: Raise at the first picture of a folder or glob that cannot be read, rather than skip it with a warning.

    Returns:
        The source; the caller closes it.

    Raises:
        StreamError: It is missing, empty, unreadable or holds no pictures.
        ValueError: The scheme, an option or a value in the URI is unknown; the message lists the known ones.

    Example:
        >>> with open_source("test://64x48?frames=3") as source:
        ...     [frame.index for frame in source]
        [0, 1, 2]
    """
    text = str(uri)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return _open_path(text, strict)
    if scheme.lower() not in _SCHEMES:
        raise ValueError(f"unknown scheme {scheme}:// in {text!r}; known: {_known()}")
    return _SCHEMES[scheme.lower()](text, strict)


def read_options(uri: str, parts: SplitResult, kinds: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Options in a URI's query, converted.

    Args:
        uri: Named in errors.
        parts: The URI, split.
        kinds: What converts each known option.

    Raises:
        ValueError: An option is unknown or its value cannot be converted.
    """
    options = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in kinds:
            raise ValueError(f"unknown option {name!r} in {uri!r}; known: {', '.join(kinds)}")
        try:
            options[name] = kinds[name](value)
        except ValueError as error:
            raise ValueError(
                f"option {name} in {uri!r} cannot be {value!r}; expected {kinds[name].__name__}"
            ) from error
    return options


def _open_path(text: str, strict: bool) -> Source:
    path = Path(text)
    if text.startswith("/dev/video"):
        return DeviceSource(text)
    if path.is_dir():
        return _open_folder(path, strict)
    if not path.exists() and glob.has_magic(text):
        return _open_glob(text, strict)
    if not path.exists():
        raise StreamError(f"there is no source {text!r}; check the path. Besides files there are {_known()}")
    if path.suffix.lower() in PICTURE_SUFFIXES or (path.stat().st_size and cv2.haveImageReader(text)):
        return PictureSource([path], text, strict=True)
    return VideoSource(path)


def _open_folder(path: Path, strict: bool) -> Source:
    paths = sorted(item for item in path.iterdir() if item.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise StreamError(
            f"folder {path} holds no pictures ({' '.join(PICTURE_SUFFIXES)}); subfolders are not searched, "
            f"a glob does that: '{path}/**/*.jpg'"
        )
    return PictureSource(paths, str(path), strict)


def _open_glob(text: str, strict: bool) -> Source:
    found = sorted(Path(item) for item in glob.glob(text, recursive=True))
    paths = [item for item in found if item.suffix.lower() in PICTURE_SUFFIXES]
    if not paths:
        others = f"; it matches {len(found)} other files: give videos one by one" if found else ""
        raise StreamError(f"no picture ({' '.join(PICTURE_SUFFIXES)}) matches {text!r}{others}")
    return PictureSource(paths, text, strict)


def _open_file_uri(uri: str, strict: bool) -> Source:
    parts = urlsplit(uri)
    return _open_path(unquote(parts.netloc + parts.path), strict)


def _open_v4l2(uri: str, strict: bool) -> Source:
    parts = urlsplit(uri)
    options = read_options(uri, parts, {"width": int, "height": int, "fps": float, "fourcc": _fourcc})
    return DeviceSource(parts.path or parts.netloc, **options)


def _open_pattern(uri: str, strict: bool) -> Source:
    parts = urlsplit(uri)
    size = re.fullmatch(r"(\d+)x(\d+)", parts.netloc or "640x480")
    if not size:
        raise ValueError(f"size {parts.netloc!r} in {uri!r} is not WIDTHxHEIGHT, such as test://640x480")
    options = read_options(uri, parts, {"frames": int, "fps": float, "seed": int})
    return PatternSource((int(size[1]), int(size[2])), **options)


def _fourcc(text: str) -> str:
    if len(text) != 4:
        raise ValueError("a pixel format has four letters, such as MJPG")
    return text


def _known() -> str:
    return ", ".join(f"{scheme}://" for scheme in sorted(_SCHEMES))


_SCHEMES: dict[str, Callable[[str, bool], Source]] = {
    "file": _open_file_uri,
    "test": _open_pattern,
    "v4l2": _open_v4l2,
}
"""What opens each scheme, given the URI and `strict`."""
