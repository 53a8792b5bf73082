"""`edge-mrcnn soak`: a long run over cameras that misbehave."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, ModelFile, report
from edge_mrcnn.evaluation.soak import SoakOptions, soak


def command(
    model: ModelFile,
    options: Annotated[SoakOptions, tyro.conf.arg(name="soak")],
    json_target: JsonTarget = None,
) -> None:
    """Run for many minutes while cameras, clients and sinks misbehave; tell what was lost and what grew.

    Exit code 1 when a frame was lost that the policy does not allow to drop, a recording misses frames, or memory,
    threads or descriptors grew.

    Args:
        model: model.onnx or engine.
        options: How long and how.
        json_target: Where the report goes as JSON.
    """
    runtime = logging.getLogger("edge_mrcnn.runtime")
    if logging.getLogger("edge_mrcnn").level > logging.DEBUG:
        runtime.setLevel(logging.ERROR)  # cameras are lost all the time
    found = soak(model, options)
    report(found.lines(), found.to_json(), json_target)
    if found.problems:
        sys.exit(1)
