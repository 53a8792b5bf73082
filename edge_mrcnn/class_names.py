"""Class names as they are given: on the command line, in a text file, with or without the background."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_mrcnn.errors import ExportError

BACKGROUND = "__background__"


def complete_class_names(names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """Names for all labels, `__background__` first; `class_1`, ... where none are known.

    Raises:
        ExportError: The number of names fits neither with nor without the background.
    """
    if names is None:
        return (BACKGROUND, *(f"class_{label}" for label in range(1, num_classes)))
    if len(names) == num_classes:
        return tuple(names)
    if len(names) == num_classes - 1:
        return (BACKGROUND, *names)
    raise ExportError(
        f"{len(names)} class names were given, but the model has {num_classes} classes, the background included: "
        f"give {num_classes - 1} names with --class-names"
    )


def read_class_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, or those of a text file with one a line.

    Raises:
        ExportError: The file cannot be read.
    """
    path = Path(text)
    if "," in text or not (path.is_file() or path.suffix):
        lines = text.split(",")
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"class names cannot be read from {path}: {error}") from error
    return tuple(name.strip() for name in lines if name.strip())
