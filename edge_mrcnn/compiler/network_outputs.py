"""The end of a network in ONNX: each detection's own mask and keypoints, and rows that are upper limits on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

import onnx
from onnx import TensorProto, helper

from edge_mrcnn.ops import DOMAIN, OPS

ROWS = {"proposals": "proposals", "boxes": "detections", "scores": "detections", "labels": "detections"}
"""Outputs of the custom ops whose second dimension is an upper limit, and what that dimension is called."""

MASK_LOGITS, KEYPOINT_MAPS = "mask_logits", "keypoint_maps"
"""Traced outputs that do not stay outputs: of all detections of all pictures in a row, and of masks of all classes."""

_Step = tuple[str, list[str], str, dict[str, Any]]
"""Op, inputs, output and attributes of a node to append."""


def append_mask_choice(graph: onnx.GraphProto, mask_size: int, logits: str = MASK_LOGITS) -> None:
    """Replace the output of the mask logits of all classes by `masks`: each detection's own class, 0 beyond them.

    Written here and not traced: the number of detections is known only when the network runs (on a CPU it is no more
    than is needed), and a traced reshape would freeze the upper limit.

    Args:
        graph: Changed in place.
        mask_size: Side of a mask patch (M).
        logits: Name of the output to replace, `(B*D, C, M, M)`.

    Raises:
        ValueError: There is no such output.

    Source: torchvision models/detection/roi_heads.py `maskrcnn_inference`.
    """
    _add_constants(graph, "masks", column=[-1, 1], side=[mask_size, mask_size], axes=[2, 3])
    steps: list[_Step] = [
        ("Cast", ["labels"], "masks.label", {"to": TensorProto.INT64}),
        ("Reshape", ["masks.label", "masks.column"], "masks.index", {}),
        ("GatherND", [logits, "masks.index"], "masks.logits", {"batch_dims": 1}),
        ("Sigmoid", ["masks.logits"], "masks.probability", {}),
        ("Shape", ["labels"], "masks.rows", {}),
        ("Concat", ["masks.rows", "masks.side"], "masks.shape", {"axis": 0}),
        ("Reshape", ["masks.probability", "masks.shape"], "masks.patches", {}),
        ("Greater", ["scores", "masks.zero"], "masks.there", {}),
        ("Cast", ["masks.there"], "masks.weight", {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["masks.weight", "masks.axes"], "masks.factor", {}),
        ("Mul", ["masks.patches", "masks.factor"], "masks", {}),
    ]
    graph.node.extend(_make_nodes(steps))
    _replace_output(graph, logits, "masks", [mask_size, mask_size])


def append_keypoint_rows(graph: onnx.GraphProto, count: int, size: int, maps: str = KEYPOINT_MAPS) -> None:
    """Replace the output of the heatmaps by `keypoint_logits`: picture by picture, 0 beyond the detections.

    Where they are upsampled last, what goes into that is zeroed: a quarter of the numbers. The factors are float32, so
    that from there on a network in float16 computes in float32, which the output is anyway: the small maps are cast
    and not the large ones, and the heatmaps are not rounded again.

    Args:
        graph: Changed in place.
        count: Number of keypoints (K).
        size: Side of a heatmap (S).
        maps: Name of the output to replace, `(B*D, K, S, S)`.

    Raises:
        ValueError: There is no such output.
    """
    _add_constants(graph, "keypoints", column=[-1, 1, 1, 1], side=[count, size, size])
    _find_output(graph, maps)
    place, maker = next((at, node) for at, node in enumerate(graph.node) if maps in node.output)
    upsampled = maker.op_type == "Resize"
    zeroing: list[_Step] = [
        ("Greater", ["scores", "keypoints.zero"], "keypoints.there", {}),
        ("Cast", ["keypoints.there"], "keypoints.weight", {"to": TensorProto.FLOAT}),
        ("Reshape", ["keypoints.weight", "keypoints.column"], "keypoints.factor", {}),
        ("Mul", [maker.input[0] if upsampled else maps, "keypoints.factor"], "keypoints.kept", {}),
    ]
    if upsampled:
        maker.input[0] = "keypoints.kept"
    for node in reversed(_make_nodes(zeroing)):
        graph.node.insert(place + (not upsampled), node)
    rows: list[_Step] = [
        ("Shape", ["labels"], "keypoints.rows", {}),
        ("Concat", ["keypoints.rows", "keypoints.side"], "keypoints.shape", {"axis": 0}),
        ("Reshape", [maps if upsampled else "keypoints.kept", "keypoints.shape"], "keypoint_logits", {}),
    ]
    graph.node.extend(_make_nodes(rows))
    _replace_output(graph, maps, "keypoint_logits", [count, size, size])


def _add_constants(graph: onnx.GraphProto, prefix: str, **values: Sequence[int]) -> None:
    """Add int64 vectors by name, and a float zero."""
    for name, value in values.items():
        graph.initializer.append(helper.make_tensor(f"{prefix}.{name}", TensorProto.INT64, [len(value)], value))
    graph.initializer.append(helper.make_tensor(f"{prefix}.zero", TensorProto.FLOAT, [], [0.0]))


def _make_nodes(steps: Iterable[_Step]) -> list[onnx.NodeProto]:
    return [helper.make_node(op, given, [result], name=result, **attributes) for op, given, result, attributes in steps]


def _find_output(graph: onnx.GraphProto, name: str) -> int:
    names = [value.name for value in graph.output]
    if name not in names:
        raise ValueError(f"the graph has no output {name!r}; it has {', '.join(names)}")
    return names.index(name)


def _replace_output(graph: onnx.GraphProto, traced: str, name: str, sides: Sequence[int]) -> None:
    """Put an output with a row for each detection in the place of a traced one, which becomes a tensor like others."""
    place = _find_output(graph, traced)
    graph.value_info.append(graph.output.pop(place))
    shape: list[str | int | None] = ["batch", ROWS["boxes"], *sides]
    graph.output.insert(place, helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def loosen_rows(graph: onnx.GraphProto) -> None:
    """Call the numbers of proposals and detections by name in all shapes: on a CPU they are upper limits."""
    values = {value.name: value.type.tensor_type.shape.dim for value in [*graph.value_info, *graph.output]}
    rows = ""
    for node in graph.node:
        specs = OPS[node.op_type].outputs if node.domain == DOMAIN else ()
        for output, spec in zip_longest(node.output, specs):
            dims = values.get(output, ())
            if spec is not None and spec.name in ROWS:
                rows = ROWS[spec.name]
                dims[1].dim_param = rows
            elif rows and dims and "*" in dims[0].dim_param:
                dims[0].dim_param = f"batch*{rows}"
