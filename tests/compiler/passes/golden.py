"""Golden graphs with Q/DQ: ranges for them, and a reading of what each node's inputs went through."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime

from edge_mrcnn.compiler.calibration.ranges import METHODS, Ranges, TensorRange
from edge_mrcnn.compiler.placement import measured_tensors

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'


def make_ranges(intervals: Mapping[str, float | tuple[float, float]]) -> Ranges:
    """Ranges by tensor: an interval, or a number for what a Relu gives."""
    tensors = {}
    for name, given in intervals.items():
        low, high = given if isinstance(given, tuple) else (0.0, given)
        largest = dict.fromkeys(METHODS, max(-low, high))
        tensors[name] = TensorRange(low, high, largest, dict.fromkeys(METHODS, (low, high)))
    return Ranges("golden", "0" * 64, "mse", tensors, (), (), (), "0", "0")


def measure(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Ranges:
    """Smallest and largest value of what calibration measures, for one batch."""
    names = measured_tensors(model)
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = onnxruntime.InferenceSession(open_model.SerializeToString()).run(list(names), dict(feeds))
    ends = {name: (min(0.0, float(v.min())), max(0.0, float(v.max()))) for name, v in zip(names, values, strict=True)}
    return make_ranges(ends)


def describe(tensor: gs.Tensor) -> str:
    """What a node reads: `dq(q(x))`, `dq(int8 w)`, `float16 b`, `x`; casts to float16 are not shown."""
    if isinstance(tensor, gs.Constant):
        name = tensor.name.rstrip("_")
        while "_" in name and name.rsplit("_", 1)[1] in ("float16", "int8", "int32"):
            name = name.rsplit("_", 1)[0]
        return f"{tensor.dtype.name} {name}"
    producer = tensor.inputs[0] if tensor.inputs else None
    short = {"QuantizeLinear": "q", "DequantizeLinear": "dq"}.get(producer.op if producer else "")
    if short:
        return f"{short}({describe(producer.inputs[0])})"
    if producer is not None and _repeats_codes(producer):
        return describe(producer.inputs[0])
    if producer is not None and producer.op == "Cast" and tensor.dtype == np.float16:
        return describe(producer.inputs[0])
    return str(tensor.name).removesuffix("_float16")


def wiring(graph: gs.Graph) -> dict[str, list[str]]:
    """What each node reads, by the node's name; without casts, Q/DQ nodes and what repeats codes of a weight."""
    left_out = ("Cast", "QuantizeLinear", "DequantizeLinear")
    return {
        node.name or node.outputs[0].name: [describe(tensor) for tensor in node.inputs]
        for node in graph.nodes
        if node.op not in left_out and not _repeats_codes(node)
    }


def _repeats_codes(node: gs.Node) -> bool:
    return node.op == "Reshape" and describe(node.inputs[0]).startswith("int8 ")
