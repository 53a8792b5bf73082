"""Which layers of a network can be quantised, and which tensors stand between them: by structure, never by name.

Both dialects, calibration and the tools that try out recipes read the graph through this module, so that what is
measured is what is quantised. It reads the exported graph and what later passes make of it: a Cast is looked through.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.ops import DOMAIN, OPS

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Ops that multiply activations with weights: nearly all of the work, and all that int8 makes faster."""

MOVERS = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"})
"""Ops that only move values about, or pick or average them: what they give has the range of what they take."""

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
    """The weighted layers that are never quantised: the last ones before boxes, scores, masks and keypoints.

    These are the layers from which the inputs named in `SENSITIVE` come, and those from which an output of a two-stage
    network comes without passing a custom op: its masks and the heatmaps of its keypoints.
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


def layers_before(graph: gs.Graph, tensor: gs.Tensor) -> tuple[gs.Node, ...]:
    """The weighted layers that a tensor comes from without passing another one or a custom op, in the graph's order."""
    found = _last_before(tensor, {id(node) for node in weighted_nodes(graph)})
    return tuple(node for node in graph.nodes if id(node) in found)


def quantisable_nodes(graph: gs.Graph | onnx.ModelProto) -> tuple[gs.Node, ...]:
    """The weighted layers without the sensitive ones, in the graph's order."""
    graph = _as_graph(graph)
    sensitive = {id(node) for node in sensitive_nodes(graph)}
    return tuple(node for node in weighted_nodes(graph) if id(node) not in sensitive)


def check_keeps(graph: gs.Graph | onnx.ModelProto, recipe: Recipe) -> None:
    """Check that each expression of a recipe finds a layer: one that finds none is a typing error.

    Args:
        graph: As exported.
        recipe: Its `keep_fp16` must find weighted layers, its `keep_fp32` nodes of any kind.

    Raises:
        ValueError: One finds nothing; the message names the nearest layers.
    """
    graph = _as_graph(graph)
    weighted = [node.name for node in weighted_nodes(graph)]
    for option, names in (("keep_fp16", weighted), ("keep_fp32", [node.name for node in graph.nodes])):
        for pattern in getattr(recipe, option):
            if not any(re.search(pattern, name) for name in names):
                nearest = difflib.get_close_matches(pattern, weighted, n=3, cutoff=0.0)
                raise ValueError(
                    f"{option}: {pattern!r} is found in no layer's name; the nearest of {len(weighted)} layers: "
                    f"{', '.join(nearest) or 'none'}"
                )


def measured_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """The activations of an exported model that either dialect may want a range of, in the graph's order.

    A convolution's result that only an activation reads is not among them, so that ONNX Runtime still fuses both, and
    neither is what only moves values of a tensor that is: see `range_source`.

    Args:
        model: In float32, as exported.
    """
    graph = gs.import_onnx(model)
    layers = quantisable_nodes(graph)
    wanted = {range_source(node.inputs[index]).name for node, index in tensorrt_inputs(graph, layers)}
    wanted |= set(ort_placement(graph, layers).ranges.values())
    order = [tensor.name for tensor in [*graph.inputs, *(t for node in graph.nodes for t in node.outputs)]]
    return tuple(name for name in dict.fromkeys(order) if name in wanted)


def tensorrt_inputs(graph: gs.Graph, layers: Collection[gs.Node]) -> list[tuple[gs.Node, int]]:
    """What reads a quantised activation in dialect `tensorrt`, as node and number of its input.

    That is each quantised layer, and of a residual add the branch that the convolution cannot fuse.

    Args:
        graph: Sorted.
        layers: The weighted layers to quantise.
    """
    chosen = {id(node) for node in layers}
    found: list[tuple[gs.Node, int]] = []
    for node in graph.nodes:
        if id(node) in chosen:
            found.append((node, 0))
        branch = _unfused_branch(node, layers, graph)
        if branch is not None:
            found.append((node, branch))
    return found


@dataclass(frozen=True)
class OrtPlacement:
    """Where dialect `ort` has integers.

    Attributes:
        nodes: What becomes an integer kernel: layers, and Adds and Concats of nothing but quantised tensors.
        ranges: The activations that carry Q/DQ, by name, each with the name of the one whose range it has.
    """

    nodes: tuple[gs.Node, ...]
    ranges: Mapping[str, str]


def ort_placement(graph: gs.Graph, layers: Collection[gs.Node]) -> OrtPlacement:
    """Place the integers of dialect `ort`.

    Quantised is what goes into the integer kernels and what comes out of them, activation included; a Gemm's result
    stays float unless such a kernel reads it. A tensor that is moved on the way carries its source's scale all along.

    Args:
        graph: Sorted.
        layers: The weighted layers to quantise; those without an integer kernel are passed over.
    """
    chosen = {id(node) for node in layers if has_integer_kernel(node)}
    nodes: list[gs.Node] = []
    ranges: dict[str, str] = {}
    for node in graph.nodes:
        if id(node) in chosen:
            read = node.inputs[:1]
        elif node.op in ("Add", "Concat") and all(range_source(tensor).name in ranges for tensor in node.inputs):
            read = node.inputs
        else:
            continue
        nodes.append(node)
        for tensor in read:
            ranges.update(dict.fromkeys(_way_to_source(tensor), range_source(tensor).name))
        if node.op not in ("Gemm", "MatMul"):
            result = activated(node.outputs[0], graph).name
            ranges[result] = result
    return OrtPlacement(tuple(nodes), ranges)


def has_integer_kernel(node: gs.Node) -> bool:
    """Whether ONNX Runtime has an integer kernel on a CPU for a weighted layer."""
    if node.op == "Gemm":
        return not node.attrs.get("transA", 0) and node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0
    return node.op in ("Conv", "MatMul") or (node.op == "ConvTranspose" and only_spreads(node))


def only_spreads(node: gs.Node) -> bool:
    """Whether a transposed convolution's patches neither overlap nor leave gaps, so that it is a 1x1 convolution."""
    weight, attributes = node.inputs[1], node.attrs
    if not isinstance(weight, gs.Constant) or len(weight.shape) != 4 or len(weight.outputs) != 1:
        return False
    sides = list(weight.shape[2:])
    plain = all(
        set(attributes.get(name, [usual])) == {usual}
        for name, usual in (("pads", 0), ("output_padding", 0), ("dilations", 1))
    )
    spreads = sides[0] == sides[1] and attributes.get("strides", [1, 1]) == sides and attributes.get("group", 1) == 1
    return plain and spreads and attributes.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in attributes


def range_source(tensor: gs.Tensor) -> gs.Tensor:
    """Where a tensor's values come from: the tensor whose range it has, up through `MOVERS`."""
    *_, source = _walk_up(tensor)
    return source


def activated(tensor: gs.Tensor, graph: gs.Graph) -> gs.Tensor:
    """What a layer's result is after the Relu or Clip that fuses into the layer, if one does."""
    if len(tensor.outputs) != 1 or any(tensor is output for output in graph.outputs):
        return tensor
    reader = tensor.outputs[0]
    fuses = reader.op == "Relu" or (reader.op == "Clip" and all(_is_constant(bound) for bound in reader.inputs[1:]))
    return reader.outputs[0] if fuses else tensor


def _way_to_source(tensor: gs.Tensor) -> list[str]:
    """Names of a tensor and of those it was moved from, up to its source."""
    return [passed.name for passed in _walk_up(tensor)]


def _walk_up(tensor: gs.Tensor) -> Iterator[gs.Tensor]:
    yield tensor
    while tensor.inputs and _moves(tensor.inputs[0]):
        tensor = tensor.inputs[0].inputs[0]
        yield tensor


def _moves(node: gs.Node) -> bool:
    if node.op == "Cast":  # of floats, as the float16 pass adds them; before it there are none
        return node.inputs[0].dtype in (np.float32, np.float16)
    return node.op in MOVERS and not node.domain


def _unfused_branch(node: gs.Node, layers: Collection[gs.Node], graph: gs.Graph) -> int | None:
    """Number of the branch of a residual add that no quantised convolution hosts; None for any other node."""
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
    return 1 - hosts[max(hosts)]


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
    seen: set[int] = set()
    waiting = [tensor]
    while waiting:
        given = waiting.pop()
        if isinstance(given, gs.Constant) or given.is_empty() or id(given) in seen:
            continue
        if not given.inputs:
            return False
        seen.add(id(given))
        waiting += given.inputs[0].inputs
    return True


def _as_graph(graph: gs.Graph | onnx.ModelProto) -> gs.Graph:
    return gs.import_onnx(graph) if isinstance(graph, onnx.ModelProto) else graph
