"""Export: a network of the zoo with its weights becomes one ONNX file that runs in ONNX Runtime as it is."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops.misc import FrozenBatchNorm2d

from edge_mrcnn.class_names import complete_class_names, read_class_names
from edge_mrcnn.compiler.function_bodies import OPSET
from edge_mrcnn.compiler.model_file import check_writable, write_model
from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from edge_mrcnn.spec import ModelSpec, parse_size
from edge_mrcnn.training.c4 import fold_shared_norms
from edge_mrcnn.training.checkpoint import load_checkpoint
from edge_mrcnn.training.exportable import Exportable
from edge_mrcnn.training.finish import finish_graph
from edge_mrcnn.training.keypoint_labels import KeypointNames
from edge_mrcnn.training.keypoints import numbered_keypoints
from edge_mrcnn.training.zoo import ModelEntry, build_model, find_entry

log = logging.getLogger(__name__)

INPUT_NAMES = ("images", "image_hw")

_CHATTER = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class ExportOptions:
    """What `export_model` can be told; None takes what the checkpoint or the zoo says."""

    weights: str | None = None
    """Checkpoint file, or a name of torchvision's weights such as DEFAULT. Without it the weights are random."""

    num_classes: int | None = None
    """Number of classes, the background included."""

    size: str | None = None
    """Input size HxW in pixels, multiples of 32, such as 480x640."""

    score_threshold: float | None = None
    """Detections with a lower score are not given."""

    detections: int | None = None
    """Upper limit of detections per picture."""

    proposals: int | None = None
    """Upper limit of proposals per picture: fewer are faster."""

    class_names: str | None = None
    """Class names without the background, separated by commas, or a text file with one a line."""

    keypoint_names: str | None = None
    """Names of the keypoints, separated by commas, or a text file with one a line; for networks that have some."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: One is out of range.
        """
        if self.score_threshold is not None and not 0 <= self.score_threshold < 1:
            raise ValueError(f"score_threshold must be from 0 to below 1, got {self.score_threshold}")
        for name in ("detections", "proposals"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.size is not None:
            parse_size(self.size)


def export_model(model_name: str, options: ExportOptions, output: Path) -> ModelSpec:
    """Write `model.onnx` for a network of the zoo.

    The file is complete and has run once on a blank picture before it appears under its name.

    Args:
        model_name: Name in the zoo.
        options: Weights, size and limits.
        output: The file to write; its folder must exist.

    Returns:
        The spec that is written into the file.

    Raises:
        ValueError: The name is not in the zoo, or an option is out of range.
        EdgeMrcnnError: The weights cannot be read or do not fit.
        ExportError: The model cannot be exported, or the file not be written.
    """
    entry = find_entry(model_name)
    check_writable(output)
    known = _describe_weights(entry, options)
    points = None if options.keypoint_names is None else read_class_names(options.keypoint_names)
    count = None if points is None else len(points)
    model = build_model(model_name, options.num_classes, options.weights, num_keypoints=count)
    if options.weights is None:
        log.warning("%s has random weights: give trained ones with --weights FILE", model_name)
    apply_limits(model, options)
    classes, size = int(model.roi_heads.box_predictor.cls_score.out_features), known.size
    names = known.class_names if options.class_names is None else read_class_names(options.class_names)
    if names is None and entry.class_names and len(entry.class_names) == classes:
        names = entry.class_names
    keypoints = _name_keypoints(entry, known.keypoints, points, model, classes)
    log.info("exporting %s at %dx%d", model_name, *size)
    proto, spec = trace_model(model, model_name, size, complete_class_names(names, classes), keypoints)
    write_model(proto, spec, output)
    log.info("wrote %s: %.1f MB, %d classes, input %dx%d", output, output.stat().st_size / 1e6, classes, *size)
    return spec


def trace_model(
    model: GeneralizedRCNN,
    name: str,
    input_hw: tuple[int, int],
    class_names: Sequence[str],
    keypoints: KeypointNames | None = None,
) -> tuple[onnx.ModelProto, ModelSpec]:
    """Trace a network into an ONNX model with custom ops, their function bodies and its spec.

    Args:
        model: Any torchvision Mask R-CNN, Keypoint R-CNN, Faster R-CNN, or one with both heads; not changed.
        name: Written into the spec.
        input_hw: Canvas (H, W) in pixels, multiples of 32.
        class_names: Name of each label, the background first.
        keypoints: Their names, labels and lines; None numbers them.

    Returns:
        The ONNX model, with a dynamic batch, and its spec.

    Raises:
        ValueError: The canvas has other sides.
        ExportError: A weight is not finite, a part of the model is not supported, or the number of names is wrong.
    """
    _check_finite(model)
    module = Exportable(fold_shared_norms(_thaw_norms(model)), input_hw).eval()
    if len(class_names) != module.num_classes:
        raise ExportError(f"{len(class_names)} class names for {module.num_classes} classes (with the background)")
    if keypoints is None:
        keypoints = numbered_keypoints(module.num_keypoints)
    if len(keypoints.names) != module.num_keypoints:
        raise ExportError(f"{len(keypoints.names)} keypoint names for a network with {module.num_keypoints} keypoints")
    spec = ModelSpec(
        name=name,
        input_hw=input_hw,
        class_names=tuple(class_names),
        mean=module.mean,
        std=module.std,
        proposals=module.ops["rpn_proposals"]["post_nms_top_n"],
        detections=module.ops["detection_nms"]["detections_per_image"],
        mask_size=module.mask_size,
        score_threshold=module.ops["detection_nms"]["score_threshold"],
        ops=module.ops,
        keypoint_names=keypoints.names,
        keypoint_size=module.keypoint_size,
        keypoint_labels=keypoints.labels,
        skeleton=keypoints.skeleton,
    )
    proto = _trace(module)
    finish_graph(proto, spec)
    return proto, spec


class _Known(NamedTuple):
    """What weights say of themselves."""

    class_names: Sequence[str] | None
    size: tuple[int, int]
    keypoints: KeypointNames | None


def _describe_weights(entry: ModelEntry, options: ExportOptions) -> _Known:
    """Class names and keypoints, where the weights tell them, and the canvas."""
    known = _Known(None, entry.default_size, None)
    weights = options.weights
    if weights is not None and entry.weights and weights in entry.weights.__members__ and not Path(weights).is_file():
        categories = [str(name) for name in entry.weights[weights].meta["categories"]]
        known = known._replace(class_names=entry.class_names or categories)
    elif weights is not None and Path(weights).is_file():
        checkpoint = load_checkpoint(weights)
        known = _Known(checkpoint.class_names, checkpoint.size or known.size, checkpoint.keypoints)
    return known._replace(size=parse_size(options.size)) if options.size else known


def _name_keypoints(
    entry: ModelEntry,
    known: KeypointNames | None,
    names: Sequence[str] | None,
    model: GeneralizedRCNN,
    classes: int,
) -> KeypointNames | None:
    """Keypoints of a model: the weights', or those of the zoo where their number is the same, under the names given."""
    if entry.keypoints is None:
        return None
    count = int(model.roi_heads.keypoint_predictor.out_channels)
    if known is None:
        labels = entry.keypoints.labels if classes == entry.default_classes else ()
        known = entry.keypoints._replace(labels=labels)
    if len(known.names) != count:
        known = numbered_keypoints(count)
    return known if names is None else known._replace(names=tuple(names))


def apply_limits(model: GeneralizedRCNN, options: ExportOptions | ImportOptions) -> None:
    """Set the limits that were asked for in a model's modules; the others stay."""
    if options.score_threshold is not None:
        model.roi_heads.score_thresh = options.score_threshold
    if options.detections is not None:
        model.roi_heads.detections_per_img = options.detections
    if options.proposals is not None:
        model.rpn._post_nms_top_n["testing"] = options.proposals


def _check_finite(model: nn.Module) -> None:
    bad = [
        name
        for name, value in model.state_dict().items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if bad:
        raise ExportError(
            f"{len(bad)} weights are NaN or infinite ({', '.join(bad[:5])}): the training diverged or the checkpoint "
            "is damaged; take an earlier checkpoint"
        )


def _thaw_norms(model: GeneralizedRCNN) -> GeneralizedRCNN:
    """The model, or a copy with its frozen batch norms replaced by plain ones, which the exporter folds away."""
    if not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules()):
        return model.eval()
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        for key, frozen in list(parent.named_children()):
            if isinstance(frozen, FrozenBatchNorm2d):
                plain = nn.BatchNorm2d(len(frozen.weight), eps=frozen.eps).eval()
                plain.load_state_dict(frozen.state_dict(), strict=False)  # but for the count of batches
                setattr(parent, key, plain)
    return model


def _trace(module: Exportable) -> onnx.ModelProto:
    height, width = module.input_hw
    examples = (
        torch.zeros(2, height, width, 3, dtype=torch.uint8),  # of one, the exporter would take the batch for fixed
        torch.tensor([[height, width]] * 2, dtype=torch.float32),
    )
    batch = torch.export.Dim("batch", min=1, max=1024)
    with _quiet():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: batch}, {0: batch}),
            input_names=list(INPUT_NAMES),
            output_names=list(module.output_names),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter, unless someone debugs."""
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    loggers = [logging.getLogger(name) for name in _CHATTER]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
