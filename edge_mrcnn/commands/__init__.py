"""One module for each verb of `edge-mrcnn`, each with a function `command` whose signature makes the flags."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import tyro

from edge_mrcnn.files import write_text

ModelName = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(metavar="MODEL_NAME", help="Zoo name, such as maskrcnn_resnet50_fpn or maskrcnn_edge."),
]
"""A model of the zoo."""

ModelFile = Annotated[
    tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL", help="model.onnx, or an engine with its sidecar.")
]
"""A model in a file."""

DataFile = Annotated[
    tyro.conf.Positional[Path],
    tyro.conf.arg(
        metavar="DATA.json",
        help="COCO annotation file; its pictures are in images/ beside it, or beside it.",
    ),
]
"""A COCO-format data set."""

JsonTarget = Annotated[
    str | None,
    tyro.conf.arg(name="json", metavar="FILE|-", help="Write the result as JSON there; - for the terminal."),
]
"""The flag `--json` that every reporting verb has."""


def report(lines: Iterable[str], as_json: str, target: str | None) -> None:
    """Print a result for people, or hand it on as JSON.

    Args:
        lines: The result as text.
        as_json: The result as JSON.
        target: None: the text goes to the terminal. `-`: the JSON goes there instead. Otherwise a file that gets
            the JSON, beside the text on the terminal.

    Raises:
        OSError: The file cannot be written; nothing is left under its name.
    """
    if target == "-":
        sys.stdout.write(as_json.rstrip("\n") + "\n")
        return
    if target is not None:
        write_text(Path(target), as_json.rstrip("\n") + "\n")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
