"""The measuring graph: the network with readers added, which hand out a few numbers of each tensor and never all of it.

ONNX Runtime reuses the memory of an activation as soon as its last reader has run, so what is measured costs no memory
beyond the numbers handed out. What makes this work:

- A reader of a tensor must run right after what computes it, or all activations live to the end of the run: 4.2 GB
  instead of 1.4 GB for resnet50 at 800x1088. ONNX Runtime runs a graph backwards from its ends, the last node first. So
  the function bodies are written out here, readers come last, and of these the first tensor's last of all.
- Tensors are chosen (`placement.measured_tensors`) so that convolutions still fuse with their activations.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from edge_mrcnn.ops import DOMAIN

SAMPLE = 8192
"""Most values of a tensor that are taken into its histogram of one picture."""

ROIS = 32
"""Most detections of a picture that go through the mask head: the best ones, which is what it works on in use."""

EVERY_SCORE = -1.0
"""Score threshold with which a score of 0 passes as well: `DetectionNms` wants scores above it."""

OFFSET = "calibration.offset"
"""Input of the measuring graph: number of the picture, int64 `(1,)`. Where a sample begins moves on with it."""

DETECTED = ("num_detections", "scores")
"""Outputs of the network that the measuring graph keeps."""

_PREFIX = "calibration."

_PRIMES = (
    1,
    2,
    3,
    5,
    7,
    11,
    13,
    17,
    23,
    31,
    41,
    53,
    71,
    97,
    127,
    163,
    211,
    277,
    359,
    467,
    607,
    787,
    1009,
    1319,
    1709,
    2221,
    2887,
    3761,
)
"""Distances between sampled values. Primes, so that a sample goes through all rows, columns and channels."""


def instrument(
    model: onnx.ModelProto, tensors: Sequence[str], watched: Sequence[str], outputs: Collection[str] = DETECTED
) -> onnx.ModelProto:
    """Make the measuring graph.

    Args:
        model: As exported; it is not changed.
        tensors: Those to measure, float, in the graph's order. Outputs number `i`: `statistic_name("low", i)` and
            `("high", i)`, the extremes; `("check", i)`, NaN if and only if a value is; `("sample", i)`, some values.
        watched: More tensors, to check for NaN and infinity only; numbered after `tensors`, without samples.
        outputs: The network's own outputs to keep; what neither they nor the readers need is taken out.

    Returns:
        A graph without function bodies, with the input `OFFSET` besides the network's, whose heads always see data: all
        scores pass, and up to `ROIS` detections go through the mask head.
    """
    measuring = onnx.ModelProto()
    measuring.CopyFrom(model)
    _open_thresholds(measuring)
    measuring = inliner.inline_local_functions(measuring)
    graph = measuring.graph
    _add_input(graph)
    readers: list[list[onnx.NodeProto]] = []
    for index, tensor in enumerate([*tensors, *watched]):
        readers.append(_read(tensor, index, sampled=index < len(tensors)))
    kept = [output for output in graph.output if output.name in outputs]
    del graph.output[:]
    graph.output.extend(kept)
    for nodes in reversed(readers):
        graph.node.extend(nodes)
    names = ["low", "high", "check", "sample"]
    for index in range(len(readers)):
        for name in names[: 4 if index < len(tensors) else 3]:
            output = helper.make_tensor_value_info(statistic_name(name, index), TensorProto.FLOAT, None)
            graph.output.append(output)
    _drop_unread(graph)
    return measuring


def statistic_name(name: str, index: int) -> str:
    """Output of the measuring graph with a statistic of tensor `index`."""
    return f"{_PREFIX}{name}.{index}"


def _open_thresholds(model: onnx.ModelProto) -> None:
    """Let every candidate through; the bodies of the custom ops read these attributes of their nodes."""
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        for attribute in node.attribute:
            if attribute.name == "score_threshold":
                attribute.f = EVERY_SCORE
            elif attribute.name == "detections_per_image":
                attribute.i = min(attribute.i, ROIS)


def _add_input(graph: onnx.GraphProto) -> None:
    graph.input.append(helper.make_tensor_value_info(OFFSET, TensorProto.INT64, [1]))
    constants: dict[str, list[int] | tuple[int, ...]] = {
        "flat": [-1],
        "first": [0],
        "end": [2**62],
        "room": [prime * SAMPLE for prime in _PRIMES[:-1]],
        "primes": _PRIMES,
    }
    for name, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), _PREFIX + name))


def _read(tensor: str, index: int, sampled: bool) -> list[onnx.NodeProto]:
    """Nodes that read a tensor: extremes, a sum of magnitudes, which a NaN makes NaN, and a sample."""

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> onnx.NodeProto:
        output = statistic_name(name, index)
        return helper.make_node(op, inputs, [output], f"{output}.{op}", **attributes)

    own = functools.partial(statistic_name, index=index)
    nodes = [
        node("ReduceMin", [tensor], "low", keepdims=0),
        node("ReduceMax", [tensor], "high", keepdims=0),
        node("ReduceL1", [tensor], "check", keepdims=0),
    ]
    if not sampled:
        return nodes
    return [
        *nodes,
        node("Reshape", [tensor, _PREFIX + "flat"], "values"),
        node("Size", [tensor], "size"),
        # the first prime that leaves no more than SAMPLE values
        node("Greater", [own("size"), _PREFIX + "room"], "above"),
        node("Cast", [own("above")], "ones", to=TensorProto.INT64),
        node("ReduceSum", [own("ones")], "place", keepdims=1),
        node("Gather", [_PREFIX + "primes", own("place")], "step"),
        node("Mod", [OFFSET, own("step")], "start"),
        node("Slice", [own("values"), own("start"), _PREFIX + "end", _PREFIX + "first", own("step")], "sample"),
    ]


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Take out the nodes that no output needs; ONNX Runtime would run them."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(_reads(node))
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [weight for weight in graph.initializer if weight.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.value_info[:]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names of the tensors that a node reads, also in a branch or loop."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= _reads(inner)
        names.update(output.name for output in attribute.g.output)
    return names
