"""`CompareOptions`: what a comparison of precisions is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.evaluation.agreement import THRESHOLD
from edge_mrcnn.evaluation.bootstrap import RESAMPLES

LABELS = ("fp32", "fp16", "int8", "int8-cpu")
"""What a model can be made into for a comparison; fp16 and int8 are TensorRT's, emulated on a CPU."""


@dataclass(frozen=True)
class CompareOptions:
    """How precisions are compared."""

    precisions: tuple[str, ...] = ()
    """Of fp32, fp16, int8 and int8-cpu, with commas or spaces between them. fp16 and int8 are what TensorRT computes,
    emulated on a CPU; int8-cpu are ONNX Runtime's integer kernels. By default fp32 and fp16, and int8 where there are
    ranges."""

    ranges: Path | None = None
    """Ranges of the model's activations, from `edge-mrcnn calibrate`; for int8, unless the model brings Q/DQ nodes of
    its own."""

    keep_fp16: tuple[str, ...] = ()
    """Regular expressions, searched in the names of layers: int8 does not quantise these."""

    keep_fp32: tuple[str, ...] = ()
    """Likewise: these layers stay in float32, with fp16 too."""

    threshold: float = THRESHOLD
    """Score from which detections count when agreement with the reference is measured."""

    resamples: int = RESAMPLES
    """Of the paired bootstrap behind the intervals."""

    seed: int = 0
    """Of the resamples: same seed, same intervals."""

    classes: Literal["equal", "common"] = "equal"
    """equal: the model's classes and the data's categories must have the same names.
    common: names that both have count; the others are left out, of detections and truth alike."""

    every: int = 1
    """Of frames, take every so many-th."""

    limit: int | None = None
    """Take the first so many pictures only; all when not given."""

    worst: int = 6
    """Pictures that are shown, of those on which the precisions disagree most."""

    runs: int = 20
    """Timed runs of each network that is not emulated; 0 measures no latency."""

    threads: int = 0
    """CPU threads of every network; 0 for all cores this process may use."""

    def __post_init__(self) -> None:
        """Split `precisions` at commas and check what can be checked without a model.

        Raises:
            ValueError: An option has a value it cannot have.
        """
        labels = tuple(label.strip() for text in self.precisions for label in text.split(",") if label.strip())
        object.__setattr__(self, "precisions", tuple(dict.fromkeys(labels)))
        for label in self.precisions:
            if label not in LABELS:
                raise ValueError(f"precision {label!r}: {', '.join(LABELS)} are known, with commas between them")
        Recipe("int8", keep_fp16=self.keep_fp16, keep_fp32=self.keep_fp32)  # checks the expressions
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"CompareOptions.threshold must be from 0 to 1, got {self.threshold}")
        least = {"resamples": 1, "every": 1, "limit": 1, "worst": 0, "runs": 0, "threads": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"CompareOptions.{name} must be at least {smallest}, got {value}")
