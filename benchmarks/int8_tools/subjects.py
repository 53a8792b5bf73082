"""The tools and the settings that are compared.

Every tool gets the same FP32 model and the same letterboxed pictures. `defaults` is what its documentation's first
example does; the other settings are those that its documentation names for the purpose, with the layers that this
project never quantises (`placement.sensitive_nodes`) excluded by name. The worker turns settings into calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Tool = Literal["reference", "edge_mrcnn", "onnxruntime", "modelopt"]

TENSORRT_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

TENSORRT = {
    "per_channel": True,
    "activation_type": "QInt8",
    "weight_type": "QInt8",
    "op_types_to_quantize": TENSORRT_OPS,
    "extra_options": {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "AddQDQPairToWeight": True,
        "DedicatedQDQPair": True,
        "OpTypesToExcludeOutputQuantization": TENSORRT_OPS,
        "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
    },
}
"""Source: ONNX Runtime's TensorRT examples (quantization/nlp/bert/trt, object_detection/trt/yolov3)."""

KERNELS = {
    "per_channel": True,
    "activation_type": "QUInt8",
    "weight_type": "QInt8",
    "op_types_to_quantize": ("Conv", "Gemm", "Add", "MaxPool", "Resize", "Relu", "Clip"),
}
"""What its integer kernels on a CPU want. Source: onnxruntime.ai/docs/performance/model-optimizations/quantization."""

ONE_BY_ONE = {"CalibStridedMinMax": 1}
"""Collects one picture at a time. By default the histogram methods hold all activations of all pictures at once."""


@dataclass(frozen=True)
class Subject:
    """A tool with settings.

    Attributes:
        name: In the table.
        tool: Whose.
        dialect: `ort`: for ONNX Runtime's integer kernels, evaluated with these. `tensorrt`: for TensorRT, whose
            rounding is emulated.
        call: Arguments of the tool.
        exclude: Give it the layers not to quantise.
        prepare: What is done to the model before: `pre_process`, `pre_process without symbolic shapes`, `inline`.
        pictures: So many calibration pictures at most, where the tool cannot take them all.
    """

    name: str
    tool: Tool
    dialect: Literal["tensorrt", "ort"]
    call: Mapping[str, Any] = field(default_factory=dict)
    exclude: bool = False
    prepare: str = ""
    pictures: int | None = None


def _ort(dialect: Literal["tensorrt", "ort"], method: str) -> Subject:
    base: dict[str, Any] = TENSORRT if dialect == "tensorrt" else KERNELS
    options = {**base.get("extra_options", {}), **({} if method == "MinMax" else ONE_BY_ONE)}
    purpose = "for TensorRT" if dialect == "tensorrt" else "for its kernels"
    call = {**base, "calibrate_method": method, "extra_options": options}
    return Subject(f"onnxruntime {purpose}, {method}", "onnxruntime", dialect, call, exclude=True)


def _modelopt(method: str) -> Subject:
    call = {"high_precision_dtype": "fp32", "calibration_method": method, "calibration_eps": ["cpu"]}
    return Subject(f"modelopt fp32, {method}", "modelopt", "tensorrt", call, exclude=True)


REFERENCE = Subject("FP32", "reference", "ort")

SUBJECTS: tuple[Subject, ...] = (
    Subject("edge_mrcnn, tensorrt", "edge_mrcnn", "tensorrt"),
    Subject("edge_mrcnn, ort", "edge_mrcnn", "ort"),
    Subject("onnxruntime defaults", "onnxruntime", "ort"),
    Subject("onnxruntime pre-processed, defaults", "onnxruntime", "ort", prepare="pre_process"),
    Subject(
        "onnxruntime pre-processed without symbolic shapes, defaults",
        "onnxruntime",
        "ort",
        prepare="pre_process without symbolic shapes",
    ),
    Subject(
        "onnxruntime defaults, Entropy, 32 pictures",
        "onnxruntime",
        "ort",
        {"calibrate_method": "Entropy"},
        pictures=32,
    ),
    *(_ort("ort", method) for method in ("MinMax", "Entropy", "Percentile")),
    *(_ort("tensorrt", method) for method in ("MinMax", "Entropy", "Percentile")),
    Subject("modelopt defaults", "modelopt", "tensorrt"),
    Subject("modelopt defaults, inlined", "modelopt", "tensorrt", prepare="inline"),
    Subject("modelopt fp32, nothing excluded", "modelopt", "tensorrt", {"high_precision_dtype": "fp32"}),
    *(_modelopt(method) for method in ("max", "entropy")),
)
