"""`EngineSidecar`: what stands beside an engine, so that it runs without its ONNX file and is refused where it must be.

An engine is code for one TensorRT and one kind of device, and says neither in a readable way. The sidecar does, with
the model's spec, hashes of everything the engine was made from, and how much of its work is in which precision.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.ops import OPS, VERSION
from edge_mrcnn.spec import ModelSpec

FORMAT = 2
"""Raised when a reader of the older format would misread the newer one."""

REBUILD = "build it again: edge-mrcnn build model.onnx"


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a network.

    Attributes:
        name: As the ONNX file calls it.
        dtype: NumPy's name of the type, such as `uint8`.
        shape: A dimension that is fixed only at run time is -1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerInfo:
    """A layer of the network given to TensorRT.

    Attributes:
        name: As TensorRT calls it.
        type: TensorRT's layer type, such as `CONVOLUTION` or `PLUGIN_V3`; the op where ONNX Runtime runs it.
        requested: NumPy's name of the type it computes in, from the strongly typed network.
        realised: The type that was found in the engine, which only the inspector on a GPU can tell; None until then.
        macs: Multiply-accumulates for one picture, all rows of proposals and detections taken; None for layers
            without weights.
    """

    name: str
    type: str
    requested: str
    realised: str | None = None
    macs: int | None = None


@dataclass(frozen=True)
class PrecisionShare:
    """How much of a network's work is in one precision.

    Attributes:
        precision: `int8`, `float16`, `float32`, or `unknown` where the engine does not tell.
        layers: Number of layers with weights.
        macs: Their multiply-accumulates for one picture.
        share: Of all multiply-accumulates, 0 to 1.
    """

    precision: str
    layers: int
    macs: int
    share: float


@dataclass(frozen=True)
class RecipeRecord:
    """What decided the precision of each layer.

    Attributes:
        ranges_sha256: Of the ranges file; None where there was none.
        method: Calibration method of those ranges.
        pictures: Number of pictures that they were measured on.
        keep_fp16: Regular expressions of the layers that were not to be quantised.
        keep_fp32: Regular expressions of the layers that were to stay in float32.
    """

    ranges_sha256: str | None = None
    method: str | None = None
    pictures: int | None = None
    keep_fp16: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> RecipeRecord:
        """Read the fields as JSON gives them.

        Raises:
            KeyError: One is missing.
            TypeError: One is of another type.
        """
        kinds: Mapping[str, Any] = {"ranges_sha256": str | None, "method": str | None, "pictures": int | None}
        read: dict[str, Any] = {name: _expect(fields[name], kind, name) for name, kind in kinds.items()}
        for name in ("keep_fp16", "keep_fp32"):
            read[name] = tuple(_expect(text, str, name) for text in _expect(fields[name], list, name))
        return cls(**read)


@dataclass(frozen=True)
class EngineSidecar:
    """Everything about an engine that is needed to run it, or to refuse to.

    Attributes:
        edge_mrcnn: Version of this package that built it.
        flavour: `rtx` (TensorRT-RTX), `tensorrt`, or `cpu` for an ONNX file quantised for ONNX Runtime.
        tensorrt: TensorRT's version, all of it; that of ONNX Runtime with flavour `cpu`.
        target: What it was built for, such as `rtx:sm_86,sm_89`.
        device: Name of the GPU it was built on, None where it was built without one.
        capability: Compute capability of that GPU, such as `sm_87`; None likewise.
        precision: `fp32`, `fp16` or `int8`, as it was asked for.
        batch: Smallest, optimal and largest batch.
        spec: The model's spec, so that running needs no ONNX file.
        inputs: Of the network, in its order.
        outputs: Of the network, in its order.
        layers: Of the network as it was given to TensorRT.
        onnx_sha256: Of the ONNX file as exported.
        engine_sha256: Of the engine beside this.
        plugins_sha256: Of the contract of the plugins, as `plugins_hash` gives it.
        build_key: Of everything that went into the build; the same key gives the same engine.
        created: UTC, ISO 8601.
        recipe: What decided the precisions.
        requested: Work by precision, as the network asks for it.
        realised: Work by precision, as it was found in the engine; None where nothing could look into it.
        format: Version of this layout.
    """

    edge_mrcnn: str
    flavour: str
    tensorrt: str
    target: str
    device: str | None
    capability: str | None
    precision: str
    batch: tuple[int, int, int]
    spec: ModelSpec
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[LayerInfo, ...]
    onnx_sha256: str
    engine_sha256: str
    plugins_sha256: str
    build_key: str
    created: str
    recipe: RecipeRecord = RecipeRecord()
    requested: tuple[PrecisionShare, ...] = ()
    realised: tuple[PrecisionShare, ...] | None = None
    format: int = FORMAT

    def to_json(self) -> str:
        """The sidecar as indented JSON."""
        fields = dataclasses.asdict(self) | {"spec": json.loads(self.spec.to_json())}
        return json.dumps({"format": fields.pop("format"), **fields}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, path: object = "the sidecar") -> EngineSidecar:
        """Read what `to_json` wrote.

        Args:
            text: The JSON text.
            path: Named in the error.

        Raises:
            EngineError: The text is no sidecar, or one of a newer format.
        """
        try:
            fields = json.loads(text)
            version = fields.pop("format")
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise EngineError(f"{path} is not an engine's sidecar or is damaged ({error!r}); {REBUILD}") from error
        if version != FORMAT:
            raise EngineError(f"{path} has format {version}, this version of edge_mrcnn reads {FORMAT}; {REBUILD}")
        try:
            return cls(**_read_fields(fields))
        except (KeyError, TypeError, ValueError, ExportError) as error:
            raise EngineError(f"{path} is damaged ({error}); {REBUILD}") from error

    @classmethod
    def load_for(cls, engine: Path) -> EngineSidecar:
        """Read the sidecar of an engine and check that it belongs to it.

        Args:
            engine: The engine's path; the sidecar lies beside it.

        Raises:
            EngineError: The engine or its sidecar is missing or damaged, or the engine's hash is not the sidecar's.
        """
        path = sidecar_path(engine)
        if not engine.is_file():
            raise EngineError(f"there is no engine {engine}; {REBUILD}")
        try:
            sidecar = cls.from_json(path.read_text(encoding="utf-8"), path)
        except FileNotFoundError as error:
            raise EngineError(
                f"{engine} has no sidecar {path.name} beside it. An engine is code, so one of unknown origin is not "
                f"run; copy the sidecar along with the engine, or {REBUILD}"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise EngineError(f"cannot read the sidecar {path} ({error}); {REBUILD}") from error
        found = hash_file(engine)
        if found != sidecar.engine_sha256:
            raise EngineError(
                f"{engine} is not the engine its sidecar was written for: SHA-256 {found[:12]}..., the sidecar says "
                f"{sidecar.engine_sha256[:12]}...; the copy is incomplete or the file was changed; copy both again, or "
                f"{REBUILD}"
            )
        return sidecar


def tabulate(work: Iterable[tuple[str, int]]) -> tuple[PrecisionShare, ...]:
    """Layers and multiply-accumulates by precision, the precision with the most work first.

    Args:
        work: Precision and multiply-accumulates of each layer with weights.

    Example:
        >>> [(row.precision, row.share) for row in tabulate([("float16", 10), ("int8", 60), ("int8", 30)])]
        [('int8', 0.9), ('float16', 0.1)]
    """
    layers: dict[str, list[int]] = {}
    for precision, macs in work:
        layers.setdefault(precision, []).append(macs)
    total = sum(map(sum, layers.values())) or 1
    rows = (PrecisionShare(name, len(macs), sum(macs), sum(macs) / total) for name, macs in layers.items())
    return tuple(sorted(rows, key=lambda row: (-row.macs, row.precision)))


def int8_share(table: Iterable[PrecisionShare]) -> float:
    """Share of the multiply-accumulates in int8, 0 to 1."""
    return next((row.share for row in table if row.precision == "int8"), 0.0)


def sidecar_path(engine: Path) -> Path:
    """Where the sidecar of an engine lies: `model.rtx-sm_86.fp16.engine` has `model.rtx-sm_86.fp16.json`."""
    return engine.with_suffix(".json")


def hash_file(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits.

    Raises:
        EngineError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise EngineError(f"cannot read {path} ({error}); check that it exists and that you may read it") from error
    return digest.hexdigest()


def plugins_hash() -> str:
    """SHA-256 of the plugins' contract: version, and every op's inputs, outputs and attributes."""
    contract = {name: dataclasses.asdict(op) for name, op in sorted(OPS.items())}
    return hashlib.sha256(json.dumps([VERSION, contract], sort_keys=True).encode()).hexdigest()


_FIELD_TYPES: Mapping[str, Any] = {
    "edge_mrcnn": str,
    "flavour": str,
    "tensorrt": str,
    "target": str,
    "device": str | None,
    "capability": str | None,
    "precision": str,
    "onnx_sha256": str,
    "engine_sha256": str,
    "plugins_sha256": str,
    "build_key": str,
    "created": str,
}


def _read_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in their types; raises KeyError, TypeError or ValueError where one is missing or of another type."""
    read = {name: _expect(fields[name], kind, name) for name, kind in _FIELD_TYPES.items()}
    smallest, optimal, largest = (_expect(size, int, "batch") for size in fields["batch"])
    return read | {
        "batch": (smallest, optimal, largest),
        "spec": ModelSpec.from_json(json.dumps(fields["spec"])),
        "inputs": tuple(_read_tensor(item) for item in fields["inputs"]),
        "outputs": tuple(_read_tensor(item) for item in fields["outputs"]),
        "layers": tuple(LayerInfo(**item) for item in fields["layers"]),
        "recipe": RecipeRecord.from_fields(fields["recipe"]),
        "requested": _read_table(fields["requested"]),
        "realised": None if fields["realised"] is None else _read_table(fields["realised"]),
    }


def _read_table(items: Iterable[Mapping[str, Any]]) -> tuple[PrecisionShare, ...]:
    kinds: Mapping[str, type] = {"precision": str, "layers": int, "macs": int, "share": float}
    return tuple(
        PrecisionShare(**{name: _expect(item[name], kind, name) for name, kind in kinds.items()}) for item in items
    )


def _read_tensor(item: Mapping[str, Any]) -> TensorInfo:
    shape = tuple(_expect(dim, int, "shape") for dim in item["shape"])
    return TensorInfo(_expect(item["name"], str, "name"), _expect(item["dtype"], str, "dtype"), shape)


def _expect(value: Any, kind: type | types.UnionType, name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}, expected {kind}")
    return value
