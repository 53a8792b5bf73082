"""What can be computed before any picture is seen, is."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.ops import DOMAIN
from edge_mrcnn.spec import ModelSpec

LARGEST_BYTES = 16 << 20
"""A constant larger than this is left to be computed, so that an Expand or Tile cannot bloat the file."""


def fold_constants(graph: gs.Graph, spec: ModelSpec) -> None:
    """Evaluate constant subgraphs with ONNX Runtime; custom ops and shapes that are dynamic stay.

    Args:
        graph: Changed in place; its nodes are sorted afterwards.
        spec: Not used; every pass takes it.
    """
    graph.toposort(recurse_functions=False)
    _fold_known_shapes(graph)
    graph.fold_constants(
        recurse_subgraphs=False,
        recurse_functions=False,
        size_threshold=LARGEST_BYTES,
        should_exclude_node=lambda node: node.domain == DOMAIN,
    )
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)


def _fold_known_shapes(graph: gs.Graph) -> None:
    """Replace a Shape of fixed dimensions, such as height and width beside a dynamic batch, by their numbers."""
    for node in graph.nodes:
        result = node.outputs[0]
        if node.op != "Shape" or node.inputs[0].shape is None or any(result is output for output in graph.outputs):
            continue
        dims = node.inputs[0].shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
        if all(isinstance(dim, int) for dim in dims):
            result.to_constant(np.array(dims, np.int64))
            result.inputs.clear()
