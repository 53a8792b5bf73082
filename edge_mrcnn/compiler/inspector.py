"""What is in a model file: an ONNX of ours, any other ONNX, or an engine by way of its sidecar."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_mrcnn.errors import ExportError
from edge_mrcnn.ops import DOMAIN, OPS, PLUGIN_ATTRIBUTES
from edge_mrcnn.sidecar import EngineSidecar, LayerInfo, PrecisionShare, RecipeRecord, TensorInfo, sidecar_path
from edge_mrcnn.spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    import onnx

LONGEST_LIST = 8
"""Elements of a list that the text form shows; the JSON has all."""


NO_SPEC = "it carries no edge_mrcnn spec, so it cannot be run or built; make one that can: edge-mrcnn export MODEL_NAME"

NO_SIDECAR = "its sidecar is not beside it, so what ONNX Runtime makes of its precisions is not known"

AS_ASKED = "precisions are those asked for; what the engine really uses can be told only on a GPU"


@dataclass(frozen=True)
class CustomOp:
    """A custom op of ours.

    Attributes:
        name: The op's.
        role: The node's name, or its role in the spec where only that is known.
        attributes: All of them.
    """

    name: str
    role: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Inspection:
    """What is in a model file.

    Attributes:
        path: The file.
        kind: `edge_mrcnn model`, `onnx` (not one of ours) or `engine`.
        facts: Name and value of whatever else there is to say, in order.
        spec: The model's spec, None where it has none.
        inputs: Of the network.
        outputs: Of the network.
        layers: Nodes of an ONNX file, or the layers that TensorRT was given.
        custom_ops: Ours, with their attributes.
        requested: Work by precision, as the network asks for it.
        realised: Work by precision, as it was found in what was built; None where nothing could look into it.
        notes: What a reader should know, in sentences.
    """

    path: str
    kind: str
    facts: Mapping[str, Any]
    spec: ModelSpec | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[LayerInfo, ...]
    custom_ops: tuple[CustomOp, ...] = ()
    notes: tuple[str, ...] = field(default=())
    requested: tuple[PrecisionShare, ...] = ()
    realised: tuple[PrecisionShare, ...] | None = None

    def to_json(self) -> str:
        """All of it as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1, default=str) + "\n"

    def lines(self, *, every_layer: bool = False) -> list[str]:
        """The inspection as lines of text.

        Args:
            every_layer: List each layer rather than how many there are of each kind.
        """
        lines = [f"{self.path}: {self.kind}"]
        lines += [f"  {name}: {value}" for name, value in self.facts.items() if value is not None]
        lines += [f"note: {note}" for note in self.notes]
        if self.spec is not None:
            lines += ["", *_describe_spec(self.spec)]
        for title, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            lines += ["", f"{title}:", *(f"  {t.name}: {t.dtype} {_shape(t.shape)}" for t in tensors)]
        for op in self.custom_ops:
            lines += ["", f"{op.name} ({op.role}):"]
            lines += [f"  {name}: {_shorten(value)}" for name, value in op.attributes.items()]
        return [*lines, *self._describe_work(), "", *self._describe_layers(every_layer)]

    def precisions(self) -> list[tuple[str, str, str | None, int]]:
        """Type, requested and realised precision and number of layers, the most frequent first."""
        counts = Counter((layer.type, layer.requested, layer.realised) for layer in self.layers)
        return [(*key, count) for key, count in counts.most_common()]

    def _describe_work(self) -> Iterator[str]:
        tables = [("asked for", self.requested), ("realised", self.realised or ())]
        if self.requested:
            yield from ("", "work by precision (multiply-accumulates for one picture):")
        for title, table in tables:
            for row in table:
                work = f"{row.macs / 1e6:,.1f} M"
                yield f"  {title:9}  {row.precision:8} {row.layers:5} layers {work:>14} {row.share:7.1%}"

    def _describe_layers(self, every_layer: bool) -> Iterator[str]:
        yield f"layers: {len(self.layers)}"
        if every_layer:
            for layer in self.layers:
                found = f", realised {layer.realised}" if layer.realised else ""
                yield f"  {layer.type:24} {layer.requested:10} {layer.name}{found}"
            return
        for kind, requested, realised, count in self.precisions():
            yield f"  {count:5} {kind:28} {requested}{f', realised {realised}' if realised else ''}"


def inspect(path: Path) -> Inspection:
    """Look into a model file.

    Args:
        path: An ONNX file, or an engine with its sidecar beside it.

    Raises:
        EngineError: An engine's sidecar is missing, damaged or of another engine.
        ExportError: The file is missing or no ONNX file.
        ValueError: The suffix is neither `.onnx` nor `.engine`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".engine":
        return _inspect_engine(path)
    if suffix == ".onnx":
        return _inspect_onnx(path)
    raise ValueError(f"{path} is neither an .onnx nor an .engine file; inspect takes one of those")


def _inspect_engine(path: Path) -> Inspection:
    sidecar = EngineSidecar.load_for(path)
    facts: dict[str, str | None] = {
        "size": _size(path),
        "precision": sidecar.precision,
        "target": sidecar.target,
        "built with": f"{sidecar.flavour} {sidecar.tensorrt}, edge_mrcnn {sidecar.edge_mrcnn}, {sidecar.created}",
        "built on": f"{sidecar.device} ({sidecar.capability})" if sidecar.device else "a machine without a GPU",
        "batch": f"{sidecar.batch[0]} to {sidecar.batch[2]}, best at {sidecar.batch[1]}",
        **_describe_recipe(sidecar.recipe),
        "ONNX SHA-256": sidecar.onnx_sha256,
        "engine SHA-256": sidecar.engine_sha256,
    }
    notes = () if sidecar.realised is not None else (AS_ASKED,)
    ops = tuple(CustomOp(_op_of_role(role), role, attributes) for role, attributes in sidecar.spec.ops.items())
    return Inspection(
        str(path),
        "engine",
        facts,
        sidecar.spec,
        sidecar.inputs,
        sidecar.outputs,
        sidecar.layers,
        ops,
        notes,
        sidecar.requested,
        sidecar.realised,
    )


def _inspect_onnx(path: Path) -> Inspection:
    from edge_mrcnn.compiler.passes.infer_types import infer_model
    from edge_mrcnn.compiler.precision import layer_precisions, requested_table
    from edge_mrcnn.compiler.preparation import load_model

    model = load_model(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    spec = ModelSpec.from_json(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    facts = {
        "size": _size(path),
        "producer": f"{model.producer_name} {model.producer_version}".strip() or None,
        "opset": ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import),
        "weights": f"{sum(_count(weight) for weight in model.graph.initializer):,}",
        "functions": ", ".join(function.name for function in model.functions) or None,
    }
    weights = {weight.name for weight in model.graph.initializer}
    notes: tuple[str, ...] = () if spec else (NO_SPEC,)
    requested: tuple[PrecisionShare, ...] = ()
    if spec is not None:
        try:
            requested = requested_table(layer_precisions(model, spec))
        except ValueError as error:
            notes = (str(error),)
    found = Inspection(
        str(path),
        "edge_mrcnn model" if spec else "onnx",
        facts,
        spec,
        inputs=tuple(describe_value(value) for value in model.graph.input if value.name not in weights),
        outputs=tuple(describe_value(value) for value in model.graph.output),
        custom_ops=tuple(_custom_op(node) for node in model.graph.node if node.domain == DOMAIN),
        notes=notes,
        requested=requested,
        layers=_list_nodes(infer_model(model, strict=False)),
    )
    return _add_build(found, path, metadata)


def _add_build(found: Inspection, path: Path, metadata: Mapping[str, str]) -> Inspection:
    """What an ONNX file built for a CPU says of itself, and what its sidecar says where it lies beside it."""
    from edge_mrcnn.compiler.cpu_model import METADATA_KEY as BUILD_KEY
    from edge_mrcnn.compiler.cpu_model import read_origin

    if BUILD_KEY not in metadata:
        return found
    origin, recipe = read_origin(metadata[BUILD_KEY], path)
    facts = {
        "precision": origin["precision"],
        "target": origin["target"],
        "built with": f"edge_mrcnn {origin['edge_mrcnn']}",
        **_describe_recipe(recipe),
        "ONNX SHA-256": origin["onnx_sha256"],
    }
    found = dataclasses.replace(found, facts={**found.facts, **facts})
    if not sidecar_path(path).exists():
        return dataclasses.replace(found, notes=(*found.notes, NO_SIDECAR))
    sidecar = EngineSidecar.load_for(path)
    realised = {layer.name: layer for layer in sidecar.layers}
    layers = tuple(
        dataclasses.replace(layer, requested=known.requested, realised=known.realised, macs=known.macs)
        if (known := realised.get(layer.name))
        else layer
        for layer in found.layers
    )
    return dataclasses.replace(found, layers=layers, realised=sidecar.realised)


def _describe_recipe(recipe: RecipeRecord) -> dict[str, str | None]:
    ranges = f"{recipe.method}, of {recipe.pictures} pictures, SHA-256 {recipe.ranges_sha256}"
    return {
        "ranges": ranges if recipe.ranges_sha256 else None,
        "kept in float16": ", ".join(recipe.keep_fp16) or None,
        "kept in float32": ", ".join(recipe.keep_fp32) or None,
    }


def _list_nodes(model: onnx.ModelProto) -> tuple[LayerInfo, ...]:
    values = [*model.graph.value_info, *model.graph.output, *model.graph.input]
    types = {value.name: describe_value(value).dtype for value in values}
    return tuple(
        LayerInfo(
            node.name,
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type,
            next((types[name] for name in node.output if name in types), "unknown"),
        )
        for node in model.graph.node
    )


def describe_value(value: onnx.ValueInfoProto) -> TensorInfo:
    """Name, type and shape of a graph's input or output."""
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else "unknown"
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    return TensorInfo(value.name, dtype, shape)


def _custom_op(node: onnx.NodeProto) -> CustomOp:
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name not in PLUGIN_ATTRIBUTES}
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
    plain = {name: value if isinstance(value, (int, float, str)) else list(value) for name, value in plain.items()}
    return CustomOp(node.op_type, node.name, plain)


def _op_of_role(role: str) -> str:
    """The op behind a role of the spec: `box_roi_align` is a `PyramidRoiAlign`."""
    plain = role.replace("_", "")
    return next((name for name in OPS if name.lower() == plain), "PyramidRoiAlign" if "roialign" in plain else role)


def _describe_spec(spec: ModelSpec) -> list[str]:
    mask = f"{spec.mask_size}x{spec.mask_size}" if spec.mask_size else "none"
    points = f"{_count_names(spec.keypoint_names)}, heatmaps of {spec.keypoint_size}x{spec.keypoint_size}"
    return [
        f"spec: {spec.name}",
        f"  canvas: {spec.input_hw[0]}x{spec.input_hw[1]} (HxW)",
        f"  classes: {_count_names(spec.class_names)}",
        f"  limits: {spec.proposals} proposals, {spec.detections} detections, score > {spec.score_threshold:g}",
        f"  mask: {mask}",
        *([f"  keypoints: {points}"] if spec.keypoint_names else []),
        f"  mean {_shorten(spec.mean)}, std {_shorten(spec.std)}, of 0 to 1",
    ]


def _count_names(names: tuple[str, ...]) -> str:
    return f"{len(names)}: {', '.join(names[:LONGEST_LIST])}{', ...' if len(names) > LONGEST_LIST else ''}"


def _shorten(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, (list, tuple)):
        return str(value)
    more = f", ... ({len(value)})" if len(value) > LONGEST_LIST else ""
    return ", ".join(_shorten(item) for item in value[:LONGEST_LIST]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join("any" if dim == -1 else str(dim) for dim in shape) + ")"


def _size(path: Path) -> str:
    try:
        return f"{path.stat().st_size / 1e6:.1f} MB"
    except OSError as error:
        raise ExportError(f"cannot read {path} ({error}); check that it exists and that you may read it") from error


def _count(weight: onnx.TensorProto) -> int:
    count = 1
    for dim in weight.dims:
        count *= dim
    return count
