"""Soaking: the whole run for a long time while cameras, clients and sinks misbehave, and what it cost.

`soak` is the entry; `edge-mrcnn soak` its verb.
"""

from __future__ import annotations

from edge_mrcnn.evaluation.soak.options import SoakOptions
from edge_mrcnn.evaluation.soak.report import SoakReport
from edge_mrcnn.evaluation.soak.soak import soak

__all__ = ["SoakOptions", "SoakReport", "soak"]
