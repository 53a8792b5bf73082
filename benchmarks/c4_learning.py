"""Whether a Mask R-CNN of the C4 kind learns: a small one is trained on tabletop pictures and validated on others.

    python benchmarks/c4_learning.py --data data/train --val data/val [--epochs 2] [--out runs/c4] [--json FILE]

Pictures come from `python -m edge_mrcnn.training.tabletop --seed S --images N --out DIR`; the committed result is of
`--seed 7004 --images 400`, validated on `--seed 7005 --images 60`. The network is
`edge_mrcnn.training.c4.maskrcnn_c4` around the compact network's backbone: its stages up to stride 16 make the map, its
last one is the head of every region. As in the paper, where ImageNet's weights are the start, the stages start from
trained weights with norms that stay fixed, here those of `samples/tabletop/model.onnx`, which was trained on other
pictures of the same generator. Those of the map stay as they are; the last one learns to be a head, and the region
proposals, classes, boxes and masks are learnt from nothing. It is a test of learning and no claim about C4's accuracy.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.misc import FrozenBatchNorm2d

from edge_mrcnn.training.c4 import maskrcnn_c4
from edge_mrcnn.training.edge_model import edge_backbone
from edge_mrcnn.training.train import TrainOptions, train
from edge_mrcnn.training.zoo import MODELS, ModelEntry

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "samples" / "tabletop" / "model.onnx"
RESULTS = Path(__file__).parent / "results" / "c4_learning.json"

NAME = "maskrcnn_edge_c4"
"""Of the small network, while this runs; it is not in the zoo."""

STAGES = {"stem": "conv1", "stride4": "layer1", "stride8": "layer2", "stride16": "layer3", "stride32": "layer4"}
"""The compact backbone's stages by a ResNet's names."""

ANCHOR_SIZES = ((24, 48, 96, 160, 256),)
"""Pixels of a canvas of 320x416."""

TRAINING = TrainOptions(
    batch_size=2,
    size="320x416",
    lr=1e-3,
    warmup_steps=30,
    ema=0.99,
    trainable_backbone_layers=1,
    zoom=(1.0, 1.0),
    light=0.0,
    val_every=100,
    workers=0,
    cache_gb=0.5,
    threads=1,
    bf16=False,
    device="cpu",
)
"""What a run differs in is given on the command line."""


def small_c4(num_classes: int, weights: Path | None = BUNDLED) -> MaskRCNN:
    """A C4 with 0.9 M parameters.

    Args:
        num_classes: With the background.
        weights: An exported `maskrcnn_edge`, whose backbone it starts with; None for random weights.
    """
    body = edge_backbone().body
    trunk = nn.Sequential(OrderedDict((STAGES[name], stage) for name, stage in body.named_children()))
    _freeze_norms(trunk)
    if weights is not None:
        _load_stages(trunk, weights)
    return maskrcnn_c4(
        trunk,
        num_classes,
        min_size=320,
        max_size=416,
        rpn_anchor_generator=AnchorGenerator(ANCHOR_SIZES, ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=300,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=100,
    )


def add_to_zoo(weights: Path | None = BUNDLED) -> None:
    """Let `train` find the small network by its name."""
    MODELS[NAME] = ModelEntry(NAME, "small C4", (320, 416), lambda classes, frozen: small_c4(classes, weights))


def learn(data: Path, options: TrainOptions) -> dict[str, Any]:
    """Train and validate; the result is JSON."""
    started = time.monotonic()
    add_to_zoo()
    result = train(NAME, data, options)
    entries = [json.loads(line) for line in (options.out / "log.jsonl").read_text().splitlines()]
    return {
        "network": f"{NAME}: stages of {BUNDLED.relative_to(ROOT)}",
        "data": str(data),
        "val": str(options.val),
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "losses": [entry for entry in entries if "loss" in entry],
        "figures": result.figures,
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": options.threads,
    }


def _freeze_norms(trunk: nn.Module) -> None:
    for parent in list(trunk.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, key, FrozenBatchNorm2d(child.num_features))


def _load_stages(trunk: nn.Module, path: Path) -> None:
    """Take convolutions from an exported network; its norms are folded into them, so the norms here only add biases."""
    exported = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    theirs = {ours: name for name, ours in STAGES.items()}
    convolution = ""
    for name, module in trunk.named_modules():
        if isinstance(module, nn.Conv2d):
            stage, _, rest = name.partition(".")
            convolution = f"backbone.body.{theirs[stage]}.{rest}.weight"
            module.weight.data.copy_(torch.from_numpy(numpy_helper.to_array(exported[convolution]).copy()))
        elif isinstance(module, FrozenBatchNorm2d):  # right after its convolution
            module.running_var.fill_(1 - module.eps)
            module.bias.copy_(torch.from_numpy(numpy_helper.to_array(exported[f"{convolution}_bias"]).copy()))


def main() -> None:
    """Train, print the figures and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/c4"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    told = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = {"val": told.val, "epochs": told.epochs, "out": told.out}
    found = learn(told.data, TrainOptions(**{**vars(TRAINING), **given}))
    told.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["figures"], indent=1), f"{found['seconds']} s", sep="\n")


if __name__ == "__main__":
    main()
