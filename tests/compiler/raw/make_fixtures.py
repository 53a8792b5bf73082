"""Makes the raw ONNX files of `fixtures/` with whatever torch is installed.

python tests/compiler/raw/make_fixtures.py [NAME...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnx
import torch

sys.path.insert(0, str(Path(__file__).parent))

import seeded_weights
from raw_models import Case, export

FOLDER = Path(__file__).parent / "fixtures"

ANCHORS = (((12, 20), (28, 40), (56, 80), (112, 160), (220, 300)), (0.6, 1.0, 1.7))
"""Two sizes a level and other ratios than torchvision's."""

LIMITS = (
    ("rpn_pre_nms_top_n_test", 250),
    ("rpn_post_nms_top_n_test", 180),
    ("rpn_nms_thresh", 0.6),
    ("rpn_score_thresh", 0.1),
    ("box_score_thresh", 0.12),
    ("box_nms_thresh", 0.4),
    ("box_detections_per_img", 80),
    ("image_mean", [0.4, 0.5, 0.55]),
    ("image_std", [0.2, 0.25, 0.3]),
)
"""Each another number than torchvision's."""

DETECTIONS = 40
"""About as many are found in a picture: enough to compare, and fewer than their limit."""

CASES = (
    Case("mask_11", opset=11),
    Case("mask_13_dynamic", opset=13, dynamic=True, frozen=True),
    Case("mask_16_anchors", opset=16, classes=3, anchors=ANCHORS, hw=(120, 170)),
    Case("mask_17_batched_dynamic", opset=17, dynamic=True, batched=True, min_max=(128, 176), frozen=True),
    Case("mask_18_limits_patches", opset=18, paste=False, limits=LIMITS),
    Case("mask_18_dynamic", opset=18, dynamic=True, min_max=(128, 176)),
    Case("mask_17_resized", opset=17, hw=(256, 320), min_max=(128, 160)),
    Case("mask_v2_17", "mask_v2", opset=17),
    Case("keypoint_11", "keypoint", opset=11, classes=2),
    Case("keypoint_17_dynamic", "keypoint", opset=17, classes=2, dynamic=True, frozen=True),
    Case("two_pictures_17", opset=17, pictures=2),
    Case("boxes_17", "box", opset=17),
)


def main(names: list[str]) -> None:
    version = ".".join(torch.__version__.split(".")[:2])
    for case in CASES:
        if names and case.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            export(case, Path(folder) / "raw.onnx")
            model = onnx.load(Path(folder) / "raw.onnx")
        nodes = len(model.graph.node)
        if case.pictures == 1:
            seeded_weights.sow(model)
            hw = case.hw
            images = [seeded_weights.picture(hw, 1000 + index) for index in range(2)]
            seeded_weights.spread(model, [seeded_weights.feed(model, image) for image in images], DETECTIONS)
        else:
            seeded_weights.sow(model)
        path = FOLDER / f"torch{version}_{case.name}.onnx.xz"
        seeded_weights.save(model, path)
        sys.stdout.write(f"{path.name}: {nodes} nodes, {path.stat().st_size / 1e3:.0f} kB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
