"""Weights taken out of a raw ONNX file and put back from seeds, and scores that are spread out, without torch.

A file of 50 MB becomes one of some 50 kB, which a test fills again: the graph is the exporter's, the weights are drawn.
NumPy's `RandomState` is used since its streams are frozen.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

LEAST = 4096
"""Numbers in a tensor that is worth a seed; smaller ones stay in the file."""

CALM = 0.25
"""Factor of the last convolution of a residual block: as in a trained one, it adds little to what passes by."""

SPREADS = {
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "box_predictor.cls_score": 1.5,
    "box_predictor.bbox_pred": 1.0,
    "mask_fcn_logits": 2.0,
    "kps_score_lowres": 2.0,
}
"""Standard deviation of each output layer, in the order in which they follow each other."""

COUNTED = 0.05
"""Score of a detection that counts."""

Array = npt.NDArray[np.float32]


def sow(model: onnx.ModelProto) -> None:
    """Give every large weight a seed and its values: in `doc_string`, as JSON."""
    calm = _last_of_blocks(model.graph)
    for seed, tensor in enumerate(model.graph.initializer):
        if tensor.data_type == onnx.TensorProto.FLOAT and int(np.prod(tensor.dims)) >= LEAST:
            std = float(np.sqrt(2 / np.prod(tensor.dims[1:]))) * (CALM if tensor.name in calm else 1.0)
            tensor.doc_string = json.dumps({"seed": seed, "std": round(std, 6)})
    fill(model)


def fill(model: onnx.ModelProto) -> None:
    """Draw every weight that has a seed."""
    for tensor in model.graph.initializer:
        if tensor.doc_string:
            recipe = json.loads(tensor.doc_string)
            values = np.random.RandomState(recipe["seed"]).standard_normal(list(tensor.dims)) * recipe["std"]
            scale = np.asarray(recipe.get("scale", 1.0)).reshape(-1, *[1] * (len(tensor.dims) - 1))
            if recipe.get("axis"):
                scale = np.moveaxis(scale, 0, recipe["axis"])
            kept = numpy_helper.from_array((values * scale).astype(np.float32), tensor.name)
            kept.doc_string = tensor.doc_string
            tensor.CopyFrom(kept)


def spread(model: onnx.ModelProto, feeds: Sequence[dict[str, Array]], detections: int) -> None:
    """Centre each channel of every output layer and scale it to a given spread on these pictures.

    Args:
        model: Changed in place; its layers are found by torch's names, which its exporter keeps for them.
        feeds: Inputs to measure on.
        detections: About as many are found in the picture with the fewest.
    """
    for part, target in SPREADS.items():
        weight = next((x for x in model.graph.initializer if x.name.endswith(f"{part}.weight")), None)
        if weight is None:
            continue
        nodes = [node for node in model.graph.node if weight.name in node.input]
        bias = next(x for x in model.graph.initializer if x.name == nodes[0].input[2])
        outputs = np.concatenate([_by_channel(x) for x in _watch(model, feeds, [node.output[0] for node in nodes])], 1)
        scale = (target / outputs.std(1).clip(min=1e-6)).round(6)
        _rescale(weight, scale, 1 if nodes[0].op_type == "ConvTranspose" else 0)
        shift = numpy_helper.to_array(bias) * scale - outputs.mean(1) * scale
        bias.CopyFrom(numpy_helper.from_array(shift.astype(np.float32), bias.name))
        if part == "box_predictor.bbox_pred":
            _set_background(model, feeds, detections)


def _set_background(model: onnx.ModelProto, feeds: Sequence[dict[str, Array]], detections: int) -> None:
    """Shift the background's logit: the higher, the fewer detections, and none may be cut off by their limit."""
    bias = next(x for x in model.graph.initializer if x.name.endswith("box_predictor.cls_score.bias"))
    scores = model.graph.output[2].name
    values = numpy_helper.to_array(bias).copy()
    low, high = 0.0, 14.0
    for _ in range(5):
        middle = (low + high) / 2
        shifted = values + np.eye(len(values), dtype=np.float32)[0] * middle
        bias.CopyFrom(numpy_helper.from_array(shifted.astype(np.float32), bias.name))
        fewest = min(int((x > COUNTED).sum()) for x in _watch(model, feeds, [scores]))
        low, high = (middle, high) if fewest >= detections else (low, middle)
    shifted = values + np.eye(len(values), dtype=np.float32)[0] * low
    bias.CopyFrom(numpy_helper.from_array(shifted.astype(np.float32), bias.name))


def _rescale(weight: onnx.TensorProto, scale: Array, axis: int) -> None:
    recipe = json.loads(weight.doc_string) if weight.doc_string else None
    shape = [1] * len(weight.dims)
    shape[axis] = -1
    kept = numpy_helper.from_array(
        (numpy_helper.to_array(weight) * scale.reshape(shape)).astype(np.float32), weight.name
    )
    if recipe is not None:
        kept.doc_string = json.dumps({**recipe, "scale": [float(x) for x in scale], "axis": axis})
    weight.CopyFrom(kept)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph without the weights that have a seed."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if tensor.doc_string:
            tensor.ClearField("raw_data")
    path.write_bytes(lzma.compress(bare.SerializeToString(deterministic=True), preset=9 | lzma.PRESET_EXTREME))


def load(path: Path) -> onnx.ModelProto:
    """Read what `save` wrote and draw the weights; nothing is left that was not in the exporter's file."""
    model = onnx.load_model_from_string(lzma.decompress(path.read_bytes()))
    fill(model)
    for tensor in model.graph.initializer:
        tensor.doc_string = ""
    return model


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _watch(model: onnx.ModelProto, feeds: Sequence[dict[str, Array]], names: Sequence[str]) -> Iterator[Array]:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(watched)
    for feed in feeds:
        yield from session.run(list(names), feed)


def _by_channel(x: Array) -> Array:
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def _last_of_blocks(graph: onnx.GraphProto) -> set[str]:
    """Weights of the convolutions whose output, perhaps scaled and shifted, is added to another and rectified."""
    made = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    rectified = {node.input[0] for node in graph.node if node.op_type == "Relu"}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == "Add" and node.output[0] in rectified and not weights & set(node.input):
            found |= {name for x in node.input for name in _convolution(x, made, weights)}
    return found


def _convolution(x: str, made: dict[str, onnx.NodeProto], weights: set[str]) -> Iterator[str]:
    node = made.get(x)
    while node is not None and node.op_type in ("Mul", "Add") and weights & set(node.input):
        node = made.get(next(name for name in node.input if name not in weights))
    if node is not None and node.op_type == "Conv":
        yield node.input[1]


def picture(hw: tuple[int, int], seed: int) -> npt.NDArray[np.uint8]:
    """A noisy background with a dozen noisy rectangles: `(H, W, 3)` uint8."""
    height, width = hw
    random = np.random.RandomState(seed)
    out = random.randint(90, 160, (1, 1, 3)) + random.normal(0, 6, (height, width, 3))
    for _ in range(14):
        x, y = random.randint(0, width - 20), random.randint(0, height - 20)
        patch = out[y : y + random.randint(12, height // 2), x : x + random.randint(12, width // 2)]
        patch[:] = random.randint(0, 255, (1, 1, 3)) + random.normal(0, 12, patch.shape)
    return out.clip(0, 255).astype(np.uint8)


def feed(model: onnx.ModelProto, image: npt.NDArray[np.uint8]) -> dict[str, Array]:
    """A picture as torchvision's export takes it: float32, 0 to 1, channels first."""
    weights = {tensor.name for tensor in model.graph.initializer}
    value = next(value for value in model.graph.input if value.name not in weights)
    x = image.transpose(2, 0, 1).astype(np.float32) / 255
    return {value.name: x[None] if len(value.type.tensor_type.shape.dim) == 4 else x}
