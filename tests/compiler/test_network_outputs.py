"""The end of a network: heatmaps become rows of pictures, zero beyond the detections, with or without upsampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edge_mrcnn.compiler.network_outputs import KEYPOINT_MAPS, append_keypoint_rows, append_mask_choice

PICTURES, ROWS, COUNT, SIDE = 2, 3, 5, 8
SCORES = np.array([[0.9, 0.4, 0.0], [0.7, 0.0, 0.0]], np.float32)
"""Of the first picture two detections, of the second one."""


def make_model(nodes: list[onnx.NodeProto], inputs: dict[str, list[Any]], outputs: list[str]) -> onnx.ModelProto:
    kinds = {"labels": TensorProto.INT32}
    values = [helper.make_tensor_value_info(name, kinds.get(name, 1), shape) for name, shape in inputs.items()]
    ranks = {"scores": 2, "labels": 2}
    shapes = {name: [f"{name}{dim}" for dim in range(ranks.get(name, 4))] for name in outputs}
    results = [
        helper.make_tensor_value_info(name, kinds.get(name, 1), inputs.get(name, shapes[name])) for name in outputs
    ]
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2])
    graph = helper.make_graph(nodes, "end", values, results, [scales])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


@pytest.mark.parametrize("upsampled", [True, False])
def test_heatmaps_become_rows_of_pictures(upsampled: bool) -> None:
    if upsampled:
        last = helper.make_node("Resize", ["given", "", "scales"], [KEYPOINT_MAPS], mode="linear")
    else:
        last = helper.make_node("Neg", ["given"], [KEYPOINT_MAPS])
    side = SIDE // 2 if upsampled else SIDE
    inputs = {"given": ["rows", COUNT, side, side], "scores": ["B", "D"], "labels": ["B", "D"]}
    model = make_model([last], inputs, ["scores", "labels", KEYPOINT_MAPS])
    given = np.random.default_rng(0).normal(size=(PICTURES * ROWS, COUNT, side, side)).astype(np.float32)
    feeds = {"given": given, "scores": SCORES, "labels": np.ones_like(SCORES, np.int32)}
    traced = run(model, **feeds)[KEYPOINT_MAPS].reshape(PICTURES, ROWS, COUNT, SIDE, SIDE)
    append_keypoint_rows(model.graph, COUNT, SIDE)
    found = run(model, **feeds)
    assert list(found) == ["scores", "labels", "keypoint_logits"]
    there = SCORES > 0
    np.testing.assert_allclose(found["keypoint_logits"][there], traced[there], rtol=1e-6)
    assert not found["keypoint_logits"][~there].any()
    assert traced[~there].all(), "there was something to take away"
    resized = [node.input[0] for node in model.graph.node if node.op_type == "Resize"]
    assert resized == (["keypoints.kept"] if upsampled else []), "zeroed before the upsampling, not after it"


def test_outputs_keep_their_order_whichever_head_is_finished_first() -> None:
    nodes = [helper.make_node("Neg", ["given"], [name]) for name in ("mask_logits", KEYPOINT_MAPS)]
    inputs = {"given": ["rows", 2, 4, 4], "scores": ["B", "D"], "labels": ["B", "D"]}
    model = make_model(nodes, inputs, ["scores", "labels", "mask_logits", KEYPOINT_MAPS])
    append_keypoint_rows(model.graph, 2, 4)
    append_mask_choice(model.graph, 4)
    given = np.random.default_rng(0).normal(size=(PICTURES * ROWS, 2, 4, 4)).astype(np.float32)
    found = run(model, given=given, scores=SCORES, labels=np.ones_like(SCORES, np.int32))
    assert list(found) == ["scores", "labels", "masks", "keypoint_logits"]
    expected = 1 / (1 + np.exp(given[:, 1])).reshape(PICTURES, ROWS, 4, 4)
    np.testing.assert_allclose(found["masks"], expected * (SCORES > 0)[..., None, None], rtol=1e-5)


def test_an_output_that_is_not_there() -> None:
    model = make_model([helper.make_node("Neg", ["given"], ["other"])], {"given": [1, 2, 4, 4]}, ["other"])
    with pytest.raises(ValueError, match=r"no output 'keypoint_maps'.*other"):
        append_keypoint_rows(model.graph, 2, 4)
