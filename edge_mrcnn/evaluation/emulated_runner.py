"""Runners for recipes: `EmulatedRunner` rounds on a CPU as TensorRT would, `open_recipe` takes either dialect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from edge_mrcnn.compiler.emulation import SESSION_CONFIG, emulate
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.preparation import load_model
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.runtime.runners import OrtRunner


class EmulatedRunner(OrtRunner):
    """Runs what `emulate` makes of a model; `backend` says that the precision is emulated.

    Example:
        >>> with EmulatedRunner("model.onnx", Recipe("fp16")) as runner:  # doctest: +SKIP
        ...     detections = Detector(runner)(picture)
    """

    def __init__(
        self, path: str | Path, recipe: Recipe, threads: int | None = None, *, model: onnx.ModelProto | None = None
    ) -> None:
        """Emulate a recipe on a model.

        Args:
            path: ONNX file made by `edge-mrcnn export`.
            recipe: What each layer is to compute in; dialect `tensorrt`.
            threads: CPU threads of one call; None or 0 for one per core.
            model: What is in the file, where it has been read already.

        Raises:
            CalibrationError: A tensor to be quantised has no range.
            EngineError: A weight does not fit float16, or ONNX Runtime cannot run the network.
            ExportError: The file is not a model of ours.
            PluginError: A custom op is not as its contract says.
            ValueError: The recipe's dialect is another one, or `threads` is negative.
        """
        emulated = emulate(load_model(Path(path)) if model is None else model, recipe)
        super().__init__(path, threads, content=emulated.SerializeToString(), config=SESSION_CONFIG)
        self.backend = emulated_backend(recipe)


def emulated_backend(recipe: Recipe) -> str:
    """What figures of an emulated recipe are said to come from."""
    return f"{OrtRunner.backend}, {recipe.precision} emulated"


def make_runnable(model: onnx.ModelProto, recipe: Recipe) -> tuple[onnx.ModelProto, Mapping[str, str], str]:
    """What ONNX Runtime runs for a recipe: dialect `tensorrt` is emulated, dialect `ort` runs as it is.

    Args:
        model: As `edge-mrcnn export` wrote it.
        recipe: What each layer is to compute in.

    Returns:
        The graph, the session configuration it needs, and the backend to be named.

    Raises:
        EdgeMrcnnError: As `emulate`.
        ValueError: The dialect does not have the precision.
    """
    if recipe.dialect == "tensorrt":
        return emulate(model, recipe), SESSION_CONFIG, emulated_backend(recipe)
    return run_passes(model, recipe), {}, OrtRunner.backend


def open_recipe(
    path: str | Path, recipe: Recipe, threads: int | None = None, *, model: onnx.ModelProto | None = None
) -> OrtRunner:
    """Run a recipe of either dialect on a CPU.

    Args:
        path: ONNX file made by `edge-mrcnn export`.
        recipe: What each layer is to compute in.
        threads: CPU threads of one call; None or 0 for one per core.
        model: What is in the file, where it has been read already.

    Returns:
        The runner; the caller closes it.

    Raises:
        EdgeMrcnnError: As `EmulatedRunner`.
        ValueError: `threads` is negative, or the dialect does not have the precision.
    """
    if recipe.dialect == "tensorrt":
        return EmulatedRunner(path, recipe, threads, model=model)
    graph, config, _ = make_runnable(load_model(Path(path)) if model is None else model, recipe)
    return OrtRunner(path, threads, content=graph.SerializeToString(), config=config)
