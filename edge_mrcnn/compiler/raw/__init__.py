"""From the ONNX file that torch's legacy exporter made of torchvision's detectors to one of ours.

Everything is found by structure: op types, edges, shapes and constants; names mean nothing.
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from edge_mrcnn.class_names import complete_class_names, read_class_names
from edge_mrcnn.compiler.function_attachment import stamp_model
from edge_mrcnn.compiler.network_outputs import (
    KEYPOINT_MAPS,
    MASK_LOGITS,
    append_keypoint_rows,
    append_mask_choice,
)
from edge_mrcnn.compiler.passes.replace_roi_align_and_nms import replace_roi_align_and_nms
from edge_mrcnn.compiler.raw.reading import Reader, Reading
from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from edge_mrcnn.spec import ModelSpec, parse_size

OPSETS = range(11, 19)
"""Opsets of the files that are taken: RoiAlign and NonMaxSuppression are torchvision's from 11 on."""


def import_raw(model: onnx.ModelProto, options: ImportOptions) -> onnx.ModelProto:
    """Make a raw export of torchvision's Faster, Mask or Keypoint R-CNN a model like those of `edge-mrcnn export`.

    Args:
        model: As the legacy exporter wrote it; it is not changed.
        options: Size, class names and limits.

    Returns:
        The model with custom ops, function bodies and its spec.

    Raises:
        ExportError: Its opset is another, or a part of the graph does not match; the message lists all parts.
    """
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset not in OPSETS:
        raise ExportError(
            f"this ONNX file has opset {opset}; {OPSETS[0]} to {OPSETS[-1]} can be taken: "
            "export it with opset_version=17"
        )
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    if foreign:
        raise ExportError(
            f"this ONNX file cannot be taken: expected standard ops only, found {', '.join(foreign)}; export "
            "torchvision's model as it is, with torch.onnx.export(..., dynamo=False)"
        )
    graph = gs.import_onnx(model)
    reading = Reader(graph, parse_size(options.size) if options.size else None).read()
    spec = describe_model(reading, options)
    replace_roi_align_and_nms(graph, spec, reading=reading)
    return _finish(graph, spec, reading)


def describe_model(reading: Reading, options: ImportOptions) -> ModelSpec:
    """The spec of a graph that was read.

    Raises:
        ExportError: The number of class names does not fit.
    """
    ops = {
        "rpn_proposals": dict(reading.proposals.attributes),
        "box_roi_align": dict(reading.box_pool.attributes),
        "detection_nms": dict(reading.detected.attributes),
        **{f"{head.kind}_roi_align": dict(head.pool.attributes) for head in reading.heads},
    }
    if options.proposals is not None:
        ops["rpn_proposals"]["post_nms_top_n"] = options.proposals
    if options.detections is not None:
        ops["detection_nms"]["detections_per_image"] = options.detections
    if options.score_threshold is not None:
        ops["detection_nms"]["score_threshold"] = options.score_threshold
    names = read_class_names(options.class_names) if options.class_names else None
    sizes = {head.kind: head.size for head in reading.heads}
    points = next((head.channels for head in reading.heads if head.kind == "keypoint"), 0)
    kind = "keypoint" if points else "mask" if sizes else "faster"
    return ModelSpec(
        name=f"{kind}rcnn",
        input_hw=reading.canvas,
        class_names=complete_class_names(names, reading.classes),
        mean=reading.transform.mean,
        std=reading.transform.std,
        proposals=ops["rpn_proposals"]["post_nms_top_n"],
        detections=ops["detection_nms"]["detections_per_image"],
        mask_size=sizes.get("mask", 0),
        score_threshold=ops["detection_nms"]["score_threshold"],
        ops=ops,
        keypoint_names=tuple(f"keypoint_{point}" for point in range(1, points + 1)),
        keypoint_size=sizes.get("keypoint", 0),
    )


def _finish(graph: gs.Graph, spec: ModelSpec, reading: Reading) -> onnx.ModelProto:
    """Write the end of the network, the bodies and the spec."""
    model: onnx.ModelProto = gs.export_onnx(graph)
    if spec.mask_size:
        append_mask_choice(model.graph, spec.mask_size, MASK_LOGITS)
    if spec.keypoint_names:
        append_keypoint_rows(model.graph, len(spec.keypoint_names), spec.keypoint_size, KEYPOINT_MAPS)
    del model.graph.value_info[:]
    stamp_model(model, spec)
    return model
