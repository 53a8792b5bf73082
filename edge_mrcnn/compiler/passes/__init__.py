"""The passes over the graph, each `(graph, spec) -> None` with one effect, and their order.

A pass that needs to know more, such as which layers to keep, gets it bound by `passes_of`. A pass that only makes the
`ort` graph faster belongs at the end of `_ORT`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.contract import check_node, custom_nodes
from edge_mrcnn.compiler.passes.bind_plugins import bind_plugins
from edge_mrcnn.compiler.passes.cast_to_fp16 import cast_to_fp16
from edge_mrcnn.compiler.passes.fold_constants import fold_constants
from edge_mrcnn.compiler.passes.fold_normalisation import fold_normalisation, read_bytes
from edge_mrcnn.compiler.passes.infer_types import infer_types
from edge_mrcnn.compiler.passes.insert_qdq import insert_qdq
from edge_mrcnn.compiler.passes.insert_qdq_ort import insert_qdq_ort
from edge_mrcnn.compiler.passes.pool_codes import pool_codes
from edge_mrcnn.compiler.passes.remove_function_bodies import remove_function_bodies
from edge_mrcnn.compiler.passes.replace_roi_align_and_nms import replace_roi_align_and_nms
from edge_mrcnn.compiler.passes.split_deconvolution import split_deconvolution
from edge_mrcnn.compiler.placement import check_keeps
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.spec import ModelSpec

Pass = Callable[[gs.Graph, ModelSpec], None]

_FIRST: tuple[Pass, ...] = (infer_types, bind_plugins, fold_constants)

_BEFORE_ORT: tuple[Pass, ...] = (fold_normalisation, split_deconvolution)
"""What makes ready for integers in dialect `ort`."""

_ORT: tuple[Pass, ...] = (read_bytes, pool_codes)
"""What follows on the Q/DQ nodes of dialect `ort`."""

__all__ = [
    "Pass",
    "apply_passes",
    "bind_plugins",
    "cast_to_fp16",
    "fold_constants",
    "fold_normalisation",
    "infer_types",
    "insert_qdq",
    "insert_qdq_ort",
    "passes_of",
    "pool_codes",
    "read_bytes",
    "remove_function_bodies",
    "replace_roi_align_and_nms",
    "run_passes",
    "split_deconvolution",
]


def passes_of(recipe: Recipe, *, keep_bodies: bool = False) -> tuple[Pass, ...]:
    """The passes that make a recipe true, in order.

    Args:
        recipe: What each layer is to compute in.
        keep_bodies: Leave the function bodies of the custom ops in the graph, so that ONNX Runtime runs it; dialect
            `ort` always does.

    Raises:
        ValueError: The dialect does not have the precision.
    """
    if recipe.dialect == "ort":
        if recipe.precision == "fp16":
            raise ValueError("precision fp16: ONNX Runtime computes float16 in float32 on a CPU; use fp32 or int8")
        if recipe.precision == "fp32":
            return _FIRST
        return (*_FIRST, *_BEFORE_ORT, _bind(insert_qdq_ort, recipe=recipe), *_ORT)
    passes = list(_FIRST)
    if recipe.precision != "fp32":
        passes.append(_bind(cast_to_fp16, keep_fp32=recipe.keeps_fp32))
    if recipe.precision == "int8":
        passes.append(_bind(insert_qdq, recipe=recipe))
    if not keep_bodies:
        passes.append(remove_function_bodies)
    return tuple(passes)


def run_passes(model: onnx.ModelProto, recipe: Recipe, *, keep_bodies: bool = False) -> onnx.ModelProto:
    """From the exported model to the one that TensorRT parses, or that ONNX Runtime runs with integers.

    Args:
        model: As `edge-mrcnn export` wrote it; it is not changed.
        recipe: What each layer is to compute in.
        keep_bodies: As in `passes_of`.

    Raises:
        CalibrationError: The recipe lacks a range, or all of them.
        ExportError: The model carries no spec, or its graph contradicts itself.
        PluginError: A custom op is not as its contract says.
        EngineError: A weight does not fit its type.
        ValueError: A layer to keep is not in the model, or the dialect does not have the precision.
    """
    passes = passes_of(recipe, keep_bodies=keep_bodies)
    check_keeps(model, recipe)
    return apply_passes(model, passes)


def apply_passes(model: onnx.ModelProto, passes: Iterable[Pass]) -> onnx.ModelProto:
    """Run the passes given over a copy of the model and check the custom ops of the result.

    Raises:
        CalibrationError: A recipe lacks a range, or all of them.
        ExportError: The model carries no spec, or a pass refused it.
        PluginError: A custom op is not as its contract says.
        EngineError: A weight does not fit its type.
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


def _bind(change: Callable[..., None], **known: object) -> Pass:
    """A pass with what it needs to know, under its own name."""

    @functools.wraps(change)
    def bound(graph: gs.Graph, spec: ModelSpec) -> None:
        change(graph, spec, **known)

    return bound
