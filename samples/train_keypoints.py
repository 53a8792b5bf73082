"""Teach the bundled model keypoints on generated pictures: first the new head alone, which is cheap, then everything.

`python samples/train_keypoints.py`, then `edge-mrcnn export keypointrcnn_edge --weights runs/keypoints/all/last.pt`.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path

import torch

from edge_mrcnn.training.checkpoint import save_checkpoint
from edge_mrcnn.training.dataset import CocoDataset
from edge_mrcnn.training.tabletop.writer import write_pictures
from edge_mrcnn.training.train import TrainOptions, train
from edge_mrcnn.training.unfold import load_exported
from edge_mrcnn.training.zoo import build_model

MODEL = Path(__file__).parent / "tabletop" / "model.onnx"
DATA, RUN = Path("data/keypoints"), Path("runs/keypoints")
SETS = {"train": (7005, 600), "val": (7004, 300)}  # folder: seed, pictures
OPTIONS = TrainOptions(val=DATA / "val", val_every=9, warmup_steps=50, ema=0.998, resume=True)
HEAD = replace(OPTIONS, out=RUN / "head", only="roi_heads.keypoint_", epochs=4, batch_size=4)
ALL = replace(OPTIONS, out=RUN / "all", epochs=5, batch_size=8)

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for name, (seed, count) in SETS.items():
        if not (DATA / name).exists():
            write_pictures(DATA / name, seed, count, (480, 640), os.cpu_count() or 1)
    data = CocoDataset(DATA / "train" / "annotations.json", (320, 416))
    model = build_model("keypointrcnn_edge", len(data.class_names), num_keypoints=len(data.keypoints.names))
    load_exported(model, MODEL, torch.stack([data[index][0] for index in range(16)]))
    RUN.mkdir(parents=True, exist_ok=True)
    save_checkpoint(weights := RUN / "start.pt", model)
    for options in (HEAD, ALL):
        weights = train("keypointrcnn_edge", DATA / "train", replace(options, weights=str(weights))).last
