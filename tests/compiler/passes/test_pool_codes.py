"""Pooling of codes against the function body's pooling of floats, both rounded to the codes of the patches."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mrcnn.compiler.function_bodies import OPSET, make_function_body
from edge_mrcnn.compiler.passes import apply_passes, pool_codes, run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.ops import DOMAIN, PLUGIN_ATTRIBUTES
from edge_mrcnn.spec import METADATA_KEY
from tests.compiler.ranges import BUNDLED, bundled_inputs, measured_ranges
from tests.compiler.tiny_model import SPEC
from tests.training.op_cases import random_rois, roi_attributes

CHANNELS = 5
NAN, INF = float("nan"), float("inf")


def network(levels: int, attributes: dict[str, Any], scales: list[float] | None = None) -> onnx.ModelProto:
    """One pooling of codes `(2, 5, H, W)` of a 256x320 canvas at strides 4, 8, ... into codes."""
    body = make_function_body("PyramidRoiAlign", attributes, levels + 1)
    constants = {"zero": np.array(100, np.uint8), "out_scale": np.array(0.015, np.float32), "out_zero": np.uint8(90)}
    nodes = []
    for level, scale in enumerate(scales or [0.02] * levels):
        constants[f"scale{level}"] = np.array(scale, np.float32)
        nodes.append(helper.make_node("DequantizeLinear", [f"c{level}", f"scale{level}", "zero"], [f"x{level}"]))
    features = [f"x{level}" for level in range(levels)]
    nodes.append(
        helper.make_node(
            "PyramidRoiAlign", ["rois", *features], ["p"], "pool", domain=DOMAIN, **attributes, **PLUGIN_ATTRIBUTES
        )
    )
    nodes.append(helper.make_node("QuantizeLinear", ["p", "out_scale", "out_zero"], ["patches"]))
    inputs = [helper.make_tensor_value_info("rois", TensorProto.FLOAT, ["batch", "n", 4])]
    for level in range(levels):
        shape = ["batch", CHANNELS, 256 >> (level + 2), 320 >> (level + 2)]
        inputs.append(helper.make_tensor_value_info(f"c{level}", TensorProto.UINT8, shape))
    output = helper.make_tensor_value_info("patches", TensorProto.UINT8, None)
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "pooling", inputs, [output], weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: SPEC.to_json()})
    return model


def feeds(levels: int, rois: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(levels)
    shapes = [(2, CHANNELS, 256 >> (level + 2), 320 >> (level + 2)) for level in range(levels)]
    return {"rois": rois} | {f"c{level}": rng.integers(0, 256, shape, np.uint8) for level, shape in enumerate(shapes)}


def run(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> np.ndarray:
    result: np.ndarray = onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)[0]
    return result


def check(levels: int, rois: np.ndarray, **changes: Any) -> np.ndarray:
    """Hold the patches of codes against those of floats; gives them."""
    attributes = roi_attributes(levels, **{"output_size": 3, **changes})
    model = network(levels, attributes)
    pooled = apply_passes(model, [pool_codes])
    assert not [node for node in pooled.graph.node if node.domain == DOMAIN]
    found, expected = (run(each, feeds(levels, rois)).astype(int) for each in (pooled, model))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2, "steps"
    assert np.abs(found - expected).mean() < 0.5
    return found


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
def test_pooling_of_each_number_of_levels(levels: int) -> None:
    found = check(levels, random_rois(18, seed=levels))
    assert (found != 90).any(axis=(1, 2, 3)).sum() > 25


@pytest.mark.parametrize(
    "changes",
    [
        {"output_size": 1},
        {"output_size": 7},
        {"sampling_ratio": 1},
        {"sampling_ratio": 3},
        {"aligned": 1},
        {"canonical_scale": 60.0},
        {"canonical_level": 3},
        {"level_eps": 0.6},
    ],
    ids=str,
)
def test_pooling_honours_each_attribute(changes: dict[str, Any]) -> None:
    rois = random_rois(12, seed=5)
    usual, changed = check(3, rois), check(3, rois, **changes)
    assert usual.shape != changed.shape or np.abs(usual - changed).max() > 2


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 0, 0),
        (9, 20, 20, 8),
        (20, 20, 8, 8),
        (NAN, 8, 20, 20),
        (-INF, 8, INF, 20),
        (0, 0, INF, INF),
        (1000, 1000, 1100, 1100),
    ],
)
def test_padding_and_what_is_outside_pool_to_zeros(box: tuple[float, ...]) -> None:
    rois = random_rois(3)
    rois[0, 1] = box
    found = check(4, rois)
    assert (found[1] == 90).all()
    assert (found[0] != 90).any()


def test_a_constant_map_pools_to_its_value() -> None:
    model = apply_passes(network(2, roi_attributes(2)), [pool_codes])
    given = feeds(2, np.tile(np.array([10.3, 20.7, 90.1, 77.7], np.float32), (2, 3, 1)))
    for level in range(2):
        given[f"c{level}"][:] = 137
    assert (run(model, given) == 90 + round((137 - 100) * 0.02 / 0.015)).all()


@pytest.mark.parametrize(
    ("attributes", "scales"), [({"sampling_ratio": 0}, None), ({}, [0.02, 0.03])], ids=["adaptive", "two scales"]
)
def test_what_has_no_integer_form_stays(attributes: dict[str, Any], scales: list[float] | None) -> None:
    model = apply_passes(network(2, roi_attributes(2, **attributes), scales), [pool_codes])
    assert [node.op_type for node in model.graph.node if node.domain == DOMAIN] == ["PyramidRoiAlign"]


def test_a_pooling_that_would_fetch_too_much_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("edge_mrcnn.compiler.passes.pool_codes")  # the package has the pass by this name
    monkeypatch.setattr(module, "LARGEST_BYTES", 1000)
    model = apply_passes(network(2, roi_attributes(2)), [pool_codes])
    assert [node.op_type for node in model.graph.node if node.domain == DOMAIN] == ["PyramidRoiAlign"]


def test_both_heads_of_the_bundled_network_pool_codes() -> None:
    model = onnx.load(BUNDLED)
    given = bundled_inputs(2)
    quantised = run_passes(model, Recipe("int8", measured_ranges(model, given), dialect="ort"))
    assert {node.op_type for node in quantised.graph.node if node.domain == DOMAIN} == {"RpnProposals", "DetectionNms"}
    session = onnxruntime.InferenceSession(quantised.SerializeToString())
    batch = {name: np.concatenate([each[name] for each in given]) for name in given[0]}
    boxes = session.run(["boxes"], batch)[0]
    for index, each in enumerate(given):
        alone = session.run(["boxes"], each)[0]
        np.testing.assert_allclose(boxes[index, : alone.shape[1]], alone[0], atol=1e-3)
