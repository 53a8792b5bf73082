"""`Ranges`: what calibration found, as the file `ranges.json`.

One file serves every backend: TensorRT wants one number for each tensor (int8, symmetric about 0), ONNX Runtime's
integer kernels two (uint8, from `low` to `high`). All methods are in the file, since they come from the same pass over
the pictures; `method` says which one builds use.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_mrcnn.errors import CalibrationError
from edge_mrcnn.files import write_text

FORMAT = 1
"""Raised when a reader of the older format would misread the newer one."""

Method = Literal["max", "percentile", "entropy", "mse"]

METHODS: tuple[Method, ...] = ("max", "percentile", "entropy", "mse")

PERCENTILE = 99.99
"""Per cent of the values that method `percentile` keeps, unless it is told otherwise."""

CALIBRATE = "measure them again: edge-mrcnn calibrate model.onnx PICTURES -o ranges.json"


@dataclass(frozen=True)
class TensorRange:
    """Range of one tensor.

    Attributes:
        low: Smallest value seen.
        high: Largest value seen.
        symmetric: By method, the largest magnitude that int8 should hold: 127 steps each way.
        affine: By method, the interval `(low, high)` that uint8 should hold in 255 steps; it includes 0.
    """

    low: float
    high: float
    symmetric: Mapping[str, float]
    affine: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Ranges:
    """Activation ranges of a model.

    Attributes:
        model: The model's name in its spec.
        onnx_sha256: Of the ONNX file that was measured.
        method: The method that builds use.
        tensors: Range by tensor name in that ONNX file.
        pictures: SHA-256 of each picture's pixels as the network saw them, in order.
        sources: What the pictures were read from.
        warnings: What was said about the pictures.
        edge_mrcnn: Version of this package.
        onnxruntime: Version of ONNX Runtime that computed the activations.
        percentile: Per cent of the values that method `percentile` keeps.
        format: Version of this layout.
    """

    model: str
    onnx_sha256: str
    method: Method
    tensors: Mapping[str, TensorRange]
    pictures: tuple[str, ...]
    sources: tuple[str, ...]
    warnings: tuple[str, ...]
    edge_mrcnn: str
    onnxruntime: str
    percentile: float = PERCENTILE
    format: int = FORMAT

    def symmetric(self, tensor: str) -> float:
        """The largest magnitude that int8 holds of a tensor.

        Raises:
            CalibrationError: The tensor was not measured.
        """
        return self._find(tensor).symmetric[self.method]

    def affine(self, tensor: str) -> tuple[float, float]:
        """The interval that uint8 holds of a tensor; it includes 0.

        Raises:
            CalibrationError: The tensor was not measured.
        """
        return self._find(tensor).affine[self.method]

    def with_method(self, method: Method) -> Ranges:
        """The same measurements, with another method for builds to use."""
        return dataclasses.replace(self, method=method)

    def check_model(self, onnx_sha256: str, path: object) -> None:
        """Check that the ranges are those of a model.

        Args:
            onnx_sha256: Of the ONNX file they are to be used with.
            path: That file, named in the error.

        Raises:
            CalibrationError: They were measured on another ONNX file.
        """
        if onnx_sha256 != self.onnx_sha256:
            raise CalibrationError(
                f"the ranges were measured on an ONNX file of {self.model} with SHA-256 {self.onnx_sha256[:12]}..., "
                f"but {path} has {onnx_sha256[:12]}...: its activations are others; {CALIBRATE}"
            )

    def to_json(self) -> str:
        """The ranges as indented JSON; the same ranges give the same text."""
        fields = dataclasses.asdict(self)
        return json.dumps({"format": fields.pop("format"), **fields}, indent=1, sort_keys=False) + "\n"

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Read what `save` wrote.

        Raises:
            CalibrationError: The file is missing, damaged or of a newer format.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            version = fields.pop("format")
        except FileNotFoundError as error:
            raise CalibrationError(f"there is no ranges file {path}; {CALIBRATE}") from error
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise CalibrationError(f"{path} is no ranges file or is damaged ({error!r}); {CALIBRATE}") from error
        if version != FORMAT:
            raise CalibrationError(
                f"{path} has format {version}, this version of edge_mrcnn reads {FORMAT}; {CALIBRATE}"
            )
        try:
            return cls(**_read_fields(fields))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(f"{path} is damaged ({error!r}); {CALIBRATE}") from error

    def _find(self, tensor: str) -> TensorRange:
        if tensor not in self.tensors:
            raise CalibrationError(f"there is no range for tensor {tensor!r} of {self.model}; {CALIBRATE}")
        return self.tensors[tensor]


def _read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    if fields["method"] not in METHODS:
        raise ValueError(f"method {fields['method']!r} is none of {', '.join(METHODS)}")
    lists = {name: tuple(str(item) for item in fields[name]) for name in ("pictures", "sources", "warnings")}
    texts = {name: str(fields[name]) for name in ("model", "onnx_sha256", "method", "edge_mrcnn", "onnxruntime")}
    tensors = {str(name): _read_tensor(item) for name, item in fields["tensors"].items()}
    percentile = float(fields.get("percentile", PERCENTILE))
    return {**lists, **texts, "percentile": percentile, "tensors": tensors}


def _read_tensor(item: Mapping[str, Any]) -> TensorRange:
    affine: dict[str, tuple[float, float]] = {}
    for method in METHODS:
        low, high = (float(value) for value in item["affine"][method])
        affine[method] = (low, high)
    symmetric: dict[str, float] = {method: float(item["symmetric"][method]) for method in METHODS}
    return TensorRange(float(item["low"]), float(item["high"]), symmetric, affine)
