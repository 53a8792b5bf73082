"""The contract half of the generic plugin, without the parser: `test_builder.py` has that, in its own process."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu import plugins, tensorrt_api
from edge_mrcnn.gpu.plugins import make_fields, read_fields, register_plugins
from edge_mrcnn.gpu.tensorrt_api import TensorRtApi
from edge_mrcnn.ops import DOMAIN, OPS, VERSION
from tests.compiler.tiny_model import DETECTIONS, NMS, PATCH, PROPOSALS, ROI_ALIGN, RPN

ATTRIBUTES: Mapping[str, dict[str, Any]] = {"RpnProposals": RPN, "PyramidRoiAlign": ROI_ALIGN, "DetectionNms": NMS}


@pytest.fixture(scope="module")
def api() -> TensorRtApi:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return tensorrt_api.load("rtx")


def make_plugin(api: TensorRtApi, name: str) -> Any:
    creator = plugins._creator_class(api)(OPS[name])
    return creator.create_plugin("node", make_fields(api, OPS[name], ATTRIBUTES[name]), api.module.TensorRTPhase.BUILD)


@pytest.mark.parametrize("name", OPS)
def test_fields_carry_every_attribute_there_and_back(api: TensorRtApi, name: str) -> None:
    fields = make_fields(api, OPS[name], ATTRIBUTES[name])
    assert [field.name for field in fields] == [attribute.name for attribute in OPS[name].attributes]
    read = read_fields(OPS[name], fields)
    assert read == {
        key: pytest.approx(v, rel=1e-7) if not isinstance(v, str) else v for key, v in ATTRIBUTES[name].items()
    }
    assert {key: type(value) for key, value in read.items()} == {key: type(v) for key, v in ATTRIBUTES[name].items()}


@pytest.mark.parametrize("name", OPS)
def test_the_creator_declares_the_contracts_fields(api: TensorRtApi, name: str) -> None:
    creator = plugins._creator_class(api)(OPS[name])
    kinds = {"int": "INT32", "ints": "INT32", "float": "FLOAT32", "floats": "FLOAT32", "string": "CHAR"}
    declared = [(field.name, field.type.name) for field in creator.field_names]
    assert declared == [(a.name, kinds[a.kind]) for a in OPS[name].attributes]
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == (name, VERSION, DOMAIN)


def test_a_missing_field_is_an_error_of_ours(api: TensorRtApi) -> None:
    fields = make_fields(api, OPS["DetectionNms"], NMS)[1:]
    with pytest.raises(PluginError, match=r"missing: \['box_weights'\]"):
        read_fields(OPS["DetectionNms"], fields)


def test_creators_are_found_by_name_version_and_namespace(api: TensorRtApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_MRCNN_PLUGINS", "off")
    registry = api.module.get_plugin_registry()
    creators = register_plugins(api)
    try:
        assert len(creators) == len(OPS)
        assert all(registry.get_creator(name, VERSION, DOMAIN) is not None for name in OPS)
        assert register_plugins(api) == [], "those that are there already are used"
    finally:
        for creator in creators:
            registry.deregister_creator(creator)


@pytest.mark.parametrize("name", OPS)
def test_a_clone_has_the_names_on_itself_and_the_same_attributes(api: TensorRtApi, name: str) -> None:
    plugin = make_plugin(api, name)
    for one in (plugin, plugin.clone(), plugin.attach_to_context(None)):
        assert (one.plugin_name, one.plugin_version, one.plugin_namespace) == (name, VERSION, DOMAIN)
        assert one.num_outputs == len(OPS[name].outputs)
        assert one.attributes == plugin.attributes
    assert read_fields(OPS[name], plugin.get_fields_to_serialize()) == plugin.attributes


INPUT_TYPES = {
    # op, types of its inputs with features in T, types of its outputs
    "RpnProposals": ("f32 T T T T", "f32"),
    "PyramidRoiAlign": ("f32 T T T", "T"),
    "DetectionNms": ("f32 f32 T T", "i32 f32 f32 i32"),
}


@pytest.mark.parametrize("features", ["float16", "float32"])
@pytest.mark.parametrize("name", OPS)
def test_types(api: TensorRtApi, name: str, features: str) -> None:
    trt = api.module
    inputs, outputs = types_of(api, name, features)
    plugin = make_plugin(api, name)
    assert plugin.get_output_data_types(inputs) == outputs
    linear = [describe(dtype, trt.TensorFormat.LINEAR) for dtype in [*inputs, *outputs]]
    for position in range(len(linear)):
        assert plugin.supports_format_combination(position, linear, len(inputs))
        wrong = describe(trt.int8, trt.TensorFormat.LINEAR)
        changed = [*linear[:position], wrong, *linear[position + 1 :]]
        assert not plugin.supports_format_combination(position, changed, len(inputs))


FORMATS = [
    # op, features, formats of its inputs and outputs (L: linear, C: channels last by eights), the first wrong position
    ("RpnProposals", "float16", "LCCCC L", None),
    ("RpnProposals", "float32", "LCCCC L", 1),
    ("RpnProposals", "float16", "LLLCL L", 3),
    ("RpnProposals", "float16", "LCLCC L", 2),
    ("RpnProposals", "float16", "CLLLL L", 0),
    ("RpnProposals", "float16", "LLLLL C", 5),
    ("PyramidRoiAlign", "float16", "LCCC C", None),
    ("PyramidRoiAlign", "float16", "LCCC L", None),
    ("PyramidRoiAlign", "float16", "LLLL C", None),
    ("PyramidRoiAlign", "float32", "LLLL C", 4),
    ("PyramidRoiAlign", "float16", "LCCL C", 3),
    ("PyramidRoiAlign", "float16", "LLLL 4", 4),
    ("DetectionNms", "float16", "LLCL LLLL", 2),  # two dimensions have no channels-last layout
    ("DetectionNms", "float16", "LLLL LCLL", 5),
]


@pytest.mark.parametrize(("name", "features", "formats", "wrong"), FORMATS)
def test_layouts(api: TensorRtApi, name: str, features: str, formats: str, wrong: int | None) -> None:
    trt = api.module
    letters = {"L": trt.TensorFormat.LINEAR, "C": trt.TensorFormat.HWC8, "4": trt.TensorFormat.CHW4}
    inputs, outputs = types_of(api, name, features)
    layouts = [letters[letter] for letter in formats.replace(" ", "")]
    tensors = [describe(dtype, layout) for dtype, layout in zip([*inputs, *outputs], layouts, strict=True)]
    plugin = make_plugin(api, name)
    refused = [
        position
        for position in range(len(tensors))
        if not plugin.supports_format_combination(position, tensors, len(inputs))
    ]
    assert refused[:1] == ([] if wrong is None else [wrong])


def types_of(api: TensorRtApi, name: str, features: str) -> tuple[list[Any], list[Any]]:
    trt = api.module
    names = {"f32": trt.float32, "i32": trt.int32, "T": getattr(trt, features)}
    inputs, outputs = ([names[key] for key in text.split()] for text in INPUT_TYPES[name])
    return inputs, outputs


def test_mixed_feature_types_are_not_supported(api: TensorRtApi) -> None:
    trt = api.module
    types = [trt.float32, trt.float16, trt.float32, trt.float16]
    tensors = [describe(dtype, trt.TensorFormat.LINEAR) for dtype in types]
    plugin = make_plugin(api, "PyramidRoiAlign")
    assert plugin.supports_format_combination(1, tensors, 3)
    assert not plugin.supports_format_combination(2, tensors, 3)


def describe(dtype: Any, layout: Any) -> SimpleNamespace:
    return SimpleNamespace(desc=SimpleNamespace(type=dtype, format=layout))


class Expressions:
    """Dimensions as text instead of TensorRT's expressions."""

    def operation(self, kind: str, a: str, b: str) -> str:
        assert kind == "PROD"
        return f"{a}*{b}"

    def constant(self, value: int) -> str:
        return str(value)


SHAPES = [
    ("RpnProposals", [["B", "2"], *[["B", "A", "H", "W"]] * 4], [["B", str(PROPOSALS), "4"]]),
    ("PyramidRoiAlign", [["B", "N", "4"], *[["B", "C", "H", "W"]] * 2], [["B*N", "C", str(PATCH), str(PATCH)]]),
    (
        "DetectionNms",
        [["B", "2"], ["B", "P", "4"], ["R", "K"], ["R", "4K"]],
        [["B"], ["B", str(DETECTIONS), "4"], ["B", str(DETECTIONS)], ["B", str(DETECTIONS)]],
    ),
]


@pytest.mark.parametrize(("name", "inputs", "outputs"), SHAPES)
def test_output_shapes_are_expressions_of_the_inputs(
    api: TensorRtApi, name: str, inputs: list[list[str]], outputs: list[list[str]]
) -> None:
    plugin = make_plugin(api, name)
    plugin.api = SimpleNamespace(
        module=SimpleNamespace(DimsExprs=list, DimensionOperation=SimpleNamespace(PROD="PROD"))
    )
    assert plugin.get_output_shapes(inputs, [], Expressions()) == outputs


def test_the_log_says_which_plugins_are_used(
    api: TensorRtApi, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EDGE_MRCNN_PLUGINS", "off")
    caplog.set_level("INFO")
    registry = api.module.get_plugin_registry()
    creators = register_plugins(api)
    try:
        assert "plugins in Python, their kernels compiled by NVRTC: RpnProposals, PyramidRoiAlign" in caplog.text
    finally:
        for creator in creators:
            registry.deregister_creator(creator)
