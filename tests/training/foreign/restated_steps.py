"""The steps of detectron2's and mmdetection's Mask R-CNN at inference, which `restated.py` puts together.

Nothing here comes from the package. Sources: as in `restated.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align

Picture = npt.NDArray[np.uint8]
Names = Callable[[str, str], tuple[str, str]]
"""`(block, part)` to the names of a convolution and its batch norm; parts: conv1, conv2, conv3, shortcut."""

NORM_EPS = 1e-5
MAX_DELTA = math.log(1000 / 16)
RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Settings:
    """What a config says. The defaults are detectron2's for its R50 and R101, and mmdetection's of caffe style.

    Attributes:
        mean: Of the channels in the order that the network takes, on a scale of 0 to 255.
        std: Likewise.
        bgr: The network takes blue first.
        stride_in_1x1: A stage's stride is in the first convolution of its first block, not in the second.
        groups: Of the 3x3 convolutions.
        pre_nms: Candidates of each level.
        post_nms: Proposals.
        detections: Upper limit.
        score_threshold: Detections score more.
    """

    mean: tuple[float, float, float] = (103.53, 116.28, 123.675)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    bgr: bool = True
    stride_in_1x1: bool = True
    groups: int = 1
    pre_nms: int = 1000
    post_nms: int = 1000
    detections: int = 100
    score_threshold: float = 0.05


@dataclass
class Weights:
    """A state dict, read by name.

    Attributes:
        state: The tensors.
        read: Names that were used, to see that none was forgotten.
    """

    state: Mapping[str, Tensor]
    read: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.state

    def take(self, name: str) -> Tensor:
        self.read.add(name)
        return self.state[name]

    def bias(self, name: str) -> Tensor | None:
        return self.take(f"{name}.bias") if f"{name}.bias" in self.state else None

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        return F.conv2d(x, self.take(f"{name}.weight"), self.bias(name), stride, padding, 1, groups)

    def deconv(self, name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.take(f"{name}.weight"), self.bias(name), stride=2)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.take(f"{name}.weight"), self.bias(name))

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Batch norm with the statistics in the file, frozen or not."""
        weight, bias, mean, var = (
            self.take(f"{name}.{part}").reshape(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + NORM_EPS).sqrt() * weight + bias


# ---------------------------------------------------------------------------------------------------- backbone, heads
def prepare(picture: Picture, canvas: tuple[int, int], settings: Settings) -> Tensor:
    """Order the channels, subtract, divide, then pad with zeros to `(1, 3, H, W)`."""
    pixels = picture[:, :, ::-1] if settings.bgr else picture
    normalised = (pixels.astype(np.float32) - np.float32(settings.mean)) / np.float32(settings.std)
    padded = np.zeros((*canvas, 3), np.float32)
    padded[: picture.shape[0], : picture.shape[1]] = normalised
    return torch.from_numpy(padded).permute(2, 0, 1)[None]


def stem(weights: Weights, conv: str, norm: str, x: Tensor) -> Tensor:
    return F.max_pool2d(weights.norm(norm, weights.conv(conv, x, 2, 3)).relu(), 3, 2, 1)


def detectron2_names(block: str, part: str) -> tuple[str, str]:
    return f"{block}.{part}", f"{block}.{part}.norm"


def mmdetection_names(block: str, part: str) -> tuple[str, str]:
    if part == "shortcut":
        return f"{block}.downsample.0", f"{block}.downsample.1"
    return f"{block}.{part}", f"{block}.bn{part[-1]}"


def stage(weights: Weights, name: str, names: Names, x: Tensor, stride: int, settings: Settings) -> Tensor:
    """The bottleneck blocks of one stage; the first has the stride."""
    index = 0
    while weights.has(f"{name}.{index}.conv1"):
        x = bottleneck(weights, f"{name}.{index}", names, x, stride if index == 0 else 1, settings)
        index += 1
    return x


def bottleneck(weights: Weights, block: str, names: Names, x: Tensor, stride: int, settings: Settings) -> Tensor:
    def layer(part: str, value: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        conv, norm = names(block, part)
        return weights.norm(norm, weights.conv(conv, value, stride, padding, groups))

    first, second = (stride, 1) if settings.stride_in_1x1 else (1, stride)
    y = layer("conv1", x, first).relu()
    y = layer("conv2", y, second, 1, settings.groups).relu()
    y = layer("conv3", y)
    shortcut = layer("shortcut", x, stride) if weights.has(names(block, "shortcut")[0]) else x
    return (y + shortcut).relu()


def pyramid(weights: Weights, inner: Sequence[str], outer: Sequence[str], bodies: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps of strides 4 to 64."""
    merged = [weights.conv(inner[-1], bodies[-1])]
    for name, body in zip(inner[-2::-1], bodies[-2::-1], strict=True):
        merged.insert(0, weights.conv(name, body) + F.interpolate(merged[0], scale_factor=2.0, mode="nearest"))
    levels = [weights.conv(name, level, padding=1) for name, level in zip(outer, merged, strict=True)]
    return [*levels, levels[-1][:, :, ::2, ::2]]


def rpn_head(
    weights: Weights, levels: Sequence[Tensor], conv: str, logits: str, deltas: str
) -> list[tuple[Tensor, Tensor]]:
    """Of each level the objectness `(H * W * A,)` and the deltas `(H * W * A, 4)`, anchors of a cell side by side."""
    out = []
    for level in levels:
        hidden = weights.conv(conv, level, padding=1).relu()
        score, delta = weights.conv(logits, hidden)[0], weights.conv(deltas, hidden)[0]
        out.append((score.permute(1, 2, 0).reshape(-1), delta.permute(1, 2, 0).reshape(-1, 4)))
    return out


def with_strides(levels: Sequence[Tensor], values: Sequence) -> list[tuple]:
    """A value, the stride and the feature map of each of five levels."""
    return list(zip(values, (4, 8, 16, 32, 64), levels, strict=True))


# -------------------------------------------------------------------------------------------------- anchors and boxes
def detectron2_anchors(sizes: Sequence[float], stride: int, level: Tensor, ratios: Sequence[float] = RATIOS) -> Tensor:
    """Sizes outside, ratios (height by width) inside; not rounded; centred on the corner of a cell (OFFSET 0)."""
    cells = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            cells.append([-width / 2, -height / 2, width / 2, height / 2])
    return _lay_out(torch.tensor(cells), stride, level)


def mmdetection_anchors(
    scales: Sequence[float], stride: int, level: Tensor, ratios: Sequence[float] = RATIOS
) -> Tensor:
    """Ratios (height by width) outside, scales inside; the base is the stride; not rounded; `center_offset` 0."""
    roots = torch.tensor(ratios).sqrt()
    widths = (stride * (1 / roots)[:, None] * torch.tensor(scales)).flatten()
    heights = (stride * roots[:, None] * torch.tensor(scales)).flatten()
    return _lay_out(torch.stack([-0.5 * widths, -0.5 * heights, 0.5 * widths, 0.5 * heights], 1), stride, level)


def _lay_out(cells: Tensor, stride: int, level: Tensor) -> Tensor:
    rows, columns = (torch.arange(count, dtype=torch.float32) * stride for count in level.shape[2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    corners = torch.stack([x, y, x, y], -1)
    return (corners[:, :, None] + cells).reshape(-1, 4)


def detectron2_decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """`(N, 4 K)` deltas on `(N, 4)` boxes: divided by weights, large growth limited."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + 0.5 * size
    scaled = deltas.reshape(len(boxes), -1, 4) / torch.tensor([float(w) for w in weights])
    moved = scaled[..., :2] * size[:, None] + centre[:, None]
    half = 0.5 * scaled[..., 2:].clamp(max=MAX_DELTA).exp() * size[:, None]
    return torch.cat([moved - half, moved + half], -1).reshape(deltas.shape)


def mmdetection_decode(deltas: Tensor, boxes: Tensor, stds: Sequence[float]) -> Tensor:
    """`(N, 4 K)` deltas on `(N, 4)` boxes: times standard deviations, large growth and shrinking limited."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    scaled = deltas.reshape(len(boxes), -1, 4) * torch.tensor([float(std) for std in stds])
    moved = centre[:, None] + scaled[..., :2] * size[:, None]
    grown = size[:, None] * scaled[..., 2:].clamp(min=-MAX_DELTA, max=MAX_DELTA).exp()
    return torch.cat([moved - 0.5 * grown, moved + 0.5 * grown], -1).reshape(deltas.shape)


def clip(boxes: Tensor, hw: Sequence[int]) -> Tensor:
    """To the picture, not to the canvas."""
    limits = torch.tensor([hw[1], hw[0]] * 2, dtype=torch.float32)
    return torch.minimum(boxes.clamp(min=0), limits)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Indices that survive suppression in their group, best first."""
    kept = [torch.where(groups == group)[0] for group in groups.unique()]
    kept = [rows[nms(boxes[rows], scores[rows], threshold)] for rows in kept]
    rows = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.int64)
    return rows[scores[rows].argsort(descending=True, stable=True)]


def choose_proposals(candidates: Sequence[tuple[Tensor, Tensor]], hw: Sequence[int], settings: Settings) -> Tensor:
    """The best of each level, clipped, without empty ones, suppressed within their level; the best of all."""
    boxes, scores, levels = [], [], []
    for index, (score, box) in enumerate(candidates):
        best = score.topk(min(settings.pre_nms, len(score))).indices
        boxes.append(clip(box[best], hw))
        scores.append(score[best])
        levels.append(torch.full_like(best, index))
    box, score, level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
    full = ((box[:, 2:] - box[:, :2]) > 0).all(1)
    box, score, level = box[full], score[full], level[full]
    return box[suppress(box, score, level, 0.7)[: settings.post_nms]]


def choose_detections(
    logits: Tensor, boxes: Tensor, hw: Sequence[int], settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and classes. The last logit is the background's, and there are no boxes for it."""
    scores = logits.softmax(-1)[:, :-1]
    boxes = clip(boxes.reshape(len(logits), -1, 4), hw)
    rows, classes = torch.where(scores > settings.score_threshold)
    boxes, scores = boxes[rows, classes], scores[rows, classes]
    kept = suppress(boxes, scores, classes, 0.5)[: settings.detections]
    return boxes[kept], scores[kept], classes[kept]


# ----------------------------------------------------------------------------------------------------- pooling, masks
def detectron2_levels(boxes: Tensor) -> Tensor:
    """0 for stride 4: a box of 224 pixels belongs to level 4, of stride 16."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return (4 + torch.log2(side / 224 + 1e-8)).floor().clamp(2, 5) - 2


def mmdetection_levels(boxes: Tensor) -> Tensor:
    """0 for stride 4: a box of less than twice the `finest_scale` 56."""
    scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return torch.log2(scale / 56 + 1e-6).floor().clamp(0, 3)


def pool(levels: Sequence[Tensor], boxes: Tensor, chosen: Tensor, size: int, first_stride: int = 4) -> Tensor:
    """RoIAlign with half a cell taken off and as many samples as cells, from the chosen level of each box."""
    out = levels[0].new_zeros(len(boxes), levels[0].shape[1], size, size)
    for index, level in enumerate(levels):
        rows = torch.where(chosen == index)[0]
        out[rows] = roi_align(level, [boxes[rows]], size, 1 / (first_stride * 2**index), 0, aligned=True)
    return out


def choose_masks(logits: Tensor, classes: Tensor) -> Tensor:
    return logits[torch.arange(len(classes)), classes].sigmoid()
