"""`Exportable`: a torchvision Mask or Keypoint R-CNN as a module that `torch.onnx.export` can trace.

It calls the model's own backbone and heads; everything whose shape depends on the data (proposals, RoIAlign, NMS) is a
custom op with the attributes that the model's modules hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic_multi_out
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from edge_mrcnn.compiler.network_outputs import KEYPOINT_MAPS, MASK_LOGITS
from edge_mrcnn.errors import ExportError
from edge_mrcnn.ops import (
    DETECTION_NMS,
    DOMAIN,
    MAX_LEVELS,
    PLUGIN_ATTRIBUTES,
    PYRAMID_ROI_ALIGN,
    RPN_PROPOSALS,
    VERSION,
    OpSpec,
)
from edge_mrcnn.spec import check_canvas
from edge_mrcnn.training.conventions import LEVEL_EPS, AlignedRoIAlign, GivenAnchors

DETECTION_OUTPUTS = ("num_detections", "boxes", "scores", "labels")
"""First outputs of `Exportable`, in this order."""

HEAD_OUTPUTS: Mapping[str, str] = {"mask": MASK_LOGITS, "keypoint": KEYPOINT_MAPS}
"""Heads that a network may have beside the one for boxes, and the output each adds, in this order."""

DETECTION_MIN_SIZE = 0.01
"""Pixels. Source: torchvision models/detection/roi_heads.py, a literal in `postprocess_detections`."""

Attributes = dict[str, Any]


class Exportable(nn.Module):
    """Backbone, RPN head and the heads of a Mask R-CNN, Keypoint R-CNN or both around the custom ops.

    Attributes:
        input_hw: Canvas (H, W) in pixels.
        num_classes: With the background.
        heads: The heads beside the one for boxes: of `mask` and `keypoint` those that there are.
        mask_size: Side of a mask patch (M); 0 without masks.
        num_keypoints: Number of keypoints (K); 0 without them.
        keypoint_size: Side of a keypoint's heatmap (S); 0 without them.
        ops: Attributes of each custom op by its role: `rpn_proposals`, `box_roi_align`, `detection_nms`, and
            `mask_roi_align`, `keypoint_roi_align` where there are such heads. Heads that pool alike share the former.
        mean: Per channel (R, G, B), on a scale of 0 to 1.
        std: Per channel, on a scale of 0 to 1.
    """

    def __init__(self, model: GeneralizedRCNN, input_hw: tuple[int, int]) -> None:
        """Take the parts out of `model` and read every attribute from them.

        Args:
            model: In evaluation mode; its modules are shared, not copied.
            input_hw: Canvas (H, W) in pixels, multiples of 32.

        Raises:
            ValueError: The canvas has other sides.
            ExportError: A part of the model is of a type, or has a shape, that the custom ops do not cover.
        """
        super().__init__()
        check_canvas(input_hw)
        self.heads = _check_parts(model)
        heads, rpn = model.roi_heads, model.rpn
        self.input_hw = input_hw
        self.mean = _three(model.transform.image_mean, "mean")
        self.std = _three(model.transform.image_std, "std")
        self.backbone, self.rpn_head = model.backbone, rpn.head
        self.box_head, self.box_predictor = heads.box_head, heads.box_predictor
        for part in (f"{name}_{part}" for name in self.heads for part in ("head", "predictor")):
            setattr(self, part, getattr(heads, part))
        with torch.no_grad():
            shapes = {name: tuple(x.shape[1:]) for name, x in self._features(torch.zeros(1, 3, *input_hw)).items()}
        strides = _strides(shapes, input_hw)
        self.num_classes = int(heads.box_predictor.cls_score.out_features)
        self.ops: dict[str, Attributes] = {"rpn_proposals": _proposal_attributes(rpn, list(strides.values()))}
        self._levels: dict[str, list[str]] = {}
        self._roles: dict[str, str] = {}
        self._add_pool("box", heads.box_roi_pool, strides)
        self.ops["detection_nms"] = _detection_attributes(heads)
        for name in self.heads:
            self._add_pool(name, getattr(heads, f"{name}_roi_pool"), strides)
        masks, self.mask_size = self._patch("mask", shapes)
        self.num_keypoints, self.keypoint_size = self._patch("keypoint", shapes)
        if self.mask_size and masks != self.num_classes:
            raise ExportError(
                f"the mask predictor gives {masks} masks for {self.num_classes} classes (with the background); "
                "expected one for each"
            )

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of what `forward` gives, in its order."""
        return (*DETECTION_OUTPUTS, *(HEAD_OUTPUTS[name] for name in self.heads))

    def _add_pool(self, name: str, pool: MultiScaleRoIAlign, strides: Mapping[str, int]) -> None:
        """Note attributes and feature maps of a head's pool, under the role of one that pools the same rois alike."""
        levels = _pooled_levels(pool, strides, f"{name}_roi_pool")
        attributes = _pool_attributes(pool, [strides[level] for level in levels])
        counts = {role: len(taken) for role, taken in self._levels.items()}
        if any(len(levels) != count for count in counts.values()):
            raise ExportError(
                f"{name}_roi_pool takes {len(levels)} feature maps, {counts}: all must take as many, since they share "
                "one op"
            )
        same = [
            role
            for role in self._levels
            if role != "box_roi_align" and self.ops[role] == attributes and self._levels[role] == levels
        ]
        role = same[0] if same else f"{name}_roi_align"
        self._roles[name], self._levels[role], self.ops[role] = role, levels, attributes

    def _patch(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Number of maps that a head gives of a roi and their side, 0 and 0 where there is no such head."""
        if name not in self.heads:
            return 0, 0
        role = self._roles[name]
        size = self.ops[role]["output_size"]
        with torch.no_grad():
            given = self._run_head(name, torch.zeros(1, shapes[self._levels[role][0]][0], size, size))
        _, count, height, width = given.shape
        if height != width:
            raise ExportError(f"the {name} predictor gives maps of {height}x{width}; only square ones are supported")
        return int(count), int(height)

    def _run_head(self, name: str, pooled: Tensor) -> Tensor:
        result: Tensor = getattr(self, f"{name}_predictor")(getattr(self, f"{name}_head")(pooled))
        return result

    def _features(self, x: Tensor) -> Mapping[str, Tensor]:
        """Feature maps by name, finest first; a backbone without a pyramid gives one."""
        features = self.backbone(x)
        return features if isinstance(features, Mapping) else {"0": features}

    def normalise(self, images: Tensor, image_hw: Tensor) -> Tensor:
        """Bytes to the backbone's input; the padding is exactly 0, as torchvision pads after normalising.

        Args:
            images: `(B, H, W, 3)` uint8 RGB.
            image_hw: `(B, 2)` float32, size of the content at the top left.

        Returns:
            `(B, 3, H, W)` float32.
        """
        x = images.float().permute(0, 3, 1, 2)  # cast first: TensorRT has no transposition of bytes
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        x = (x / 255.0 - mean) / std
        height, width = torch.split(image_hw.reshape(-1, 2, 1, 1), 1, dim=1)
        rows = torch.arange(images.shape[1], dtype=torch.float32).reshape(1, 1, -1, 1)
        columns = torch.arange(images.shape[2], dtype=torch.float32).reshape(1, 1, 1, -1)
        inside = (rows < height) & (columns < width)
        return torch.mul(x, inside.float())

    def forward(self, images: Tensor, image_hw: Tensor) -> tuple[Tensor, ...]:
        """Trace the network; outside of an export the custom ops give zeros.

        Args:
            images: `(B, H, W, 3)` uint8 RGB, letterboxed at the top left.
            image_hw: `(B, 2)` float32, size of the content.

        Returns:
            num_detections `(B,)` int32, boxes `(B, D, 4)`, scores `(B, D)`, labels `(B, D)` int32, then, where there
            are such heads, the mask logits of all classes `(B*D, C, M, M)` and the heatmaps `(B*D, K, S, S)`.
        """
        features = self._features(self.normalise(images, image_hw))
        objectness, deltas = self.rpn_head(list(features.values()))
        (proposals,) = _call_op(RPN_PROPOSALS, (image_hw, *objectness, *deltas), self.ops["rpn_proposals"])
        logits, box_deltas = self.box_predictor(self.box_head(self._pool("box_roi_align", proposals, features)))
        found = _call_op(DETECTION_NMS, (image_hw, proposals, logits, box_deltas), self.ops["detection_nms"])
        roles = dict.fromkeys(self._roles[name] for name in self.heads)
        pooled = {role: self._pool(role, found[1], features) for role in roles}
        return (*found, *(self._run_head(name, pooled[self._roles[name]]) for name in self.heads))

    def _pool(self, role: str, rois: Tensor, features: Mapping[str, Tensor]) -> Tensor:
        levels = [features[name] for name in self._levels[role]]
        (pooled,) = _call_op(PYRAMID_ROI_ALIGN, (rois, *levels), self.ops[role])
        return pooled


def _call_op(op: OpSpec, inputs: Sequence[Tensor], attributes: Attributes) -> Sequence[Tensor]:
    """Write a node of a custom op."""
    shapes = op.output_shapes([x.shape for x in inputs], attributes)
    types = {"float32": torch.float32, "int32": torch.int32, "features": inputs[-1].dtype}
    return symbolic_multi_out(
        f"{DOMAIN}::{op.name}",
        inputs,
        {**attributes, **PLUGIN_ATTRIBUTES},
        dtypes=[types[tensor.dtype] for tensor in op.outputs],
        shapes=shapes,
        version=int(VERSION),
    )


# ------------------------------------------------------------------------- what the parts must be, and their attributes
def _check_parts(model: GeneralizedRCNN) -> tuple[str, ...]:
    """Check the types of a model's parts: only what the custom ops compute can be exported.

    Returns:
        The heads beside the one for boxes.
    """
    # a subclass may compute something else, unless it is a whole model: torchvision's override constructors only
    if not isinstance(model, GeneralizedRCNN) or type(model).forward is not GeneralizedRCNN.forward:
        raise ExportError(
            f"model is a {type(model).__name__}, which cannot be exported; supported: torchvision's MaskRCNN, "
            "KeypointRCNN and FasterRCNN"
        )
    _check_part(model.transform, "model.transform", GeneralizedRCNNTransform)
    _check_part(model.rpn, "model.rpn", RegionProposalNetwork)
    _check_part(model.rpn.anchor_generator, "model.rpn.anchor_generator", AnchorGenerator, GivenAnchors)
    _check_part(model.rpn.box_coder, "model.rpn.box_coder", BoxCoder)
    _check_part(model.roi_heads, "model.roi_heads", RoIHeads)
    _check_part(model.roi_heads.box_coder, "model.roi_heads.box_coder", BoxCoder)
    there = {"mask": model.roi_heads.has_mask(), "keypoint": model.roi_heads.has_keypoint()}
    heads = tuple(name for name in HEAD_OUTPUTS if there[name])
    for name in (f"{head}_roi_pool" for head in ("box", *heads)):
        _check_part(getattr(model.roi_heads, name), f"model.roi_heads.{name}", MultiScaleRoIAlign, AlignedRoIAlign)
    predictor = model.roi_heads.box_predictor
    if not all(isinstance(getattr(predictor, name, None), nn.Linear) for name in ("cls_score", "bbox_pred")):
        raise ExportError(
            f"model.roi_heads.box_predictor is a {type(predictor).__name__} without linear layers cls_score and "
            "bbox_pred; supported: torchvision's FastRCNNPredictor"
        )
    return heads


def _check_part(part: object, name: str, *supported: type) -> None:
    if type(part) in supported:  # a subclass may compute something else
        return
    known = " or ".join(each.__name__ for each in supported)
    raise ExportError(f"{name} is a {type(part).__name__}, which cannot be exported; supported: {known}")


def _strides(shapes: Mapping[str, tuple[int, ...]], input_hw: tuple[int, int]) -> dict[str, int]:
    """Nominal stride of each feature map, a power of two.

    Source: torchvision ops/poolers.py `_infer_scale`.
    """
    if not 1 <= len(shapes) <= MAX_LEVELS:
        raise ExportError(f"the backbone gives {len(shapes)} feature maps; 1 to {MAX_LEVELS} are supported")
    strides = {}
    for name, (_, *grid) in shapes.items():
        stride_y, stride_x = (2 ** round(math.log2(side / cells)) for side, cells in zip(input_hw, grid, strict=True))
        if stride_y != stride_x:
            raise ExportError(
                f"feature map {name!r} has {grid[0]}x{grid[1]} cells on a canvas of {input_hw[0]}x{input_hw[1]}: "
                "its strides differ; use a larger canvas"
            )
        strides[name] = stride_y
    return strides


def _pooled_levels(pool: MultiScaleRoIAlign, backbone: Mapping[str, int], name: str) -> list[str]:
    """Names of the feature maps that a pool takes. Source: torchvision ops/poolers.py `_filter_input`."""
    levels = [level for level in backbone if level in pool.featmap_names]
    if not levels:
        raise ExportError(
            f"{name} takes the feature maps {list(pool.featmap_names)}, but the backbone gives {list(backbone)}"
        )
    return levels


def _proposal_attributes(rpn: RegionProposalNetwork, strides: list[int]) -> Attributes:
    """Attributes of `RpnProposals`. Source: torchvision models/detection/rpn.py."""
    cells = rpn.anchor_generator.cell_anchors
    given = list(getattr(rpn.anchor_generator, "strides", strides))
    if given != strides:
        raise ExportError(f"the anchor generator has strides {given}, the backbone's feature maps {strides}")
    if len(cells) != len(strides):
        raise ExportError(f"the anchor generator has {len(cells)} levels, the backbone {len(strides)}")
    if len({len(level) for level in cells}) != 1:
        raise ExportError(f"all levels must have as many anchors per cell, got {[len(level) for level in cells]}")
    return {
        "cell_anchors": [float(v) for level in cells for v in level.flatten()],
        "strides": strides,
        "stride_rule": "fixed" if isinstance(rpn.anchor_generator, GivenAnchors) else "grid",
        **_coder_attributes(rpn.box_coder),
        "pre_nms_top_n": int(rpn._pre_nms_top_n["testing"]),
        "post_nms_top_n": int(rpn._post_nms_top_n["testing"]),
        "nms_threshold": float(rpn.nms_thresh),
        "score_threshold": float(rpn.score_thresh),
        "min_size": float(rpn.min_size),
    }


def _pool_attributes(pool: MultiScaleRoIAlign, strides: list[int]) -> Attributes:
    """Attributes of `PyramidRoiAlign`. Source: torchvision ops/poolers.py."""
    height, width = pool.output_size
    if height != width:
        raise ExportError(f"a RoI pool gives patches of {height}x{width}; only square ones are supported")
    if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise ExportError(f"a RoI pool takes feature maps of strides {strides}; each must be twice the one before")
    return {
        "strides": strides,
        "output_size": int(height),
        "sampling_ratio": max(int(pool.sampling_ratio), 0),
        "aligned": int(isinstance(pool, AlignedRoIAlign)),
        "canonical_scale": float(pool.canonical_scale),
        "canonical_level": int(pool.canonical_level),
        "level_eps": float(getattr(pool, "level_eps", LEVEL_EPS)),
    }


def _detection_attributes(heads: RoIHeads) -> Attributes:
    """Attributes of `DetectionNms`. Source: torchvision models/detection/roi_heads.py."""
    classes, deltas = heads.box_predictor.cls_score.out_features, heads.box_predictor.bbox_pred.out_features
    if deltas not in (4, 4 * classes):
        raise ExportError(f"the box predictor gives {classes} classes and {deltas} deltas; expected {4 * classes} or 4")
    return {
        **_coder_attributes(heads.box_coder),
        "score_threshold": float(heads.score_thresh),
        "nms_threshold": float(heads.nms_thresh),
        "min_size": DETECTION_MIN_SIZE,
        "detections_per_image": int(heads.detections_per_img),
        "background": "first",
        "class_agnostic": int(deltas == 4),
    }


def _coder_attributes(coder: BoxCoder) -> Attributes:
    return {"box_weights": [float(v) for v in coder.weights], "bbox_xform_clip": float(coder.bbox_xform_clip)}


def _three(values: Sequence[float], name: str) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ExportError(f"model.transform.image_{name} has {len(values)} values; one for R, G and B each is needed")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
