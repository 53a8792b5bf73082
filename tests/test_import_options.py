"""What an import can be told, and what of it is refused."""

from __future__ import annotations

from typing import Any

import pytest

from edge_mrcnn.import_options import ImportOptions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"score_threshold": 1.0}, "score_threshold must be from 0 to below 1"),
        ({"detections": 0}, "detections must be at least 1"),
        ({"proposals": -1}, "proposals must be at least 1"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be more than 0"),
        ({"size": "100x160"}, "nearest: 96x160"),
        ({"size": "large"}, "not of the form HxW"),
    ],
)
def test_numbers_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImportOptions(**given)


@pytest.mark.parametrize(
    "given", [{"mean": (1.0, 2.0, 3.0)}, {"std": (1.0, 2.0, 3.0)}, {"channels": "rgb"}, {"strides": "caffe"}]
)
def test_what_only_checkpoints_leave_open_is_refused_for_onnx(given: dict[str, Any]) -> None:
    options = ImportOptions(**given)
    with pytest.raises(ValueError, match=f"{next(iter(given))} is for checkpoints"):
        options.check_for_onnx()


def test_the_rest_is_for_all_files() -> None:
    ImportOptions("96x160", "a,b", 0.3, 10, 20).check_for_onnx()
