"""Copies of a graph that compute the same and look different: other names, another order, constants folded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
from onnx import helper


def rename(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no node and no tensor has the name it had, but for the graph's inputs and outputs, shortened."""
    copy = _copy(model)
    numbers = {name: f"t{number}" for number, name in enumerate(dict.fromkeys(_names(copy.graph)))}
    _rename(copy.graph, {"": "", **numbers})
    copy.producer_name = copy.producer_version = ""
    return copy


def shuffle(model: onnx.ModelProto, seed: int = 3) -> onnx.ModelProto:
    """A copy whose nodes, and those of its branches, stand in another order that is valid as well."""
    copy = _copy(model)
    _shuffle(copy.graph, random.Random(seed))
    return copy


def optimise(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A copy with everything folded that is constant, as people do with onnxsim; here ONNX Runtime does it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def list_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are inputs too, as exporters of old wrote them."""
    copy = _copy(model)
    values = [helper.make_tensor_value_info(x.name, x.data_type, list(x.dims)) for x in copy.graph.initializer]
    copy.graph.input.extend(values)
    return copy


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of an If or a Loop."""
    yield from (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for values in (graph.input, graph.initializer, graph.value_info, graph.output):
        yield from (value.name for value in values)
    for node in graph.node:
        yield from (name for name in (*node.input, *node.output) if name)
        for body in subgraphs(node):
            yield from _names(body)


def _rename(graph: onnx.GraphProto, numbers: dict[str, str]) -> None:
    graph.name = "g"
    for values in (graph.input, graph.initializer, graph.value_info, graph.output):
        for value in values:
            value.name = numbers[value.name]
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [numbers[name] for name in names]
        for body in subgraphs(node):
            _rename(body, numbers)


def _needs(node: onnx.NodeProto) -> set[str]:
    """What must be there before a node: its inputs, and what its bodies take from outside."""
    needed = {name for name in node.input if name}
    for body in subgraphs(node):
        made = {name for inner in body.node for name in inner.output}
        made |= {value.name for value in (*body.input, *body.initializer)}
        needed |= {name for inner in body.node for name in _needs(inner)} - made
        needed |= {value.name for value in body.output} - made
    return needed


def _shuffle(graph: onnx.GraphProto, draw: random.Random) -> None:
    made = {name for node in graph.node for name in node.output}
    waiting = [(node, _needs(node) & made) for node in graph.node]
    ready: set[str] = set()
    order: list[onnx.NodeProto] = []
    while waiting:
        free = [pair for pair in waiting if pair[1] <= ready]
        chosen = draw.sample(free, max(1, len(free) // 2))
        order += [node for node, _ in chosen]
        ready |= {name for node, _ in chosen for name in node.output}
        taken = {id(node) for node, _ in chosen}
        waiting = [pair for pair in waiting if id(pair[0]) not in taken]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(copies)
    for node in graph.node:
        for body in subgraphs(node):
            _shuffle(body, draw)
