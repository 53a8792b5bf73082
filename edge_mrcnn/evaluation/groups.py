"""Groups of layers, as one thinks of a network: a residual block, a level of the pyramid, a head."""

from __future__ import annotations

import re
from collections.abc import Iterable

import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.placement import quantisable_nodes

WHOLE = frozenset({"rpn_head", "box_head", "box_predictor", "mask_predictor", "keypoint_predictor"})
"""Modules that are one group whatever is inside: few layers, or the same ones on each level of the pyramid."""

_PARTS = re.compile(r"[^./]+")


def layer_groups(model: onnx.ModelProto | gs.Graph) -> dict[str, tuple[str, ...]]:
    """The layers that int8 would quantise, grouped by module path.

    A group is the module down to the first number in its path (`backbone.body.layer1.0`, `mask_head.2`), or a module
    of `WHOLE`, or else the module that holds the layer. A layer whose module is only the trunk of other groups
    (`backbone.body.conv1`) or that has no path (`n12`) is a group of its own.

    Args:
        model: As exported, or a graph whose nodes still have their names.

    Returns:
        Names of the nodes by name of the group, in the graph's order.
    """
    names = [node.name for node in quantisable_nodes(model)]
    found = {name: _module(name) for name in names}
    modules = set(found.values())
    groups: dict[str, list[str]] = {}
    for name, module in found.items():
        trunk = any(other.startswith((f"{module}.", f"{module}/")) for other in modules)
        groups.setdefault(name if trunk else module, []).append(name)
    return {group: tuple(nodes) for group, nodes in groups.items()}


def keep_pattern(nodes: Iterable[str]) -> str:
    """A regular expression for `Recipe.keep_fp16` that matches these nodes and no other.

    Args:
        nodes: Names of nodes, such as those of a group.

    Raises:
        ValueError: There are none: an empty expression would match every node.
    """
    names = list(nodes)
    if not names:
        raise ValueError("nodes is empty: give at least one name of a node")
    return rf"^(?:{'|'.join(re.escape(name) for name in names)})$"


def _module(name: str) -> str:
    """Path of the module that a node is counted to; the node's own name where it has no path."""
    parts = list(_PARTS.finditer(name))
    for part in parts:
        if part.group().isdigit() or (part.group() in WHOLE and part is not parts[-1]):
            return name[: part.end()]
    return name[: parts[-2].end()] if len(parts) > 1 else name
