"""Export: a network of the zoo with its weights becomes one ONNX file that runs in ONNX Runtime as it is."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops.misc import FrozenBatchNorm2d

from edge_mrcnn.class_names import complete_class_names, read_class_names
from edge_mrcnn.compiler.function_bodies import OPSET
from edge_mrcnn.compiler.model_file import check_writable, write_model
from edge_mrcnn.errors import ExportError
from edge_mrcnn.spec import ModelSpec, parse_size
from edge_mrcnn.training.checkpoint import load_checkpoint
from edge_mrcnn.training.exportable import OUTPUT_NAMES, Exportable
from edge_mrcnn.training.finish import finish_graph
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
    names, size = _describe_weights(entry, options)
    model = build_model(model_name, options.num_classes, options.weights)
    if options.weights is None:
        log.warning("%s has random weights: give trained ones with --weights FILE", model_name)
    _apply_limits(model, options)
    classes = int(model.roi_heads.box_predictor.cls_score.out_features)
    if options.class_names is not None:
        names = read_class_names(options.class_names)
    log.info("exporting %s at %dx%d", model_name, *size)
    proto, spec = trace_model(model, model_name, size, complete_class_names(names, classes))
    write_model(proto, spec, output)
    log.info("wrote %s: %.1f MB, %d classes, input %dx%d", output, output.stat().st_size / 1e6, classes, *size)
    return spec


def trace_model(
    model: MaskRCNN, name: str, input_hw: tuple[int, int], class_names: Sequence[str]
) -> tuple[onnx.ModelProto, ModelSpec]:
    """Trace a Mask R-CNN into an ONNX model with custom ops, their function bodies and its spec.

    Args:
        model: Any torchvision Mask R-CNN; not changed.
        name: Written into the spec.
        input_hw: Canvas (H, W) in pixels, multiples of 32.
        class_names: Name of each label, the background first.

    Returns:
        The ONNX model, with a dynamic batch, and its spec.

    Raises:
        ValueError: The canvas has other sides.
        ExportError: A weight is not finite, a part of the model is not supported, or the number of names is wrong.
    """
    _check_finite(model)
    module = Exportable(_thaw_norms(model), input_hw).eval()
    if len(class_names) != module.num_classes:
        raise ExportError(f"{len(class_names)} class names for {module.num_classes} classes (with the background)")
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
    )
    proto = _trace(module)
    finish_graph(proto, spec)
    return proto, spec


def _describe_weights(entry: ModelEntry, options: ExportOptions) -> tuple[Sequence[str] | None, tuple[int, int]]:
    """Class names, where the weights tell them, and the canvas."""
    names: Sequence[str] | None = None
    size = entry.default_size
    weights = options.weights
    if weights is not None and entry.weights and weights in entry.weights.__members__ and not Path(weights).is_file():
        names = [str(name) for name in entry.weights[weights].meta["categories"]]
    elif weights is not None and Path(weights).is_file():
        checkpoint = load_checkpoint(weights)
        names, size = checkpoint.class_names, checkpoint.size or size
    return names, parse_size(options.size) if options.size else size


def _apply_limits(model: MaskRCNN, options: ExportOptions) -> None:
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


def _thaw_norms(model: MaskRCNN) -> MaskRCNN:
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
            output_names=list(OUTPUT_NAMES),
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
