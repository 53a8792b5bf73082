"""Points to reach for: a mug's handle, a hammer's head. `python samples/keypoints.py MODEL [SOURCE] [SINK]`."""

import sys
from pathlib import Path

from edge_mrcnn import Detector, annotate, open_sink, open_source
from edge_mrcnn.runtime.annotate import AnnotateOptions

CLIP = Path(__file__).parent / "tabletop" / "clip.mp4"
SURE = 0.05
if len(sys.argv) < 2:
    sys.exit("give a model with keypoints; samples/train_keypoints.py trains one")
source = sys.argv[2] if len(sys.argv) > 2 else str(CLIP)
sink = sys.argv[3] if len(sys.argv) > 3 else "keypoints.mp4"

with (
    Detector(sys.argv[1]) as detector,
    open_source(source) as frames,
    open_sink(sink, fps=frames.fps) as out,
):
    names, look = detector.spec.keypoint_names, AnnotateOptions(skeleton=detector.spec.skeleton)
    for frame in frames:
        detections = detector(frame)
        for label, points in zip(detections.class_id, detections.keypoints, strict=True):
            for name, (x, y, score) in zip(names, points, strict=True):
                if score >= SURE:
                    print(f"{frame.index}: {detector.class_names[label]} {name} at {x:.0f}, {y:.0f}")
        out.write(frame, detections, annotate(frame, detections, detector.class_names, look))
        if out.wants_stop:
            break
