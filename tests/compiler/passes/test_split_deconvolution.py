from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from edge_mrcnn.compiler.passes import apply_passes, infer_types, run_passes, split_deconvolution
from edge_mrcnn.compiler.placement import measured_tensors
from edge_mrcnn.compiler.recipe import Recipe
from tests.compiler.ranges import BUNDLED, bundled_inputs, measured_ranges
from tests.compiler.tiny_model import SPEC

GOLDEN = """
<ir_version: 10, opset_import: ["" : 20]>
golden (float[batch, 5, 4, 6] x) => (float[batch, classes, height, width] y)
  <float[3] bias = {0.5, -0.25, 0.125}, float[2] predictor_bias = {1.0, -1.0}> {
  spread = ConvTranspose <ATTRIBUTES> (x, w, bias)
  active = Relu (spread)
  READER
}
"""
READERS = {
    "1x1": "y = Conv (active, w1, predictor_bias)",
    "1x1, then more": "logits = Conv (active, w1)\n y = Sigmoid (logits)",
    "3x3": "y = Conv <pads: ints = [1, 1, 1, 1]> (active, w3)",
    "two": "a = Conv (active, w1)\n b = ReduceMean <keepdims: int = 1> (active)\n y = Add (a, b)",
}


def network(
    attributes: str = "strides: ints = [2, 2]", reader: str = "1x1, then more", kernel: int = 2
) -> onnx.ModelProto:
    model = parser.parse_model(GOLDEN.replace("ATTRIBUTES", attributes).replace("READER", READERS.get(reader, reader)))
    rng = np.random.default_rng(0)
    for name, shape in {"w": (5, 3, kernel, kernel), "w1": (2, 3, 1, 1), "w3": (2, 3, 3, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    helper.set_model_props(model, {"edge_mrcnn.spec": SPEC.to_json()})
    return model


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    results: list[np.ndarray] = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    return results


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("reader", READERS)
def test_a_convolution_gives_the_same(reader: str, kernel: int) -> None:
    model = network(f"strides: ints = [{kernel}, {kernel}]", reader, kernel)
    split = apply_passes(model, [infer_types, split_deconvolution])
    ops = [node.op_type for node in split.graph.node]
    assert "ConvTranspose" not in ops
    assert "DepthToSpace" in ops
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 5, 4, 6)).astype(np.float32)}
    np.testing.assert_allclose(run(split, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)


def test_what_reads_one_position_comes_before_the_moving() -> None:
    ops = [node.op_type for node in apply_passes(network(), [infer_types, split_deconvolution]).graph.node]
    assert ops == ["Conv", "Relu", "Reshape", "Conv", "Reshape", "DepthToSpace", "Sigmoid"]


@pytest.mark.parametrize(
    ("attributes", "reader"),
    [
        ("strides: ints = [1, 1]", "1x1"),  # patches overlap
        ("strides: ints = [3, 3]", "1x1"),  # gaps between them
        ("strides: ints = [2, 2], pads: ints = [1, 1, 1, 1]", "1x1"),
        ("strides: ints = [2, 2], output_padding: ints = [1, 1]", "1x1"),
        ("strides: ints = [2, 2]", "y = Identity (active)\n"),
    ],
)
def test_others_stay_or_are_moved_whole(attributes: str, reader: str) -> None:
    model = network(attributes, reader)
    split = apply_passes(model, [infer_types, split_deconvolution])
    ops = [node.op_type for node in split.graph.node]
    assert ("ConvTranspose" in ops) == ("1x1" in reader)
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 5, 4, 6)).astype(np.float32)}
    np.testing.assert_allclose(run(split, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)


def test_the_bundled_mask_predictor_becomes_integer() -> None:
    model = onnx.load(BUNDLED)
    (deconvolution,) = [node for node in model.graph.node if node.op_type == "ConvTranspose"]
    (relu,) = [node for node in model.graph.node if deconvolution.output[0] in node.input]
    assert relu.output[0] in measured_tensors(model)
    feeds = bundled_inputs(3)
    quantised = run_passes(model, Recipe("int8", measured_ranges(model, feeds), dialect="ort"))
    (conv,) = [node for node in quantised.graph.node if node.name == deconvolution.name]
    makers = {output: node for node in quantised.graph.node for output in node.output}
    assert conv.op_type == "Conv"
    assert [makers[name].op_type for name in conv.input] == ["DequantizeLinear"] * 3
    found, expected = (run(network, feeds[0]) for network in (quantised, model))
    assert found[4].shape[2:] == expected[4].shape[2:]
    near = np.abs(found[1][0, :, None] - expected[1][0]).max(axis=2) < 4  # pixels
    pairs = list(zip(*np.nonzero(near & (found[3][0, :, None] == expected[3][0])), strict=True))
    assert len(pairs) > len(expected[1][0]) / 2
    assert np.mean([np.abs(found[4][0, i] - expected[4][0, j]) for i, j in pairs]) < 0.03
