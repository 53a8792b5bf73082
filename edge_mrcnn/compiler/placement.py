"""Which layers of a network can be quantised, and which tensors stand between them: by structure, never by name.

Both dialects, calibration and the tools that try out recipes read the graph through this module, so that what is
measured is what is quantised. It reads the exported graph and what later passes make of it: a Cast is looked through.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.ops import DOMAIN, OPS

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Ops that multiply activations with weights: nearly all of the work, and all that int8 makes faster."""

INTEGER = frozenset({"Conv", "Gemm", "MatMul"})
"""Those of them that have an integer kernel in ONNX Runtime on a CPU."""

MOVERS = frozenset({"Cast", "Flatten", "Identity", "MaxPool", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"})
"""Ops that only move values about (or pick or average them): what they give has the range of what they take."""

SENSITIVE: Mapping[str, tuple[str, ...]] = {
    "RpnProposals": ("objectness", "deltas"),
    "DetectionNms": ("class_logits", "box_deltas"),
}
"""Inputs of custom ops, by op, whose rounding moves or loses boxes: the layers that compute them are not quantised."""


def weighted_nodes(graph: gs.Graph | onnx.ModelProto) -> tuple[gs.Node, ...]:
    """The layers with weights, in the graph's order; a product of two activations is none."""
    graph = _as_graph(graph)
    return tuple(node for node in graph.nodes if node.op in WEIGHTED and _is_constant(node.inputs[1]))


def sensitive_nodes(graph: gs.Graph | onnx.ModelProto) -> tuple[gs.Node, ...]:
    """The weighted layers that are never quantised: the last ones before boxes, scores and masks.

    These are the layers from which the inputs named in `SENSITIVE` come, and those from which an output of a two-stage
    network comes without passing a custom op: its masks.
    """
    graph = _as_graph(graph)
    weighted = {id(node) for node in weighted_nodes(graph)}
    found: set[int] = set()
    custom = [node for node in graph.nodes if node.domain == DOMAIN and node.op in SENSITIVE]
    for node in custom:
        specs = OPS[node.op].expand_inputs(OPS[node.op].levels(len(node.inputs)))
        for spec, tensor in zip(specs, node.inputs, strict=True):
            if spec.name.rstrip("0123456789") in SENSITIVE[node.op]:
                found |= _last_before(tensor, weighted)
    if custom:
        for output in graph.outputs:
            found |= _last_before(output, weighted)
    return tuple(node for node in graph.nodes if id(node) in found)


def quantisable_nodes(graph: gs.Graph | onnx.ModelProto) -> tuple[gs.Node, ...]:
    """The weighted layers without the sensitive ones, in the graph's order."""
    graph = _as_graph(graph)
    sensitive = {id(node) for node in sensitive_nodes(graph)}
    return tuple(node for node in weighted_nodes(graph) if id(node) not in sensitive)


def measured_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """The activations of an exported model that either dialect may want a range of, in the graph's order.

    A convolution's result that only an activation reads is not among them, so that ONNX Runtime still fuses both, and
    neither is what only moves values of a tensor that is: see `range_source`.

    Args:
        model: In float32, as exported.
    """
    graph = gs.import_onnx(model)
    layers = quantisable_nodes(graph)
    placed = [*tensorrt_tensors(graph, layers), *ort_tensors(graph, layers)]
    wanted = {range_source(tensor).name for tensor in placed}
    order = [tensor.name for tensor in [*graph.inputs, *(t for node in graph.nodes for t in node.outputs)]]
    return tuple(name for name in dict.fromkeys(order) if name in wanted)


def tensorrt_tensors(graph: gs.Graph, layers: Collection[gs.Node]) -> tuple[gs.Variable, ...]:
    """The activations that carry Q/DQ in dialect `tensorrt`, each once.

    They are what the quantised layers read, and of a residual add the branch that the convolution cannot fuse.

    Args:
        graph: Sorted.
        layers: The weighted layers to quantise.
    """
    found = {id(node.inputs[0]): node.inputs[0] for node in layers}
    for node in graph.nodes:
        branch = _unfused_branch(node, layers, graph)
        if branch is not None:
            found[id(branch)] = branch
    return tuple(found.values())


def ort_tensors(graph: gs.Graph, layers: Collection[gs.Node]) -> tuple[gs.Variable, ...]:
    """The activations that carry Q/DQ in dialect `ort`, each once: tensors that are moved on carry their source's.

    They are what goes into the integer kernels and what comes out of them, activation included; a Gemm's result stays
    float unless such a kernel reads it. An Add or Concat of nothing but quantised tensors is such a kernel too.

    Args:
        graph: Sorted.
        layers: The weighted layers to quantise; those without an integer kernel are passed over.
    """
    chosen = {id(node) for node in layers if node.op in INTEGER}
    found: dict[int, gs.Variable] = {}

    def mark(tensor: gs.Variable) -> None:
        found[id(tensor)] = tensor

    for node in graph.nodes:
        if id(node) in chosen:
            mark(range_source(node.inputs[0]))
            if node.op == "Conv":
                mark(activated(node.outputs[0], graph))
        elif node.op in ("Add", "Concat") and all(id(range_source(tensor)) in found for tensor in node.inputs):
            mark(activated(node.outputs[0], graph))
    return tuple(found.values())


def range_source(tensor: gs.Tensor) -> gs.Tensor:
    """Where a tensor's values come from: the tensor whose range it has, up through `MOVERS`."""
    while tensor.inputs and tensor.inputs[0].op in MOVERS and not tensor.inputs[0].domain:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def activated(tensor: gs.Tensor, graph: gs.Graph) -> gs.Tensor:
    """What a layer's result is after the Relu or Clip that fuses into the layer, if one does."""
    if len(tensor.outputs) != 1 or any(tensor is output for output in graph.outputs):
        return tensor
    reader = tensor.outputs[0]
    fuses = reader.op == "Relu" or (reader.op == "Clip" and all(_is_constant(bound) for bound in reader.inputs[1:]))
    return reader.outputs[0] if fuses else tensor


def _unfused_branch(node: gs.Node, layers: Collection[gs.Node], graph: gs.Graph) -> gs.Variable | None:
    """The branch of a residual add that no quantised convolution hosts; None where the node is no such add."""
    if node.op != "Add" or any(_is_constant(tensor) for tensor in node.inputs):
        return None
    order = {id(layer): index for index, layer in enumerate(layers) if layer.op == "Conv"}
    hosts = {
        order[id(tensor.inputs[0])]: index
        for index, tensor in enumerate(node.inputs)
        if tensor.inputs
        and id(tensor.inputs[0]) in order
        and len(tensor.outputs) == 1
        and not any(tensor is output for output in graph.outputs)
    }
    if not hosts:
        return None
    # Of two convolutions the later one hosts the add: the other's result is there when it starts.
    branch: gs.Variable = node.inputs[1 - hosts[max(hosts)]]
    return branch


def _last_before(tensor: gs.Tensor, weighted: Collection[int]) -> set[int]:
    """The weighted layers reached first when walking back from a tensor, not through custom ops."""
    found: set[int] = set()
    for node in _walk_back(tensor, stop=lambda node: id(node) in weighted or node.domain == DOMAIN):
        if id(node) in weighted:
            found.add(id(node))
    return found


def _walk_back(tensor: gs.Tensor, stop: Callable[[gs.Node], bool]) -> Iterator[gs.Node]:
    """Each node that a tensor depends on, once; not further back than nodes at which `stop` holds."""
    seen: set[int] = set()
    waiting = list(tensor.inputs)
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        if not stop(node):
            waiting += [producer for given in node.inputs for producer in given.inputs]


def _is_constant(tensor: gs.Tensor) -> bool:
    """Whether a tensor is known before any picture is: a weight, or computed (dequantised, say) from nothing else.

    An input left out counts as known.
    """
    if isinstance(tensor, gs.Constant) or tensor.is_empty():
        return True
    return bool(tensor.inputs) and all(_is_constant(given) for given in tensor.inputs[0].inputs)


def _as_graph(graph: gs.Graph | onnx.ModelProto) -> gs.Graph:
    return gs.import_onnx(graph) if isinstance(graph, onnx.ModelProto) else graph
