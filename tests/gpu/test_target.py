from __future__ import annotations

import pytest

from edge_mrcnn.gpu.target import Target, parse_target

FORMS = [
    ("rtx", Target("rtx"), "rtx", "rtx"),
    ("rtx:sm_86", Target("rtx", ("sm_86",)), "rtx:sm_86", "rtx-sm_86"),
    ("RTX: sm_86, sm_120", Target("rtx", ("sm_86", "sm_120")), "rtx:sm_86,sm_120", "rtx-sm_86-sm_120"),
    ("rtx:sm_86,sm_86", Target("rtx", ("sm_86",)), "rtx:sm_86", "rtx-sm_86"),
    ("rtx:current", Target("rtx", current=True), "rtx:current", "rtx-current"),
    ("tensorrt", Target("tensorrt", current=True), "tensorrt", "tensorrt"),
    ("tensorrt:current", Target("tensorrt", current=True), "tensorrt", "tensorrt"),
]


@pytest.mark.parametrize(("text", "target", "canonical", "slug"), FORMS)
def test_targets_are_read_and_written(text: str, target: Target, canonical: str, slug: str) -> None:
    assert parse_target(text) == target
    assert str(target) == canonical
    assert parse_target(canonical) == target
    assert target.slug == slug


@pytest.mark.parametrize(
    "text", ["", "cpu", "rtx:86", "rtx:sm86", "rtx:sm_86,", "rtx:../../x", "current", "tensorrt:sm_87"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="target"):
        parse_target(text)
