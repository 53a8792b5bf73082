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

    Files, one after the other, every frame: photo.jpg, folder/, 'glob/*.png', clip.mp4, record.mcap.

    Cameras, all at once, of each the newest frame, connected to again for ever: /dev/video0, csi://0, rtsp://HOST/PATH,
    http://HOST/PATH (MJPEG), test://1280x720?fps=30 (a pattern).

    Sinks that record every frame: out.mkv, out.mp4, out.jsonl, out.mcap, out/ (pictures), out.png (of one frame).

    Sinks that show the newest: window://, mjpeg://127.0.0.1:8080 (a page), ros2://.

    All take options as a web address does, in quotes: 'rtsp://HOST/PATH?name=front&timeout_s=10'.

    Ctrl-C and SIGTERM end the run with every file finished and exit code 0; the second one leaves at once.

    Args:
        model: model.onnx or engine.
        source: One or more.
        options: How the run goes.
        to: Where results go, as many as you like; without one, only the summary is printed.
        json_target: Where the summary goes as JSON.
    """
    summary = run_pipeline(model, source, to, options)
    report(summary.lines(), summary.to_json(), json_target)
