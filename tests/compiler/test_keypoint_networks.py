"""Networks with keypoints, with masks or without, through the passes, placement, builds and the inspector."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest

from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.compiler.inspector import inspect
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.passes.infer_types import infer_model
from edge_mrcnn.compiler.placement import layers_before, measured_tensors, quantisable_nodes, sensitive_nodes
from edge_mrcnn.compiler.precision import layer_precisions
from edge_mrcnn.compiler.recipe import Precision, Recipe
from edge_mrcnn.evaluation.taps import KEYPOINT_LOGITS, MASK_LOGITS, cut
from edge_mrcnn.sidecar import EngineSidecar, hash_file
from edge_mrcnn.spec import ModelSpec
from tests.compiler.ranges import measured_ranges
from tests.compiler.tiny_model import (
    CHANNELS,
    DETECTIONS,
    MASK,
    ONLY_KEYPOINTS,
    PATCH,
    WITH_KEYPOINTS,
    build_tiny_model,
    feeds,
)

SPECS = {"keypoints": ONLY_KEYPOINTS, "both": WITH_KEYPOINTS}
COUNT, SIZE = len(ONLY_KEYPOINTS.keypoint_names), ONLY_KEYPOINTS.keypoint_size


@pytest.fixture(scope="module", params=SPECS)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return SPECS[request.param]


@pytest.fixture(scope="module")
def model(spec: ModelSpec) -> onnx.ModelProto:
    return build_tiny_model(spec=spec)


@pytest.fixture(scope="module")
def path(model: onnx.ModelProto, spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keypoints") / f"{spec.name}.onnx"
    onnx.save(model, path)
    measured_ranges(model, sha256=hash_file(path)).save(path.with_suffix(".ranges.json"))
    return path


def deconvolution(model: onnx.ModelProto) -> onnx.NodeProto:
    """The last layer of the keypoint head: it overlaps, the masks' does not."""
    (node,) = [
        node
        for node in model.graph.node
        if node.op_type == "ConvTranspose" and onnx.helper.get_node_attr_value(node, "kernel_shape") == [4, 4]
    ]
    return node


def test_the_last_layer_of_the_keypoint_head_is_sensitive(model: onnx.ModelProto, spec: ModelSpec) -> None:
    last = deconvolution(model)
    ends = [node.name for node in sensitive_nodes(model)]
    assert len(ends) == 6 + (spec.mask_size > 0) + 1
    assert last.name in ends
    (before,) = [node for node in model.graph.node if last.input[0] in node.output]
    assert before.input[0] in {node.outputs[0].name for node in quantisable_nodes(model)}, "the head before it is not"
    graph = gs.import_onnx(model)
    outputs = {output.name: output for output in graph.outputs}
    assert [node.name for node in layers_before(graph, outputs["keypoint_logits"])] == [last.name]
    assert layers_before(graph, outputs["boxes"]) == ()


def test_what_the_keypoint_head_reads_is_measured(model: onnx.ModelProto) -> None:
    assert "keypoint_pooled" in measured_tensors(model)
    assert deconvolution(model).output[0] not in measured_tensors(model)


def test_heatmaps_are_upsampled_in_float32_and_their_layers_not(model: onnx.ModelProto, spec: ModelSpec) -> None:
    changed = run_passes(model, Recipe("fp16"))
    values = infer_model(changed, strict=False).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    (resize,) = [
        node
        for node in changed.graph.node
        if node.op_type == "Resize" and onnx.helper.get_node_attr_value(node, "mode") == b"linear"
    ]
    assert types[resize.input[0]] == types[resize.output[0]] == onnx.TensorProto.FLOAT
    assert types[deconvolution(changed).input[0]] == onnx.TensorProto.FLOAT16
    assert {layer.precision for layer in layer_precisions(changed, spec)} == {"float16"}


def test_the_work_of_the_last_layer_is_counted(model: onnx.ModelProto, spec: ModelSpec) -> None:
    (layer,) = [each for each in layer_precisions(model, spec) if each.name == deconvolution(model).name]
    assert layer.macs == DETECTIONS * PATCH * PATCH * CHANNELS * COUNT * 4 * 4


def test_int8_in_either_dialect_keeps_the_heatmaps(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """The network is cut at its boxes, since rounding moves those; the heatmaps of the same boxes stay alike."""
    _, exported = cut(model)
    boxes = np.array([[[4, 4, 60, 40], [10, 2, 90, 50], [30, 10, 50, 30], [0, 0, 95, 55]]], np.float32)
    given = {**feeds(1, 1), "proposals_given": boxes, "boxes_given": boxes}
    results = []
    plain, taps = cut(model)
    for dialect in ("tensorrt", "ort"):
        changed = run_passes(model, Recipe("int8", measured_ranges(model), dialect=dialect))
        layers = {layer.name: layer.precision for layer in layer_precisions(changed, spec)}
        assert layers[deconvolution(model).name] == ("float32" if dialect == "ort" else "float16")
        assert "int8" in layers.values()
        if dialect == "ort":
            results.append(cut(changed, exported))
    results.append((plain, taps))
    mine, its = (run(network, names[KEYPOINT_LOGITS], given) for network, names in results)
    assert its.shape == (DETECTIONS, COUNT, 2 * PATCH, 2 * PATCH)
    assert np.square(mine - its).mean() < 0.05 * its.var()
    assert (MASK_LOGITS in taps) == (spec.mask_size > 0)


def run(network: onnx.ModelProto, names: tuple[str, ...], given: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(list(names), given)
    return np.asarray(found)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine(
    rtx: None,
    path: Path,
    spec: ModelSpec,
    options: Callable[..., BuildOptions],
    tmp_path: Path,
    precision: Precision,
) -> None:
    ranges = path.with_suffix(".ranges.json") if precision == "int8" else None
    result = build_engine(path, options(precision=precision, ranges=ranges), tmp_path)
    sidecar = EngineSidecar.load_for(result.engine)
    assert sidecar.spec == spec
    shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in sidecar.outputs}
    heads = {"keypoint_logits": ("float32", (-1, DETECTIONS, COUNT, SIZE, SIZE))}
    if spec.mask_size:
        heads = {"masks": ("float32", (-1, DETECTIONS, MASK, MASK)), **heads}
    assert list(shapes) == ["num_detections", "boxes", "scores", "labels", *heads]
    assert {name: shapes[name] for name in heads} == heads
    assert sum(layer.type == "PLUGIN_V3" for layer in sidecar.layers) == 3 + len(heads)
    if precision == "int8":
        assert deconvolution(onnx.load(path)).name in result.kept
    lines = inspect(result.engine).lines()
    assert f"  keypoints: 2: top, base, heatmaps of {SIZE}x{SIZE}" in lines
    assert f"  mask: {f'{MASK}x{MASK}' if spec.mask_size else 'none'}" in lines
