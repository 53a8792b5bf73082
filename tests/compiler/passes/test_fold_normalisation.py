from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from edge_mrcnn.compiler.passes import apply_passes, fold_constants, fold_normalisation, infer_types, run_passes
from edge_mrcnn.compiler.recipe import Recipe
from tests.compiler.ranges import BUNDLED, bundled_inputs, measured_ranges
from tests.compiler.tiny_model import CANVAS, SPEC

FIRST = (infer_types, fold_constants)

NORMALISED = """
<ir_version: 10, opset_import: ["" : 20]>
golden (uint8[batch, 6, 8, 3] images, float[batch, 1, 1, 1] width) => (float[batch, 2, 3, 4] y)
  <float[3, 1, 1] mean = {0.5, 0.25, 0.125}, float scale = {64.0}, float[1, 1, 1, 8] column = {0, 1, 2, 3, 4, 5, 6, 7},
   float one = {1.0}> {
  values = Cast <to: int = 1> (images)
  turned = Transpose <perm: ints = [0, 3, 1, 2]> (values)
  scaled = Div (turned, scale)
  moved = STEP
  there = Less (column, width)
  inside = Cast <to: int = 1> (there)
  masked = MASK
  y = Conv <GROUPpads: ints = [1, 1, 1, 1], strides: ints = [2, 2]> (masked, w)
}
"""


def network(step: str = "Sub (scaled, mean)", mask: str = "Mul (moved, inside)", group: int = 1) -> onnx.ModelProto:
    """A normalisation before a convolution over its borders."""
    text = NORMALISED.replace("STEP", step).replace("MASK", mask).replace("GROUP", f"group: int = {group}, ")
    model = parser.parse_model(text)
    shape = (3, 1, 3, 3) if group > 1 else (2, 3, 3, 3)
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = shape[0]
    onnx.helper.set_model_props(model, {"edge_mrcnn.spec": SPEC.to_json()})
    return model


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    results: list[np.ndarray] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    return results


def conv_input(model: onnx.ModelProto) -> onnx.NodeProto:
    """The node whose result the first convolution reads."""
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    return next(node for node in model.graph.node if conv.input[0] in node.output)


@pytest.mark.parametrize(
    "step",
    ["Sub (scaled, mean)", "Sub (mean, scaled)", "Add (mean, scaled)", "Mul (scaled, mean)", "Div (scaled, mean)"],
)
def test_bytes_give_what_normalised_values_gave(step: str) -> None:
    model = network(step)
    folded = apply_passes(model, [*FIRST, fold_normalisation])
    images = np.random.default_rng(1).integers(0, 256, (2, 6, 8, 3)).astype(np.uint8)
    feeds = {"images": images, "width": np.array([8, 5], np.float32).reshape(2, 1, 1, 1)}
    np.testing.assert_allclose(run(folded, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)
    arithmetic = [node.op_type for node in folded.graph.node if node.op_type in ("Sub", "Div", "Mul", "Add")]
    assert arithmetic == ["Sub"], "only the zero point is left"
    assert conv_input(folded).op_type == "Sub"


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "Identity (moved)"},
        {"mask": "Mul (moved, width)"},
        {"step": "Div (mean, scaled)"},
        {"step": "Pow (scaled, one)"},
        {"group": 3},
    ],
    ids=str,
)
def test_what_is_not_understood_stays(changes: dict[str, object]) -> None:
    model = network(**changes)  # type: ignore[arg-type]
    before, after = (apply_passes(model, passes) for passes in (FIRST, [*FIRST, fold_normalisation]))
    assert [node.SerializeToString() for node in sorted(before.graph.node, key=_result)] == [
        node.SerializeToString() for node in sorted(after.graph.node, key=_result)
    ]
    kept, weights = ({w.name: numpy_helper.to_array(w) for w in made.graph.initializer} for made in (before, after))
    np.testing.assert_array_equal(kept["w"], weights["w"])


def test_the_tiny_network_computes_the_same(tiny: onnx.ModelProto) -> None:
    folded = apply_passes(tiny, [*FIRST, fold_normalisation])
    images = np.random.default_rng(2).integers(0, 256, (2, *CANVAS, 3)).astype(np.uint8)
    feeds = {"images": images, "image_hw": np.array([CANVAS, (40, 60)], np.float32)}
    assert conv_input(folded).op_type == "Sub"
    for old, new in zip(run(tiny, feeds), run(folded, feeds), strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [416, 300])
def test_integers_of_the_bundled_network_read_the_bytes(width: int) -> None:
    model = onnx.load(BUNDLED)
    feeds = bundled_inputs(1)
    recipe = Recipe("int8", measured_ranges(model, feeds), dialect="ort")
    quantised = run_passes(model, recipe)
    dequantise = conv_input(quantised)
    assert dequantise.op_type == "DequantizeLinear"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    assert [constants[name] for name in dequantise.input[1:]] == [1.0, 128]
    source = next(node for node in quantised.graph.node if dequantise.input[0] in node.output)
    assert source.op_type == "Reshape", "not QuantizeLinear: the bytes are the codes"
    feeds[0]["image_hw"][:, 1] = width
    name = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    values = [_tap(network, name, feeds[0]) for network in (model, quantised)]
    assert np.abs(values[0] - values[1]).max() < 0.05 * values[0].max()


def _result(node: onnx.NodeProto) -> str:
    return str(node.output[0])


def _tap(model: onnx.ModelProto, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """A tensor of the network; of the quantised one as rounded."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    names = {output for node in model.graph.node for output in node.output}
    tapped.graph.output.insert(0, onnx.ValueInfoProto(name=f"{name}_rounded" if f"{name}_rounded" in names else name))
    return run(tapped, feeds)[0]
