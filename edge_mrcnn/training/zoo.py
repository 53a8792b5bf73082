"""The model zoo: every network of the project by name. Each is a plain torchvision `MaskRCNN` or `KeypointRCNN`.

Norm layers follow torchvision's constructors, so that state dicts load: frozen batch norm where a network starts from
weights trained with it, batch norm where it is trained from scratch.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model
from torchvision.models.detection import (
    KeypointRCNN_ResNet50_FPN_Weights,
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops.misc import FrozenBatchNorm2d

from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.training.c4 import maskrcnn_c4
from edge_mrcnn.training.checkpoint import CLASS_KEY, Checkpoint, load_checkpoint, load_state
from edge_mrcnn.training.edge_model import DEFAULT_SIZE as EDGE_SIZE
from edge_mrcnn.training.edge_model import keypointrcnn_edge, maskrcnn_edge
from edge_mrcnn.training.keypoint_labels import KeypointNames
from edge_mrcnn.training.keypoints import COCO_PERSON, TABLETOP_KEYPOINTS

log = logging.getLogger(__name__)

COCO_CLASSES = 91
"""COCO's category ids run to 90, with gaps; torchvision's models keep them as labels."""

TABLETOP_CLASSES = 11
"""The tabletop's ten classes and the background; a test holds it against the generator."""

PERSON_CLASSES = 2
"""The background and a person."""

MIN_CLASSES = 2
"""The background and one class."""

Builder = Callable[..., GeneralizedRCNN]
"""`(num_classes, frozen)` to an untrained model, with keypoints `(num_classes, frozen, num_keypoints)`; `frozen` asks
for frozen batch norm."""


@dataclass(frozen=True)
class ModelEntry:
    """A network of the zoo.

    Attributes:
        name: Key in `MODELS`, and the name commands take.
        summary: One line for lists.
        default_size: Canvas (H, W) in pixels, multiples of 32.
        builder: Makes the untrained model.
        default_classes: Number of classes when none is asked for, the background included.
        weights: torchvision's pretrained weights, or None where there are none.
        class_names: Name of each of the default classes, the background first, where the network is for just those.
        keypoints: Of a network with keypoints those that it has when none are asked for, with the labels of the default
            classes; None where it has none.
    """

    name: str
    summary: str
    default_size: tuple[int, int]
    builder: Builder
    default_classes: int = COCO_CLASSES
    weights: type[WeightsEnum] | None = None
    class_names: tuple[str, ...] | None = None
    keypoints: KeypointNames | None = None


def build_model(
    name: str,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    *,
    num_keypoints: int | None = None,
    replace_class_layers: bool = False,
) -> GeneralizedRCNN:
    """Build a network of the zoo, in evaluation mode, and load its weights.

    Args:
        name: One of `MODELS`.
        num_classes: Number of classes, the background included. None takes the number a checkpoint of
            `edge-mrcnn train` records, and the entry's default otherwise.
        weights: A checkpoint file, a name of torchvision's weights such as `COCO_V1` or `DEFAULT` (fetched from the
            network unless cached), or None for random weights.
        num_keypoints: Number of keypoints. None takes the weights', and the entry's default otherwise.
        replace_class_layers: Where the weights are of another number of classes or keypoints, leave the layers that
            depend on it untrained instead of raising, and where they have no keypoints that whole head: to fine-tune.

    Raises:
        ValueError: The name is not in the zoo, `num_classes` is less than 2, or `num_keypoints` less than 1 or asked of
            a network without keypoints.
        EdgeMrcnnError: The weights cannot be read, fetched or loaded into this network.
    """
    entry = find_entry(name)
    if num_classes is not None and num_classes < MIN_CLASSES:
        raise ValueError(f"num_classes is {num_classes}: it counts the background, so at least 2 are needed")
    if num_keypoints is not None and (entry.keypoints is None or num_keypoints < 1):
        have = "it has no keypoints" if entry.keypoints is None else "at least 1 is needed"
        raise ValueError(f"num_keypoints is {num_keypoints} for {name}: {have}")
    if weights is None:
        return _build(entry, num_classes or entry.default_classes, num_keypoints).eval()
    checkpoint = load_checkpoint(weights) if _is_file(weights, entry) else _fetch(entry, str(weights))
    classes = num_classes or checkpoint.num_classes or entry.default_classes
    keypoints = num_keypoints or checkpoint.num_keypoints
    model = _build(entry, classes, keypoints, frozen=uses_frozen_norm(checkpoint.state_dict))
    found = checkpoint.state_dict.get(CLASS_KEY)
    load_state(
        model,
        checkpoint,
        keep_class_layers=not replace_class_layers or found is None or found.shape[0] == classes,
        keep_keypoint_layers=not replace_class_layers or checkpoint.num_keypoints in (None, keypoints),
        same_heads=not replace_class_layers,
    )
    if checkpoint.zero_norm_eps:
        _set_norm_eps(model, 0.0)
    return model.eval()


def _build(entry: ModelEntry, num_classes: int, num_keypoints: int | None, *, frozen: bool = False) -> GeneralizedRCNN:
    if entry.keypoints is None:
        return entry.builder(num_classes, frozen)
    return entry.builder(num_classes, frozen, num_keypoints or len(entry.keypoints.names))


def find_entry(name: str) -> ModelEntry:
    """The entry called `name`.

    Raises:
        ValueError: There is none; the message names the nearest.
    """
    if name in MODELS:
        return MODELS[name]
    near = difflib.get_close_matches(name, MODELS, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"model {name!r} is not in the zoo: {hint}The zoo has {', '.join(MODELS)}")


def uses_frozen_norm(state: dict[str, Tensor]) -> bool:
    """Whether a state dict comes from a backbone with frozen batch norm, which counts no batches."""
    body = [key for key in state if key.startswith("backbone.body.")]
    return any(key.endswith("running_mean") for key in body) and not any(
        key.endswith("num_batches_tracked") for key in body
    )


def _resnet50(num_classes: int, frozen: bool) -> MaskRCNN:
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
    return _freeze_norms(model) if frozen else model


def _resnet50_v2(num_classes: int, frozen: bool) -> MaskRCNN:
    model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=num_classes)
    return _freeze_norms(model) if frozen else model


def _resnet(backbone_name: str) -> Builder:
    """Builder of a model with one of torchvision's deeper ResNets under torchvision's FPN and heads."""

    def build(num_classes: int, frozen: bool) -> MaskRCNN:
        norm: Callable[..., nn.Module] = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
        backbone = resnet_fpn_backbone(backbone_name=backbone_name, weights=None, norm_layer=norm, trainable_layers=5)
        return MaskRCNN(backbone, num_classes)

    return build


def _c4(trunk_name: str) -> Builder:
    """Builder of a model whose regions each go through the last stage of one of torchvision's ResNets."""

    def build(num_classes: int, frozen: bool) -> MaskRCNN:
        norm: Callable[..., nn.Module] = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
        return maskrcnn_c4(get_model(trunk_name, weights=None, norm_layer=norm), num_classes)

    return build


def _edge(num_classes: int, frozen: bool) -> MaskRCNN:
    model = maskrcnn_edge(num_classes)
    return _freeze_norms(model) if frozen else model


def _keypoint_resnet50(num_classes: int, frozen: bool, num_keypoints: int) -> GeneralizedRCNN:
    model = keypointrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes, num_keypoints=num_keypoints
    )
    return _freeze_norms(model) if frozen else model


def _keypoint_edge(num_classes: int, frozen: bool, num_keypoints: int) -> GeneralizedRCNN:
    model = keypointrcnn_edge(num_classes, num_keypoints)
    return _freeze_norms(model) if frozen else model


def _freeze_norms(model: GeneralizedRCNN) -> GeneralizedRCNN:
    """Replace the backbone's batch norms by frozen ones of the same size, as torchvision does with its weights."""
    for parent in list(model.backbone.body.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, key, FrozenBatchNorm2d(child.num_features, eps=child.eps))
    return model


def _set_norm_eps(model: nn.Module, eps: float) -> None:
    """Set epsilon of every frozen batch norm. torchvision's COCO_V1 weights were trained with 0."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps


def _is_file(weights: str | Path, entry: ModelEntry) -> bool:
    """Whether `weights` means a file: anything but a bare name, unless a file of that very name lies here."""
    if isinstance(weights, Path) or Path(weights).is_file() or Path(weights).name != weights:
        return True
    if Path(weights).suffix:
        return True
    known = list(entry.weights.__members__) if entry.weights else []
    if weights not in known:
        raise EdgeMrcnnError(
            f"weights {weights!r} are neither a file nor pretrained weights of {entry.name}: "
            f"give the path of a checkpoint{' or one of ' + ', '.join(known) if known else ''}"
        )
    return False


def _fetch(entry: ModelEntry, name: str) -> Checkpoint:
    """Weights of torchvision, from its cache or the network."""
    assert entry.weights is not None
    member: Any = entry.weights[name]
    try:
        state = member.get_state_dict(progress=log.isEnabledFor(logging.INFO), check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise EdgeMrcnnError(
            f"weights {name} of {entry.name} cannot be fetched from {member.url}: {error}. "
            "Download that file on a machine that is online and give its path instead of the name"
        ) from error
    names = tuple(str(category) for category in member.meta["categories"])
    return Checkpoint(
        state_dict=dict(state), source=member.url, class_names=names, zero_norm_eps=uses_frozen_norm(state)
    )


MODELS: dict[str, ModelEntry] = {
    entry.name: entry
    for entry in (
        ModelEntry(
            "maskrcnn_resnet50_fpn",
            "torchvision's Mask R-CNN, ResNet-50-FPN, 44 M parameters",
            (800, 1088),
            _resnet50,
            weights=MaskRCNN_ResNet50_FPN_Weights,
        ),
        ModelEntry(
            "maskrcnn_resnet50_fpn_v2",
            "torchvision's improved Mask R-CNN, ResNet-50-FPN with convolutional heads, 46 M parameters",
            (800, 1088),
            _resnet50_v2,
            weights=MaskRCNN_ResNet50_FPN_V2_Weights,
        ),
        ModelEntry(
            "maskrcnn_resnet101_fpn",
            "Mask R-CNN, ResNet-101-FPN, 63 M parameters",
            (800, 1088),
            _resnet("resnet101"),
        ),
        ModelEntry(
            "maskrcnn_resnext101_fpn",
            "Mask R-CNN, ResNeXt-101-32x8d-FPN, 107 M parameters: the paper's best backbone family",
            (800, 1088),
            _resnet("resnext101_32x8d"),
        ),
        ModelEntry(
            "maskrcnn_resnet50_c4",
            "Mask R-CNN, ResNet-50-C4: one map of stride 16, the fifth stage as head, 36 M parameters",
            (800, 1088),
            _c4("resnet50"),
        ),
        ModelEntry(
            "maskrcnn_resnet101_c4",
            "Mask R-CNN, ResNet-101-C4: one map of stride 16, the fifth stage as head, 55 M parameters",
            (800, 1088),
            _c4("resnet101"),
        ),
        ModelEntry(
            "maskrcnn_edge",
            "compact Mask R-CNN for small devices, mobile backbone with FPN, 2 M parameters",
            EDGE_SIZE,
            _edge,
            default_classes=TABLETOP_CLASSES,
        ),
        ModelEntry(
            "keypointrcnn_resnet50_fpn",
            "torchvision's Keypoint R-CNN of people, ResNet-50-FPN, 17 keypoints, 59 M parameters",
            (800, 1088),
            _keypoint_resnet50,
            default_classes=PERSON_CLASSES,
            weights=KeypointRCNN_ResNet50_FPN_Weights,
            class_names=("__background__", "person"),
            keypoints=COCO_PERSON,
        ),
        ModelEntry(
            "keypointrcnn_edge",
            "maskrcnn_edge with keypoints beside the masks, 2 M parameters",
            EDGE_SIZE,
            _keypoint_edge,
            default_classes=TABLETOP_CLASSES,
            keypoints=TABLETOP_KEYPOINTS,
        ),
    )
}
