"""`ModelSpec`: it survives the ONNX file's metadata, and refuses what later stages could not work with."""

import json

import pytest

from edge_mrcnn.errors import ExportError
from edge_mrcnn.spec import METADATA_KEY, ModelSpec, check_canvas, parse_size

SPEC = ModelSpec(
    name="maskrcnn_edge",
    input_hw=(320, 416),
    class_names=("__background__", "mug"),
    ops={"rpn_proposals": {"strides": [4, 8], "nms_threshold": 0.7}},
)


def test_round_trip() -> None:
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    assert ModelSpec.from_metadata({METADATA_KEY: SPEC.to_json(), "producer": "x"}) == SPEC


def test_without_spec() -> None:
    with pytest.raises(
        ExportError, match=r"other\.onnx carries no edge_mrcnn spec.*edge-mrcnn export.*edge-mrcnn import .*other\.onnx"
    ):
        ModelSpec.from_metadata({"producer": "x"}, "other.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unreadable"),
        ("{", "unreadable"),
        ("[]", "unreadable"),
        (json.dumps(json.loads(SPEC.to_json()) | {"format": 99}), "format 99, this version of edge_mrcnn reads 1"),
        (json.dumps(json.loads(SPEC.to_json()) | {"colour": "red"}), "damaged.*colour"),
        (json.dumps(json.loads(SPEC.to_json()) | {"input_hw": [321, 416]}), "damaged.*321x416"),
    ],
)
def test_damaged(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        ModelSpec.from_json(text)


@pytest.mark.parametrize("size", [(0, 32), (33, 64), (64, -32)])
def test_canvas_refuses(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 32; nearest"):
        check_canvas(size)


def test_canvas_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest: 800x1344"):
        check_canvas((800, 1333))


def test_no_classes() -> None:
    with pytest.raises(ValueError, match="class_names is empty"):
        ModelSpec("m", (32, 32), ())


def test_parse_size() -> None:
    assert parse_size("480x640") == parse_size("480X640") == (480, 640)
    for text in ("480", "480x", "x640", "480x640x3", "-1x2", "4.5x2"):
        with pytest.raises(ValueError, match="of the form HxW"):
            parse_size(text)
