"""Where two versions of a network are compared number by number.

Proposals and detections differ from version to version, and with them every number behind them. So the network is cut
there: the cut one takes proposals and boxes as inputs, which the version that is the reference has given, and hands out
what it computes on the way: its taps.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.contract import custom_nodes
from edge_mrcnn.compiler.placement import layers_before
from edge_mrcnn.errors import ExportError

TAPS = {
    ("PyramidRoiAlign", "x"): "features",
    ("RpnProposals", "objectness"): "rpn logits",
    ("RpnProposals", "deltas"): "rpn deltas",
    ("DetectionNms", "class_logits"): "class logits",
    ("DetectionNms", "box_deltas"): "box deltas",
}
"""Name of the tap at an input of a custom op."""

MASK_LOGITS = "mask logits"
"""Name of the tap behind the last layer of the mask head."""

KEYPOINT_LOGITS = "keypoint logits"
"""Name of the tap behind the last layer of the keypoint head, before its heatmaps are upsampled."""

HEADS = {"masks": MASK_LOGITS, "keypoint_logits": KEYPOINT_LOGITS}
"""Taps of the heads behind the boxes, by the output of the network that each gives."""

CHOOSERS = {"RpnProposals": "proposals", "DetectionNms": "boxes"}
"""Custom ops that choose boxes, and which of their outputs becomes an input of the cut network."""


MOVERS = frozenset({"DepthToSpace", "Reshape", "Transpose"})
"""Ops that bring the mask logits into place where passes have changed the layers before."""

Taps = Mapping[str, tuple[str, ...]]
"""Names of tensors by tap: one per level of the pyramid, or one."""


def find_taps(graph: gs.Graph, exported: Taps | None = None) -> dict[str, tuple[gs.Variable, ...]]:
    """The tensors at which a network is compared, by tap.

    Args:
        graph: Of a two-stage network, exported or changed by passes; a node may be added.
        exported: Taps of the exported network, where passes may have put other nodes in place of its custom ops.

    Raises:
        ExportError: The network lacks one of the custom ops.
    """
    found: dict[str, list[gs.Variable]] = {}
    for node, op in custom_nodes(graph):
        for spec, tensor in zip(op.expand_inputs(op.levels(len(node.inputs))), node.inputs, strict=True):
            tap = TAPS.get((node.op, spec.name.rstrip("0123456789")))
            if tap is not None and tensor not in found.setdefault(tap, []):
                found[tap].append(tensor)
    for tap in set(TAPS.values()) - set(found):
        found[tap] = [_rounded(graph, name) for name in (exported or {}).get(tap, ())]
    missing = {tap for tap, tensors in found.items() if not tensors}
    if missing:
        raise ExportError(f"the network has no {', '.join(sorted(missing))}: it is not one that this package exported")
    for output in graph.outputs:
        if output.name in HEADS:
            found[HEADS[output.name]] = [_in_place(node.outputs[0]) for node in layers_before(graph, output)]
    return {tap: tuple(tensors) for tap, tensors in found.items() if tensors}


def cut(model: onnx.ModelProto, exported: Taps | None = None) -> tuple[onnx.ModelProto, Taps]:
    """Cut a network at its proposals and boxes.

    Args:
        model: With function bodies; it is not changed.
        exported: Taps of the exported network, where the model is what passes made of it.

    Returns:
        A network with the inputs of the model and `proposals (B, N, 4)` and `boxes (B, M, 4)`, whose outputs are the
        taps, and the names of these outputs by tap.

    Raises:
        ExportError: The network lacks one of the custom ops.
    """
    graph = gs.import_onnx(model)
    taps = find_taps(graph, exported)
    for node, op in custom_nodes(graph):
        if node.op in CHOOSERS:
            place = [spec.name for spec in op.outputs].index(CHOOSERS[node.op])
            boxes, name = node.outputs[place], CHOOSERS[node.op]
            node.outputs[place] = gs.Variable(f"{boxes.name}_unused")
            boxes.name, boxes.dtype, boxes.shape = f"{name}_given", np.dtype(np.float32), ["batch", f"{name}_rows", 4]
            graph.inputs.append(boxes)
    graph.outputs = list({tensor.name: tensor for tensors in taps.values() for tensor in tensors}.values())
    for output in graph.outputs:
        output.dtype = np.dtype(np.float32)
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)
    changed: onnx.ModelProto = gs.export_onnx(graph)
    changed.metadata_props.extend(model.metadata_props)
    return changed, {tap: tuple(tensor.name for tensor in tensors) for tap, tensors in taps.items()}


def _rounded(graph: gs.Graph, name: str) -> gs.Variable:
    """A tensor of the exported network as its readers see it: where it is quantised, dequantised again.

    Raises:
        ExportError: There is no such tensor.
    """
    tensor = graph.tensors().get(name)
    if tensor is None:
        raise ExportError(
            f"the network has no tensor {name!r} any more: what was made of it cannot be compared with it"
        )
    reader = next((node for node in tensor.outputs if node.op == "QuantizeLinear"), None)
    if reader is None:
        return tensor
    result = gs.Variable(f"{name}_tap", np.dtype(np.float32))
    graph.nodes.append(gs.Node("DequantizeLinear", f"tap_{name}", {}, [*reader.outputs, *reader.inputs[1:]], [result]))
    return result


def _in_place(tensor: gs.Variable) -> gs.Variable:
    """What a tensor becomes by being moved about."""
    while len(tensor.outputs) == 1 and tensor.outputs[0].op in MOVERS:
        tensor = tensor.outputs[0].outputs[0]
    return tensor
