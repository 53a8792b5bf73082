"""`Recipe`: what each layer of a network is to compute in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edge_mrcnn.compiler.calibration.ranges import Ranges

Precision = Literal["fp32", "fp16", "int8"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

Dialect = Literal["tensorrt", "ort"]
"""Where Q/DQ nodes stand: as TensorRT fuses them, or as the integer kernels of ONNX Runtime on a CPU do."""


@dataclass(frozen=True)
class Recipe:
    """What each layer of a network is to compute in.

    Attributes:
        precision: What the network computes in; int8 stands for int8 where it pays and the precision below elsewhere
            (float16 in TensorRT, float32 in ONNX Runtime).
        ranges: Activation ranges for int8; None where the model brings its own Q/DQ nodes.
        keep_fp16: Regular expressions, searched in node names: these layers are not quantised.
        keep_fp32: Likewise: these are not even float16.
        dialect: Where Q/DQ nodes stand.
    """

    precision: Precision = "fp16"
    ranges: Ranges | None = None
    keep_fp16: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    dialect: Dialect = "tensorrt"

    def __post_init__(self) -> None:
        """Check the precision and the expressions.

        Raises:
            ValueError: The precision is unknown, or an expression cannot be read.
        """
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: one of {', '.join(PRECISIONS)} is expected")
        for name in ("keep_fp16", "keep_fp32"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{name}: {pattern!r} is no regular expression ({error})") from error

    def keeps_fp32(self, node: str) -> bool:
        """Whether a node is to stay in float32, by its name."""
        return any(re.search(pattern, node) for pattern in self.keep_fp32)

    def keeps_high(self, node: str) -> bool:
        """Whether a node is not to be quantised, by its name."""
        return self.keeps_fp32(node) or any(re.search(pattern, node) for pattern in self.keep_fp16)
