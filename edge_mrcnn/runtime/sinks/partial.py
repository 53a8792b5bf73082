"""Files that appear under their name only when they are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_mrcnn.errors import StreamError
from edge_mrcnn.files import atomic_path


class _DiscardedError(Exception):
    """Tells `atomic_path` that the file is not wanted."""


class PartialFile:
    """`atomic_path` for a file that lives longer than a block: written beside its name and renamed when it is done.

    Attributes:
        path: The final name.
        part: Where to write: hidden, in the same folder and with the same suffix.

    Example:
        >>> file = PartialFile("out.json")  # doctest: +SKIP
        >>> file.part.write_text("{}")  # doctest: +SKIP
        >>> file.commit()  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        """Make the folder where it is missing, and an empty part, so that an unwritable place is found at once.

        Raises:
            StreamError: The folder cannot be made or written.
        """
        self.path = Path(path)
        if self.path.is_dir():
            raise StreamError(f"cannot write {self.path}: a folder of this name is in the way; choose another name")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._block: Any = atomic_path(self.path)
        self.part: Path = self._block.__enter__()
        try:
            self.part.write_bytes(b"")
        except OSError as error:
            self.discard()
            raise cannot_write(self.path, error) from error

    def commit(self) -> None:
        """Rename the part to the final name, in place of what was there.

        Raises:
            StreamError: It cannot be renamed; the part is removed.
        """
        try:
            self._block.__exit__(None, None, None)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def discard(self) -> None:
        """Remove the part."""
        self._block.__exit__(_DiscardedError, _DiscardedError(), None)


def cannot_write(path: Path, error: OSError) -> StreamError:
    """The error for a file that cannot be written, with the reason and the remedy."""
    return StreamError(
        f"cannot write {path}: {error.strerror or error}; check the folder's permissions and free space: df -h "
        f"{path.parent}"
    )
