"""Custom ops become plugin nodes: checked against their contract, and named as TensorRT looks plugins up."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.contract import EXPORT_AGAIN, check_node, custom_nodes, describe_outputs
from edge_mrcnn.errors import PluginError
from edge_mrcnn.ops import PLUGIN_ATTRIBUTES
from edge_mrcnn.spec import ModelSpec

_PROMISED = {
    "RpnProposals": ("post_nms_top_n", "proposals"),
    "DetectionNms": ("detections_per_image", "detections"),
}
"""Attribute of an op and field of the spec that must say the same: the runtime reads the field."""


def bind_plugins(graph: gs.Graph, spec: ModelSpec) -> None:
    """Check every node of our domain and write `plugin_version` and `plugin_namespace` on it.

    Args:
        graph: Changed in place.
        spec: Its limits must be those of the nodes.

    Raises:
        PluginError: A node is not as its contract says; the message names it, what was expected and what was found.
    """
    for node, op in custom_nodes(graph):
        check_node(node, op)
        if node.op in _PROMISED:
            attribute, field = _PROMISED[node.op]
            if node.attrs[attribute] != getattr(spec, field):
                raise PluginError(
                    f"node {node.name!r} ({node.op}): {attribute}: expected {getattr(spec, field)} as the model's spec "
                    f"says, found {node.attrs[attribute]}; {EXPORT_AGAIN}"
                )
        node.attrs.update(PLUGIN_ATTRIBUTES)
        describe_outputs(node, op)
