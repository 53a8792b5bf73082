"""Names in detectron2's checkpoints: which of them become which of ours, and which mean other architectures."""

from __future__ import annotations

import re

from edge_mrcnn.errors import ExportError
from edge_mrcnn.training.foreign.layout import Rules
from edge_mrcnn.training.foreign.weights import ForeignFile

SUPPORTED = (
    "Of its models Mask R-CNN and Keypoint R-CNN with FPN, and Mask R-CNN C4, can be imported, on a ResNet-50, -101, "
    "-152 or ResNeXt with frozen or plain batch norm"
)

CLASSES = "roi_heads.box_predictor.cls_score.weight"
BOXES = "roi_heads.box_predictor.bbox_pred.weight"
MASKS = "roi_heads.mask_head.predictor.weight"
KEYPOINTS = "roi_heads.keypoint_head.score_lowres.weight"
ANCHORS = r"proposal_generator\.anchor_generator\.cell_anchors\.\d+"

UNUSED = (r"pixel_(mean|std)", ANCHORS, r".*\.num_batches_tracked")
"""In some checkpoints, and read elsewhere or not needed."""

_OWN = re.compile(
    r"proposal_generator\.|backbone\.(bottom_up|fpn_|stem|res\d|net)|roi_heads\.(box|mask|res5)|head\.(cls|bbox)_subnet|"
    r"sem_seg_head\.|stem\.conv1\.|res\d_\d+_branch"
)


def is_detectron2(name: str) -> bool:
    """Whether a weight of that name is of detectron2, and not of torchvision."""
    return bool(_OWN.match(name)) and not re.match(r"roi_heads\.(box_predictor|box_head\.fc[67]|mask_head\.\d)", name)


def _block_rules(ours: str, theirs: str) -> Rules:
    """Rules for a stage of bottlenecks."""
    return (
        (rf"{re.escape(ours)}\.(\d+)\.conv(\d)\.weight", rf"{theirs}.\1.conv\2.weight"),
        (rf"{re.escape(ours)}\.(\d+)\.bn(\d)\.(\w+)", rf"{theirs}.\1.conv\2.norm.\3"),
        (rf"{re.escape(ours)}\.(\d+)\.downsample\.0\.weight", rf"{theirs}.\1.shortcut.weight"),
        (rf"{re.escape(ours)}\.(\d+)\.downsample\.1\.(\w+)", rf"{theirs}.\1.shortcut.norm.\2"),
    )


def _trunk_rules(theirs: str, stages: int) -> Rules:
    """Rules for a ResNet up to a stage."""
    return (
        (r"backbone\.body\.conv1\.weight", f"{theirs}stem.conv1.weight"),
        (r"backbone\.body\.bn1\.(\w+)", rf"{theirs}stem.conv1.norm.\1"),
        *(
            rule
            for stage in range(1, stages + 1)
            for rule in _block_rules(f"backbone.body.layer{stage}", f"{theirs}res{stage + 1}")
        ),
    )


_HEADS: Rules = (
    (r"rpn\.head\.conv\.0\.0\.(\w+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"roi_heads\.box_predictor\.(\w+)\.(\w+)", r"roi_heads.box_predictor.\1.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"roi_heads.mask_head.predictor.\1"),
)

RULES: dict[str, Rules] = {
    "fpn": (
        *_trunk_rules("backbone.bottom_up.", 4),
        *(
            (rf"backbone\.fpn\.{ours}\.{level}\.0\.(\w+)", rf"backbone.{theirs}{level + 2}.\1")
            for ours, theirs in (("inner_blocks", "fpn_lateral"), ("layer_blocks", "fpn_output"))
            for level in range(4)
        ),
        *_HEADS,
        (r"roi_heads\.box_head\.fc6\.(\w+)", r"roi_heads.box_head.fc1.\1"),
        (r"roi_heads\.box_head\.fc7\.(\w+)", r"roi_heads.box_head.fc2.\1"),
        *(
            (rf"roi_heads\.mask_head\.{index}\.0\.(\w+)", rf"roi_heads.mask_head.mask_fcn{index + 1}.\1")
            for index in range(16)
        ),
        *(
            (rf"roi_heads\.keypoint_head\.{2 * index}\.(\w+)", rf"roi_heads.keypoint_head.conv_fcn{index + 1}.\1")
            for index in range(16)
        ),
        (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.(\w+)", r"roi_heads.keypoint_head.score_lowres.\1"),
    ),
    "c4": (
        *_trunk_rules("backbone.", 3),
        *_HEADS,
        *_block_rules("roi_heads.box_head.layer4", "roi_heads.res5"),
    ),
}
"""From our names to detectron2's, by kind."""

OTHERS = (
    (r"res\d_\d+_branch.*|stem\.conv1\..*", "a backbone trained on ImageNet alone, without a detector"),
    (r"head\.ctrness\..*", "an FCOS"),
    (r"head\.(cls|bbox)_subnet\..*|head\.cls_score\..*", "a RetinaNet"),
    (r"sem_seg_head\.(pixel_decoder|predictor\.\w+)\..*", "a MaskFormer"),
    (r"roi_heads\.box_(head|predictor)\.\d+\..*", "a Cascade R-CNN"),
    (r"roi_heads\.mask_(head\.)?(point|coarse)_head\..*", "a PointRend"),
    (r"roi_heads\.densepose_\w+\..*", "a DensePose"),
    (r"roi_heads\.(mesh|voxel|z)_head\..*", "a Mesh R-CNN"),
    (r"sem_seg_head\..*", "a Panoptic FPN"),
    (
        r"backbone\.net\..*|backbone\.bottom_up\.(patch_embed|blocks|layers)\..*",
        "a detector with a transformer's backbone",
    ),
    (r".*\.conv2_offset\..*", "a model with deformable convolutions"),
    (
        r"backbone\.fpn_\w+\.norm\..*",
        "a model with norms in its pyramid, such as those trained from scratch (GN, SyncBN)",
    ),
    (r"roi_heads\.\w+\.(conv|mask_fcn)\d+\.norm\..*", "a model with norms in its heads, such as with group norm"),
    (r"roi_heads\.box_head\.(conv\d+|fc[3-9])\..*", "a model whose box head is not of two linear layers"),
    (r"backbone\.res5\..*", "a model on a dilated fifth stage (DC5)"),
)
"""Names by which other architectures are known, the most telling first."""


def refuse_others(file: ForeignFile) -> None:
    """Refuse architectures that cannot become one of ours.

    Raises:
        ExportError: With the architecture's name and what is supported.
    """
    what = _other(set(file.tensors))
    if what:
        raise ExportError(f"{file.source} is a checkpoint of detectron2, but of {what}. {SUPPORTED}")


def _other(found: set[str]) -> str | None:
    """What a model is that is not supported, by names that it has or lacks."""
    for pattern, what in OTHERS:
        if any(re.fullmatch(pattern, name) for name in found):
            return what
    prefix = "backbone.bottom_up." if any(name.startswith("backbone.bottom_up.") for name in found) else "backbone."
    needed = (
        ("roi_heads.", "a network for proposals alone (RPN)"),
        ("proposal_generator.", "a Fast R-CNN, which takes its proposals from elsewhere"),
        ((MASKS, KEYPOINTS), "a Faster R-CNN, which gives boxes only"),
        (f"{prefix}res2.0.conv1.weight", "a model whose backbone is no ResNet"),
        (f"{prefix}res2.0.conv3.weight", "a model on a ResNet-18 or -34, whose blocks have two convolutions"),
        (f"{prefix}stem.conv1.norm.running_mean", "a model whose backbone has no batch norm, such as with group norm"),
    )
    for start, what in needed:
        if not any(name.startswith(start) for name in found):
            return what
    return None
