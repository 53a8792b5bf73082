"""Groups of layers by module path, and the expressions that keep them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_mrcnn.compiler.placement import quantisable_nodes, sensitive_nodes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.evaluation.groups import keep_pattern, layer_groups
from tests.compiler.ranges import BUNDLED
from tests.compiler.tiny_model import build_tiny_model

RESNET = {
    "backbone.body.conv1": ["backbone.body.conv1"],
    "backbone.body.layer1.0": ["backbone.body.layer1.0.conv1", "backbone.body.layer1.0.downsample.0"],
    "backbone.body.layer1.1": ["backbone.body.layer1.1.conv1"],
    "backbone.fpn.inner_blocks.0": ["backbone.fpn.inner_blocks.0.0"],
    "rpn_head": ["rpn_head.conv.0.0", "rpn_head.conv.0.0_1", "rpn_head.conv.1.0"],
    "box_head": ["box_head.fc6", "box_head.fc7"],
    "mask_head.0": ["mask_head.0.0"],
    "mask_head.10": ["mask_head.10.0"],
    "mask_predictor": ["mask_predictor.conv5_mask"],
    "keypoint_head.0": ["keypoint_head.0"],
    "keypoint_head.14": ["keypoint_head.14"],
}
PATHS = {  # as torch's older exporter names nodes
    "/model/backbone/conv1": ["/model/backbone/conv1/Conv"],
    "/model/backbone/layer1/0": ["/model/backbone/layer1/0/conv1/Conv", "/model/backbone/layer1/0/conv2/Conv"],
}
NUMBERS = {"n1": ["n1"], "n12": ["n12"]}


def convolutions(names: list[str]) -> onnx.ModelProto:
    """One 1x1 convolution after the other, with these names."""
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")
    nodes = [helper.make_node("Conv", [f"x{i}", "weight"], [f"x{i + 1}"], name) for i, name in enumerate(names)]
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [1, 1, 4, 4]) for i in (0, len(names))]
    return helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:], [weight]))


@pytest.mark.parametrize("groups", [RESNET, PATHS, NUMBERS], ids=["dotted", "paths", "no path"])
def test_groups_follow_module_paths(groups: dict[str, list[str]]) -> None:
    found = layer_groups(convolutions([name for nodes in groups.values() for name in nodes]))
    assert {group: list(nodes) for group, nodes in found.items()} == groups


@pytest.mark.parametrize("model", [onnx.load(BUNDLED), build_tiny_model()], ids=["bundled", "tiny"])
def test_each_layer_that_int8_would_quantise_is_in_one_group(model: onnx.ModelProto) -> None:
    grouped = [name for nodes in layer_groups(model).values() for name in nodes]
    assert sorted(grouped) == sorted(node.name for node in quantisable_nodes(model))
    assert not set(grouped) & {node.name for node in sensitive_nodes(model)}


def test_groups_of_the_bundled_model() -> None:
    groups = layer_groups(onnx.load(BUNDLED))
    assert len(groups) == 27
    assert groups["backbone.body.stride8.1"] == tuple(
        f"backbone.body.stride8.1.conv.{end}" for end in ("0.0", "1.0", "2")
    )
    assert len(groups["rpn_head"]) == 10  # two convolutions on five levels
    assert groups["mask_predictor"] == ("mask_predictor.conv5_mask",)


@pytest.mark.parametrize("group", ["mask_head.0", "rpn_head", "backbone.body.layer1.1"])
def test_a_pattern_keeps_its_group_and_nothing_else(group: str) -> None:
    recipe = Recipe(keep_fp16=(keep_pattern(RESNET[group]),))
    names = [name for nodes in RESNET.values() for name in nodes]
    assert [name for name in names if recipe.keeps_high(name)] == RESNET[group]


def test_a_pattern_takes_names_literally() -> None:
    recipe = Recipe(keep_fp16=(keep_pattern(["a.b", "c+(d)"]),))
    assert recipe.keeps_high("c+(d)")
    assert not any(recipe.keeps_high(name) for name in ("axb", "a.b.c", "x.a.b"))


def test_a_pattern_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nodes is empty"):
        keep_pattern([])
