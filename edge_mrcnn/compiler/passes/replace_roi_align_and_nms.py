"""torchvision's regions of RoiAlign, NonMaxSuppression, If, Loop and NonZero become our three ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from edge_mrcnn.compiler.network_outputs import KEYPOINT_MAPS, MASK_LOGITS
from edge_mrcnn.ops import DETECTION_NMS, PYRAMID_ROI_ALIGN, RPN_PROPOSALS
from edge_mrcnn.spec import ModelSpec

if TYPE_CHECKING:
    from edge_mrcnn.compiler.raw.reading import Reading

MAPS = {"mask": MASK_LOGITS, "keypoint": KEYPOINT_MAPS}
"""Output for the maps of each kind of head."""


def replace_roi_align_and_nms(graph: gs.Graph, spec: ModelSpec, *, reading: Reading) -> None:
    """Put the layers that were read between our inputs, ops and outputs; nothing else of the graph stays.

    Args:
        graph: Changed in place. Its outputs become those of `Exportable`: detections, mask logits, keypoint maps.
        spec: Canvas, normalisation and the attributes of the ops.
        reading: The layers, and the tensors where the ops go.
    """
    writer = reading.writer
    height, width = spec.input_hw
    images = gs.Variable("images", np.uint8, ["batch", height, width, 3])
    image_hw = gs.Variable("image_hw", np.float32, ["batch", 2])
    _normalise(reading, spec, images, image_hw)
    heads = [*reading.objectness, *reading.deltas]
    attributes = spec.ops["rpn_proposals"]
    node = writer.add_op(RPN_PROPOSALS.name, [image_hw, *heads], "rpn_proposals", ["proposals"], **attributes)
    proposals = node.outputs[0]
    _pool(reading, spec, "box_roi_align", proposals, reading.pooled)
    names = [tensor.name for tensor in DETECTION_NMS.outputs]
    given = [image_hw, proposals, *reading.outputs]
    node = writer.add_op(DETECTION_NMS.name, given, "detection_nms", names, **spec.ops["detection_nms"])
    outputs = _typed(node.outputs)
    for head in sorted(reading.heads, key=lambda head: list(MAPS).index(head.kind)):
        _pool(reading, spec, f"{head.kind}_roi_align", outputs[1], head.pooled)
        head.maps.name = MAPS[head.kind]
        head.maps.shape = [f"batch*{names[1]}", head.channels, head.size, head.size]
        outputs.append(head.maps)
    new = writer.graph
    graph.nodes, graph.inputs, graph.outputs = new.nodes, [images, image_hw], outputs
    graph.opset, graph.import_domains, graph.name = new.opset, new.import_domains, new.name
    graph.cleanup(recurse_subgraphs=False, recurse_functions=False).toposort(recurse_functions=False)


def _pool(reading: Reading, spec: ModelSpec, role: str, rois: gs.Tensor, pooled: gs.Variable) -> None:
    """Add a pool whose result stands in the graph already."""
    levels = reading.levels[: len(spec.ops[role]["strides"])]
    node = reading.writer.add_op(PYRAMID_ROI_ALIGN.name, [rois, *levels], role, ["pool"], **spec.ops[role])
    node.outputs.clear()
    node.outputs.append(pooled)


def _typed(outputs: list[gs.Variable]) -> list[gs.Variable]:
    """The detections, with types and shapes."""
    shapes = [["batch"], ["batch", "detections", 4], ["batch", "detections"], ["batch", "detections"]]
    for tensor, spec, shape in zip(outputs, DETECTION_NMS.outputs, shapes, strict=True):
        tensor.dtype, tensor.shape = np.dtype(spec.dtype), shape
    return list(outputs)


def _normalise(reading: Reading, spec: ModelSpec, images: gs.Variable, image_hw: gs.Variable) -> None:
    """Bytes to what the backbone takes, the padding exactly 0; as `Exportable.normalise` writes it."""
    height, width = spec.input_hw
    nodes = reading.writer.graph.nodes

    def add(op: str, inputs: list[gs.Tensor], *names: str, **attributes: object) -> list[gs.Variable]:
        outputs = [gs.Variable(f"normalise.{name}") for name in names]
        nodes.append(gs.Node(op, f"normalise.{names[0]}", attributes, inputs, outputs))
        return outputs

    def constant(name: str, value: object, dtype: type[np.generic] = np.float32) -> gs.Constant:
        return gs.Constant(f"normalise.{name}", np.array(value, dtype))

    channel = (1, 3, 1, 1)
    x = add("Cast", [images], "cast", to=1)
    x = add("Transpose", x, "channels_first", perm=[0, 3, 1, 2])
    x = add("Div", [*x, constant("bytes", 255.0)], "unit")
    x = add("Sub", [*x, constant("mean", np.reshape(spec.mean, channel))], "centred")
    x = add("Div", [*x, constant("std", np.reshape(spec.std, channel))], "scaled")
    sides = add("Reshape", [image_hw, constant("column", [-1, 2, 1, 1], np.int64)], "sides")
    limits = add("Split", sides, "height", "width", axis=1, num_outputs=2)
    rows = constant("rows", np.arange(height).reshape(1, 1, -1, 1))
    columns = constant("columns", np.arange(width).reshape(1, 1, 1, -1))
    above = add("Less", [rows, limits[0]], "above")
    left = add("Less", [columns, limits[1]], "left")
    inside = add("Cast", add("And", [*above, *left], "inside"), "mask", to=1)
    node = gs.Node("Mul", "normalise.masked", {}, [*x, *inside], [reading.image])
    nodes.append(node)
