"""Names in mmdetection's checkpoints: which of them become which of ours, and which mean other architectures.

Source: mmdetection models/backbones/resnet.py, models/necks/fpn.py, models/dense_heads/rpn_head.py,
models/roi_heads/bbox_heads/convfc_bbox_head.py, models/roi_heads/mask_heads/fcn_mask_head.py (2.0 to 3.3).
"""

from __future__ import annotations

import re

from edge_mrcnn.errors import ExportError
from edge_mrcnn.training.foreign.layout import Rules
from edge_mrcnn.training.foreign.weights import ForeignFile

SUPPORTED = "Supported is mmdetection's Mask R-CNN with FPN, of ResNet-50, -101, -152 or ResNeXt, of mmdetection 2 or 3"

PREFIXES = ("bbox_head.", "mask_head.", "neck.", "rpn_head.", "roi_head.", "panoptic_head.")
"""What names of mmdetection's detectors begin with, whatever the architecture."""

CLASSES = "roi_head.bbox_head.fc_cls.weight"
BOXES = "roi_head.bbox_head.fc_reg.weight"
MASKS = "roi_head.mask_head.conv_logits.weight"
DECONVOLUTION = "roi_head.mask_head.upsample.weight"

UNUSED = (r".*\.num_batches_tracked", r"data_preprocessor\.(mean|std)")
"""In some checkpoints, and not needed."""

RULES: Rules = (
    (r"backbone\.body\.(.*)", r"backbone.\1"),
    *(
        (rf"backbone\.fpn\.{ours}\.(\d)\.0\.(\w+)", rf"neck.{theirs}.\1.conv.\2")
        for ours, theirs in (("inner_blocks", "lateral_convs"), ("layer_blocks", "fpn_convs"))
    ),
    (r"rpn\.head\.conv\.0\.0\.(\w+)", r"rpn_head.rpn_conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn_head.rpn_cls.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn_head.rpn_reg.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"roi_head.bbox_head.shared_fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"roi_head.bbox_head.shared_fcs.1.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"roi_head.bbox_head.fc_cls.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"roi_head.bbox_head.fc_reg.\1"),
    (r"roi_heads\.mask_head\.(\d+)\.0\.(\w+)", r"roi_head.mask_head.convs.\1.conv.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"roi_head.mask_head.upsample.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"roi_head.mask_head.conv_logits.\1"),
)
"""From our names to mmdetection's. Its ResNets call their layers as torchvision's do."""

OTHERS = (
    (r"roi_head\.semantic_head\..*|roi_head\.mask_head\.\d+\.conv_res\..*", "a Hybrid Task Cascade (HTC)"),
    (r"roi_head\.bbox_head\.\d+\..*", "a Cascade R-CNN"),
    (r"roi_head\.mask_iou_head\..*", "a Mask Scoring R-CNN"),
    (r"roi_head\.(point_head|mask_head\.(fcs|downsample_conv|fc_logits))\..*", "a PointRend"),
    (r"roi_head\.grid_head\..*", "a Grid R-CNN"),
    (r"roi_head\.shared_head\..*", "a C4 model"),
    (r"roi_head\.bbox_head\.(conv|fc)_branch\..*", "a Double-Head R-CNN"),
    (r"roi_head\.bbox_head\.(shared|cls|reg)_convs\..*", "a model whose box head has convolutions"),
    (r"roi_head\.bbox_head\.(shared_fcs\.[2-9]|(cls|reg)_fcs)\..*", "a model whose box head has more linear layers"),
    (r"bbox_head\.retina_\w+\..*", "a RetinaNet"),
    (r"bbox_head\.conv_centerness\..*", "an FCOS"),
    (r"bbox_head\.convs_pred\..*", "a YOLOv3"),
    (r"bbox_head\.multi_level_\w+\..*", "a YOLOX"),
    (r"(bbox_head\.transformer|bbox_head\.query_embedding|query_embedding|encoder|decoder)\..*", "a DETR"),
    (r"(panoptic_head|panoptic_fusion_head)\..*", "a MaskFormer"),
    (r"(bbox_head|mask_head)\..*", "a detector of one stage"),
    (r"semantic_head\..*", "a Panoptic FPN"),
    (r"neck\.(downsample|pafpn)_convs\..*", "a model with PAFPN in place of FPN"),
    (r"neck\.\w+\.\d+\.(bn|gn|norm)\..*", "a model with norms in its pyramid"),
    (r"neck\.(?!lateral_convs|fpn_convs).*", "a model whose neck is no FPN"),
    (r"neck\.fpn_convs\.[4-9]\..*", "a model whose pyramid ends in convolutions of its own"),
    (
        r"rpn_head\.(stages|conv_loc|conv_shape|feature_adaption)\..*",
        "a model with guided anchors or a cascade of RPNs",
    ),
    (r"rpn_head\.rpn_conv\.\d+\..*", "a model whose RPN has more convolutions than one"),
    (r".*\.conv_offset\..*", "a model with deformable convolutions"),
    (r"backbone\.(patch_embed|stages|blocks|downsample_layers)\..*", "a model on a transformer or ConvNeXt"),
    (r"backbone\.stem\..*", "a model on a ResNet with a deep stem (v1c, v1d, ResNeSt)"),
    (r"backbone\.gn1\..*|.*\.mask_head\.convs\.\d+\.(bn|gn)\..*", "a model with group norm, or norms in its heads"),
)
"""Names by which other architectures are known, the most telling first."""


def refuse_others(file: ForeignFile) -> None:
    """Refuse architectures that cannot become one of ours.

    Raises:
        ExportError: With the architecture's name and what is supported.
    """
    what = _other(set(file.tensors))
    if what:
        raise ExportError(f"{file.source} is {what}, which cannot be imported. {SUPPORTED}")


def _other(found: set[str]) -> str | None:
    """What a model is that is not supported, by names that it has or lacks."""
    prefixes = {name.partition(".")[0] for name in found}
    if "rpn_head" in prefixes and prefixes & {"bbox_head", "mask_head"}:
        return (
            "a checkpoint of mmdetection 1, whose anchors and boxes count pixels in another way and whose background "
            "comes first"
        )
    for pattern, what in OTHERS:
        if any(re.fullmatch(pattern, name) for name in found):
            return f"{what} of mmdetection"
    needed = (
        (("roi_head.",), "a network for proposals alone (RPN)"),
        (("rpn_head.",), "a Fast R-CNN, which takes its proposals from elsewhere"),
        (("roi_head.mask_head.",), "a Faster R-CNN, which gives boxes only"),
        (("neck.",), "a model without a feature pyramid"),
        (("backbone.layer4.0.conv1.",), "a model whose backbone is no ResNet of four stages"),
        (("backbone.layer4.0.conv3.",), "a model on a ResNet-18 or -34, whose blocks have two convolutions"),
    )
    for starts, what in needed:
        if not any(name.startswith(starts) for name in found):
            return f"{what}, of mmdetection"
    return None
