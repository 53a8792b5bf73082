"""`edge-mrcnn run`: instances in pictures, videos and cameras."""

from __future__ import annotations

from typing import Annotated

import tyro

from edge_mrcnn.commands import JsonTarget, ModelFile, report
from edge_mrcnn.runtime.pipeline import RunOptions, run_pipeline


def command(
    model: ModelFile,
    source: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")],
    options: Annotated[RunOptions, tyro.conf.arg(name="run")],
    to: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SINK...")] = (),
    json_target: JsonTarget = None,
) -> None:
    """Find instances in every frame of the sources and write them to the sinks.

    Sources: a picture, a folder, a glob in quotes, a video, /dev/videoN, test://640x480?frames=30.
    Sinks: out.mp4, out/ (pictures), out.png (of one frame), out.jsonl, window://.

    Args:
        model: model.onnx or engine.
        source: One or more, taken in turn.
        options: How the run goes.
        to: Where results go; without one, only the summary is printed.
        json_target: Where the summary goes as JSON.
    """
    summary = run_pipeline(model, source, to, options)
    report(summary.lines(), summary.to_json(), json_target)
