"""mmdetection's Mask R-CNN."""

from __future__ import annotations

from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from edge_mrcnn.training.foreign.layout import Imported
from edge_mrcnn.training.foreign.weights import ForeignFile

PROJECT = "mmdetection"


def recognises(file: ForeignFile) -> bool:
    """Whether the names of the weights are mmdetection's, whatever the architecture."""
    return any(name.startswith(("bbox_head.", "neck.", "rpn_head.", "roi_head.")) for name in file.tensors)


def build(file: ForeignFile, options: ImportOptions) -> Imported:
    """Make a model of a checkpoint of mmdetection.

    Raises:
        ExportError: The architecture is not supported, or weights are missing, unknown or of another shape.
    """
    raise ExportError(f"{file.source} is a checkpoint of {PROJECT}, which cannot be imported yet")
