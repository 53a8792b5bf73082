"""Regions of a graph: what a tensor is computed from, and its value where that is constants and shapes only.

A region that depends on no pixel, such as the anchors of a canvas or the number of candidates of a level, is run by
itself: its value says what it does, however an exporter of some year has written it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from onnx import helper

from edge_mrcnn.compiler.raw.survey import MismatchError

Array = npt.NDArray[Any]

IR_VERSION = 8
"""Of the parts that are run: any ONNX Runtime of today reads it, for any opset that is taken."""


class Regions:
    """Looks into a graph whose nodes are sorted.

    Attributes:
        graph: The graph; it is not changed.
        shapes: Shape of each tensor of which a `Shape` node may ask; `assume` adds to it.
        known: Those tensors.
    """

    def __init__(self, graph: gs.Graph) -> None:
        """Look into `graph`, which was made simple by `simplify`."""
        self.graph = graph
        self.order = {id(node): place for place, node in enumerate(graph.nodes)}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.known: dict[int, gs.Tensor] = {}
        self._values: dict[int, Array | None] = {}

    def assume(self, tensor: gs.Tensor, shape: Sequence[int]) -> None:
        """Take a tensor, which depends on pixels, to have this shape."""
        self.shapes[id(tensor)] = tuple(shape)
        self.known[id(tensor)] = tensor
        self._values = {key: value for key, value in self._values.items() if value is not None}

    def forget(self) -> None:
        """Take back what was assumed, and what followed from it."""
        self.shapes.clear()
        self.known.clear()
        self._values.clear()

    def value(self, tensor: gs.Tensor) -> Array | None:
        """The value of a tensor that is computed from constants and known shapes only; None for every other."""
        key = id(tensor)
        if key not in self._values:
            self._values[key] = self._evaluate(tensor)
        return self._values[key]

    def number(self, tensor: gs.Tensor) -> float | None:
        """The value of a tensor that holds one number."""
        value = self.value(tensor)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def _evaluate(self, tensor: gs.Tensor) -> Array | None:
        if isinstance(tensor, gs.Constant):
            return np.asarray(tensor.values)
        if id(tensor) in self.shapes or producer(tensor) is None:
            return None
        nodes = self.upstream([tensor], stop=self.shapes)
        return None if nodes is None else self._run_shapes(nodes, tensor)

    def ancestors(self, tensors: Sequence[gs.Tensor], stop: Collection[int] = ()) -> list[gs.Node]:
        """All nodes that tensors are computed from, in order.

        Args:
            tensors: Where to start.
            stop: Tensors, by `id`, behind which nothing is looked for.
        """
        found: dict[int, gs.Node] = {}
        waiting = list(tensors)
        while waiting:
            tensor = waiting.pop()
            node = None if id(tensor) in stop else producer(tensor)
            if node is not None and id(node) not in found:
                found[id(node)] = node
                waiting += read_by(node)
        return sorted(found.values(), key=lambda node: self.order[id(node)])

    def upstream(self, tensors: Sequence[gs.Tensor], stop: Mapping[int, Any]) -> list[gs.Node] | None:
        """The nodes that tensors are computed from, in order, or None where a graph's input is among them.

        Args:
            tensors: Where to start.
            stop: Tensors, by `id`, behind which nothing is looked for.
        """
        found: dict[int, gs.Node] = {}
        waiting = list(tensors)
        while waiting:
            tensor = waiting.pop()
            if id(tensor) in stop or isinstance(tensor, gs.Constant) or tensor.is_empty():
                continue
            node = producer(tensor)
            if node is None or id(node) not in self.order:
                return None
            if id(node) not in found:
                found[id(node)] = node
                waiting += read_by(node)
        return sorted(found.values(), key=lambda node: self.order[id(node)])

    def _run_shapes(self, nodes: Sequence[gs.Node], tensor: gs.Tensor) -> Array | None:
        """Run nodes that read known tensors through `Shape` only."""
        feeds: dict[int, gs.Tensor] = {}
        for node in nodes:
            for read in read_by(node):
                if id(read) in self.shapes:
                    if node.op != "Shape":
                        return None
                    feeds[id(read)] = read
        blank = [(read, np.zeros(self.shapes[key], np.float32)) for key, read in feeds.items()]
        (value,) = self.run(nodes, blank, [tensor])
        return value

    def run(
        self, nodes: Sequence[gs.Node], feeds: Sequence[tuple[gs.Tensor, Array]], outputs: Sequence[gs.Tensor]
    ) -> list[Array]:
        """Run some nodes by themselves in ONNX Runtime.

        Args:
            nodes: In order.
            feeds: The tensors that none of them computes, and their values.
            outputs: What to compute.

        Raises:
            MismatchError: They do not run.
        """
        part = gs.Graph(list(nodes), opset=self.graph.opset, import_domains=self.graph.import_domains)
        model = gs.export_onnx(part, do_type_check=False)
        model.ir_version = IR_VERSION
        for tensor, value in feeds:
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, kind, value.shape))
        model.graph.output.extend(onnx.ValueInfoProto(name=tensor.name) for tensor in outputs)
        del model.graph.value_info[:]
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
            found: list[Array] = session.run(None, {tensor.name: value for tensor, value in feeds})
        except Exception as error:  # ONNX Runtime's errors have no common base
            reason = str(error).strip().splitlines()[0]
            raise MismatchError("a part that runs by itself in ONNX Runtime", reason) from error
        return found


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor, or None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def readers(tensor: gs.Tensor) -> list[gs.Node]:
    """The nodes that read a tensor, each once; those that ask for its shape are none."""
    found: list[gs.Node] = []
    for node in tensor.outputs:
        if node.op != "Shape" and all(node is not each for each in found):
            found.append(node)
    return found


def simplify(graph: gs.Graph) -> None:
    """Make constants of Constant nodes, and let what reads an Identity read what it stands for; in place."""
    inner = {id(tensor) for node in graph.nodes for part in nested(node) for tensor in part.outputs}
    kept = inner | {id(tensor) for tensor in graph.outputs}
    left = []
    for node in graph.nodes:
        result = node.outputs[0] if node.outputs else None
        value = constant_of(node) if node.op == "Constant" else None
        if result is None or id(result) in kept or (value is None and node.op != "Identity"):
            left.append(node)
        elif value is not None:
            node.outputs.clear()
            result.to_constant(value)
        else:
            for reader in list(result.outputs):
                for place, tensor in enumerate(reader.inputs):
                    if tensor is result:
                        reader.inputs[place] = node.inputs[0]
            node.inputs.clear()
    graph.nodes = left


def constant_of(node: gs.Node) -> Array | None:
    """Value of a Constant node."""
    for name, value in node.attrs.items():
        if name == "value":
            return np.asarray(value.values)
        if name.startswith("value_"):
            return np.asarray(value, np.float32 if "float" in name else np.int64)
    return None


def nested(node: gs.Node) -> Iterator[gs.Graph]:
    """The graphs in a node: branches of an If, the body of a Loop."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            yield value


def read_by(node: gs.Node) -> list[gs.Tensor]:
    """The tensors that a node reads, also those that its nested graphs take from outside."""
    tensors = [tensor for tensor in node.inputs if not tensor.is_empty()]
    for graph in nested(node):
        own = {id(tensor) for tensor in graph.inputs}
        own |= {id(output) for inner in graph.nodes for output in inner.outputs}
        used = [*(tensor for inner in graph.nodes for tensor in read_by(inner)), *graph.outputs]
        tensors += [tensor for tensor in used if id(tensor) not in own]
    return tensors
