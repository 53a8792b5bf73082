"""Paths: what kind of source a file, a folder, a glob or a numbered sequence is."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import cv2

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources.bag import is_bag, open_bag
from edge_mrcnn.runtime.sources.files import VideoSource
from edge_mrcnn.runtime.sources.live import as_drop
from edge_mrcnn.runtime.sources.pictures import PICTURE_SUFFIXES, PictureSource, find_sequence
from edge_mrcnn.runtime.sources.replay import Replay, take_drop
from edge_mrcnn.runtime.uri import as_flag, as_one_of, camera_name, take_options

if TYPE_CHECKING:
    from edge_mrcnn.runtime.sources import Source


def open_file(text: str, strict: bool = False) -> Source:
    """Open a path, a glob, a numbered sequence or a `file://` URI.

    Args:
        text: A path as it is, or a URI with the special characters of its path escaped and options in its query: `name`
            and `frame_id`, and of videos `live=1` (it plays at its own pace, like a camera), `loop=1` (so, again and
            again), `drop` (of such a camera) and `decode=hardware` (by a Jetson's decoder).
        strict: Raise at the first of several pictures that cannot be read, rather than skip it with a warning.

    Raises:
        StreamError: It is missing, empty, unreadable or holds no pictures.
        ValueError: An option is unknown, its value cannot be converted, or it is of no use with what was given.
    """
    if re.match(r"(file://)?/dev/(video|v4l/)", text):
        from edge_mrcnn.runtime.sources.camera import open_camera

        return open_camera(text.replace("file://", "v4l2://"))
    if is_bag(Path(unquote(text.partition("://")[2].partition("?")[0]) if "://" in text else text)):
        return open_bag(text)  # it has options of its own
    uri, options = text, dict[str, Any]()
    if "://" in uri:
        before, options = take_options(uri, _OPTIONS)
        # Of a sequence's number, `%04d`, unquoting would make a control character and a d.
        text = unquote(re.sub(r"%(?=0\dd)", "%25", before).partition("://")[2])
    paths = _find_pictures(text)
    if paths is None:
        return _open_video(uri, Path(text), options)
    useless = sorted({"live", "loop", "drop", "decode"} & set(options))
    if useless:
        raise ValueError(f"{useless[0]} in {uri!r} is for videos; pictures have no rate")
    return PictureSource(paths, text, strict or paths == [Path(text)], **options)


def _open_video(uri: str, path: Path, options: dict[str, Any]) -> Source:
    loop = options.pop("loop", False)
    live = options.pop("live", False) or loop
    drop = take_drop(uri, options, live)
    hardware = options.pop("decode", "software") == "hardware"

    def open_it() -> VideoSource:
        return VideoSource(path, hardware=hardware, **options)

    return Replay(open_it, loop=loop, drop=drop) if live else open_it()


def _find_pictures(text: str) -> list[Path] | None:
    """Picture files; None where it is a file of another kind, a video most likely."""
    path = Path(text)
    if path.is_dir():
        return _folder(path)
    if path.exists():
        picture = path.suffix.lower() in PICTURE_SUFFIXES or (path.stat().st_size and cv2.haveImageReader(text))
        return [path] if picture else None
    found = find_sequence(text)
    if found:
        return _pictures_only(text, found)
    if glob.has_magic(text):
        return _pictures_only(text, sorted(Path(item) for item in glob.glob(text, recursive=True)))
    from edge_mrcnn.runtime.sources import known_schemes

    known = ", ".join(f"{scheme}://" for scheme in known_schemes())
    raise StreamError(f"there is no source {text!r}; check the path. Besides files there are {known}")


def _folder(path: Path) -> list[Path]:
    paths = sorted(item for item in path.iterdir() if item.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise StreamError(
            f"folder {path} holds no pictures ({' '.join(PICTURE_SUFFIXES)}); subfolders are not searched, "
            f"a glob does that: '{path}/**/*.jpg'"
        )
    return paths


def _pictures_only(text: str, found: list[Path]) -> list[Path]:
    paths = [item for item in found if item.suffix.lower() in PICTURE_SUFFIXES]
    if not paths:
        others = f"; it matches {len(found)} other files: give videos one by one" if found else ""
        raise StreamError(f"no picture ({' '.join(PICTURE_SUFFIXES)}) matches {text!r}{others}")
    return paths


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "name": camera_name,
    "frame_id": str,
    "live": as_flag,
    "loop": as_flag,
    "drop": as_drop,
    "decode": as_one_of("software", "hardware"),
}
