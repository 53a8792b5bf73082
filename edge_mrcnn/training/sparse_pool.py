"""RoIAlign as a product with a sparse matrix: what training on a CPU spends on it falls to a third.

torchvision's kernel walks channels-first memory on one thread, and its backward pass scatters element by element.
Here every output bin is a weighted sum of 16 pixels, and a pixel is a row of all its channels.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import MultiScaleRoIAlign

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta", category=UserWarning)


class SparseRoIAlign(nn.Module):
    """Gives what torchvision's `MultiScaleRoIAlign` gives, for training on a CPU; it has no weights of its own."""

    def __init__(self, pool: MultiScaleRoIAlign) -> None:
        """Take levels, scales, output size and sampling ratio from `pool`.

        Raises:
            ValueError: The pool samples adaptively or is not square.
        """
        super().__init__()
        if pool.sampling_ratio < 1 or len(set(pool.output_size)) != 1:
            raise ValueError(f"{pool}: expected a square output and a fixed sampling ratio")
        self.pool = pool

    @property
    def scales(self) -> list[float] | None:
        """Scale of each level, as torchvision derives them from the first batch."""
        scales: list[float] | None = self.pool.scales
        return scales

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """Pool `boxes` (xyxy, one tensor per picture) to `(R, C, S, S)`; see `MultiScaleRoIAlign`."""
        if self.pool.scales is None:
            pooled: Tensor = self.pool(features, boxes, sizes)
            return pooled
        levels = [features[name].float() for name in self.pool.featmap_names]
        with torch.no_grad():
            columns, weights = self._sample(levels, boxes)
        rows = torch.cat([level.permute(0, 2, 3, 1).flatten(0, 2) for level in levels])
        side = self.pool.output_size[0]
        out: Tensor = _WeightedSums.apply(rows, columns, weights)
        return out.view(-1, side, side, rows.shape[1]).permute(0, 3, 1, 2)

    def _sample(self, levels: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows and weights of each bin: int64 and float32, `(R * S * S, 4 * sampling_ratio^2)`."""
        level = self.pool.map_levels(boxes)
        picture = torch.cat([torch.full((len(one),), index) for index, one in enumerate(boxes)])
        xyxy = torch.cat(boxes) * torch.tensor(self.pool.scales)[level][:, None]
        heights, widths = torch.tensor([one.shape[2] for one in levels]), torch.tensor([one.shape[3] for one in levels])
        counts = torch.tensor([one.shape[0] for one in levels]) * heights * widths
        first = (counts.cumsum(0) - counts)[level] + picture * (heights * widths)[level]
        y, wy = self._axis(xyxy[:, 1], xyxy[:, 3], heights[level])
        x, wx = self._axis(xyxy[:, 0], xyxy[:, 2], widths[level])
        y = first[:, None, None] + y * widths[level][:, None, None]
        columns = y[:, :, None, :, None] + x[:, None, :, None, :]
        weights = wy[:, :, None, :, None] * wx[:, None, :, None, :]
        entries = columns.shape[-1] * columns.shape[-2]
        count = columns.shape[0] * columns.shape[1] * columns.shape[2]
        return columns.reshape(count, entries), weights.reshape(count, entries)

    def _axis(self, low: Tensor, high: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and weights along one axis: `(R, S, 2 * sampling_ratio)`.

        Source: torchvision's roi_align_common.h with aligned=False.
        """
        side, ratio = self.pool.output_size[0], self.pool.sampling_ratio
        extent = (high - low).clamp(min=1.0)
        steps = (torch.arange(side * ratio) + 0.5) / (side * ratio)
        at = low[:, None] + steps * extent[:, None]
        last = length[:, None] - 1
        inside = (at >= -1) & (at <= length[:, None])
        at = torch.minimum(at.clamp(min=0), last.float())
        below = at.long()
        above = torch.minimum(below + 1, last)
        fraction = at - below
        weights = torch.stack([1 - fraction, fraction], -1) * inside[..., None] / ratio
        pixels = torch.stack([below, above], -1)
        shape = (len(low), side, 2 * ratio)
        return pixels.view(shape), weights.view(shape)


def use_sparse_pools(model: GeneralizedRCNN) -> None:
    """Replace the RoI pools of `model` by sparse ones; weights and results stay what they were."""
    for name, pool in roi_pools(model).items():
        setattr(model.roi_heads, name, SparseRoIAlign(pool))


def roi_pools(model: GeneralizedRCNN) -> dict[str, nn.Module]:
    """The RoI pools of the heads that `model` has, by their names in `roi_heads`."""
    names = ("box_roi_pool", "mask_roi_pool", "keypoint_roi_pool")
    pools = {name: getattr(model.roi_heads, name, None) for name in names}
    return {name: pool for name, pool in pools.items() if pool is not None}


class _WeightedSums(torch.autograd.Function):
    """Each output row is a weighted sum of input rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
        """Sum `rows` `(P, C)` at `columns` `(Q, E)` with `weights` `(Q, E)` to `(Q, C)`."""
        ctx.save_for_backward(columns, weights)
        ctx.count = rows.shape[0]
        starts = torch.arange(columns.shape[0] + 1, dtype=torch.int32) * columns.shape[1]
        shape = (columns.shape[0], rows.shape[0])
        matrix = torch.sparse_csr_tensor(
            starts, columns.flatten().int(), weights.flatten(), shape, check_invariants=False
        )
        with torch.autocast(rows.device.type, enabled=False):  # there is no sparse product in bfloat16
            return matrix @ rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Multiply with the transposed matrix, whose rows are made by sorting the entries by column."""
        columns, weights = ctx.saved_tensors
        ordered, order = columns.flatten().int().sort()
        starts = torch.searchsorted(ordered, torch.arange(ctx.count + 1, dtype=torch.int32), out_int32=True)
        bins = (order // columns.shape[1]).int()
        shape = (ctx.count, columns.shape[0])
        matrix = torch.sparse_csr_tensor(starts, bins, weights.flatten()[order], shape, check_invariants=False)
        return matrix @ gradient.contiguous(), None, None
