"""Everything once on the bundled model: engines, INT8, annotated video, report. `python samples/demo.py [OUT]`."""

import json
import sys
from pathlib import Path

from edge_mrcnn import Detections, Frame, open_sink, open_source
from edge_mrcnn.compiler.build_options import BuildOptions
from edge_mrcnn.compiler.builder import build_engine
from edge_mrcnn.compiler.calibration.calibrate import calibrate
from edge_mrcnn.evaluation.compare import compare_precisions
from edge_mrcnn.evaluation.compare_options import CompareOptions
from edge_mrcnn.evaluation.report import comparison_lines, write_report
from edge_mrcnn.files import write_text
from edge_mrcnn.runtime.annotate import contact_sheet
from edge_mrcnn.runtime.pipeline import run_pipeline

ROOT = Path(__file__).parents[1]
TABLETOP, PICTURES = ROOT / "samples" / "tabletop", ROOT / "calibration" / "tabletop" / "images"
MODEL = TABLETOP / "model.onnx"
out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
out.mkdir(parents=True, exist_ok=True)

print("1/4  activation ranges of 128 pictures, for INT8")
ranges = out / "ranges.json"
calibrate(MODEL, [PICTURES]).save(ranges)
print(f"     {ranges}")

print("2/4  TensorRT engines for RTX GPUs, built without one, and INT8 for this CPU")
wanted = [BuildOptions("fp32", "rtx"), BuildOptions("fp16", "rtx")]
wanted += [BuildOptions("int8", target, ranges) for target in ("rtx", "cpu")]
builds = [build_engine(MODEL, options, out) for options in wanted]
print(*(f"     {one.engine}: {one.size_bytes / 1e6:.1f} MB{', cached' * one.cached}" for one in builds), sep="\n")

print("3/4  instance masks on a clip, in ONNX Runtime on this CPU, in INT8")
run = run_pipeline(builds[-1].engine, [TABLETOP / "clip.mp4"], [out / "clip.mp4", out / "clip.jsonl"])
with open_source(out / "clip.mp4") as frames:
    pictures = [frame.image for frame in frames]
sheet = contact_sheet(pictures[:: len(pictures) // 12][:12])
with open_sink(out / "contact_sheet.png") as sink:
    sink.write(Frame(sheet), Detections.empty(sheet.shape[:2]), sheet)
print(*(f"     {line}" for line in [*run.lines(), f"wrote {out / 'contact_sheet.png'}"]), sep="\n")

print("4/4  what FP16 and INT8 cost, on 64 pictures that neither training nor calibration saw")
options = CompareOptions(("fp32", "fp16", "int8", "int8-cpu"), ranges)
compared = compare_precisions(MODEL, data=TABLETOP / "val" / "annotations.json", options=options)
write_report(compared, out / "report.html")
print(*(f"     {line}" for line in comparison_lines(compared)), sep="\n")
print(f"\nthe report: {(out / 'report.html').resolve().as_uri()}")

results = {"engines": [vars(build) for build in builds], "run": json.loads(run.to_json())}
results["comparison"] = json.loads(compared.to_json())
write_text(out / "results.json", json.dumps(results, default=str, indent=2))
