"""The plugins of the C++ library against the contract, the Python plugin and the Python plans, without TensorRT."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_mrcnn import device
from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu import plugins, tensorrt_api
from edge_mrcnn.gpu.kernels import plan_of
from edge_mrcnn.gpu.launches import Tensor
from edge_mrcnn.gpu.plugins import field_data
from edge_mrcnn.ops import DOMAIN, OPS, VERSION, AttributeKind
from tests.compiler.tiny_model import NMS, ROI_ALIGN, RPN
from tests.plugins.library_build import Build, need_build
from tests.plugins.library_probe import (
    Answer,
    ask,
    build_probe,
    build_recording_library,
    write_field,
    write_fields,
)

need_build()

ATTRIBUTES: Mapping[str, dict[str, Any]] = {"RpnProposals": RPN, "PyramidRoiAlign": ROI_ALIGN, "DetectionNms": NMS}

FIELD_TYPES: Mapping[AttributeKind, int] = {"int": 5, "ints": 5, "float": 1, "floats": 1, "string": 6}
"""`PluginFieldType`: kINT32, kFLOAT32, kCHAR."""

CHOICES = [
    ("float32", "linear"),
    ("float16", "linear"),
    ("float16", "hwc8"),
    ("float32", "hwc8"),
    ("float16", "chw16"),
    ("int32", "linear"),
    ("int8", "linear"),
]


@pytest.fixture(scope="session")
def probe(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_probe(build, tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="session")
def recording(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_recording_library(build, tmp_path_factory.mktemp("recording"))


@pytest.fixture(scope="session")
def python_plugins() -> Mapping[str, Any]:
    """The Python plugin of each op."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    api = tensorrt_api.load("rtx")
    make = plugins._plugin_class(api)
    return {op: make(api, OPS[op], attributes) for op, attributes in ATTRIBUTES.items()}


Tensors = tuple[list[Tensor], list[Tensor]]


def describe(
    op: str,
    shapes: Sequence[tuple[int, ...]],
    dtype: str = "float32",
    layout: str = "linear",
    out: str = "linear",
    attributes: Mapping[str, Any] | None = None,
) -> Tensors:
    """Inputs and outputs of a node with inputs of these shapes, at the addresses that the probe uses."""
    spec = OPS[op]
    specs = [*spec.expand_inputs(spec.levels(len(shapes))), *spec.outputs]
    layouts = [layout] * len(shapes) + [out] * len(spec.outputs)
    tensors = []
    for number, (one, shape, where) in enumerate(
        zip(specs, [*shapes, *spec.output_shapes(shapes, attributes or ATTRIBUTES[op])], layouts, strict=True), start=1
    ):
        features = one.dtype == "features"
        of_maps = features and len(one.shape) == 4
        tensors.append(
            Tensor(4096 * number, tuple(shape), dtype if features else one.dtype, where if of_maps else "linear")  # type: ignore[arg-type]
        )
    return tensors[: len(shapes)], tensors[len(shapes) :]


SHAPES: Sequence[tuple[str, list[tuple[int, ...]]]] = [
    ("RpnProposals", [(1, 2), (1, 1, 16, 24), (1, 1, 8, 12), (1, 4, 16, 24), (1, 4, 8, 12)]),
    ("RpnProposals", [(4, 2), (4, 1, 33, 47), (4, 1, 17, 24), (4, 4, 33, 47), (4, 4, 17, 24)]),  # sides are not halves
    ("PyramidRoiAlign", [(1, 8, 4), (1, 8, 16, 24), (1, 8, 8, 12)]),
    ("PyramidRoiAlign", [(3, 5, 4), (3, 13, 31, 9), (3, 13, 16, 5)]),  # channels that kHWC8 pads
    ("DetectionNms", [(1, 2), (1, 8, 4), (8, 3), (8, 12)]),
    ("DetectionNms", [(4, 2), (4, 1000, 4), (4000, 91), (4000, 364)]),
]


@pytest.mark.parametrize("op", OPS)
def test_names_and_fields_are_the_contracts(build: Build, probe: Path, op: str) -> None:
    answer = ask(probe, build.library, op, write_fields(op, ATTRIBUTES[op]))
    assert answer["name"] == [op, VERSION, DOMAIN]
    assert answer["outputs"] == len(OPS[op].outputs)
    assert answer["declared"] == [[one.name, FIELD_TYPES[one.kind], []] for one in OPS[op].attributes]
    assert answer.log == ""


@pytest.mark.parametrize("op", OPS)
def test_the_python_plugin_serialises_the_same(build: Build, probe: Path, op: str) -> None:
    """Names, order, types and values, so that either runs the other's engines."""
    expected = [
        [one.name, FIELD_TYPES[one.kind], field_data(ATTRIBUTES[op][one.name], one.kind).tolist()]
        for one in OPS[op].attributes
    ]
    said = ask(probe, build.library, op, write_fields(op, ATTRIBUTES[op]))["serialised"]
    assert [one[:2] for one in said] == [one[:2] for one in expected]
    for (name, kind, values), (_, _, wanted) in zip(said, expected, strict=True):
        dtype = np.float32 if kind == FIELD_TYPES["float"] else np.int64
        np.testing.assert_array_equal(np.array(values, dtype), np.array(wanted, dtype), err_msg=name)


@pytest.mark.parametrize("op", OPS)
def test_numbers_may_come_wide_and_strings_with_a_zero(build: Build, probe: Path, op: str) -> None:
    """As other versions of the parser hand them over."""
    wide = {"int": "int64s", "ints": "int64s", "string": "string0"}
    fields = [
        write_field(one.name, wide.get(one.kind, one.kind), ATTRIBUTES[op][one.name]) for one in OPS[op].attributes
    ]
    fields += [write_field("plugin_version", "string", VERSION), write_field("plugin_namespace", "string", DOMAIN)]
    plain = ask(probe, build.library, op, write_fields(op, ATTRIBUTES[op]))
    assert ask(probe, build.library, op, fields)["serialised"] == plain["serialised"]


WRONG = [
    # op, attribute, field in its place (None: none), what is said
    ("PyramidRoiAlign", "strides", None, "strides is missing"),
    ("PyramidRoiAlign", "strides", "strides ints 0", "strides is empty"),
    ("PyramidRoiAlign", "strides", "strides floats 2 4 8", "strides must be of whole numbers"),
    ("PyramidRoiAlign", "strides", "strides string 1 grid", "strides must be of whole numbers"),
    ("PyramidRoiAlign", "strides", "strides ints 2 4 6", "strides must be powers of two"),
    ("PyramidRoiAlign", "strides", "strides ints 2 4 -8", "strides must be positive"),
    ("PyramidRoiAlign", "strides", "strides ints 6 1 2 4 8 16 32", "strides must be of at most 5 levels"),
    ("PyramidRoiAlign", "output_size", "output_size ints 2 7 7", "output_size must be one number, got 2"),
    (
        "PyramidRoiAlign",
        "output_size",
        "output_size int64s 1 4294967303",
        "output_size 4294967303 does not fit 32 bits",
    ),
    ("PyramidRoiAlign", "output_size", "output_size int 1 0", "output_size must be positive"),
    ("PyramidRoiAlign", "aligned", "aligned int 1 2", "aligned must be 0 or 1"),
    ("PyramidRoiAlign", "level_eps", "level_eps float64s 1 0.000001", "level_eps must be of float32 numbers"),
    ("PyramidRoiAlign", "level_eps", "level_epsilon float 1 0.000001", "level_eps is missing"),
    ("RpnProposals", "stride_rule", "stride_rule string 1 other", "stride_rule must be grid or fixed"),
    ("RpnProposals", "stride_rule", "stride_rule int 1 1", "stride_rule must be a string"),
    ("RpnProposals", "box_weights", "box_weights floats 2 1 1", "box_weights must be 4 numbers"),
    ("RpnProposals", "post_nms_top_n", "post_nms_top_n int 1 0", "post_nms_top_n must be positive"),
    (
        "RpnProposals",
        "cell_anchors",
        "cell_anchors floats 9 1 2 3 4 5 6 7 8 9",
        "cell_anchors must be 4 numbers an anchor",
    ),
    ("RpnProposals", "cell_anchors", f"cell_anchors floats 520 {520 * '1 '}", "at most 128 anchors over all levels"),
    ("DetectionNms", "background", "background string 1 middle", "background must be first or last"),
    ("DetectionNms", "detections_per_image", "detections_per_image int 1 -1", "detections_per_image must be positive"),
]


@pytest.mark.parametrize(("op", "attribute", "field", "message"), WRONG)
def test_a_wrong_field_makes_no_plugin_and_a_line_in_the_log(
    build: Build, probe: Path, op: str, attribute: str, field: str | None, message: str
) -> None:
    others = {name: value for name, value in ATTRIBUTES[op].items() if name != attribute}
    answer = ask(probe, build.library, op, [*write_fields(op, others), *([field] if field else [])])
    assert answer["created"] is False
    assert answer.log.startswith(f"logged 1: edge_mrcnn {op}: "), "severity 1 is an error"
    assert message in answer.log
    assert answer.log.endswith("(node node); export the model again with this version\n")


def test_an_unknown_field_is_refused(build: Build, probe: Path) -> None:
    fields = [*write_fields("DetectionNms", NMS), "speed int 1 1"]
    answer = ask(probe, build.library, "DetectionNms", fields)
    assert answer["created"] is False
    assert "'speed' is no attribute of this op" in answer.log


@pytest.mark.parametrize(("op", "shapes"), SHAPES[::2], ids=list(OPS))
def test_types_and_layouts_are_the_python_plugins(
    build: Build, probe: Path, python_plugins: Mapping[str, Any], op: str, shapes: list[tuple[int, ...]]
) -> None:
    """Of tensors of any type and layout side by side both accept the same."""
    trt = tensorrt_api.load("rtx").module
    known = {"linear": trt.TensorFormat.LINEAR, "hwc8": trt.TensorFormat.HWC8, "chw16": trt.TensorFormat.CHW16}
    draw = random.Random(3)
    fields, count = write_fields(op, ATTRIBUTES[op]), len(shapes) + len(OPS[op].outputs)
    accepted = 0
    for row in range(60):
        mixed = row % 2 == 1  # the others are of one kind each, so that whole rows are accepted
        kinds = [draw.choice(CHOICES[:3] if mixed else CHOICES) for _ in range(count)]
        tensors = [
            one
            for side in describe(op, shapes, *CHOICES[row // 2 % 3], draw.choice(("linear", "hwc8")))
            for one in side
        ]
        if mixed:
            tensors = [Tensor(one.address, one.shape, *kind) for one, kind in zip(tensors, kinds, strict=True)]  # type: ignore[arg-type]
        said = ask(probe, build.library, op, fields, tensors[: len(shapes)], tensors[len(shapes) :])["accepted"]
        described = [
            SimpleNamespace(desc=SimpleNamespace(type=getattr(trt, one.dtype), format=known[one.layout]))
            for one in tensors
        ]
        expected = [
            python_plugins[op].supports_format_combination(position, described, len(shapes))
            for position in range(count)
        ]
        assert said == expected, tensors
        accepted += all(said)
    assert 10 <= accepted < 60


@pytest.mark.parametrize(
    ("dtype", "layout", "out"),
    [("float32", "linear", "linear"), ("float16", "hwc8", "linear"), ("float16", "linear", "hwc8")],
)
@pytest.mark.parametrize(("op", "shapes"), SHAPES)
def test_workspace_and_parameters_are_those_of_the_plan(
    build: Build,
    probe: Path,
    recording: Path,
    op: str,
    shapes: list[tuple[int, ...]],
    dtype: str,
    layout: str,
    out: str,
) -> None:
    """The kernels get the same bytes from both plugins."""
    plan, attributes = plan_of(op), rounded(ATTRIBUTES[op])
    inputs, outputs = describe(op, shapes, dtype, layout, out)
    fields = write_fields(op, ATTRIBUTES[op])
    answer = ask(probe, build.library, op, fields, inputs, outputs)
    assert (answer["configured"], answer["typed"]) == (0, 0)
    assert answer["types"] == [{"float32": 0, "float16": 1, "int32": 3}[one.dtype] for one in outputs]
    assert answer["workspace"] == plan.workspace_bytes(attributes, inputs, outputs)

    recorded = ask(probe, recording, op, fields, inputs, outputs, enqueue=True)
    assert recorded["enqueued"] == 0
    features, text = recorded["args"].split()
    assert features == dtype
    launched = plan.launches(attributes, inputs, outputs, outputs[-1].address + 4096)[0].args
    assert fields_of(plan.Args.from_buffer_copy(bytes.fromhex(text))) == fields_of(launched)


def rounded(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes as the Python plugin has them: read from fields of float32 numbers."""
    return {
        name: [float(np.float32(one)) for one in value]
        if isinstance(value, list) and isinstance(value[0], float)
        else float(np.float32(value))
        if isinstance(value, float)
        else value
        for name, value in attributes.items()
    }


def fields_of(args: Any) -> dict[str, bytes]:
    """Bytes of each field of a kernel's parameter; the tile is the launcher's."""
    raw = bytes(args)
    places = {name: getattr(type(args), name) for name, *_ in args._fields_ if name != "tile"}
    return {name: raw[place.offset : place.offset + place.size] for name, place in places.items()}


OUT_OF_RANGE = [
    # op, changed attributes, inputs, what is said; the Python plan refuses them too
    (
        "RpnProposals",
        {},
        [(1, 2), (1, 3, 16, 24), (1, 3, 8, 12), (1, 12, 16, 24), (1, 12, 8, 12)],
        "3 objectness channels",
    ),
    ("RpnProposals", {}, [(1, 2), (1, 1, 16, 24), (1, 4, 16, 24)], "inputs for another number of levels than strides"),
    (
        "PyramidRoiAlign",
        {"output_size": 129},
        [(1, 8, 4), (1, 8, 16, 24), (1, 8, 8, 12)],
        "cannot take tensors of this size",
    ),
    ("DetectionNms", {}, [(1, 2), (1, 8, 4), (8, 3), (8, 4)], "box_deltas must be 4 a class"),
]


@pytest.mark.parametrize(("op", "change", "shapes", "message"), OUT_OF_RANGE)
def test_sizes_out_of_range_are_refused_while_building(
    build: Build, probe: Path, op: str, change: dict[str, Any], shapes: list[tuple[int, ...]], message: str
) -> None:
    attributes = ATTRIBUTES[op] | change
    inputs, outputs = describe(op, shapes, attributes=attributes)
    answer: Answer = ask(probe, build.library, op, write_fields(op, attributes), inputs, outputs)
    assert answer["configured"] != 0
    assert message in answer.log
    with pytest.raises(PluginError):
        plan_of(op).workspace_bytes(attributes, inputs, outputs)


@pytest.mark.skipif(bool(device.find_gpus()), reason="there is a GPU, which would run on made-up addresses")
@pytest.mark.parametrize(("op", "shapes"), SHAPES[::2], ids=list(OPS))
def test_a_run_that_fails_is_an_error_in_the_log(
    build: Build, probe: Path, op: str, shapes: list[tuple[int, ...]]
) -> None:
    answer = ask(probe, build.library, op, write_fields(op, ATTRIBUTES[op]), *describe(op, shapes), enqueue=True)
    assert answer["enqueued"] != 0
    assert answer.log.startswith(f"logged 1: edge_mrcnn {op}: ")
    assert "CUDA" in answer.log
