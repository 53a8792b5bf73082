"""What is done to the traced graph before it is written: names, masks, keypoints, function bodies, metadata.

Each step has one effect on the model, in place. Nothing here needs torch.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

import onnx

from edge_mrcnn.compiler.function_attachment import PRODUCER, stamp_model
from edge_mrcnn.compiler.network_outputs import append_keypoint_rows, append_mask_choice, loosen_rows
from edge_mrcnn.errors import ExportError
from edge_mrcnn.ops import DETECTION_NMS, DOMAIN, PYRAMID_ROI_ALIGN, RPN_PROPOSALS
from edge_mrcnn.spec import ModelSpec

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def finish_graph(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Turn the graph traced from `Exportable` into the one that is written.

    Args:
        model: Changed in place. Its outputs become num_detections, boxes, scores, labels, and masks and
            keypoint_logits where the spec has them.
        spec: Written into the metadata. Its roles name the custom ops.

    Raises:
        ExportError: The graph is not as expected, such as with batch norms left in it.
    """
    _refuse_batch_norms(model.graph)
    name_nodes(model.graph, [role for role in spec.ops if role.endswith("roi_align")])
    if spec.mask_size:
        append_mask_choice(model.graph, spec.mask_size)
    if spec.keypoint_size:
        append_keypoint_rows(model.graph, len(spec.keypoint_names), spec.keypoint_size)
    loosen_rows(model.graph)
    strip_traces(model)
    stamp_model(model, spec)


def _refuse_batch_norms(graph: onnx.GraphProto) -> None:
    left = [node.input[1] for node in graph.node if node.op_type == "BatchNormalization"]
    if left:
        raise ExportError(
            f"{len(left)} batch norms could not be folded into a convolution ({', '.join(left[:3])}, ...): "
            "each must directly follow a convolution that nothing else reads"
        )


# -------------------------------------------------------------------------------------------------------------- names
def name_nodes(graph: onnx.GraphProto, pool_roles: Sequence[str]) -> None:
    """Name nodes and tensors after the module they come from, such as `backbone.body.layer1.0.conv1`.

    Custom ops are called by their role (`box_roi_align`), layers with weights as their weights, others by their
    module and op. Names are part of no contract, but engines, profiles and calibration files show them.

    Args:
        graph: Changed in place.
        pool_roles: Roles of the RoIAligns, in the graph's order.

    Raises:
        ExportError: The graph has another number of them.
    """
    pools = sum(node.op_type == PYRAMID_ROI_ALIGN.name for node in graph.node)
    if pools != len(pool_roles):
        raise ExportError(f"the traced graph has {pools} nodes of {PYRAMID_ROI_ALIGN.name} for {list(pool_roles)}")
    roles = {
        RPN_PROPOSALS.name: iter(["rpn_proposals"]),
        DETECTION_NMS.name: iter(["detection_nms"]),
        PYRAMID_ROI_ALIGN.name: iter(pool_roles),
    }
    weights = {tensor.name for tensor in graph.initializer}
    taken: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        base = next(roles[node.op_type]) if node.domain == DOMAIN else _node_name(node, weights)
        node.name = base if not taken[base] else f"{base}_{taken[base]}"
        taken[base] += 1
        for index, tensor in enumerate(node.output):
            if tensor not in outputs:
                renamed[tensor] = node.name if len(node.output) == 1 else f"{node.name}_{index}"
    _rename_tensors(graph, renamed)


def _node_name(node: onnx.NodeProto, weights: set[str]) -> str:
    for tensor in node.input:
        if tensor in weights and tensor.endswith(".weight"):
            return str(tensor).removesuffix(".weight")
    scopes = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES_KEY), "[]")
    module = next((str(scope) for scope in reversed(ast.literal_eval(scopes)[:-1]) if scope), "")
    op = str(node.op_type).lower()
    return module if module.rpartition(".")[2] == op else f"{module}.{op}".lstrip(".")


def _rename_tensors(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)


# ------------------------------------------------------------------------------------------------------------- traces
def strip_traces(model: onnx.ModelProto) -> None:
    """Remove what the exporter noted down: stack traces with paths of this machine, half of a small model's size."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    graph.name = PRODUCER
    for part in chain(graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
