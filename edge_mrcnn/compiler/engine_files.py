"""Engines on disk: written whole or not at all, and kept in a cache so that nothing is built twice."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from edge_mrcnn.errors import EngineError
from edge_mrcnn.files import cache_folder, write_text
from edge_mrcnn.sidecar import EngineSidecar, sidecar_path

_log = logging.getLogger(__name__)

ELSEWHERE = "free some space, make the folder writable, or write elsewhere with -o DIR"

GIB = 1 << 30


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A new empty file beside `path`, for what will have that name when it is complete; gone at the end if not renamed.

    Raises:
        EngineError: The folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
        part.touch(exist_ok=False)
    except OSError as error:
        raise EngineError(f"cannot write to the folder {path.parent} ({error}); {ELSEWHERE}") from error
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def publish(part: Path, engine: Path, sidecar: EngineSidecar) -> None:
    """Give a complete engine its name, then its sidecar; on failure neither name exists.

    Args:
        part: The complete engine, in the folder of `engine`.
        engine: Its final path.
        sidecar: Written beside it.

    Raises:
        EngineError: The disk is full or the folder cannot be written to.
    """
    try:
        part.replace(engine)
        write_text(sidecar_path(engine), sidecar.to_json())
    except OSError as error:
        engine.unlink(missing_ok=True)
        sidecar_path(engine).unlink(missing_ok=True)
        raise EngineError(f"cannot write {engine} and its sidecar ({error}); {ELSEWHERE}") from error
    _sync_folder(engine.parent)


class EngineCache:
    """Engines by the hash of all that went into them; the ones not used for longest go when it grows too large.

    A cache that cannot be read or written costs time and never a build: it says so in the log.
    """

    def __init__(self, folder: Path, limit_gib: float) -> None:
        self.folder, self.limit_bytes = folder, int(limit_gib * GIB)

    def fetch(self, key: str, engine: Path) -> EngineSidecar | None:
        """Put a cached engine and its sidecar at `engine`.

        Returns:
            The sidecar, or None where the cache has none or a damaged one, which is removed.

        Raises:
            EngineError: The destination cannot be written to.
        """
        source = self._path(key)
        if not source.exists():
            return None
        try:
            sidecar = EngineSidecar.load_for(source)
        except EngineError as error:
            _log.warning("the engine cache: %s; it is built again", error)
            self._remove(source)
            return None
        with unfinished(engine) as part:
            try:
                _link_or_copy(source, part)
            except OSError as error:
                raise EngineError(f"cannot write {engine} ({error}); {ELSEWHERE}") from error
            publish(part, engine, sidecar)
        with contextlib.suppress(OSError):
            os.utime(source)
        return sidecar

    def keep(self, key: str, engine: Path, sidecar: EngineSidecar) -> None:
        """Remember a built engine, unless it is larger than the whole cache may be."""
        try:
            if engine.stat().st_size > self.limit_bytes:
                return
            with unfinished(self._path(key)) as part:
                _link_or_copy(engine, part)
                publish(part, self._path(key), sidecar)
            self._shrink()
        except (OSError, EngineError) as error:
            _log.warning("the engine is not kept in the cache %s: %s", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.engine"

    def _shrink(self) -> None:
        engines = sorted(self.folder.glob("*.engine"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for engine in engines:
            total += engine.stat().st_size
            if total > self.limit_bytes:
                self._remove(engine)

    def _remove(self, engine: Path) -> None:
        with contextlib.suppress(OSError):
            engine.unlink(missing_ok=True)
            sidecar_path(engine).unlink(missing_ok=True)


def default_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/edge_mrcnn/engines`, by default below `~/.cache`."""
    return cache_folder("engines")


def _link_or_copy(source: Path, part: Path) -> None:
    """Make `part` the same file as `source`, by a link where the disk has them: engines are large and never changed."""
    part.unlink()
    try:
        part.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, part)


def _sync_folder(folder: Path) -> None:
    """Make renames last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
