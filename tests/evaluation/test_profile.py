"""The profile: which part a node belongs to, and one real run of a network with a function body."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed")

import onnx
from onnx import TensorProto, helper

from edge_mrcnn.evaluation.profile import _part_of, network_feeds, profile_onnx


@pytest.mark.parametrize(
    ("name", "op", "part"),
    [
        ("backbone.body.layer1.0.conv1_nchwc", "Conv", "backbone.body"),
        ("fused box_head.fc6", "FusedGemm", "box_head"),
        ("_inlfunc_PyramidRoiAlign_token_0_RoiAlign.71", "RoiAlign", "PyramidRoiAlign"),
        ("ReorderInput_token_181", "ReorderInput", "layout"),
        ("cast", "Cast", "other"),
        ("/model/backbone/fpn/layer_blocks.0/Conv", "Conv", "backbone.fpn"),
        ("/rpn/TopK_1", "TopK", "rpn"),
        ("fused /roi_heads/box_head/fc6/Gemm", "FusedGemm", "roi_heads.box_head"),
    ],
)
def test_parts_are_read_off_the_names(name: str, op: str, part: str) -> None:
    assert _part_of(name, op) == part


def save_network(path: Path) -> Path:
    """A convolution of the backbone, then a function that multiplies matrices."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("edge_mrcnn", 1)]
    body = [helper.make_node("MatMul", ["x", "x"], ["y"])]  # without a name, as our bodies have none
    function = helper.make_function("edge_mrcnn", "RpnProposals", ["x"], ["y"], body, opsets[:1], [])
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["backbone.body.conv1"], "backbone.body.conv1"),
        helper.make_node("RpnProposals", ["backbone.body.conv1"], ["out"], "proposals", domain="edge_mrcnn"),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((8, 3, 1, 1), np.float32), "weight")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 8, 64, 64])
    graph = helper.make_graph(nodes, "network", [image], [out], [weight])
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8), path)
    return path


def test_a_run_is_divided_among_parts_ops_and_nodes(tmp_path: Path) -> None:
    feeds = {"image": np.ones((1, 3, 64, 64), np.float32)}
    found = profile_onnx(save_network(tmp_path / "model.onnx"), feeds, threads=1, runs=2)
    parts = {share.name: share for share in found.parts}
    assert {"backbone.body", "RpnProposals"} <= set(parts)
    assert parts["RpnProposals"].calls == 1
    assert {"Conv", "MatMul"} <= {share.name for share in found.ops}
    assert sum(share.percent for share in found.ops) == pytest.approx(100, abs=0.5)
    assert sum(share.ms for share in found.parts) == pytest.approx(found.total_ms, rel=0.05, abs=0.01)
    assert json.loads(found.to_json())["threads"] == 1
    assert any("RpnProposals" in line for line in found.lines())


def test_feeds_are_what_our_networks_take() -> None:
    feeds = network_feeds(np.zeros((64, 96, 3), np.uint8))
    assert feeds["images"].shape == (1, 64, 96, 3)
    assert feeds["image_hw"].tolist() == [[64, 96]]
