"""The parts in which other projects' Mask R-CNNs differ from torchvision's: RoIAlign's half pixel, anchors, strides.

Each is a torchvision module with its forward changed, so a model made of them trains, runs eagerly and exports like
torchvision's own; `Exportable` reads the differences into the attributes of the custom ops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

LEVEL_EPS = 1e-6
"""Source: torchvision ops/poolers.py, default of `initLevelMapper`."""


class AlignedRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign with coordinates shifted by half a cell, as in detectron2 (ROIAlignV2) and mmdetection from 2.0 on.

    Source: detectron2 modeling/poolers.py `assign_boxes_to_levels`, layers/roi_align.py; mmdetection
        models/roi_heads/roi_extractors/single_level_roi_extractor.py.
    """

    aligned = True

    def __init__(
        self,
        featmap_names: Sequence[str],
        output_size: int,
        sampling_ratio: int,
        strides: Sequence[int],
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        level_eps: float = LEVEL_EPS,
    ) -> None:
        """Make the pool.

        Args:
            featmap_names: Names of the feature maps, finest first.
            output_size: Side of a pooled patch (S).
            sampling_ratio: Samples per bin and side; 0 for as many as cells the bin spans.
            strides: Of the feature maps, powers of two, each twice the one before.
            canonical_scale: Side in pixels of a box that belongs to `canonical_level`.
            canonical_level: log2 of the stride of that level.
            level_eps: Added to the level before rounding down.
        """
        super().__init__(
            list(featmap_names),
            output_size,
            sampling_ratio,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )
        self.strides = tuple(strides)
        self.scales = [1 / stride for stride in strides]
        self.level_eps = level_eps

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool `boxes` (xyxy in pixels of the canvas, one tensor a picture) to `(R, C, S, S)`."""
        features = [x[name] for name in self.featmap_names]
        sides = torch.cat([(one[:, 2] - one[:, 0]) * (one[:, 3] - one[:, 1]) for one in boxes]).sqrt()
        picture = torch.cat([torch.full_like(one[:, :1], index) for index, one in enumerate(boxes)])
        rois = torch.cat([picture, torch.cat(boxes)], 1)
        level = torch.floor(self.canonical_level + torch.log2(sides / self.canonical_scale) + self.level_eps)
        first = int(math.log2(self.strides[0]))
        level = level.clamp(first, first + len(features) - 1) - first
        pooled = features[0].new_zeros(len(rois), features[0].shape[1], *self.output_size)
        for index, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            rows = torch.where(level == index)[0]
            pooled[rows] = roi_align(feature, rois[rows], self.output_size, 1 / stride, self.sampling_ratio, True)
        return pooled


class GivenAnchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors that are given, not rounded, on grids of given strides: detectron2's and mmdetection's.

    torchvision rounds anchors to pixels and takes a level's stride to be the canvas over the grid.
    """

    def __init__(self, cell_anchors: Sequence[Tensor], strides: Sequence[int]) -> None:
        """Keep them.

        Args:
            cell_anchors: Of each level, `(A, 4)` xyxy around the origin, in the order of the head's channels.
            strides: Of each level, in pixels.
        """
        super().__init__(((1,),) * len(strides), ((1.0,),) * len(strides))
        self.cell_anchors = [anchors.to(torch.float32) for anchors in cell_anchors]
        self.strides = tuple(strides)

    def num_anchors_per_location(self) -> list[int]:
        """Anchors in each cell, by level."""
        return [len(anchors) for anchors in self.cell_anchors]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of each picture, `(sum of A * H_l * W_l, 4)`."""
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        strides = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))
        return [anchors for _ in image_list.image_sizes]
