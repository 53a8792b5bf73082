"""Checkpoints of other projects: each becomes a torchvision model with that project's conventions."""

from __future__ import annotations

import logging
from pathlib import Path

from edge_mrcnn.class_names import read_class_names
from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from edge_mrcnn.spec import parse_size
from edge_mrcnn.training.export import apply_limits
from edge_mrcnn.training.foreign import detectron2, mmdetection
from edge_mrcnn.training.foreign.layout import Imported, listed
from edge_mrcnn.training.foreign.weights import ForeignFile, read_weights

log = logging.getLogger(__name__)

PROJECTS = (detectron2, mmdetection)
"""Each has `PROJECT`, its name, `recognises(file)` and `build(file, options)`."""

_OURS = ("rpn.head.", "backbone.body.", "backbone.fpn.")
"""Names that torchvision's detectors have."""


def import_checkpoint(path: Path, options: ImportOptions) -> Imported:
    """Make a model of a checkpoint of detectron2 or mmdetection; code inside the file is never run.

    Args:
        path: A `.pkl` or `.pth` file.
        options: Size, limits, class names, and what the checkpoint's config says but the checkpoint does not.

    Returns:
        The model in evaluation mode with the limits asked for, its name, class names, canvas and names of keypoints.

    Raises:
        ExportError: The file is damaged or malicious, or of a project or architecture that is not supported.
    """
    file = read_weights(path)
    project = next((each for each in PROJECTS if each.recognises(file)), None)
    if project is None:
        raise _unknown(file)
    imported = project.build(file, options)
    apply_limits(imported.model, options)
    names = read_class_names(options.class_names) if options.class_names is not None else imported.class_names
    canvas = parse_size(options.size) if options.size is not None else imported.canvas
    log.info("%s: %s of %s", path, imported.name, project.PROJECT)
    return Imported(imported.model.eval(), imported.name, names, canvas, imported.keypoints)


def _unknown(file: ForeignFile) -> ExportError:
    names = list(file.tensors)
    if any(name.startswith(_OURS) for name in names):
        return ExportError(
            f"{file.source} has torchvision's names: export it with edge-mrcnn export MODEL --weights {file.source}"
        )
    return ExportError(
        f"{file.source} is of no project that is known: its weights are called {listed(names)}. Supported are Mask "
        "R-CNNs of detectron2 and mmdetection, and torchvision's through edge-mrcnn export"
    )
