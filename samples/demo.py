"""Everything once on the bundled model: engines, annotated video, accuracy. `python samples/demo.py [OUT]`."""

import json
import sys
from pathlib import Path

from edge_mrcnn import Detections, Detector, Frame, open_sink, open_source
from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.evaluation.coco import evaluate
from edge_mrcnn.files import write_text
from edge_mrcnn.runtime.annotate import contact_sheet
from edge_mrcnn.runtime.pipeline import run_pipeline

TABLETOP = Path(__file__).parent / "tabletop"
MODEL = TABLETOP / "model.onnx"
out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
out.mkdir(parents=True, exist_ok=True)

print("1/3  TensorRT engines for RTX GPUs, built without one")
builds = [build_engine(MODEL, BuildOptions(precision=name, target="rtx"), out) for name in ("fp32", "fp16")]
print(*(f"     {one.engine}: {one.size_bytes / 1e6:.1f} MB{', cached' * one.cached}" for one in builds), sep="\n")

print("2/3  instance masks on a clip, in ONNX Runtime on this CPU")
run = run_pipeline(MODEL, [TABLETOP / "clip.mp4"], [out / "clip.mp4", out / "clip.jsonl"])
with open_source(out / "clip.mp4") as frames:
    pictures = [frame.image for frame in frames]
sheet = contact_sheet(pictures[:: len(pictures) // 12][:12])
with open_sink(out / "contact_sheet.png") as sink:
    sink.write(Frame(sheet), Detections.empty(sheet.shape[:2]), sheet)
print(*(f"     {line}" for line in [*run.lines(), f"wrote {out / 'contact_sheet.png'}"]), sep="\n")

print("3/3  COCO average precision on 64 pictures the network never saw")
with Detector(MODEL, threshold=None) as detector:
    accuracy = evaluate(detector, TABLETOP / "val" / "annotations.json")
print(*(f"     {line}" for line in accuracy.lines()), sep="\n")

results = {"engines": [vars(build) for build in builds], "run": json.loads(run.to_json())}
results["accuracy"] = json.loads(accuracy.to_json())
write_text(out / "results.json", json.dumps(results, default=str, indent=2))
