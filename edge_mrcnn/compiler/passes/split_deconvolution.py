"""A transposed convolution that only spreads becomes a convolution, for which ONNX Runtime has an integer kernel.

With strides as large as its kernel no two positions overlap: each gives a patch of `s * s` results of its own. A 1x1
convolution gives the same results at that position, and moving them to their places multiplies nothing. What reads one
position at a time (an activation, a 1x1 convolution) does so before they are moved, so that fewer are.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.placement import activated, only_spreads
from edge_mrcnn.spec import ModelSpec


def split_deconvolution(graph: gs.Graph, spec: ModelSpec) -> None:
    """Replace each transposed convolution without overlap by a 1x1 convolution and a DepthToSpace behind it.

    The convolution's result keeps the name, and so the range, of the result that it replaces.

    Args:
        graph: In float32, constants folded; changed in place.
        spec: Not used; every pass takes it.
    """
    for node in [node for node in graph.nodes if node.op == "ConvTranspose" and only_spreads(node)]:
        result = activated(node.outputs[0], graph)
        size = (node.inputs[0].shape or [])[2:]
        if all(isinstance(side, int) for side in size) and not any(result is output for output in graph.outputs):
            _split(graph, node, result, size)
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)


def _split(graph: gs.Graph, node: gs.Node, result: gs.Variable, size: list[int]) -> None:
    weight = np.asarray(node.inputs[1].values)  # (C, K, s, s)
    channels, step = weight.shape[1], weight.shape[2]
    parts = step * step
    values = weight.transpose(2, 3, 1, 0).reshape(parts * channels, -1, 1, 1)
    node.inputs[1] = gs.Constant(node.inputs[1].name, np.ascontiguousarray(values))
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        node.inputs[2] = gs.Constant(node.inputs[2].name, np.tile(np.asarray(node.inputs[2].values), parts))
    node.op = "Conv"
    node.attrs = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
    for tensor in {id(tensor): tensor for tensor in (node.outputs[0], result)}.values():
        tensor.shape = [result.shape[0], parts * channels, *size]
    readers = list(result.outputs)
    if len(readers) == 1 and _reads_one_position(readers[0]) and readers[0].outputs[0] not in graph.outputs:
        result = _apply_before_moving(graph, readers[0], result, channels, size)
        channels = readers[0].inputs[1].shape[0]
        readers = list(result.outputs)
    moved = gs.Variable(f"{result.name}.moved", result.dtype, [result.shape[0], channels, *(step * s for s in size)])
    for reader in readers:
        reader.inputs = [moved if given is result else given for given in reader.inputs]
    graph.nodes.append(gs.Node("DepthToSpace", moved.name, {"blocksize": step, "mode": "DCR"}, [result], [moved]))


def _reads_one_position(node: gs.Node) -> bool:
    """Whether a node is a convolution that mixes nothing but channels."""
    if node.op != "Conv" or not isinstance(node.inputs[1], gs.Constant):
        return False
    plain = all(set(node.attrs.get(name, [default])) == {default} for name, default in (("strides", 1), ("pads", 0)))
    return plain and node.attrs.get("auto_pad", "NOTSET") == "NOTSET" and set(node.inputs[1].shape[2:]) == {1}


def _apply_before_moving(
    graph: gs.Graph, reader: gs.Node, given: gs.Variable, channels: int, size: list[int]
) -> gs.Variable:
    """Let a 1x1 convolution read the parts of each position as pictures of their own; gives all its results again."""
    name, outside = given.name, reader.inputs[1].shape[0]
    parts = given.shape[1] // channels

    def reshape(tensor: gs.Variable, label: str, count: int) -> gs.Variable:
        shape = gs.Constant(f"{name}.{label}_shape", np.array([-1, count, *size], np.int64))
        output = gs.Variable(f"{name}.{label}", tensor.dtype, [f"{name}.{label}_rows", count, *size])
        graph.nodes.append(gs.Node("Reshape", output.name, {}, [tensor, shape], [output]))
        return output

    apart = reshape(given, "apart", channels)
    reader.inputs = [apart if tensor is given else tensor for tensor in reader.inputs]
    result = reader.outputs[0]
    readers = list(result.outputs)
    result.shape = [apart.shape[0], outside, *size]
    together = reshape(result, "together", parts * outside)
    for other in readers:
        other.inputs = [together if tensor is result else tensor for tensor in other.inputs]
    return together
