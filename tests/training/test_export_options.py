"""Class names and limits that an export is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from edge_mrcnn.class_names import complete_class_names, read_class_names
from edge_mrcnn.errors import ExportError
from edge_mrcnn.training.export import ExportOptions

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("names", "count", "expected"),
    [
        (None, 3, ("__background__", "class_1", "class_2")),
        (["a", "b"], 3, ("__background__", "a", "b")),
        (["bg", "a", "b"], 3, ("bg", "a", "b")),
    ],
)
def test_class_names_are_completed(names: list[str] | None, count: int, expected: tuple[str, ...]) -> None:
    assert complete_class_names(names, count) == expected


def test_class_names_come_from_text_or_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cup\n\n fork \n")
    assert read_class_names("cup, fork") == ("cup", "fork")
    assert read_class_names("cup") == ("cup",)
    assert read_class_names(str(tmp_path / "names.txt")) == ("cup", "fork")
    with pytest.raises(ExportError, match=r"missing\.txt"):
        read_class_names(str(tmp_path / "missing.txt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_threshold": 1.0}, "score_threshold"),
        ({"score_threshold": -0.1}, "score_threshold"),
        ({"detections": 0}, "detections"),
        ({"proposals": 0}, "proposals"),
        ({"size": "big"}, "HxW"),
    ],
)
def test_options_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportOptions(**changes)
