"""What can be computed before any picture is seen, is."""

from __future__ import annotations

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
    graph.fold_constants(
        recurse_subgraphs=False,
        recurse_functions=False,
        size_threshold=LARGEST_BYTES,
        should_exclude_node=lambda node: node.domain == DOMAIN,
    )
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)
