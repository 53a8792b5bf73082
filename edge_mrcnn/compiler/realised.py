"""What TensorRT made of each weighted layer, read from what the engine inspector says of a built engine.

An engine's layers are not the network's: several are fused into one, one is split, and TensorRT is free to compute in
more bits than it was asked to. The inspector gives, for each layer of the engine, the network's layers in it and the
types of what it reads; in detail only for engines built with detailed verbosity, as ours are.

Before TensorRT 10 the network's layers stand in the name (`conv.weight + Quantize_3 + Conv_4 + Relu_5`) and types are
parts of a sentence (`Thirty-two wide channel vectorized row major Int8 format`). Since 10 `Metadata` lists them
(`[ONNX Layer: Conv_4]`, the unit separator between two) and types stand alone (`Int8`, `Half`).

Sources: "Engine Inspector" in https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/optimization.html, the
engines in https://github.com/NVIDIA/TensorRT/tree/main/tools/experimental/trt-engine-explorer
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edge_mrcnn.errors import EngineError
from edge_mrcnn.sidecar import LayerInfo

LEAST_REALISED = 0.9
"""Share of the work asked for in a precision that the engine must have in it. TensorRT may keep single small layers in
more bits where that is faster; an engine that is mostly something else is not what was asked for."""

UNKNOWN = "unknown"

BITS = {"int8": 8, "float16": 16, "bfloat16": 16, "float32": 32}

_TYPES = (
    # what a description contains, in this order, and what it is
    (re.compile(r"int8", re.I), "int8"),
    (re.compile(r"bf16|bfloat16", re.I), "bfloat16"),
    (re.compile(r"fp16|half|float16", re.I), "float16"),
    (re.compile(r"fp32|float(32)?\b", re.I), "float32"),
)

_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.+?)\](?=\s*(?:[\x1f,]|\[ONNX Layer: |$))")

_PRODUCT = re.compile(r"conv|gemm|mat_?(rix_?)?mul|fully|xmma|fprop|dgrad|cudnn|cublas|cutlass", re.I)
"""In the type or the kernel of an engine's layer that multiplies weights; others with the name move its data about."""

_MOVES = re.compile(r"reformat|shuffle|constant|no_?op|move|copy|quantize", re.I)


def read_realised(text: str, names: Iterable[str]) -> dict[str, str]:
    """In which precision an engine computes layers of the network.

    Args:
        text: JSON of the engine inspector for the whole engine.
        names: ONNX names of weighted layers.

    Returns:
        `int8`, `float16`, `bfloat16` or `float32` by name; of a layer that is spread over several, the widest. What
        the inspector does not tell of is left out.
    """
    wanted = set(names)
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for item in _layers(text):
        for name in wanted.intersection(_network_layers(item)):
            layers.setdefault(name, []).append(item)
    found = {name: _widest(map(_precision, _products(items))) for name, items in layers.items()}
    return {name: precision for name, precision in found.items() if precision is not None}


def find_wider(layers: Iterable[LayerInfo]) -> tuple[LayerInfo, ...]:
    """The weighted layers that the engine computes in more bits than was asked for."""
    return tuple(
        layer
        for layer in layers
        if layer.macs is not None and layer.realised in BITS and BITS[layer.realised] > BITS.get(layer.requested, 32)
    )


def check_realised(layers: Sequence[LayerInfo], by: str = "TensorRT", instead: str | None = None) -> None:
    """Check that what was built computes in the precisions that were asked for, by work.

    Args:
        layers: With weights, and what was realised of them; what is not known is not held against it.
        by: Who computes; named in the error.
        instead: What to do instead; by default to build it in more bits.

    Raises:
        EngineError: Of the work asked for in a precision, less than `LEAST_REALISED` is in it.
    """
    for precision in BITS:
        asked = [layer for layer in layers if layer.macs is not None and layer.requested == precision]
        wider = find_wider(asked)
        total, missed = (sum(layer.macs or 0 for layer in some) for some in (asked, wider))
        if total - missed < LEAST_REALISED * total:
            names = ", ".join(layer.name for layer in wider[:5]) + (", ..." if len(wider) > 5 else "")
            keep = "fp16" if precision == "int8" else "fp32"
            raise EngineError(
                f"{precision} was asked for, but {by} computes {missed / total:.0%} of that work in more bits: "
                f"{len(wider)} of {len(asked)} layers, such as {names}; ask for what is faster here: "
                f"{instead or f'--precision {keep}'}, or name these layers in --keep-{keep}"
            )


def _layers(text: str) -> Iterator[Mapping[str, Any]]:
    """The engine's layers that are described; without detailed verbosity they are names alone."""
    try:
        described = json.loads(text)
    except json.JSONDecodeError:
        return
    layers = described.get("Layers", []) if isinstance(described, dict) else []
    yield from (item for item in layers if isinstance(item, dict))


def _network_layers(item: Mapping[str, Any]) -> set[str]:
    listed = _ONNX_LAYER.findall(str(item.get("Metadata", "")))
    return set(listed) if listed else set(re.split(r" \+ | \|\| ", str(item.get("Name", ""))))


def _products(items: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Of the engine's layers with a layer of the network in them, those that do its work."""
    products = [item for item in items if _weight_types(item) or _is_product(item)]
    return products or [item for item in items if not _MOVES.search(_kind(item))]


def _is_product(item: Mapping[str, Any]) -> bool:
    described = f"{_kind(item)} {item.get('TacticName', '')}"
    return bool(_PRODUCT.search(described)) and not _MOVES.search(_kind(item))


def _kind(item: Mapping[str, Any]) -> str:
    return f"{item.get('LayerType', '')} {item.get('ParameterType', '')}"


def _precision(item: Mapping[str, Any]) -> str | None:
    """The widest of what is multiplied: the first input and the weights."""
    inputs = [tensor for tensor in item.get("Inputs", []) if isinstance(tensor, dict)]
    first = [str(tensor.get("Format/Datatype", tensor.get("Datatype", ""))) for tensor in inputs[:1]]
    return _widest(map(_read_type, (*first, *_weight_types(item))))


def _weight_types(item: Mapping[str, Any]) -> list[str]:
    """Type of the weights: `Weights`, or `ConvWeights` where pooling is fused."""
    found = (value for key, value in item.items() if key.endswith("Weights") and isinstance(value, dict))
    return [str(value["Type"]) for value in found if value.get("Count") and "Type" in value]


def _read_type(text: str) -> str | None:
    return next((name for pattern, name in _TYPES if pattern.search(text)), None)


def _widest(types: Iterable[str | None]) -> str | None:
    known = [name for name in types if name is not None]
    return max(known, key=lambda name: BITS[name]) if known else None
