"""What a model is timed against: torchvision's own forward, and torchvision's own ONNX export in ONNX Runtime.

Each is a subject of `edge_mrcnn.evaluation.bench.compare`. They take pictures of the network's input size, so that
every subject sees the same pixels, and end with full-size masks where the network gives masks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from edge_mrcnn.errors import EdgeMrcnnError, ExportError
from edge_mrcnn.evaluation.bench import Picture, StageTimes
from edge_mrcnn.evaluation.machine import usable_cores
from edge_mrcnn.spec import check_canvas
from edge_mrcnn.training.zoo import build_model

logger = logging.getLogger(__name__)

LEGACY_OPSET = 17
"""Opset of the legacy export: RoiAlign needs 16, and the exporter writes no newer one than 20."""


class EagerSubject:
    """torchvision's own forward in eager PyTorch, on the CPU."""

    name = "torchvision eager"
    includes = (
        "pre: to a float tensor, torchvision's transform (normalise, resize by 1); infer: backbone, RPN and heads; "
        "post: torchvision's mask pasting"
    )
    pastes_inside = False

    def __init__(self, model: GeneralizedRCNN, threads: int = 0) -> None:
        """Wrap a model that is in evaluation mode; `threads` of 0 takes all cores."""
        self.model = model
        self.threads = threads or usable_cores()
        self.backend = f"PyTorch {torch.__version__.partition('+')[0]}, CPU"

    @torch.inference_mode()
    def run(self, image: Picture) -> StageTimes:
        """Time one picture `(H, W, 3)` of the input's size."""
        torch.set_num_threads(self.threads)
        start = time.perf_counter()
        images, _ = self.model.transform([_to_tensor(image)])
        ready = time.perf_counter()
        found = _forward_heads(self.model, images)
        done = time.perf_counter()
        results = self.model.transform.postprocess(found, images.image_sizes, [image.shape[:2]])
        return _timings(start, ready, done, len(results[0]["scores"]))


class RawOnnxSubject:
    """torchvision's model through the legacy exporter, in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, *, pastes_inside: bool, threads: int = 0) -> None:
        """Open an exported file; `threads` of 0 takes all cores.

        Raises:
            ExportError: ONNX Runtime is missing.
        """
        self.threads = threads or usable_cores()
        self.pastes_inside = pastes_inside
        self.session = _open_session(path, self.threads)
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.backend = "ONNX Runtime, CPU"
        self.name = "torchvision ONNX, masks pasted inside" if pastes_inside else "torchvision ONNX, network only"
        inside = "the graph, masks pasted in it" if pastes_inside else "the graph without pasting"
        after = "nothing" if pastes_inside else "torchvision's mask pasting"
        self.includes = f"pre: to a float array; infer: {inside} (transform, network); post: {after}"

    def run(self, image: Picture) -> StageTimes:
        """Time one picture `(H, W, 3)` of the size the file was exported for."""
        start = time.perf_counter()
        feed = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255
        ready = time.perf_counter()
        found = dict(zip(self._outputs, self.session.run(None, {"image": feed}), strict=True))
        done = time.perf_counter()
        if not self.pastes_inside and "masks" in found:
            torch.set_num_threads(self.threads)
            masks, boxes = torch.from_numpy(found["masks"]), torch.from_numpy(found["boxes"])
            paste_masks_in_image(masks, boxes, image.shape[:2])
        return _timings(start, ready, done, len(found["scores"]))


class _WithoutPasting(nn.Module):
    """torchvision's forward up to mask patches: boxes and masks are not brought to the size of the picture."""

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        images, _ = self.model.transform([image])
        return _forward_heads(self.model, images)[0]


class _WithPasting(nn.Module):
    """torchvision's forward as it is, with one picture as its argument."""

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.model([image])[0]
        return found


def torchvision_eager(
    model_name: str,
    weights: str | Path | None,
    size: tuple[int, int],
    *,
    num_classes: int | None = None,
    threads: int = 0,
) -> EagerSubject:
    """Wrap torchvision's own forward at a fixed input size.

    Args:
        model_name: Name in the zoo, as `ModelSpec.name` has it.
        weights: The checkpoint that the model under test was exported from, or None for random weights: their number
            of detections differs, and so does the time of what follows them.
        size: Input `(H, W)` in pixels, multiples of 32.
        num_classes: With the background; None for the checkpoint's.
        threads: CPU threads; 0 for all cores.

    Raises:
        ValueError: The name is not in the zoo, or the size is no canvas.
        EdgeMrcnnError: The weights cannot be loaded.
    """
    return EagerSubject(_build(model_name, weights, size, num_classes), threads)


def raw_torchvision_onnx(
    model_name: str,
    weights: str | Path | None,
    size: tuple[int, int],
    *,
    num_classes: int | None = None,
    paste_masks: bool = True,
    threads: int = 0,
    output: Path | None = None,
) -> RawOnnxSubject:
    """Open torchvision's model as its legacy ONNX export, at a fixed input size, in ONNX Runtime.

    Args:
        model_name: Name in the zoo.
        weights: As for `torchvision_eager`.
        size: Input `(H, W)` in pixels, multiples of 32.
        num_classes: With the background; None for the checkpoint's.
        paste_masks: Whether the graph pastes the masks, as torchvision's export does; if not, it ends with mask patches
            and can be compared as a network.
        threads: CPU threads; 0 for all cores.
        output: Where to keep the file; None for nowhere.

    Raises:
        ValueError: The name is not in the zoo, or the size is no canvas.
        EdgeMrcnnError: The weights cannot be loaded, or the installed torch has no legacy exporter any more.
    """
    model = _build(model_name, weights, size, num_classes)
    with tempfile.TemporaryDirectory() as folder:
        path = output or Path(folder) / "raw.onnx"
        export_raw(model, size, path, paste_masks=paste_masks)
        return RawOnnxSubject(path, pastes_inside=paste_masks, threads=threads)


def export_raw(model: GeneralizedRCNN, size: tuple[int, int], path: Path, *, paste_masks: bool) -> None:
    """Write torchvision's model with the legacy exporter: input `image (3, H, W)` float32, 0 to 1.

    Raises:
        ExportError: The legacy exporter failed or is gone.
    """
    wrapper = _WithPasting(model) if paste_masks else _WithoutPasting(model)
    outputs = ["boxes", "labels", "scores"]
    outputs += ["masks"] if model.roi_heads.has_mask() else []
    outputs += ["keypoints", "keypoints_scores"] if model.roi_heads.has_keypoint() else []
    try:
        with _quiet():
            torch.onnx.export(
                wrapper.eval(),
                (torch.rand(3, *size, generator=torch.Generator().manual_seed(0)),),
                path,
                dynamo=False,
                opset_version=LEGACY_OPSET,
                input_names=["image"],
                output_names=outputs,
            )
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ExportError(
            f"torch {torch.__version__} cannot write torchvision's raw ONNX ({error}); its legacy exporter is being "
            "removed: compare with torchvision's eager forward only, or install an older torch"
        ) from error


def _build(
    model_name: str, weights: str | Path | None, size: tuple[int, int], num_classes: int | None
) -> GeneralizedRCNN:
    check_canvas(size)
    model = build_model(model_name, num_classes, weights)
    # Pictures come at this size, so torchvision's own resize is by 1.
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    return model


def _forward_heads(model: GeneralizedRCNN, images: Any) -> list[dict[str, Tensor]]:
    """Run torchvision's forward from the batch to boxes and mask patches in pixels of the resized picture."""
    features = model.backbone(images.tensors)
    proposals, _ = model.rpn(images, features)
    found: list[dict[str, Tensor]] = model.roi_heads(features, proposals, images.image_sizes)[0]
    return found


def _to_tensor(image: Picture) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().to(torch.float32) / 255


def _timings(start: float, ready: float, done: float, detections: int) -> StageTimes:
    end = time.perf_counter()
    return StageTimes((ready - start) * 1e3, (done - ready) * 1e3, (end - done) * 1e3, detections)


def _open_session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EdgeMrcnnError(f"comparing with raw ONNX needs onnxruntime ({error}): pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the legacy exporter's warnings about tracing off the terminal: its graph is a rival, not our product."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
