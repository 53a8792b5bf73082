"""What the engine inspector says, in the forms of TensorRT 8 and of 10 and later; samples written by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge_mrcnn.compiler.realised import check_realised, find_wider, read_realised
from edge_mrcnn.errors import EngineError
from edge_mrcnn.sidecar import LayerInfo

WIDE = "Thirty-two wide channel vectorized row major Int8 format"


def engine(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["images", "boxes"]})


def old(name: str, dtype: str, kind: str = "CaskConvolution", **fields: Any) -> dict[str, Any]:
    """A layer as TensorRT 8 describes it: what is fused stands in the name."""
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": [{"Name": "x", "Location": "Device", "Dimensions": [1, 64, 56, 56], "Format/Datatype": dtype}],
        "Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [1, 64, 56, 56], "Format/Datatype": dtype}],
        **fields,
    }


def new(names: list[str], dtype: str, kind: str = "CaskConvolution", **fields: Any) -> dict[str, Any]:
    """A layer as TensorRT 10 and later describe it: what is fused stands in the metadata."""
    metadata = "\x1f".join(f"[ONNX Layer: {name}]" for name in names)
    return {
        "Name": f"__myl_{kind}_myl0_1",
        "LayerType": kind,
        "Inputs": [{"Name": "x", "Dimensions": [1, 64, 56, 56], "Format/Datatype": dtype}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 64, 56, 56], "Format/Datatype": "Float"}],
        "TacticName": "",
        "StreamId": 0,
        "Metadata": metadata,
        **fields,
    }


INT8_WEIGHTS = {"Weights": {"Type": "Int8", "Count": 36864}, "Bias": {"Type": "Float", "Count": 64}}

REALISED = [
    # engine's layers, what is realised of the network's layers a and b
    ([old("a.weight + Quantize_7 + a + Add_2 + Relu_3", WIDE, **INT8_WEIGHTS)], {"a": "int8"}),
    ([old("a.weight + Quantize_7 + a", WIDE, "ConvActPool", ConvWeights=INT8_WEIGHTS["Weights"])], {"a": "int8"}),
    ([old("a || b", "Channel major FP16 format where channel % 8 == 0")], {"a": "float16", "b": "float16"}),
    ([old("a + b", "Row major linear FP32")], {"a": "float32", "b": "float32"}),
    ([old("a.more", WIDE)], {}),
    ([new(["a", "relu"], "Int8"), new(["b"], "Half")], {"a": "int8", "b": "float16"}),
    ([new(["a", "b"], "Int8", "gemm")], {"a": "int8", "b": "int8"}),
    ([new(["a"], "BFloat16")], {"a": "bfloat16"}),
    ([new(["a"], "Float", "fusion", TacticName="sm80_xmma_fprop_f32")], {"a": "float32"}),
    # a kernel that moves or quantises what the layer reads bears its name too, and does not do its work
    ([new(["a"], "Float", "kgen"), new(["a"], "Int8", "conv")], {"a": "int8"}),
    ([new(["a"], "Float", "Reformat"), new(["a"], "Half", "CaskDeconvolutionV2")], {"a": "float16"}),
    ([new(["a"], "Half", "kgen")], {"a": "float16"}),
    ([new(["a"], "Half", "Reformat")], {}),
    # spread over two, or with weights in more bits than what they are multiplied with: the wider counts
    ([new(["a"], "Int8", "conv"), new(["a"], "Half", "conv")], {"a": "float16"}),
    ([new(["a"], "Int8", "conv", Weights={"Type": "Half", "Count": 9})], {"a": "float16"}),
    ([new(["a"], "Int8", "conv", Weights={"Type": "Half", "Count": 0})], {"a": "int8"}),
    # brackets in names; two names without a separator between them
    ([new(["a[0]"], "Int8"), new(["b"], "Int8", Metadata="[ONNX Layer: c][ONNX Layer: b]")], {"b": "int8"}),
    # nothing that could be understood
    (["a", "b"], {}),
    ([{"Name": "a"}], {}),
    ([new(["a"], "Int4")], {}),
]


@pytest.mark.parametrize(("layers", "realised"), REALISED, ids=range(len(REALISED)))
def test_what_an_engine_computes_in(layers: list[Any], realised: dict[str, str]) -> None:
    assert read_realised(engine(*layers), ["a", "b"]) == realised


def test_names_with_brackets() -> None:
    assert read_realised(engine(new(["a[0]", "b"], "Int8")), ["a[0]"]) == {"a[0]": "int8"}


@pytest.mark.parametrize("text", ["", "not JSON", "[]", "5", "{}", '{"Layers": []}'])
def test_an_inspector_that_says_nothing(text: str) -> None:
    assert read_realised(text, ["a"]) == {}


def layer(requested: str, realised: str | None, macs: int | None, name: str = "a") -> LayerInfo:
    return LayerInfo(name, "CONVOLUTION", requested, realised, macs)


def test_a_little_work_in_more_bits_is_TensorRTs_choice() -> None:  # noqa: N802
    layers = [layer("int8", "int8", 90), layer("int8", "float16", 10, "small"), layer("float16", "float16", 500)]
    check_realised(layers)
    assert [found.name for found in find_wider(layers)] == ["small"]


def test_fewer_bits_than_asked_for_or_unknown_ones_are_not_held_against_it() -> None:
    layers = [layer("float32", "float16", 1), layer("int8", None, 1), layer("int8", "int8", 1), layer("int8", "x", 1)]
    check_realised(layers)
    assert find_wider(layers) == ()


NOT_HONOURED = [
    # layers, what is said
    (
        [layer("int8", "int8", 89), layer("int8", "float16", 11, "the_large_one")],
        r"int8 was asked for, but TensorRT computes 11% .* 1 of 2 layers, such as the_large_one; .*--keep-fp16",
    ),
    (
        [layer("int8", "float32", 1, str(i)) for i in range(7)],
        r"computes 100% of that work in more bits: 7 of 7 layers, such as 0, 1, 2, 3, 4, \.\.\.",
    ),
    ([layer("int8", "int8", 99), layer("float16", "float32", 1)], r"float16 was asked for.* --precision fp32"),
]


@pytest.mark.parametrize(("layers", "message"), NOT_HONOURED)
def test_an_engine_that_is_mostly_something_else_is_refused(layers: list[LayerInfo], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_realised(layers)
