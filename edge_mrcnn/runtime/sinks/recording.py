"""What recordings have in common: names that may hold the time and the camera, and a place that can be written."""

from __future__ import annotations

import os
import re
import tempfile
import time
from pathlib import Path

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sinks.partial import cannot_write

_TIME = re.compile(r"%[a-zA-Z]")


class RecordingName:
    """Names the files of one recording.

    Example:
        >>> name = RecordingName("out.mkv")
        >>> str(name.at("front")), str(name.at(""))
        ('out.front.mkv', 'out.mkv')
    """

    def __init__(self, path: str | Path, *, segments: bool = False) -> None:
        """Choose the name.

        Args:
            path: May hold the time, as `strftime` writes it: `rec_%Y%m%d_%H%M%S.mkv`.
            segments: There will be many files; the time is put into the name where it is not there.

        Raises:
            StreamError: The place cannot be written.
        """
        self._path = Path(path)
        self._has_time = bool(_TIME.search(str(path)))
        if segments and not self._has_time:
            self._path = self._path.with_stem(f"{self._path.stem}_%Y%m%d_%H%M%S")
            self._has_time = True
        _check_place(self.at(""))

    def at(self, camera: str) -> Path:
        """The file that begins now.

        With the time in its name it is one that does not exist: clocks are set back, in autumn or by a time server.

        Args:
            camera: Becomes part of the name; may be empty.
        """
        path = Path(time.strftime(str(self._path))) if self._has_time else self._path
        if camera:
            path = path.with_stem(f"{path.stem}.{camera}")
        number, free = 1, path
        while self._has_time and free.exists():
            number += 1
            free = path.with_stem(f"{path.stem}_{number}")
        return free


def make_folder(path: Path) -> None:
    """Make the folder of a file where it is missing.

    Raises:
        StreamError: It cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_place(path: Path) -> None:
    """Find out at once whether a file can be written; what is there is left alone until the first frame.

    Raises:
        StreamError: It cannot be written.
    """
    if path.is_dir():
        raise StreamError(f"cannot write {path}: a folder of this name is in the way; choose another name")
    make_folder(path)
    if path.exists():
        if not os.access(path, os.W_OK):
            raise cannot_write(path, PermissionError(13, "Permission denied"))
        return
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise cannot_write(path, error) from error
