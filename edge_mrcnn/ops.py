"""The contract of each custom op, in one place: the exporter, the passes, the builder and the tests all read it.

An op has several faces (ONNX function body, NumPy gold function, CUDA kernel, C++ and Python plugin). What they must
agree on, names, order, types, shapes and attributes, is written here as data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge_mrcnn.errors import PluginError

DOMAIN = "edge_mrcnn"
"""ONNX domain of the ops and namespace of the plugins."""

VERSION = "1"
"""Plugin version; raised when an engine built with the older plugin could not run with the newer one."""

PLUGIN_ATTRIBUTES = {"plugin_version": VERSION, "plugin_namespace": DOMAIN}
"""Written on every node: TensorRT before 10.10 finds a plugin by these and not by the node's domain."""

AttributeKind = Literal["int", "ints", "float", "floats", "string"]
Dtype = Literal["float32", "int32", "features"]
Dim = int | str


@dataclass(frozen=True)
class Attribute:
    """An attribute of an op. Every one is written on every node; there are no defaults to disagree about."""

    name: str
    kind: AttributeKind
    doc: str


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an op.

    Attributes:
        name: As the function body and the kernels call it.
        dtype: `float32`, `int32`, or `features`: float32 or float16, the same for all tensors of the node so marked.
        shape: Each dimension is a number, a symbol bound by the inputs (`"B"`), an attribute's name
            (`"output_size"`) or a product of those (`"B*N"`). Inputs repeated per level bind `H` and `W` anew.
        per_level: Stands for one tensor per pyramid level.
    """

    name: str
    dtype: Dtype
    shape: tuple[Dim, ...]
    per_level: bool = False


@dataclass(frozen=True)
class OpSpec:
    """Contract of one op.

    Attributes:
        name: The CamelCase name in ONNX, plugin registry, C++ and Python.
        doc: What it computes, in a sentence or two.
        inputs: In the order of the node's inputs; tensors marked `per_level` are repeated in place.
        outputs: In the order of the node's outputs.
        attributes: All of them, in the order of the plugin's fields.
    """

    name: str
    doc: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attributes: tuple[Attribute, ...]

    def levels(self, input_count: int) -> int:
        """Number of pyramid levels of a node with that many inputs.

        Raises:
            PluginError: No number of levels from 1 to 5 gives that many inputs.
        """
        fixed = sum(not tensor.per_level for tensor in self.inputs)
        repeated = len(self.inputs) - fixed
        if repeated == 0:
            if input_count == fixed:
                return 1
        elif (input_count - fixed) % repeated == 0 and 1 <= (input_count - fixed) // repeated <= MAX_LEVELS:
            return (input_count - fixed) // repeated
        raise PluginError(f"{self.name} cannot have {input_count} inputs; {self.usage()}")

    def usage(self) -> str:
        """The node's inputs as a line of text."""
        names = [f"{t.name} of each of 1 to {MAX_LEVELS} levels" if t.per_level else t.name for t in self.inputs]
        return f"its inputs are: {', '.join(names)}"

    def expand_inputs(self, levels: int) -> tuple[TensorSpec, ...]:
        """One `TensorSpec` for each input of a node with that many levels, names numbered (`objectness0`)."""
        expanded: list[TensorSpec] = []
        for tensor in self.inputs:
            if tensor.per_level:
                expanded += [
                    TensorSpec(f"{tensor.name}{level}", tensor.dtype, tensor.shape, True) for level in range(levels)
                ]
            else:
                expanded.append(tensor)
        return tuple(expanded)

    def check_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Check that a node carries exactly the attributes of the contract, each of its kind.

        Raises:
            PluginError: One is missing, unknown or of another kind.
        """
        known = {attribute.name: attribute for attribute in self.attributes}
        missing = sorted(set(known) - set(attributes))
        unknown = sorted(set(attributes) - set(known) - set(PLUGIN_ATTRIBUTES))
        if missing or unknown:
            raise PluginError(
                f"{self.name}: attributes missing: {missing or 'none'}, unknown: {unknown or 'none'}; "
                "export the model again with this version of edge_mrcnn"
            )
        for name, attribute in known.items():
            if not _is_kind(attributes[name], attribute.kind):
                raise PluginError(
                    f"{self.name}.{name} must be of kind {attribute.kind} ({attribute.doc}), got {attributes[name]!r}"
                )

    def output_shapes(
        self,
        input_shapes: Sequence[Sequence[Any]],
        attributes: Mapping[str, Any],
        multiply: Callable[[Any, Any], Any] = lambda a, b: a * b,
        constant: Callable[[int], Any] = int,
    ) -> list[tuple[Any, ...]]:
        """Shape of each output.

        Args:
            input_shapes: Shape of each input of the node; the dimensions may be numbers or any symbolic type.
            attributes: The node's attributes.
            multiply: Product of two dimensions (TensorRT's expressions have no operators).
            constant: Makes a dimension from a number.

        Raises:
            PluginError: The number of inputs, or the rank of one, is not the contract's.
        """
        bound: dict[str, Any] = {}
        for tensor, shape in zip(self.expand_inputs(self.levels(len(input_shapes))), input_shapes, strict=True):
            if len(tensor.shape) != len(shape):
                raise PluginError(f"{self.name}.{tensor.name} must have shape {tensor.shape}, got {tuple(shape)}")
            for dim, value in zip(tensor.shape, shape, strict=True):
                if isinstance(dim, str) and "*" not in dim:
                    bound.setdefault(dim, value)

        def resolve(dim: Dim) -> Any:
            if isinstance(dim, int):
                return constant(dim)
            first, *rest = [
                bound[part] if part in bound else constant(int(attributes.get(part, part))) for part in dim.split("*")
            ]
            for factor in rest:
                first = multiply(first, factor)
            return first

        return [tuple(resolve(dim) for dim in tensor.shape) for tensor in self.outputs]


def _is_kind(value: Any, kind: AttributeKind) -> bool:
    if kind == "string":
        return isinstance(value, str)
    if kind in ("ints", "floats"):
        scalar: AttributeKind = "int" if kind == "ints" else "float"
        return isinstance(value, (list, tuple)) and len(value) > 0 and all(_is_kind(item, scalar) for item in value)
    if isinstance(value, bool):
        return False
    return isinstance(value, int) if kind == "int" else isinstance(value, (int, float))


MAX_LEVELS = 5

_BOX_CODER = (
    Attribute("box_weights", "floats", "4 numbers the deltas (dx, dy, dw, dh) are divided by"),
    Attribute("bbox_xform_clip", "float", "upper limit of dw and dh before exp"),
)

RPN_PROPOSALS = OpSpec(
    name="RpnProposals",
    doc="Decodes the RPN's output on the anchor grid, takes the best of each level, suppresses, gives the best P "
    "boxes, best first, in pixels of the canvas; rows beyond the last are zero.",
    inputs=(
        TensorSpec("image_hw", "float32", ("B", 2)),
        TensorSpec("objectness", "features", ("B", "A", "H", "W"), per_level=True),
        TensorSpec("deltas", "features", ("B", "4*A", "H", "W"), per_level=True),
    ),
    outputs=(TensorSpec("proposals", "float32", ("B", "post_nms_top_n", 4)),),
    attributes=(
        Attribute("cell_anchors", "floats", "L*A*4 numbers, xyxy around the origin, in the head's channel order"),
        Attribute("strides", "ints", "cell size in pixels of each level; stride_rule grid uses only the first"),
        Attribute(
            "stride_rule", "string", "grid: canvas // grid of a level (torchvision); fixed: strides (detectron2)"
        ),
        *_BOX_CODER,
        Attribute("pre_nms_top_n", "int", "candidates kept per level, by logit"),
        Attribute("post_nms_top_n", "int", "proposals per picture (P)"),
        Attribute("nms_threshold", "float", "IoU above which the lower of two candidates of a level goes"),
        Attribute("score_threshold", "float", "candidates with a lower probability go"),
        Attribute("min_size", "float", "candidates with a side shorter than this many pixels go"),
    ),
)

PYRAMID_ROI_ALIGN = OpSpec(
    name="PyramidRoiAlign",
    doc="Pools each box from the pyramid level that fits its area, by bilinear sampling (RoIAlign); "
    "a box without area is padding and gives zeros.",
    inputs=(
        TensorSpec("rois", "float32", ("B", "N", 4)),
        TensorSpec("x", "features", ("B", "C", "H", "W"), per_level=True),
    ),
    outputs=(TensorSpec("pooled", "features", ("B*N", "C", "output_size", "output_size")),),
    attributes=(
        Attribute("strides", "ints", "cell size in pixels of each level, powers of two"),
        Attribute("output_size", "int", "side of the pooled patch (S)"),
        Attribute("sampling_ratio", "int", "samples per bin and side; 0: as many as cells the bin spans"),
        Attribute("aligned", "int", "1: coordinates shifted by half a cell (detectron2); 0: not (torchvision)"),
        Attribute("canonical_scale", "float", "side in pixels of a box that belongs to canonical_level"),
        Attribute("canonical_level", "int", "log2 of the stride of that level"),
        Attribute("level_eps", "float", "added to the level before rounding down, so that exact powers fall as meant"),
    ),
)

DETECTION_NMS = OpSpec(
    name="DetectionNms",
    doc="Softmax, decoding per class, threshold, suppression within each class, the best D of each picture; "
    "`num` says how many there are, rows beyond it are zero.",
    inputs=(
        TensorSpec("image_hw", "float32", ("B", 2)),
        TensorSpec("proposals", "float32", ("B", "P", 4)),
        TensorSpec("class_logits", "features", ("B*P", "K")),
        TensorSpec("box_deltas", "features", ("B*P", "4*K")),
    ),
    outputs=(
        TensorSpec("num_detections", "int32", ("B",)),
        TensorSpec("boxes", "float32", ("B", "detections_per_image", 4)),
        TensorSpec("scores", "float32", ("B", "detections_per_image")),
        TensorSpec("labels", "int32", ("B", "detections_per_image")),
    ),
    attributes=(
        *_BOX_CODER,
        Attribute("score_threshold", "float", "only scores above it"),
        Attribute("nms_threshold", "float", "IoU above which the lower of two detections of a class goes"),
        Attribute("min_size", "float", "boxes with a side shorter than this many pixels go"),
        Attribute("detections_per_image", "int", "detections per picture (D)"),
        Attribute("background", "string", "which class is the background: first (torchvision) or last (detectron2)"),
        Attribute("class_agnostic", "int", "1: one box for all classes, deltas are (B*P, 4)"),
    ),
)

OPS: Mapping[str, OpSpec] = {op.name: op for op in (RPN_PROPOSALS, PYRAMID_ROI_ALIGN, DETECTION_NMS)}
"""Every op by its name."""
