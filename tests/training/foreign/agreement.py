"""An imported model, run by torch and as exported, against the restatement of the project that it comes from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.ops import box_iou

from edge_mrcnn.class_names import complete_class_names
from edge_mrcnn.training.export import trace_model
from tests.training.foreign.restated import Found
from tests.training.foreign.restated_steps import Picture
from tests.training.foreign.states import canvas_of
from tests.training.random_models import PADDING, Reference

IOU = 0.99
SCORE = 2e-3
MASK = 1e-3
SURE = 0.052
"""Detections that score less may be lost to a rounding error at the threshold, 0.05."""

LEAST = 8
"""Fewer detections than these compare too little."""


def check_model(model: MaskRCNN, picture: Picture, want: Found) -> None:
    """Check an imported model on a picture, as torch runs it.

    Args:
        model: In evaluation mode, with as many proposals and detections as the restatement gave.
        picture: `(h, w, 3)` uint8 RGB, smaller than its canvas, so that padding counts.
        want: What the restatement found.
    """
    reference = Reference(model, *letterbox(picture))
    overlap = box_iou(want.proposals, reference.proposals[0])
    assert float((overlap.amax(1) > IOU).float().mean()) > 0.98, "proposals"
    (found,) = reference.detect()
    check_found(want, {**found, "masks": found["masks"][:, 0]})


def check_exported(model: MaskRCNN, picture: Picture, want: Found) -> None:
    """Check an imported model on a picture, exported and run by ONNX Runtime. Arguments as `check_model`."""
    classes = model.roi_heads.box_predictor.cls_score.out_features
    proto, _ = trace_model(model, "imported", canvas_of(picture), complete_class_names(None, classes))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, dict(zip(("images", "image_hw"), letterbox(picture), strict=True)))
    outputs = {name: torch.as_tensor(value[0]) for name, value in zip(names, values, strict=True)}
    count = int(outputs.pop("num_detections"))
    check_found(want, {name: value[:count] for name, value in outputs.items()})


def letterbox(picture: Picture) -> tuple[Picture, npt.NDArray[np.float32]]:
    """Images `(1, H, W, 3)`, padded with grey, and their contents' sizes `(1, 2)`."""
    padded = np.full((1, *canvas_of(picture), 3), PADDING, np.uint8)
    padded[0, : picture.shape[0], : picture.shape[1]] = picture
    return padded, np.array([picture.shape[:2]], np.float32)


def check_found(want: Found, found: Mapping[str, Tensor]) -> None:
    """Check that detections are the same, whatever their order: boxes, scores, labels and masks."""
    sure = want.scores >= SURE
    assert int(sure.sum()) >= LEAST
    overlap = box_iou(want.boxes, found["boxes"])
    overlap[want.classes[:, None] + 1 != found["labels"]] = 0
    assert (overlap[:, found["scores"] >= SURE].amax(0) >= IOU).all(), "something is found that should not be"
    best, row = (each[sure] for each in overlap.max(1))
    assert (best >= IOU).all()
    assert len(set(row.tolist())) == len(row)
    assert float((want.scores[sure] - found["scores"][row]).abs().max()) <= SCORE
    assert float((want.masks[sure] - found["masks"][row]).abs().mean()) <= MASK
