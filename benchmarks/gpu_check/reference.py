"""The ops done by torchvision's own modules, on whatever device the tensors are on, and by the NumPy gold functions.

Needs torch and torchvision; `gold_outputs` needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_check.cases import Array, Case
from tests import gold

Attributes = dict[str, Any]


def gold_outputs(case: Case) -> list[Array]:
    """What the op gives, by the slow NumPy functions."""
    inputs = case.inputs
    if case.op == "RpnProposals":
        levels = len(inputs) // 2
        return [gold.rpn_proposals(inputs[0], inputs[1 : levels + 1], inputs[levels + 1 :], case.attributes)]
    if case.op == "PyramidRoiAlign":
        return [gold.pyramid_roi_align(inputs[0], inputs[1:], case.attributes)]
    image_hw, proposals, logits, deltas = inputs
    return list(gold.detection_nms(image_hw, proposals, logits, deltas, case.attributes))


def upload(case: Case, device: str) -> list[Any]:
    """The case's inputs as torch tensors."""
    import torch

    return [torch.from_numpy(array.copy()).to(device) for array in case.inputs]


def content_sizes(image_hw: Array) -> list[tuple[int, int]]:
    """Sizes as torchvision takes them."""
    return [(int(height), int(width)) for height, width in image_hw]


# ------------------------------------------------------------------------------------------------------- RpnProposals
class Proposer:
    """torchvision's `RegionProposalNetwork` behind its head: anchors, decoding, `filter_proposals`.

    Args:
        case: Attributes, grids and sizes are taken from it.
        device: Of the tensors that will come.
        keep_anchors: Compute the anchors once, here.
    """

    def __init__(self, case: Case, device: str, keep_anchors: bool = False) -> None:
        import torch
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.image_list import ImageList
        from torchvision.models.detection.rpn import RegionProposalNetwork

        self.levels = levels = len(case.inputs) // 2
        anchors = AnchorGenerator(tuple((32 * 2**i,) for i in range(levels)), ((0.5, 1.0, 2.0),) * levels)
        before, after = (
            {"training": 0, "testing": case.attributes[name]} for name in ("pre_nms_top_n", "post_nms_top_n")
        )
        limits = case.attributes["nms_threshold"], case.attributes["score_threshold"]
        self.network = RegionProposalNetwork(anchors, None, 0.7, 0.3, 256, 0.5, before, after, *limits).eval()
        grids = [x.shape[2:] for x in case.inputs[1 : levels + 1]]
        canvas = [side * case.attributes["strides"][0] for side in grids[0]]
        batch = len(case.inputs[0])
        self.features = {str(i): torch.zeros(batch, 1, *grid, device=device) for i, grid in enumerate(grids)}
        self.images = ImageList(torch.zeros(batch, 3, *canvas, device=device), content_sizes(case.inputs[0]))
        if keep_anchors:
            kept = anchors(self.images, list(self.features.values()))
            anchors.forward = lambda images, features: kept

    def __call__(self, tensors: Sequence[Any]) -> list[Any]:
        """Boxes of each picture, best first."""
        heads = list(tensors[1 : self.levels + 1]), list(tensors[self.levels + 1 :])
        self.network.head = lambda features: heads
        boxes: list[Any] = self.network(self.images, self.features)[0]
        return boxes

    def filter_only(self, tensors: Sequence[Any]) -> Callable[[], Any]:
        """Decode now; the function that is returned does `filter_proposals` alone."""
        from torchvision.models.detection.rpn import concat_box_prediction_layers

        logits, deltas = list(tensors[1 : self.levels + 1]), list(tensors[self.levels + 1 :])
        counts = [x[0].numel() for x in logits]
        anchors = self.network.anchor_generator(self.images, list(self.features.values()))
        batch = len(tensors[0])
        flat_logits, flat_deltas = concat_box_prediction_layers(logits, deltas)
        boxes = self.network.box_coder.decode(flat_deltas, anchors).view(batch, -1, 4)
        sizes = self.images.image_sizes
        return lambda: self.network.filter_proposals(boxes, flat_logits, sizes, counts)


# ---------------------------------------------------------------------------------------------------- PyramidRoiAlign
class Pooler:
    """torchvision's `MultiScaleRoIAlign`; its scales are set, so that it does not infer them from sizes."""

    def __init__(self, attributes: Attributes) -> None:
        from torchvision.ops import MultiScaleRoIAlign
        from torchvision.ops.poolers import LevelMapper

        strides = attributes["strides"]
        self.names = [str(i) for i in range(len(strides))]
        self.pool = MultiScaleRoIAlign(self.names, attributes["output_size"], attributes["sampling_ratio"])
        self.pool.scales = [1 / stride for stride in strides]
        self.pool.map_levels = LevelMapper(2, 1 + len(strides))

    def __call__(self, tensors: Sequence[Any]) -> Any:
        """Patches `(B*N, C, S, S)`."""
        rois, maps = tensors[0], tensors[1:]
        sizes = [(0, 0)] * len(rois)  # only looked at where there are no scales yet
        return self.pool(dict(zip(self.names, maps, strict=True)), list(rois.to(maps[0].dtype)), sizes)


# ------------------------------------------------------------------------------------------------------- DetectionNms
class Postprocessor:
    """torchvision's `RoIHeads.postprocess_detections`."""

    def __init__(self, case: Case) -> None:
        from torchvision.models.detection.roi_heads import RoIHeads

        rule = case.attributes
        limits = rule["score_threshold"], rule["nms_threshold"], rule["detections_per_image"]
        self.heads = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, rule["box_weights"], *limits)
        self.sizes = content_sizes(case.inputs[0])

    def __call__(self, tensors: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Boxes, scores and labels of each picture."""
        _, proposals, logits, deltas = tensors
        found: tuple[list[Any], list[Any], list[Any]] = self.heads.postprocess_detections(
            logits, deltas, list(proposals), self.sizes
        )
        return found


def torchvision_outputs(case: Case, device: str) -> list[list[Array]]:
    """What torchvision gives: for each picture boxes, or boxes, scores and labels; for pooling one array."""
    import torch

    tensors = upload(case, device)
    with torch.inference_mode():
        if case.op == "PyramidRoiAlign":
            return [[Pooler(case.attributes)(tensors).cpu().numpy()]]
        if case.op == "RpnProposals":
            return [[boxes.cpu().numpy()] for boxes in Proposer(case, device)(tensors)]
        found = Postprocessor(case)(tensors)
        return [[part.cpu().numpy() for part in picture] for picture in zip(*found, strict=True)]
