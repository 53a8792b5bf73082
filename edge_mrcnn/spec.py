"""`ModelSpec`: what every later stage must know about a network. It travels as JSON inside the ONNX file.

Anchors, preprocessing and box scaling all derive from this one place, which is what makes small and non-square
inputs come out right.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_mrcnn.errors import ExportError

METADATA_KEY = "edge_mrcnn.spec"
"""Key of the JSON text in the ONNX file's `metadata_props`."""

FORMAT = 1
"""Raised when a reader of the older format would misread the newer one."""

STRIDE_MULTIPLE = 32
"""Canvas sides are multiples of this, so that the backbone's stages halve evenly."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a network that is not in its graph.

    Attributes:
        name: Zoo name, such as `maskrcnn_resnet50_fpn`.
        input_hw: Canvas `(H, W)` in pixels, multiples of 32.
        class_names: Name of each label the network gives; `class_names[label]`. torchvision's models have
            `__background__` at 0, which is never given.
        mean: Per channel (R, G, B), on a scale of 0 to 1; subtracted inside the graph.
        std: Per channel, on a scale of 0 to 1; divided by inside the graph.
        proposals: Proposals per picture (P).
        detections: Detections per picture (D), an upper limit.
        mask_size: Side of a mask patch (M); 0 where the network gives no masks.
        score_threshold: Below this the network gives no detection.
        ops: Attributes of each custom op by its role in the graph: `rpn_proposals`, `box_roi_align`,
            `detection_nms`, and `mask_roi_align` or `keypoint_roi_align` where it has these heads.
        keypoint_names: Name of each keypoint (K); empty where the network gives none.
        keypoint_size: Side of a keypoint's heatmap (S); 0 where there are none.
        keypoint_labels: For each keypoint the labels whose things have it, such as a mug its handle; empty where every
            thing has every keypoint.
        skeleton: Pairs of keypoints to draw a line between.
        format: Version of this layout.
    """

    name: str
    input_hw: tuple[int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    proposals: int = 1000
    detections: int = 100
    mask_size: int = 28
    score_threshold: float = 0.05
    ops: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    keypoint_names: tuple[str, ...] = ()
    keypoint_size: int = 0
    keypoint_labels: tuple[tuple[int, ...], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Check what every later stage relies on.

        Raises:
            ValueError: A side of the canvas is not a positive multiple of 32, there are no classes, or what is said of
                keypoints contradicts itself.
        """
        check_canvas(self.input_hw)
        if not self.class_names:
            raise ValueError("ModelSpec.class_names is empty: give one name per label, the background's included")
        count = len(self.keypoint_names)
        if bool(count) != (self.keypoint_size > 0):
            raise ValueError(f"ModelSpec has {count} keypoint_names, but keypoint_size is {self.keypoint_size}")
        if len(self.keypoint_labels) not in (0, count):
            raise ValueError(f"ModelSpec.keypoint_labels has {len(self.keypoint_labels)} entries for {count} keypoints")
        if any(not 0 <= end < count for pair in self.skeleton for end in pair):
            raise ValueError(f"ModelSpec.skeleton names a keypoint that is none of the {count}: {self.skeleton}")

    def to_json(self) -> str:
        """The spec as one line of JSON."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote.

        Raises:
            ExportError: The text is not a spec, or one of a newer format.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            version = fields.get("format")
        except (json.JSONDecodeError, AttributeError) as error:
            raise ExportError(
                f"the model's spec is unreadable ({error}); export it again: edge-mrcnn export"
            ) from error
        if version != FORMAT:
            raise ExportError(
                f"the model's spec has format {version}, this version of edge_mrcnn reads {FORMAT}; "
                "export it again with this version: edge-mrcnn export"
            )
        try:
            return cls(**{name: _freeze(value) for name, value in fields.items()})
        except (TypeError, ValueError) as error:
            raise ExportError(f"the model's spec is damaged ({error}); export it again: edge-mrcnn export") from error

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: object = "the model") -> ModelSpec:
        """Read the spec out of an ONNX file's metadata.

        Args:
            metadata: The file's `metadata_props` as a mapping.
            path: Named in the error.

        Raises:
            ExportError: There is no spec: the file was not made by `edge-mrcnn export`.
        """
        if METADATA_KEY not in metadata:
            raise ExportError(
                f"{path} carries no edge_mrcnn spec, so its classes, size and normalisation are unknown; "
                "make it with: edge-mrcnn export MODEL_NAME --weights FILE, or, where torch made this file, "
                f"edge-mrcnn import {path}"
            )
        return cls.from_json(metadata[METADATA_KEY])


def _freeze(value: Any) -> Any:
    """Lists as tuples, also those in lists; the attributes of ops stay as they are."""
    return tuple(_freeze(each) for each in value) if isinstance(value, list) else value


def check_canvas(hw: tuple[int, int]) -> None:
    """Check a canvas size `(H, W)` in pixels.

    Raises:
        ValueError: A side is not a positive multiple of 32; the message names the nearest size that is.
    """
    if all(side > 0 and side % STRIDE_MULTIPLE == 0 for side in hw):
        return
    near = [max(STRIDE_MULTIPLE, round(side / STRIDE_MULTIPLE) * STRIDE_MULTIPLE) for side in hw]
    raise ValueError(
        f"input size {hw[0]}x{hw[1]} (HxW) must be positive multiples of {STRIDE_MULTIPLE}; "
        f"nearest: {near[0]}x{near[1]}"
    )


def parse_size(text: str) -> tuple[int, int]:
    """Read `HxW`, such as `480x640`, as `(H, W)` in pixels.

    Raises:
        ValueError: The text has another form.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdigit() and width.isdigit()):
        raise ValueError(f"size {text!r} is not of the form HxW, such as 480x640")
    return int(height), int(width)
