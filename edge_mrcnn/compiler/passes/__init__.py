"""The passes over the graph, each `(graph, spec) -> None` with one effect, and their order.

INT8 (`insert_qdq`) will stand between the float16 pass and the removal of the function bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.contract import check_node, custom_nodes
from edge_mrcnn.compiler.passes.bind_plugins import bind_plugins
from edge_mrcnn.compiler.passes.cast_to_fp16 import cast_to_fp16
from edge_mrcnn.compiler.passes.fold_constants import fold_constants
from edge_mrcnn.compiler.passes.infer_types import infer_types
from edge_mrcnn.compiler.passes.remove_function_bodies import remove_function_bodies
from edge_mrcnn.spec import ModelSpec

Pass = Callable[[gs.Graph, ModelSpec], None]
Precision = Literal["fp32", "fp16"]

PASSES: dict[Precision, tuple[Pass, ...]] = {
    "fp32": (infer_types, bind_plugins, fold_constants, remove_function_bodies),
    "fp16": (infer_types, bind_plugins, fold_constants, cast_to_fp16, remove_function_bodies),
}
"""The passes for each precision, in order."""

__all__ = [
    "PASSES",
    "Pass",
    "Precision",
    "apply_passes",
    "bind_plugins",
    "cast_to_fp16",
    "fold_constants",
    "infer_types",
    "remove_function_bodies",
    "run_passes",
]


def run_passes(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """From the exported model to the one TensorRT parses.

    Args:
        model: As `edge-mrcnn export` wrote it; it is not changed.
        precision: What the network computes in, outside of the float32 islands.

    Raises:
        ExportError: The model carries no spec, or its graph contradicts itself.
        PluginError: A custom op is not as its contract says.
        EngineError: A weight does not fit float16.
    """
    return apply_passes(model, PASSES[precision])


def apply_passes(model: onnx.ModelProto, passes: Iterable[Pass]) -> onnx.ModelProto:
    """Run the passes given over a copy of the model and check the custom ops of the result.

    Raises:
        ExportError: The model carries no spec, or a pass refused it.
        PluginError: A custom op is not as its contract says.
        EngineError: A weight does not fit float16.
    """
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    graph = gs.import_onnx(model)
    for change in passes:
        change(graph, spec)
    for node, op in custom_nodes(graph):
        check_node(node, op)
    changed: onnx.ModelProto = gs.export_onnx(graph)
    changed.metadata_props.extend(model.metadata_props)
    return changed
