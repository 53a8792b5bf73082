"""Instance masks on any source, in ten lines. `python samples/masks.py [SOURCE] [SINK]`, as `/dev/video0 window://`."""

import sys
from pathlib import Path

from edge_mrcnn import Detector, annotate, open_sink, open_source

TABLETOP = Path(__file__).parent / "tabletop"
source = sys.argv[1] if len(sys.argv) > 1 else str(TABLETOP / "clip.mp4")
sink = sys.argv[2] if len(sys.argv) > 2 else "masks.mp4"

with (
    Detector(TABLETOP / "model.onnx") as detector,
    open_source(source) as frames,
    open_sink(sink, fps=frames.fps) as out,
):
    for frame in frames:
        detections = detector(frame)
        print(frame.index, [detector.class_names[label] for label in detections.class_id])
        out.write(frame, detections, annotate(frame, detections, detector.class_names))
        if out.wants_stop:
            break
