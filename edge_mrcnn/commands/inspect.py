"""`edge-mrcnn inspect`: what a model or an engine is made of."""

from __future__ import annotations

from edge_mrcnn.commands import JsonTarget, ModelFile, report
from edge_mrcnn.compiler.inspector import inspect


def command(model: ModelFile, layers: bool = False, json_target: JsonTarget = None) -> None:
    """Show inputs, outputs, spec, custom ops and precisions of an ONNX file or of an engine by its sidecar.

    Args:
        model: model.onnx or engine.
        layers: List every layer with its precision.
        json_target: Where the result goes as JSON, with every layer.
    """
    found = inspect(model)
    report(found.lines(every_layer=layers), found.to_json(), json_target)
