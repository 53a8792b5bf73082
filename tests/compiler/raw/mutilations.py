"""Graphs with one part spoilt: each loads in ONNX and each must be refused by name of that part."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.raw.renaming import subgraphs

Mutilation = Callable[[onnx.ModelProto], None]


def walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph and of its branches, in order."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from walk(body)


def nodes(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in walk(model.graph) if node.op_type == op]


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in walk(model.graph) if name in node.output)


def rewire(model: onnx.ModelProto, old: str, new: str) -> None:
    """Let every reader of a tensor read another."""
    for node in walk(model.graph):
        node.input[:] = [new if name == old else name for name in node.input]


def level_lists(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Where the five levels of the RPN come together: anchors, objectness, deltas, the places of the best."""
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    lists = [node for node in model.graph.node if node.op_type == "Concat" and len(node.input) == 5]
    return [node for node in lists if not {"Constant", "Unsqueeze"} & {made.get(name) for name in node.input}]


def add_input(model: onnx.ModelProto, name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> str:
    model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    return name


def pool(model: onnx.ModelProto, size: int) -> list[onnx.NodeProto]:
    """The RoiAlign nodes of one head, finest level first."""
    sides = [
        (node, {a.name: helper.get_attribute_value(a) for a in node.attribute}) for node in nodes(model, "RoiAlign")
    ]
    return [node for node, attributes in sides if attributes["output_height"] == size]


def set_attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def remove_a_roi_align(model: onnx.ModelProto) -> None:
    """One level of the box pool is gone; its rows come from another level's."""
    first, second, *_ = pool(model, 7)
    rewire(model, second.output[0], first.output[0])
    model.graph.node.remove(second)


def free_the_nms_threshold(model: onnx.ModelProto) -> None:
    """The NMS of detections takes its threshold from an input."""
    nodes(model, "NonMaxSuppression")[1].input[3] = add_input(model, "iou", [1])


def free_the_proposals_nms_threshold(model: onnx.ModelProto) -> None:
    """The NMS of proposals takes its threshold from an input."""
    nodes(model, "NonMaxSuppression")[0].input[3] = add_input(model, "iou", [1])


def vary_the_sampling(model: onnx.ModelProto) -> None:
    """The levels of the mask pool sample differently."""
    set_attribute(pool(model, 14)[2], "sampling_ratio", 4)


def vary_the_size(model: onnx.ModelProto) -> None:
    """A level of the box pool gives patches of another size."""
    set_attribute(pool(model, 7)[3], "output_width", 9)


def vary_the_scale(model: onnx.ModelProto) -> None:
    """A level of the box pool has a scale that is no power of two."""
    set_attribute(pool(model, 7)[1], "spatial_scale", 0.1)


def drop_a_level_of_the_rpn(model: onnx.ModelProto) -> None:
    """The RPN's third level goes into no list of candidates."""
    for node in level_lists(model):
        del node.input[2]


def replace_the_anchors(model: onnx.ModelProto) -> None:
    """Anchors come from an input."""
    anchors = level_lists(model)[0]  # before the lists of objectness and deltas
    rewire(model, anchors.output[0], add_input(model, "anchors", ["A", 4]))
    model.graph.node.remove(anchors)


def remove_the_softmax(model: onnx.ModelProto) -> None:
    """Class logits are taken for probabilities."""
    (softmax,) = nodes(model, "Softmax")
    rewire(model, softmax.output[0], softmax.input[0])
    model.graph.node.remove(softmax)


def cut_the_box_head(model: onnx.ModelProto) -> None:
    """What the box head computes on comes from an input and not from the pool."""
    head = next(node for node in model.graph.node if node.op_type == "Gemm")
    head.input[0] = add_input(model, "pooled", ["N", 3136])


def shrink_the_deltas(model: onnx.ModelProto) -> None:
    """The box predictor gives the deltas of one class less than there are."""
    gemms = [node for node in model.graph.node if node.op_type == "Gemm"]
    for name in gemms[-1].input[1:]:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-4], name))


def swap_the_branches(model: onnx.ModelProto) -> None:
    """Detections are suppressed where there are none."""
    choice = [node for node in model.graph.node if node.op_type == "If"][1]
    names = {"then_branch": "else_branch", "else_branch": "then_branch"}
    for attribute in choice.attribute:
        attribute.name = names[attribute.name]


def remove_the_nms(model: onnx.ModelProto) -> None:
    """Both branches keep nothing: there is no NMS of detections."""
    choice = [node for node in model.graph.node if node.op_type == "If"][1]
    empty, full = sorted(choice.attribute, key=lambda attribute: len(attribute.g.node))
    full.g.CopyFrom(empty.g)


def insert_a_foreign_op(model: onnx.ModelProto) -> None:
    """An op of another domain between the RPN's head and its candidates."""
    objectness = _objectness(model)
    foreign = helper.make_node("Calibrate", [objectness.output[0]], ["calibrated"], domain="com.example")
    rewire(model, objectness.output[0], "calibrated")
    model.graph.node.insert(list(model.graph.node).index(objectness) + 1, foreign)
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def free_the_candidates(model: onnx.ModelProto) -> None:
    """The number of candidates of a level comes from an input."""
    nodes(model, "TopK")[0].input[1] = add_input(model, "k", [1], TensorProto.INT64)


def vary_the_clip(model: onnx.ModelProto) -> None:
    """Heights of proposals may grow more than widths."""
    clip = next(node for node in model.graph.node if node.op_type == "Exp")
    limit = producer(model, clip.input[0])
    assert limit.op_type == "Clip"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2.0), "other_limit"))
    limit.input[2] = "other_limit"


def pool_masks_at_proposals(model: onnx.ModelProto) -> None:
    """The mask pool reads the proposals' boxes and not the detections'."""
    for boxes, masks in zip(pool(model, 7), pool(model, 14), strict=True):
        masks.input[1:] = boxes.input[1:]


def _objectness(model: onnx.ModelProto) -> onnx.NodeProto:
    """The first convolution of the RPN that has few channels."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return next(node for node in nodes(model, "Conv") if shapes[node.input[1]][0] < 16)


MUTILATIONS: dict[str, tuple[Mutilation, str]] = {
    "a RoiAlign removed": (remove_a_roi_align, "pool|RoI"),
    "the NMS's threshold an input": (free_the_nms_threshold, "NMS|suppress"),
    "the RPN's NMS threshold an input": (free_the_proposals_nms_threshold, "NMS|suppress|proposal"),
    "two sampling ratios in a pool": (vary_the_sampling, "sampling"),
    "two sizes in a pool": (vary_the_size, "pool|RoI|square"),
    "a scale that is no power of two": (vary_the_scale, "scale|stride"),
    "a level of the RPN dropped": (drop_a_level_of_the_rpn, "level|RPN|anchor"),
    "anchors an input": (replace_the_anchors, "anchor"),
    "softmax gone": (remove_the_softmax, "[sS]oftmax"),
    "the box head cut": (cut_the_box_head, "box head|pool|class logits|box predictor"),
    "deltas of the wrong shape": (shrink_the_deltas, "delta"),
    "branches swapped": (swap_the_branches, "If|branch"),
    "no NMS of detections": (remove_the_nms, "NMS|suppress|NonMaxSuppression"),
    "a foreign op": (insert_a_foreign_op, "Calibrate|com.example"),
    "the number of candidates an input": (free_the_candidates, "TopK|candidates|top"),
    "two limits of growth": (vary_the_clip, "clip|limit|bbox_xform_clip|decod"),
    "masks of proposals": (pool_masks_at_proposals, "mask"),
}
"""By what is spoilt: how, and a pattern of what the error names."""
