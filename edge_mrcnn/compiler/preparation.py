"""From a model file and options to the graph to build from: the recipe, the passes, and what the graph asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edge_mrcnn.compiler.build_options import BuildOptions
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.precision import LayerPrecision, layer_precisions
from edge_mrcnn.compiler.recipe import Dialect, Recipe
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.sidecar import RecipeRecord, hash_file
from edge_mrcnn.spec import ModelSpec


@dataclass(frozen=True)
class PreparedModel:
    """A graph that the passes have made, and what it was made from.

    Attributes:
        model: The graph that is built from.
        spec: The model's.
        onnx_sha256: Of the file as exported.
        record: What decided the precisions.
        layers: The weighted layers, with the precision that the graph asks for.
    """

    model: onnx.ModelProto
    spec: ModelSpec
    onnx_sha256: str
    record: RecipeRecord
    layers: tuple[LayerPrecision, ...]


def prepare_model(path: Path, options: BuildOptions, dialect: Dialect) -> PreparedModel:
    """Read a model, run the passes and check that the graph asks for what the options do.

    Args:
        path: ONNX file made by `edge-mrcnn export`.
        options: How to build.
        dialect: For whom the graph is.

    Raises:
        CalibrationError: The ranges are missing, damaged, of another model or incomplete.
        EngineError: A weight does not fit its type, or the graph does not ask for the precision.
        ExportError: The file is no ONNX file, or not one of ours.
        PluginError: A custom op is not as its contract says.
        ValueError: A layer to keep is not in the model, or ranges are given for one that has Q/DQ nodes.
    """
    source = load_model(path)
    onnx_sha256 = hash_file(path)
    ranges = None if options.ranges is None else Ranges.load(options.ranges)
    if ranges is not None:
        if any(node.op_type == "QuantizeLinear" for node in source.graph.node):
            raise ValueError(f"{path} brings Q/DQ nodes of its own, so ranges have no use: leave --ranges out")
        ranges.check_model(onnx_sha256, path)
    recipe = Recipe(options.precision, ranges, options.keep_fp16, options.keep_fp32, dialect)
    model = run_passes(source, recipe)
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props}, path)
    layers = layer_precisions(model, spec)
    check_requested(layers, recipe)
    return PreparedModel(model, spec, onnx_sha256, _record(recipe, options), layers)


def check_requested(layers: Sequence[LayerPrecision], recipe: Recipe) -> None:
    """Check that a graph asks for the precision of each layer that the recipe says.

    Raises:
        EngineError: It does not; the message names a layer that is otherwise. Or int8 was asked for and no layer is.
    """
    wrong = [layer for layer in layers if layer.precision not in _allowed(layer.name, recipe)]
    if wrong:
        counts = dict(Counter(layer.precision for layer in wrong))
        names = ", ".join(repr(layer.name) for layer in wrong[:3])
        raise EngineError(
            f"{recipe.precision} was asked for, but {len(wrong)} weighted layers have another type ({counts}): {names}"
            f"{', ...' if len(wrong) > 3 else ''}; nothing is built rather than something else"
        )
    if recipe.precision == "int8" and all(layer.precision != "int8" for layer in layers):
        raise EngineError(
            f"int8 was asked for, but none of the {len(layers)} weighted layers is int8: --keep-fp16 and --keep-fp32 "
            "name them all; name fewer, or build it with --precision fp16"
        )


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        ExportError: It is missing or no ONNX file.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise ExportError(f"there is no file {path}; make it with: edge-mrcnn export MODEL_NAME -o {path}") from error
    except (OSError, DecodeError, ValueError) as error:
        raise ExportError(
            f"{path} is not a readable ONNX file ({error}); export it again: edge-mrcnn export"
        ) from error
    if not model.graph.node:  # an empty file is a valid message of nothing
        raise ExportError(f"{path} holds no network ({path.stat().st_size} bytes); export it again: edge-mrcnn export")
    return model


def _allowed(layer: str, recipe: Recipe) -> set[str]:
    """The types that a layer may have."""
    float32 = recipe.precision == "fp32" or recipe.dialect == "ort" or recipe.keeps_fp32(layer)
    allowed = {"float32" if float32 else "float16"}
    return allowed | {"int8"} if recipe.precision == "int8" and not recipe.keeps_high(layer) else allowed


def _record(recipe: Recipe, options: BuildOptions) -> RecipeRecord:
    ranges = recipe.ranges
    return RecipeRecord(
        ranges_sha256=hash_file(options.ranges) if options.ranges is not None else None,
        method=ranges.method if ranges is not None else None,
        pictures=len(ranges.pictures) if ranges is not None else None,
        keep_fp16=recipe.keep_fp16,
        keep_fp32=recipe.keep_fp32,
    )
