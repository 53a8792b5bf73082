"""Everything once on the bundled model: ranges, engines, annotated video, report. `python samples/demo.py [OUT]`."""

import os
import sys
from pathlib import Path

from edge_mrcnn import Detections, Frame, open_sink, open_source
from edge_mrcnn.cli import main
from edge_mrcnn.runtime.annotate import contact_sheet

ROOT = Path(os.path.relpath(Path(__file__).parents[1]))
TABLETOP, PICTURES = ROOT / "samples" / "tabletop", ROOT / "calibration" / "tabletop" / "images"
MODEL, VALIDATION = TABLETOP / "model.onnx", TABLETOP / "val" / "annotations.json"
out = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
out.mkdir(parents=True, exist_ok=True)


def run(title: str, *arguments: str | Path) -> None:
    command = [str(argument) for argument in arguments]
    print(f"{title}\n$ edge-mrcnn {' '.join(command)}", flush=True)
    if status := main(command):
        sys.exit(status)
    print()


ranges, report = out / "ranges.json", out / "report.html"
run("1/4  activation ranges of 128 pictures, for INT8", "calibrate", MODEL, PICTURES, "-o", ranges)
for precision, more in (("fp32", ()), ("fp16", ()), ("int8", ("--ranges", ranges))):
    run("2/4  engine for RTX GPUs", "build", MODEL, "--precision", precision, "--target", "rtx", "-o", out, *more)
int8 = ("--precision", "int8", "--target", "cpu", "--ranges", ranges)
run("2/4  INT8 for the integer kernels of this CPU", "build", MODEL, *int8, "-o", out)
files = (out / "clip.mp4", out / "clip.jsonl", "--json", out / "run.json")
run("3/4  instance masks on a clip, in INT8", "run", out / "model.cpu.int8.onnx", TABLETOP / "clip.mp4", "--to", *files)
with open_source(out / "clip.mp4") as frames, open_sink(out / "contact_sheet.png") as sink:
    sheet = contact_sheet([frame.image for frame in frames][::12][:12])
    sink.write(Frame(sheet), Detections.empty(sheet.shape[:2]), sheet)
compared = ("--precisions", "fp32,fp16,int8,int8-cpu", "--ranges", ranges, "--data", VALIDATION, "--report", report)
run("4/4  what FP16 and INT8 cost", "compare", MODEL, *compared, "--json", out / "compare.json")
print(f"open the report: {report.resolve().as_uri()}")
