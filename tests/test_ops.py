"""The op contracts: attributes, levels, shapes, and the tables people read."""

import re
from pathlib import Path

import pytest

from edge_mrcnn.errors import PluginError
from edge_mrcnn.ops import DETECTION_NMS, MAX_LEVELS, OPS, PYRAMID_ROI_ALIGN, RPN_PROPOSALS, OpSpec, TensorSpec

ALIGN = {
    "strides": [4, 8],
    "output_size": 7,
    "sampling_ratio": 2,
    "aligned": 0,
    "canonical_scale": 224.0,
    "canonical_level": 4,
    "level_eps": 1e-6,
}
README = Path(__file__).parents[1] / "plugins" / "README.md"


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "expected"),
    [
        (RPN_PROPOSALS, [(2, 2), (2, 3, 8, 8), (2, 12, 8, 8)], {"post_nms_top_n": 50}, [(2, 50, 4)]),
        (PYRAMID_ROI_ALIGN, [(2, 9, 4), (2, 64, 8, 8), (2, 64, 4, 4)], ALIGN, [(18, 64, 7, 7)]),
        (PYRAMID_ROI_ALIGN, [(1, 0, 4), (1, 64, 8, 8)], ALIGN, [(0, 64, 7, 7)]),  # no rois at all
        (
            DETECTION_NMS,
            [(2, 2), (2, 9, 4), (18, 5), (18, 20)],
            {"detections_per_image": 6},
            [(2,), (2, 6, 4), (2, 6), (2, 6)],
        ),
    ],
)
def test_output_shapes(op: OpSpec, inputs: list, attributes: dict, expected: list) -> None:
    assert op.output_shapes(inputs, attributes) == expected


def test_output_shapes_of_symbols() -> None:
    """TensorRT's dimensions are expressions without operators: only `multiply` and `constant` may touch them."""
    shapes = PYRAMID_ROI_ALIGN.output_shapes(
        [("b", "n", "4"), ("b", "c", "h", "w")], ALIGN, lambda a, b: f"({a}*{b})", lambda value: f"const {value}"
    )
    assert shapes == [("(b*n)", "c", "const 7", "const 7")]


@pytest.mark.parametrize("levels", range(1, MAX_LEVELS + 1))
def test_levels(levels: int) -> None:
    assert RPN_PROPOSALS.levels(1 + 2 * levels) == levels
    assert PYRAMID_ROI_ALIGN.levels(1 + levels) == levels
    names = [tensor.name for tensor in RPN_PROPOSALS.expand_inputs(levels)]
    assert names[1] == "objectness0"
    assert names[-1] == f"deltas{levels - 1}"
    assert len(names) == len(set(names)) == 1 + 2 * levels


@pytest.mark.parametrize(
    ("op", "count"), [(RPN_PROPOSALS, 2), (RPN_PROPOSALS, 1), (PYRAMID_ROI_ALIGN, 7), (DETECTION_NMS, 3)]
)
def test_levels_refuses(op: OpSpec, count: int) -> None:
    with pytest.raises(PluginError, match=f"{op.name} cannot have {count} inputs; its inputs are"):
        op.levels(count)


def test_wrong_rank_is_named() -> None:
    with pytest.raises(PluginError, match=r"PyramidRoiAlign.rois must have shape"):
        PYRAMID_ROI_ALIGN.output_shapes([(18, 5), (1, 64, 8, 8)], ALIGN)


def test_attributes_as_written_pass() -> None:
    PYRAMID_ROI_ALIGN.check_attributes(ALIGN | {"plugin_version": "1", "plugin_namespace": "edge_mrcnn"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aligned": None}, "aligned must be of kind int"),
        ({"aligned": True}, "aligned must be of kind int"),  # a bool is an int to Python, not to ONNX
        ({"strides": []}, "strides must be of kind ints"),
        ({"strides": [4.5]}, "strides must be of kind ints"),
        ({"speed": 1}, r"unknown: \['speed'\]"),
    ],
)
def test_wrong_attributes(change: dict, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        PYRAMID_ROI_ALIGN.check_attributes(ALIGN | change)


def test_missing_attributes_are_listed() -> None:
    with pytest.raises(PluginError, match=r"missing: \['canonical_level', 'strides'\].*export the model again"):
        PYRAMID_ROI_ALIGN.check_attributes({k: v for k, v in ALIGN.items() if k not in ("strides", "canonical_level")})


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_readme_has_every_row(op: OpSpec) -> None:
    """plugins/README.md is written by hand; what it says of inputs, outputs and attributes is held to the contract."""
    section = README.read_text().split(f"## {op.name}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|$", section, re.MULTILINE)
    tensors = [
        (t.name, t.dtype, f"({', '.join(map(str, t.shape))}){' per level' if t.per_level else ''}")
        for t in (*op.inputs, *op.outputs)
    ]
    attributes = [(a.name, a.kind, a.doc) for a in op.attributes]
    assert [(a, b, c.strip("`")) for a, b, c in rows] == [*tensors, *attributes]


def layouts_of(tensor: TensorSpec) -> tuple[str, str, str]:
    """Layouts in float32, float16 and int32: feature maps may have their channels last."""
    if tensor.dtype == "features":
        return "linear", "linear, kHWC8" if len(tensor.shape) == 4 else "linear", ""
    return ("", "", "linear") if tensor.dtype == "int32" else ("linear", "", "")


def test_readme_has_the_layouts() -> None:
    """As the plugins offer them: tests/plugins/test_plugin_contract.py and tests/gpu/test_plugins.py."""
    section = README.read_text().split("## Layouts\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|([^|]*)\|([^|]*)\|([^|]*)\|$", section, re.MULTILINE)
    expected = [
        (op.name, tensor.name, *layouts_of(tensor)) for op in OPS.values() for tensor in (*op.inputs, *op.outputs)
    ]
    assert [tuple(cell.strip() for cell in row) for row in rows] == expected
