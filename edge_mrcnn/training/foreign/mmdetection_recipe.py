"""What mmdetection's config says of a Mask R-CNN, and what its checkpoints without a config are taken to mean.

Source: mmdetection configs/_base_/models/mask-rcnn_r50_fpn.py (`mask_rcnn_r50_fpn.py` in version 2) and
configs/mask_rcnn; the defaults of models/task_modules/prior_generators/anchor_generator.py,
models/task_modules/coders/delta_xywh_bbox_coder.py, models/backbones/resnet.py, mmcv ops/roi_align.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from edge_mrcnn.training.foreign import mmdetection_names as names
from edge_mrcnn.training.foreign.mmdetection_config import Config, find_all, look_up, numbers
from edge_mrcnn.training.foreign.weights import ForeignFile

log = logging.getLogger(__name__)

RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of red, green, blue from 0 to 255: `img_norm_cfg` of backbones from torchvision."""

BGR_MEAN = (103.53, 116.28, 123.675)
CAFFE_STD = (1.0, 1.0, 1.0)
CAFFE2_STD = (57.375, 57.12, 58.395)
"""Of blue, green, red: ResNets of Caffe have the deviation in their first convolution, ResNeXts of Caffe2 do not."""

CAFFE2_GROUPS = (32, 8)
"""Groups and their width of the one ResNeXt of mmdetection's that comes from Caffe2."""

CANVAS = (800, 1344)
"""The zoo's pictures have a shorter side of 800 and a longer one of at most 1333."""

_KINDS = (
    (("model",), ("MaskRCNN",)),
    (("model", "backbone"), ("ResNet", "ResNeXt")),
    (("model", "neck"), ("FPN",)),
    (("model", "rpn_head"), ("RPNHead",)),
    (("model", "rpn_head", "anchor_generator"), ("AnchorGenerator",)),
    (("model", "rpn_head", "bbox_coder"), ("DeltaXYWHBBoxCoder",)),
    (("model", "roi_head"), ("StandardRoIHead",)),
    (("model", "roi_head", "bbox_roi_extractor"), ("SingleRoIExtractor",)),
    (("model", "roi_head", "bbox_roi_extractor", "roi_layer"), ("RoIAlign",)),
    (("model", "roi_head", "mask_roi_extractor"), ("SingleRoIExtractor",)),
    (("model", "roi_head", "mask_roi_extractor", "roi_layer"), ("RoIAlign",)),
    (("model", "roi_head", "bbox_head"), ("Shared2FCBBoxHead", "ConvFCBBoxHead")),
    (("model", "roi_head", "bbox_head", "bbox_coder"), ("DeltaXYWHBBoxCoder",)),
    (("model", "roi_head", "mask_head"), ("FCNMaskHead",)),
    (("model", "test_cfg", "rpn", "nms"), ("nms",)),
    (("model", "test_cfg", "rcnn", "nms"), ("nms",)),
    (("test_cfg", "rcnn", "nms"), ("nms",)),
)
"""Where a config says a type, and the types that are supported."""

_VALUES: tuple[tuple[tuple[str, ...], Any], ...] = (
    (("model", "backbone", "dilations"), [1, 1, 1, 1]),
    (("model", "backbone", "strides"), [1, 2, 2, 2]),
    (("model", "neck", "num_outs"), 5),
    (("model", "rpn_head", "anchor_generator", "center_offset"), 0),
    (("model", "rpn_head", "anchor_generator", "centers"), None),
    (("model", "rpn_head", "bbox_coder", "target_means"), [0, 0, 0, 0]),
    (("model", "roi_head", "bbox_roi_extractor", "roi_layer", "aligned"), True),
    (("model", "roi_head", "mask_roi_extractor", "roi_layer", "aligned"), True),
    (("model", "roi_head", "bbox_head", "bbox_coder", "target_means"), [0, 0, 0, 0]),
)
"""Where a config says a value, and the only one that is supported, which is the default as well."""


@dataclass(frozen=True)
class Pixels:
    """How pictures go in.

    Attributes:
        mean: Of the channels in the network's order, from 0 to 255.
        std: Likewise.
        bgr: The first convolution takes blue first.
        caffe_strides: Strides are in 1x1 convolutions (`style='caffe'`).
    """

    mean: tuple[float, ...] = RGB_MEAN
    std: tuple[float, ...] = RGB_STD
    bgr: bool = False
    caffe_strides: bool = False


@dataclass(frozen=True)
class Recipe:
    """Numbers of a config that the weights do not tell; the defaults are mmdetection's `mask-rcnn_r50_fpn`.

    Attributes:
        scales: Sides of anchors by the stride of their level.
        ratios: Heights of anchors by their widths.
        strides: Of the RPN's levels.
        rpn_stds: What the RPN's deltas are multiplied by.
        box_stds: What the box head's are multiplied by.
        sampling: Of each pool, box and mask: samples of a bin and side, 0 for as many as cells.
        finest_scale: Of each pool: boxes smaller than twice of it are of the first level.
        candidates: Of each level, before NMS.
        proposals: After it.
        proposal_iou: NMS threshold of the RPN.
        score: Detections score more.
        detection_iou: NMS threshold of detections.
        detections: Upper limit.
        canvas: Input size (H, W).
    """

    scales: tuple[float, ...] = (8.0,)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    rpn_stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    box_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    sampling: tuple[int, int] = (0, 0)
    finest_scale: tuple[int, int] = (56, 56)
    candidates: int = 1000
    proposals: int = 1000
    proposal_iou: float = 0.7
    score: float = 0.05
    detection_iou: float = 0.5
    detections: int = 100
    canvas: tuple[int, int] = CANVAS


def check_config(config: Config, source: str) -> None:
    """Refuse what a config says and our parts cannot do.

    Raises:
        ExportError: With where the config says it.
    """
    found = [(path, look_up(config, *path, "type"), kinds) for path, kinds in _KINDS]
    wrong = [f"{'.'.join(path)} is a {kind}" for path, kind, kinds in found if kind not in (None, *kinds)]
    for path, value in _VALUES:
        said = look_up(config, *path)
        if said is not None and said != value:
            wrong.append(f"{'.'.join(path)} is {said}")
    if wrong:
        raise ExportError(
            f"{source} cannot be imported: by the config in it, {'; '.join(wrong)}. {names.SUPPORTED}, as in its "
            "configs/mask_rcnn"
        )


def read_recipe(config: Config) -> Recipe:
    """Read the numbers out of a config; what it does not say is mmdetection's default."""
    usual = Recipe()
    rpn, roi, test = (look_up(config, "model", part) or {} for part in ("rpn_head", "roi_head", "test_cfg"))
    test = test or config.get("test_cfg") or {}
    pools = [look_up(roi, f"{kind}_roi_extractor") or {} for kind in ("bbox", "mask")]
    samples = [look_up(pool, "roi_layer", "sampling_ratio") or 0 for pool in pools]
    finest = [look_up(pool, "finest_scale") or 56 for pool in pools]
    anchors = look_up(rpn, "anchor_generator")
    strides = numbers(look_up(anchors, "strides"), 5)
    first, second = look_up(test, "rpn") or {}, look_up(test, "rcnn") or {}
    return Recipe(
        scales=numbers(look_up(anchors, "scales")) or usual.scales,
        ratios=numbers(look_up(anchors, "ratios")) or usual.ratios,
        strides=tuple(int(stride) for stride in strides) if strides else usual.strides,
        rpn_stds=numbers(look_up(rpn, "bbox_coder", "target_stds"), 4) or usual.rpn_stds,
        box_stds=numbers(look_up(roi, "bbox_head", "bbox_coder", "target_stds"), 4) or usual.box_stds,
        sampling=(int(samples[0]), int(samples[1])),
        finest_scale=(int(finest[0]), int(finest[1])),
        candidates=int(first.get("nms_pre") or usual.candidates),
        proposals=int(first.get("max_per_img") or first.get("max_num") or usual.proposals),
        proposal_iou=float(look_up(first, "nms", "iou_threshold") or first.get("nms_thr") or usual.proposal_iou),
        score=float(_first(second.get("score_thr"), usual.score)),
        detection_iou=float(_first(look_up(second, "nms", "iou_threshold"), usual.detection_iou)),
        detections=int(second.get("max_per_img") or usual.detections),
        canvas=_read_canvas(config) or usual.canvas,
    )


def choose_pixels(file: ForeignFile, config: Config, groups: int, width: int, options: ImportOptions) -> Pixels:
    """Mean, deviation, order of channels and place of strides: asked for, else the config's, else the weights' kind."""
    said = _read_pixels(config) or _guess_pixels(file, groups, width)
    bgr = said.bgr if options.channels is None else options.channels == "bgr"
    order = 1 if bgr == said.bgr else -1
    caffe = said.caffe_strides if options.strides is None else options.strides == "caffe"
    pixels = Pixels(options.mean or said.mean[::order], options.std or said.std[::order], bgr, caffe)
    log.info(
        "%s: channels %s, mean %s, std %s, strides in %s convolutions; %s, and --channels, --mean, --std, --strides "
        "change it",
        *(file.source, "BGR" if bgr else "RGB", _text(pixels.mean), _text(pixels.std), "1x1" if caffe else "3x3"),
        "by the config in it" if config else "as in mmdetection's model zoo, since no config is in it",
    )
    return pixels


def _read_pixels(config: Config) -> Pixels | None:
    """What a config says of pictures; None where it says nothing. Versions 2 and 3 call and place it differently."""
    preprocessor = look_up(config, "model", "data_preprocessor") or config.get("data_preprocessor")
    normalise = config.get("img_norm_cfg") or next(find_all(config, "Normalize"), None)
    for where, key, usual in ((preprocessor, "bgr_to_rgb", False), (normalise, "to_rgb", True)):
        mean, std = numbers(look_up(where, "mean"), 3), numbers(look_up(where, "std"), 3)
        if mean and std:
            bgr = not _first(look_up(where, key), usual)
            return Pixels(mean, std, bgr, look_up(config, "model", "backbone", "style") == "caffe")
    return None


def _guess_pixels(file: ForeignFile, groups: int, width: int) -> Pixels:
    """What the model zoo does with such a backbone.

    Backbones from Caffe and Caffe2 came without statistics of their norms, mean 0 and variance 1, and mmdetection
    keeps a backbone's statistics as they are while it trains (`norm_eval`).
    """
    mean, variance = (file.tensors.get(f"backbone.bn1.running_{part}") for part in ("mean", "var"))
    blank = mean is not None and not bool(mean.any())
    if not blank or variance is None or float((variance - 1).abs().max()) > 1e-3:
        return Pixels()
    if groups == 1:
        return Pixels(BGR_MEAN, CAFFE_STD, bgr=True, caffe_strides=True)
    return Pixels(BGR_MEAN, CAFFE2_STD, bgr=True) if (groups, width) == CAFFE2_GROUPS else Pixels()


def _read_canvas(config: Config) -> tuple[int, int] | None:
    """The canvas that holds the pictures of the test pipeline, rounded up to multiples of 32."""
    steps = config.get("test_pipeline")
    found = [step.get("img_scale") or step.get("scale") for step in find_all(steps, "MultiScaleFlipAug", "Resize")]
    scales = [scale for scale in (numbers(each, 2) for each in found) if scale and min(scale) >= 1]
    if not scales:
        return None
    short, long = (-(-int(side) // 32) * 32 for side in sorted(scales[0]))
    return short, long


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next(value for value in values if value is not None)


def _text(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
