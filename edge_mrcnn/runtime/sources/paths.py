"""Paths: what kind of source a file, a folder or a glob is."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import cv2

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources.files import VideoSource
from edge_mrcnn.runtime.sources.pictures import PICTURE_SUFFIXES, PictureSource

if TYPE_CHECKING:
    from edge_mrcnn.runtime.sources import Source


def open_file(text: str, strict: bool = False) -> Source:
    """Open a path, a glob or a `file://` URI.

    Args:
        text: A path as it is, or a URI with the special characters of its path escaped.
        strict: Raise at the first picture of a folder or glob that cannot be read, rather than skip it with a warning.

    Raises:
        StreamError: It is missing, empty, unreadable or holds no pictures.
    """
    if "://" in text:
        text = unquote(text.partition("://")[2])
    path = Path(text)
    if text.startswith("/dev/video"):
        from edge_mrcnn.runtime.sources.camera import open_camera

        return open_camera(text)
    if path.is_dir():
        return _open_folder(path, strict)
    if not path.exists() and glob.has_magic(text):
        return _open_glob(text, strict)
    if not path.exists():
        from edge_mrcnn.runtime.sources import known_schemes

        known = ", ".join(f"{scheme}://" for scheme in known_schemes())
        raise StreamError(f"there is no source {text!r}; check the path. Besides files there are {known}")
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
