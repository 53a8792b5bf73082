"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path to write to that becomes `path` when the block ends well and vanishes when it does not.

    The temporary file lies in the same folder, so that the rename is one step on one file system, and keeps the
    suffix, by which some libraries choose the format. What was there under `path` stays until the rename. A device or a
    pipe, such as `/dev/stdout`, is written directly: there is nothing to rename.

    Example:
        >>> with atomic_path(Path("model.onnx")) as partial:  # doctest: +SKIP
        ...     partial.write_bytes(data)

    Raises:
        OSError: The folder is missing or not writable, the disk is full, or the block wrote no file.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(f".{path.stem}.partial-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/edge_mrcnn/<name>`, by default below `~/.cache`; not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge_mrcnn" / name


def _flush(path: Path) -> None:
    """Bring the bytes to the disk before the rename, so that a crash cannot leave an empty file under the name."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
