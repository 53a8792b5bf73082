from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from edge_mrcnn.compiler.passes import bind_plugins, infer_types
from edge_mrcnn.errors import PluginError
from edge_mrcnn.ops import DOMAIN
from tests.compiler.tiny_model import DETECTIONS, PROPOSALS, SPEC


def imported(model: onnx.ModelProto) -> gs.Graph:
    graph = gs.import_onnx(model)
    infer_types(graph, SPEC)
    return graph


def find(graph: gs.Graph, op: str) -> gs.Node:
    return next(node for node in graph.nodes if node.op == op)


def test_every_custom_op_gets_the_names_tensorrt_looks_for(tiny: onnx.ModelProto) -> None:
    graph = imported(tiny)
    for node in graph.nodes:
        node.attrs.pop("plugin_version", None)
        node.attrs.pop("plugin_namespace", None)
    bind_plugins(graph, SPEC)
    ours = [node for node in graph.nodes if node.domain == DOMAIN]
    assert len(ours) == 4
    assert all(node.attrs["plugin_version"] == "1" and node.attrs["plugin_namespace"] == DOMAIN for node in ours)
    assert not any("plugin_version" in node.attrs for node in graph.nodes if node.domain != DOMAIN)


def test_outputs_are_described_without_function_bodies(tiny: onnx.ModelProto) -> None:
    graph = gs.import_onnx(tiny)
    graph.functions.clear()
    bind_plugins(graph, SPEC)
    proposals = find(graph, "RpnProposals").outputs[0]
    assert (proposals.dtype, proposals.shape[1:]) == (np.float32, [PROPOSALS, 4])
    assert [t.dtype.name for t in find(graph, "DetectionNms").outputs] == ["int32", "float32", "float32", "int32"]


def drop(name: str) -> Callable[[gs.Node], None]:
    return lambda node: node.attrs.pop(name)


def put(**attributes: object) -> Callable[[gs.Node], None]:
    return lambda node: node.attrs.update(attributes)


def retype(index: int, dtype: type, shape: list[int] | None = None) -> Callable[[gs.Node], None]:
    def change(node: gs.Node) -> None:
        old = node.inputs[index]
        node.inputs[index] = gs.Variable("changed", dtype, shape or old.shape)

    return change


WRONG = [
    # op, what goes wrong, what the message says beside the node's name
    ("RpnProposals", drop("strides"), r"missing: \['strides'\]"),
    ("RpnProposals", put(extra=1), r"unknown: \['extra'\]"),
    ("RpnProposals", put(min_size="small"), r"min_size must be of kind float .* got 'small'"),
    ("RpnProposals", lambda node: node.inputs.pop(), r"cannot have 4 inputs.*1 to 5 levels"),
    ("RpnProposals", put(strides=[4, 8, 16]), "number of strides: expected 2, found 3"),
    ("RpnProposals", put(cell_anchors=[1.0] * 4), "length of cell_anchors: expected 8, found 4"),
    ("RpnProposals", put(plugin_version="2"), "plugin_version: expected 1, found 2"),
    ("RpnProposals", put(post_nms_top_n=7), f"post_nms_top_n: expected {PROPOSALS} as the model's spec says, found 7"),
    ("DetectionNms", put(detections_per_image=3), f"expected {DETECTIONS} as the model's spec says, found 3"),
    ("DetectionNms", lambda node: node.outputs.pop(), "number of outputs: expected 4, found 3"),
    ("DetectionNms", retype(1, np.float16), "type of input proposals: expected float32, found float16"),
    (
        "DetectionNms",
        retype(2, np.float16),
        "types of its feature inputs: expected one for all, found float16 and float32",
    ),
    ("DetectionNms", retype(2, np.int32), "type of input class_logits: expected float32 or float16, found int32"),
    (
        "DetectionNms",
        retype(1, np.float32, [1, 8, 5]),
        r"shape of input proposals: expected \('B', 'P', 4\), found \(1, 8, 5\)",
    ),
    ("PyramidRoiAlign", retype(1, np.float32, [1, 8, 16]), "rank of input x0 .*: expected 4, found 3"),
]


@pytest.mark.parametrize(("op", "break_it", "message"), WRONG, ids=[f"{row[0]}-{row[2][:20]}" for row in WRONG])
def test_an_error_names_node_expected_and_found(
    tiny: onnx.ModelProto, op: str, break_it: Callable[[gs.Node], object], message: str
) -> None:
    graph = imported(tiny)
    node = find(graph, op)
    break_it(node)
    with pytest.raises(PluginError, match=re.escape(repr(node.name)) + ".*" + message):
        bind_plugins(graph, SPEC)


@pytest.mark.parametrize(("domain", "op"), [(DOMAIN, "DetectionNmsV2"), ("other", "DetectionNms")])
def test_an_op_without_contract_is_refused(tiny: onnx.ModelProto, domain: str, op: str) -> None:
    graph = imported(tiny)
    node = find(graph, "DetectionNms")
    node.domain, node.op = domain, op
    with pytest.raises(PluginError, match=rf"'n35'.*{op}.*export the model again"):
        bind_plugins(graph, SPEC)
