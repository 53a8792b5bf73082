"""What `edge-mrcnn import` can be told, whatever the file is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_mrcnn.spec import check_canvas, parse_size


@dataclass(frozen=True)
class ImportOptions:
    """What an import can be told; None takes what the file says."""

    size: str | None = None
    """Input size HxW in pixels, multiples of 32, such as 480x640."""

    class_names: str | None = None
    """Class names without the background, separated by commas, or a text file with one a line."""

    score_threshold: float | None = None
    """Detections with a lower score are not given."""

    detections: int | None = None
    """Upper limit of detections per picture."""

    proposals: int | None = None
    """Upper limit of proposals per picture: fewer are faster."""

    mean: tuple[float, float, float] | None = None
    """Of a checkpoint: its pixels' mean on a scale of 0 to 255, in the order of its channels, as its config says it."""

    std: tuple[float, float, float] | None = None
    """Of a checkpoint: its pixels' standard deviation, likewise."""

    channels: Literal["bgr", "rgb"] | None = None
    """Of a checkpoint: order of the channels that it was trained with."""

    strides: Literal["caffe", "pytorch"] | None = None
    """Of a checkpoint: whether its ResNet's strides are in 1x1 (caffe) or 3x3 convolutions (pytorch)."""

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
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be more than 0, got {self.std}")
        if self.size is not None:
            check_canvas(parse_size(self.size))

    def check_for_onnx(self) -> None:
        """Check that nothing is asked for that only checkpoints leave open.

        Raises:
            ValueError: Something is; the message names it.
        """
        for name in ("mean", "std", "channels", "strides"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is for checkpoints, which do not say it; an ONNX file does: leave it out")
