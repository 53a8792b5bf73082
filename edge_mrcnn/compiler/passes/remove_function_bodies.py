"""The bodies by which ONNX Runtime runs the custom ops go, so that TensorRT takes the plugins."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from edge_mrcnn.errors import PluginError
from edge_mrcnn.ops import DOMAIN, OPS
from edge_mrcnn.spec import ModelSpec


def remove_function_bodies(graph: gs.Graph, spec: ModelSpec) -> None:
    """Delete the model-local functions.

    Before TensorRT 10.7, and in TensorRT-RTX, the parser takes a function before a plugin of the same name.

    Args:
        graph: Changed in place.
        spec: Not used; every pass takes it.

    Raises:
        PluginError: A node relies on a function that is not one of our ops, so nothing would be left to run it.
    """
    functions = {(function.domain, function.name) for function in graph.functions}
    for node in graph.nodes:
        if (node.domain, node.op) in functions and (node.domain, node.op) not in {(DOMAIN, name) for name in OPS}:
            raise PluginError(
                f"node {node.name!r} calls the function {node.domain}.{node.op}, which no plugin replaces; "
                "inline it first: onnx.inliner.inline_selected_functions"
            )
    graph.functions.clear()
