"""Count what passes: each thing has its own number. `python samples/track.py [SOURCE] [SINK]`, as `/dev/video0`."""

import sys
from collections import Counter
from pathlib import Path

from edge_mrcnn import Detector, Tracker, annotate, open_sink, open_source
from edge_mrcnn.runtime.annotate import AnnotateOptions

TABLETOP = Path(__file__).parent / "tabletop"
source = sys.argv[1] if len(sys.argv) > 1 else str(TABLETOP / "clip.mp4")
sink = sys.argv[2] if len(sys.argv) > 2 else "tracks.mp4"
seen: dict[int, str] = {}

with (
    Detector(TABLETOP / "model.onnx") as detector,
    open_source(source) as frames,
    open_sink(sink, fps=frames.fps) as out,
):
    tracker, look = Tracker(), AnnotateOptions(color_by="track")
    for frame in frames:
        detections = tracker.update(detector(frame), frame.captured_ns if frames.live else frame.stamp_ns)
        for number, label in zip(detections.track_id, detections.class_id, strict=True):
            if number and number not in seen:
                seen[number] = detector.class_names[label]
                print(f"{frame.index}: #{number} is a {seen[number]}")
        out.write(frame, detections, annotate(frame, detections, detector.class_names, look))
        if out.wants_stop:
            break
print(f"{len(seen)} things:", ", ".join(f"{count} {name}" for name, count in Counter(seen.values()).most_common()))
