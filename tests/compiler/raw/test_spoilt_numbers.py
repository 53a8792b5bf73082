"""A number or op changed in a region that is replaced: structure does not tell of it, running the region does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge_mrcnn.compiler.raw import import_raw
from edge_mrcnn.errors import ExportError
from edge_mrcnn.import_options import ImportOptions
from tests.compiler.raw.seeded_weights import load

KEYPOINTS = Path(__file__).parent / "fixtures" / "torch2.15_keypoint_11.onnx.xz"
WHOLE = Path(__file__).parent / "fixtures" / "torch2.15_mask_11.onnx.xz"


def constants(model: onnx.ModelProto, value: float) -> list[str]:
    """Names of the float32 scalars of a value, in the graph's order."""
    found = []
    for node in model.graph.node:
        if node.op_type == "Constant":
            array = numpy_helper.to_array(node.attribute[0].t)
            if array.dtype == np.float32 and array.size == 1 and array.reshape(-1)[0] == np.float32(value):
                found.append(node.output[0])
    return found


def set_constant(model: onnx.ModelProto, name: str, value: float) -> None:
    (node,) = (node for node in model.graph.node if name in node.output)
    tensor = node.attribute[0].t
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(old, value), tensor.name))


def readers(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if name in node.input]


def ops(model: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == op]


def move_the_centres(model: onnx.ModelProto) -> None:
    """Boxes' centres are not in their middle: the first halves are those of the RPN's anchors."""
    set_constant(model, constants(model, 0.5)[0], 0.4)


def move_the_centres_of_detections(model: onnx.ModelProto) -> None:
    set_constant(model, constants(model, 0.5)[4], 0.4)


def clip_at_another_side(model: onnx.ModelProto) -> None:
    """Proposals begin at pixel 3."""
    limit = next(node for node in ops(model, "Max") if set(node.input) & set(constants(model, 0.0)))
    set_constant(model, next(name for name in limit.input if name in constants(model, 0.0)), 3.0)


def stretch_the_probabilities(model: onnx.ModelProto) -> None:
    """Proposals are ranked by something else than their probability."""
    sigmoid = ops(model, "Sigmoid")[0]
    sigmoid.op_type = "Sin"


def take_the_next_class(model: onnx.ModelProto) -> None:
    """Each detection gets the mask of another class."""
    masks = ops(model, "Sigmoid")[-1].output[0]
    (flat,) = (node for node in readers(model, masks) if node.op_type == "Flatten")
    (gather,) = readers(model, flat.output[0])
    place = list(model.graph.node).index(gather)
    one = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.int64(1)))
    node = helper.make_node("Sub", [gather.input[1], "one"], ["another"])
    gather.input[1] = "another"
    model.graph.node.insert(place, node)
    model.graph.node.insert(place, one)


def pad_with_grey(model: onnx.ModelProto) -> None:
    pad, *_ = ops(model, "Pad")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "grey"))
    pad.input[:] = [*pad.input[:2], "grey"]


def take_the_nearest_pixel(model: onnx.ModelProto) -> None:
    """The picture is resized by the nearest pixel."""
    resize = next(node for node in ops(model, "Resize") if any(each.s == b"linear" for each in node.attribute))
    for attribute in resize.attribute:
        if attribute.name == "mode":
            attribute.s = b"nearest"


def measure_the_longest_side(model: onnx.ModelProto) -> None:
    """The mask pool takes a box's longest side for its area."""
    root = ops(model, "Sqrt")[-1]
    (area,) = (node for node in model.graph.node if root.input[0] in node.output)
    (product,) = (node for node in model.graph.node if area.input[0] in node.output)
    assert product.op_type == "Mul"
    product.op_type = "Max"


SPOILT: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "centres of anchors": (move_the_centres, "proposals run: DOES NOT MATCH"),
    "centres of proposals": (move_the_centres_of_detections, "detections run: DOES NOT MATCH"),
    "clipping": (clip_at_another_side, "proposals run: DOES NOT MATCH"),
    "ranking": (stretch_the_probabilities, "proposals run: DOES NOT MATCH"),
    "class of a mask": (take_the_next_class, "mask choice: DOES NOT MATCH"),
    "padding": (pad_with_grey, "transform: DOES NOT MATCH"),
    "resize": (take_the_nearest_pixel, "transform: DOES NOT MATCH"),
    "level rule": (measure_the_longest_side, "mask pool: DOES NOT MATCH"),
}


@pytest.fixture(scope="module")
def whole() -> bytes:
    return load(WHOLE).SerializeToString()


@pytest.mark.parametrize("name", SPOILT)
def test_a_changed_number_is_found(name: str, whole: bytes) -> None:
    spoil, said = SPOILT[name]
    model = onnx.load_model_from_string(whole)
    spoil(model)
    with pytest.raises(ExportError, match=said):
        import_raw(model, ImportOptions())


def test_another_decoding_of_keypoints_is_found() -> None:
    """Keypoints where a heatmap is lowest: all other parts match."""
    model = load(KEYPOINTS)
    (loop,) = ops(model, "Loop")
    inner = [node for node in loop.attribute[0].g.node if node.op_type == "ArgMax"]
    assert inner
    for node in inner:
        node.op_type = "ArgMin"
    with pytest.raises(ExportError, match=r"Not as expected: keypoints\.") as error:
        import_raw(model, ImportOptions())
    assert str(error.value).count("DOES NOT MATCH") == 1
