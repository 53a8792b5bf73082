"""What a TensorRT graph would round, rounded in ONNX Runtime on a CPU.

ONNX Runtime has no float16 kernels for convolutions on a CPU: a float16 graph runs in float32 with casts at its edges,
and nothing is rounded in between. So the typed graph, as TensorRT would parse it, is turned back into a float32 graph
in which every tensor that was float16 is rounded where its op hands it on: weights once, results by a Cast to float16
and one back. Such a pair stands between two float32 tensors and changes values, so ONNX Runtime keeps it; the pairs
that it drops or moves are those around ops it has no float16 kernel for, of which none are left.

What the emulation does not show: sums in a convolution run in float32, as tensor cores have it; TensorRT may fuse ops
and then rounds less often than here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.passes import apply_passes, run_passes
from edge_mrcnn.compiler.placement import WEIGHTED
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.spec import ModelSpec

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)

SELECTING = frozenset(
    {"Relu", "Clip", "Max", "Min", "MaxPool", "ReduceMax", "ReduceMin", "Neg", "Abs", "Identity", "Reshape"}
    | {"Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "GatherElements"}
    | {"GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Where", "Constant", "ConstantOfShape"}
)
"""Ops whose results are among their inputs' values, up to the sign: float16 in, float16 out, without rounding."""

SESSION_CONFIG = {"session.disable_quant_qdq": "1"}
"""How ONNX Runtime must be told to leave Q/DQ nodes where they are, instead of fusing them into integer kernels of its
own, which round differently."""


def emulate(model: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
    """A float32 graph for ONNX Runtime that rounds as the TensorRT graph of a recipe would.

    Args:
        model: As `edge-mrcnn export` wrote it, function bodies included; it is not changed.
        recipe: What each layer is to compute in; its dialect must be `tensorrt`.

    Returns:
        The graph with the inputs, outputs and metadata of the model; sessions need `SESSION_CONFIG`. Tensors keep the
        names they have in TensorRT's graph.

    Raises:
        CalibrationError: A tensor to be quantised has no range.
        EngineError: A weight does not fit float16.
        ExportError: The model carries no spec, or its graph contradicts itself.
        PluginError: A custom op is not as its contract says.
        ValueError: The dialect is another one, whose graphs run in ONNX Runtime as they are, or a layer to keep is not
            in the model.
    """
    if recipe.dialect != "tensorrt":
        raise ValueError(f"recipe.dialect must be 'tensorrt', got {recipe.dialect!r}, which runs without emulation")
    with _quiet():
        return apply_passes(run_passes(model, recipe, keep_bodies=True), [round_to_fp16])


def round_to_fp16(graph: gs.Graph, spec: ModelSpec) -> None:
    """Compute in float32 and round what was float16 at every op boundary.

    A DequantizeLinear hands its result to a weighted layer without rounding, since integer kernels multiply the
    integers themselves; to any other op it hands the rounded one.

    Args:
        graph: Changed in place; typed, as `cast_to_fp16` leaves it.
        spec: Not used; every pass takes it.
    """
    halves = {name for name, tensor in graph.tensors().items() if tensor.dtype == FLOAT16}
    for tensor in graph.tensors().values():
        _widen(tensor)
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        nodes.append(node)
        _widen_attributes(node)
        for result in [tensor for tensor in node.outputs if tensor.name in halves]:
            if node.op == "Cast":
                node.attrs["to"] = onnx.TensorProto.FLOAT
            if node.op == "DequantizeLinear":
                nodes += _round_for_other_ops(result)
            elif node.op not in SELECTING:
                nodes += _round(node, result)
    graph.nodes = nodes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what passes tell whoever builds: emulations come by the dozen."""
    log = logging.getLogger("edge_mrcnn.compiler.passes")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _widen(tensor: gs.Tensor) -> None:
    if tensor.dtype != FLOAT16:
        return
    if isinstance(tensor, gs.Constant):
        tensor.values = np.asarray(tensor.values).astype(FLOAT32)
    else:
        tensor.dtype = FLOAT32


def _widen_attributes(node: gs.Node) -> None:
    for value in node.attrs.values():
        if isinstance(value, gs.Tensor):
            _widen(value)


def _round(node: gs.Node, result: gs.Variable) -> list[gs.Node]:
    """Casts behind a node; its consumers read the rounded tensor, which keeps the name."""
    exact = gs.Variable(f"{result.name}_exact", FLOAT32, result.shape)
    node.outputs[node.outputs.index(result)] = exact
    return _casts(exact, result)


def _round_for_other_ops(result: gs.Variable) -> list[gs.Node]:
    """Casts behind a DequantizeLinear, for those of its consumers that are not weighted layers."""
    others = [node for node in result.outputs if node.op not in WEIGHTED]
    if not others:
        return []
    rounded = gs.Variable(f"{result.name}_fp16", FLOAT32, result.shape)
    casts = _casts(result, rounded)
    for node in others:
        node.inputs = [rounded if tensor is result else tensor for tensor in node.inputs]
    return casts


def _casts(exact: gs.Variable, rounded: gs.Variable) -> list[gs.Node]:
    half = gs.Variable(f"{rounded.name}_half", FLOAT16, rounded.shape)
    to = {"half": {"to": int(onnx.TensorProto.FLOAT16)}, "full": {"to": int(onnx.TensorProto.FLOAT)}}
    return [
        gs.Node("Cast", f"round_{rounded.name}", to["half"], [exact], [half]),
        gs.Node("Cast", f"widen_{rounded.name}", to["full"], [half], [rounded]),
    ]
