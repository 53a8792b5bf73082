from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import parser

from edge_mrcnn.compiler.passes import remove_function_bodies
from edge_mrcnn.errors import PluginError
from tests.compiler.tiny_model import SPEC


def test_bodies_go_and_nodes_stay(tiny: onnx.ModelProto) -> None:
    graph = gs.import_onnx(tiny)
    remove_function_bodies(graph, SPEC)
    left = gs.export_onnx(graph)
    assert not left.functions
    assert [n.op_type for n in left.graph.node] == [n.op_type for n in tiny.graph.node]


def test_a_function_that_no_plugin_replaces_is_named() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20, "other" : 1]>
        g (float[1] x) => (float[1] y) { [the_node] y = other.Twice (x) }
        <domain: "other", opset_import: ["" : 20]>
        Twice (a) => (b) { b = Add (a, a) }"""
    )
    with pytest.raises(PluginError, match=r"'the_node' calls the function other\.Twice"):
        remove_function_bodies(gs.import_onnx(model), SPEC)
