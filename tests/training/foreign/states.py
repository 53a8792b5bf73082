"""State dicts with detectron2's and mmdetection's exact names and shapes, and seeded values like those of trained ones.

Sources: names and shapes as in the files of both projects' model zoos (detectron2 0.6, mmdetection 2 and 3), from the
    modules named in `restated.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.training.foreign.restated import Found
from tests.training.foreign.restated_steps import (
    Names,
    Picture,
    Settings,
    Weights,
    detectron2_names,
    mmdetection_names,
)

Shapes = dict[str, tuple[int, ...]]
Run = Callable[[Weights, Picture, tuple[int, int], Settings], Found]

BLOCKS = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

SPREADS = {
    "objectness_logits": 2.0,
    "rpn_cls": 2.0,
    "anchor_deltas": 0.3,
    "rpn_reg": 0.3,
    "cls_score": 1.0,
    "fc_cls": 1.0,
    "bbox_pred": 1.0,
    "fc_reg": 1.0,
    "predictor": 2.0,
    "conv_logits": 2.0,
}
"""Standard deviation of each output layer: scores neither tie nor saturate, boxes move but do not fly."""


# -------------------------------------------------------------------------------------------------- names and shapes
def detectron2_shapes(
    depth: int = 50, classes: int = 80, groups: int = 1, width: int = 64, *, c4: bool = False
) -> Shapes:
    """Of `mask_rcnn_R_50_FPN`, `R_101_FPN`, `X_101_32x8d_FPN` (groups 32, width 8), or the C4 models.

    Args:
        depth: 50 or 101.
        classes: Without the background.
        groups: Of the 3x3 convolutions.
        width: Channels of a group in the first stage.
        c4: Res5 is the head.
    """
    body = "backbone" if c4 else "backbone.bottom_up"
    shapes = {f"{body}.stem.conv1.weight": (64, 3, 7, 7), **_norm(f"{body}.stem.conv1.norm", 64)}
    for stage in range(4):
        name = "roi_heads.res5" if c4 and stage == 3 else f"{body}.res{stage + 2}"
        shapes |= _stage(name, detectron2_names, stage, BLOCKS[depth][stage], groups, width)
    channels = 1024 if c4 else 256
    anchors = 15 if c4 else 3
    if not c4:
        for number, inputs in zip((2, 3, 4, 5), (256, 512, 1024, 2048), strict=True):
            shapes |= _layer(f"backbone.fpn_lateral{number}", 256, inputs, 1, 1)
            shapes |= _layer(f"backbone.fpn_output{number}", 256, 256, 3, 3)
    rpn = "proposal_generator.rpn_head"
    shapes |= _layer(f"{rpn}.conv", channels, channels, 3, 3)
    shapes |= _layer(f"{rpn}.objectness_logits", anchors, channels, 1, 1)
    shapes |= _layer(f"{rpn}.anchor_deltas", 4 * anchors, channels, 1, 1)
    pooled = 2048 if c4 else 1024
    if not c4:
        shapes |= _layer("roi_heads.box_head.fc1", 1024, 256 * 7 * 7) | _layer("roi_heads.box_head.fc2", 1024, 1024)
        for number in (1, 2, 3, 4):
            shapes |= _layer(f"roi_heads.mask_head.mask_fcn{number}", 256, 256, 3, 3)
    shapes |= _layer("roi_heads.box_predictor.cls_score", classes + 1, pooled)
    shapes |= _layer("roi_heads.box_predictor.bbox_pred", 4 * classes, pooled)
    shapes["roi_heads.mask_head.deconv.weight"] = (2048 if c4 else 256, 256, 2, 2)
    shapes["roi_heads.mask_head.deconv.bias"] = (256,)
    return shapes | _layer("roi_heads.mask_head.predictor", classes, 256, 1, 1)


def mmdetection_shapes(depth: int = 50, classes: int = 80, groups: int = 1, width: int = 64) -> Shapes:
    """Of `mask-rcnn_r50_fpn`, `r101_fpn`, `x101-32x8d_fpn`, `x101-64x4d_fpn`. Arguments as `detectron2_shapes`."""
    shapes = {"backbone.conv1.weight": (64, 3, 7, 7), **_norm("backbone.bn1", 64, counted=True)}
    for stage in range(4):
        name = f"backbone.layer{stage + 1}"
        blocks = BLOCKS[depth][stage]
        shapes |= _stage(name, mmdetection_names, stage, blocks, groups, width, counted=True)
    for index, inputs in enumerate((256, 512, 1024, 2048)):
        shapes |= _layer(f"neck.lateral_convs.{index}.conv", 256, inputs, 1, 1)
        shapes |= _layer(f"neck.fpn_convs.{index}.conv", 256, 256, 3, 3)
    shapes |= _layer("rpn_head.rpn_conv", 256, 256, 3, 3)
    shapes |= _layer("rpn_head.rpn_cls", 3, 256, 1, 1) | _layer("rpn_head.rpn_reg", 12, 256, 1, 1)
    head = "roi_head.bbox_head"
    shapes |= _layer(f"{head}.fc_cls", classes + 1, 1024) | _layer(f"{head}.fc_reg", 4 * classes, 1024)
    shapes |= _layer(f"{head}.shared_fcs.0", 1024, 256 * 7 * 7) | _layer(f"{head}.shared_fcs.1", 1024, 1024)
    for index in range(4):
        shapes |= _layer(f"roi_head.mask_head.convs.{index}.conv", 256, 256, 3, 3)
    shapes |= {"roi_head.mask_head.upsample.weight": (256, 256, 2, 2), "roi_head.mask_head.upsample.bias": (256,)}
    return shapes | _layer("roi_head.mask_head.conv_logits", classes, 256, 1, 1)


def _layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, channels: int, *, counted: bool = False) -> Shapes:
    """Batch norm; a frozen one of detectron2 counts no batches."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": (channels,) for part in parts} | ({f"{name}.num_batches_tracked": ()} if counted else {})


def _stage(
    name: str, names: Names, stage: int, blocks: int, groups: int, width: int, *, counted: bool = False
) -> Shapes:
    inputs, middle, outputs = (64 if stage == 0 else 128 * 2**stage), groups * width * 2**stage, 256 * 2**stage
    shapes: Shapes = {}
    for block in range(blocks):
        source = inputs if block == 0 else outputs
        parts: Shapes = {"conv1": (middle, source, 1, 1), "conv2": (middle, middle // groups, 3, 3)}
        parts |= {"conv3": (outputs, middle, 1, 1)} | ({"shortcut": (outputs, source, 1, 1)} if block == 0 else {})
        for part, shape in parts.items():
            conv, norm = names(f"{name}.{block}", part)
            shapes |= {f"{conv}.weight": shape, **_norm(norm, shape[0], counted=counted)}
    return shapes


# ------------------------------------------------------------------------------------------------------------- values
@dataclass
class Calibrating(Weights):
    """Lets each batch norm take the statistics of what it sees first, and spreads the output layers on it."""

    fitted: set[str] = field(default_factory=set)
    logits: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def norm(self, name: str, x: Tensor) -> Tensor:
        if name not in self.fitted:
            self.fitted.add(name)
            self.state[f"{name}.running_mean"].copy_(x.mean((0, 2, 3)))
            self.state[f"{name}.running_var"].copy_(x.var((0, 2, 3)) + 1e-3)
        return super().norm(name, x)

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        out = super().conv(name, x, stride, padding, groups)
        return super().conv(name, x, stride, padding, groups) if self._spread(name, out) else out

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = super().linear(name, x)
        out = super().linear(name, x) if self._spread(name, out) else out
        if name.endswith(("cls_score", "fc_cls")):
            self.logits = out
        return out

    def background(self, share: float) -> float:
        """What to add to the background's logit, the last, for `share` scores above 0.05 a proposal."""
        low, high = -20.0, 20.0
        for _ in range(20):
            middle = (low + high) / 2
            shifted = self.logits.clone()
            shifted[:, -1] += middle
            found = int((shifted.softmax(1)[:, :-1] > 0.05).sum())
            low, high = (middle, high) if found > share * len(shifted) else (low, middle)
        return low

    def _spread(self, name: str, out: Tensor) -> bool:
        spread = SPREADS.get(name.rpartition(".")[2])
        if spread is None or name in self.fitted:
            return False
        self.fitted.add(name)
        channels = out.transpose(0, 1).flatten(1)
        scale = spread / channels.std(1).clamp(min=1e-6)
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        weight *= scale.reshape(-1, *[1] * (weight.dim() - 1))
        bias.copy_((bias - channels.mean(1)) * scale)
        return True


def seeded_state(
    shapes: Shapes, run: Run, settings: Settings, picture: Picture, *, seed: int = 0, share: float = 0.4
) -> dict[str, Tensor]:
    """Values for a state dict.

    Args:
        shapes: Names and shapes.
        run: The function of `restated` that reads such names.
        settings: Of that function; limits of proposals and detections are lowered here.
        picture: `(h, w, 3)` uint8, the one to be run or of its kind: on it the norms and output layers are fitted.
        seed: Same seed, same values.
        share: Scores above the usual threshold a proposal, before suppression.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {name: _value(name, shape, generator) for name, shape in shapes.items()}
    few = dataclasses.replace(settings, post_nms=60, detections=10, score_threshold=0.0)
    weights = Calibrating(state)
    run(weights, picture, canvas_of(picture), few)
    (bias,) = (name for name in state if name.endswith(("cls_score.bias", "fc_cls.bias")))
    state[bias][-1] += weights.background(share)
    return state


def canvas_of(picture: Picture) -> tuple[int, int]:
    """The smallest canvas for a picture: sides are multiples of 32."""
    height, width = (-(-side // 32) * 32 for side in picture.shape[:2])
    return height, width


def _value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Convolutions keep the size of activations; a block's last norm is small, as in a trained network."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    if len(shape) > 1:
        inputs = shape[0] if "deconv" in name or "upsample" in name else math.prod(shape[1:])
        return torch.randn(shape, generator=generator) * math.sqrt(2 / inputs)
    if name.endswith("running_var"):
        return torch.ones(shape)
    noise = torch.randn(shape, generator=generator) * 0.1
    if not name.endswith(".weight"):
        return noise
    last = name.endswith(("conv3.norm.weight", "bn3.weight"))
    return (1 + noise) * (0.25 if last else 1.0)


def unread(weights: Weights) -> Iterator[str]:
    """Names in a state dict that a run did not need."""
    return (name for name in weights.state if name not in weights.read and not name.endswith("num_batches_tracked"))
