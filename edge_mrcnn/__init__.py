"""Mask R-CNN on the edge: from a torch checkpoint to live instance masks.

Public names are imported on first use, so that importing the package needs NumPy only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "CalibrationError": "errors",
    "Detections": "detections",
    "Detector": "runtime.detector",
    "EdgeMrcnnError": "errors",
    "EngineError": "errors",
    "ExportError": "errors",
    "Frame": "frame",
    "ModelSpec": "spec",
    "PluginError": "errors",
    "StreamError": "errors",
    "Tracker": "runtime.tracker",
    "TrackerOptions": "runtime.tracker",
    "annotate": "runtime.annotate",
    "open_sink": "runtime.sinks",
    "open_source": "runtime.sources",
}

__all__ = [
    "CalibrationError",
    "Detections",
    "Detector",
    "EdgeMrcnnError",
    "EngineError",
    "ExportError",
    "Frame",
    "ModelSpec",
    "PluginError",
    "StreamError",
    "Tracker",
    "TrackerOptions",
    "annotate",
    "open_sink",
    "open_source",
]

if TYPE_CHECKING:
    from edge_mrcnn.detections import Detections
    from edge_mrcnn.errors import CalibrationError, EdgeMrcnnError, EngineError, ExportError, PluginError, StreamError
    from edge_mrcnn.frame import Frame
    from edge_mrcnn.runtime.annotate import annotate
    from edge_mrcnn.runtime.detector import Detector
    from edge_mrcnn.runtime.sinks import open_sink
    from edge_mrcnn.runtime.sources import open_source
    from edge_mrcnn.runtime.tracker import Tracker, TrackerOptions
    from edge_mrcnn.spec import ModelSpec


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
