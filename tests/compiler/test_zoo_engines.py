"""Every model of the zoo becomes an engine in each precision, by TensorRT-RTX, which takes no GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.compiler.precision import layer_precisions
from edge_mrcnn.compiler.recipe import Precision
from edge_mrcnn.sidecar import EngineSidecar, hash_file, int8_share
from edge_mrcnn.spec import ModelSpec
from tests.compiler.ranges import measured_ranges

pytestmark = pytest.mark.torch

NAMES = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_resnext101_fpn",
    "maskrcnn_resnet50_c4",
    "maskrcnn_resnet101_c4",
    "maskrcnn_edge",
    "keypointrcnn_resnet50_fpn",
    "keypointrcnn_edge",
)

KEPT = {"maskrcnn_resnet50_c4": 5, "maskrcnn_resnet101_c4": 5, "keypointrcnn_edge": 14}
"""Layers that int8 leaves alone: the RPN's two on one level, class, box and mask; with keypoints one more."""

FPN_KEPT = 13
"""Objectness and deltas of five levels, class, box, and masks or keypoints."""

DEEP = ("maskrcnn_resnet101_fpn", "maskrcnn_resnext101_fpn", "maskrcnn_resnet101_c4")
"""Not built in FP32: more blocks of what their shallower kin have, which are, and the file should take minutes."""

WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


KERNELS_BYTES = 16e6
"""Most that the source of the kernels takes in an int8 engine: TensorRT-RTX compiles them on the user's GPU."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a model of the zoo, exported small, once."""
    export = pytest.importorskip("edge_mrcnn.training.export", reason="torch is not installed")
    folder = tmp_path_factory.mktemp("zoo")

    @functools.cache
    def give(name: str) -> Path:
        path = folder / f"{name}.onnx"
        export.export_model(name, export.ExportOptions(size="128x160", proposals=60, detections=20), path)
        return path

    return give


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, exports: Callable[[str], Path]) -> Path:
    """A model of the zoo."""
    return exports(request.param)


def test_the_list_is_the_zoos() -> None:
    zoo = pytest.importorskip("edge_mrcnn.training.zoo", reason="torch is not installed")
    assert set(NAMES) == set(zoo.MODELS)


@pytest.mark.parametrize(
    ("model", "precision", "dtype"),
    [
        (name, precision, dtype)
        for name in NAMES
        for precision, dtype in (("fp32", "float32"), ("fp16", "float16"))
        if precision != "fp32" or name not in DEEP
    ],
    indirect=["model"],
)
def test_an_engine_of_each_model(
    rtx: None,
    model: Path,
    options: Callable[..., BuildOptions],
    tmp_path: Path,
    precision: Precision,
    dtype: str,
) -> None:
    result = build_engine(
        model, options(precision=precision, target="rtx", cache_limit_gib=0.0, timeout_s=900.0), tmp_path
    )
    sidecar = EngineSidecar.load_for(result.engine)
    assert sidecar.spec.name == model.stem
    assert sum(layer.type == "PLUGIN_V3" for layer in sidecar.layers) == len(sidecar.spec.ops)
    assert {layer.requested for layer in sidecar.layers if layer.type in WEIGHTED} == {dtype}
    assert {layer.requested for layer in sidecar.layers if layer.type == "PLUGIN_V3"} == {dtype}
    assert {tensor.name: tensor.shape for tensor in sidecar.outputs} == expected_shapes(sidecar.spec)
    result.engine.unlink()


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Outputs of an engine: fixed but for the batch, so that a CUDA graph can hold them."""
    count, side, points = spec.detections, spec.mask_size, len(spec.keypoint_names)
    shapes = {"num_detections": (-1,), "boxes": (-1, count, 4), "scores": (-1, count), "labels": (-1, count)}
    assert bool(side) or bool(points)
    masks = {"masks": (-1, count, side, side)} if side else {}
    heatmaps = {"keypoint_logits": (-1, count, points, spec.keypoint_size, spec.keypoint_size)} if points else {}
    return {**shapes, **masks, **heatmaps}


@pytest.fixture(scope="module")
def ranges(model: Path) -> Path:
    """Ranges of that model from one picture of coloured squares."""
    height, width = 128, 160
    small = np.random.default_rng(1).integers(0, 256, (1, height // 16, width // 16, 3), dtype=np.uint8)
    images = small.repeat(16, axis=1).repeat(16, axis=2)
    feeds = {"images": images, "image_hw": np.array([[height, width]], np.float32)}
    path = model.with_suffix(".ranges.json")
    measured_ranges(onnx.load(model), [feeds], hash_file(model)).save(path)
    return path


@pytest.mark.slow
def test_an_int8_engine_of_each_model(
    rtx: None, model: Path, ranges: Path, options: Callable[..., BuildOptions], tmp_path: Path
) -> None:
    result = build_engine(
        model,
        options(precision="int8", ranges=ranges, target="rtx", cache_limit_gib=0.0, timeout_s=900.0),
        tmp_path,
    )
    sidecar = EngineSidecar.load_for(result.engine)
    layers = [layer for layer in sidecar.layers if layer.type in WEIGHTED]
    assert {layer.requested for layer in layers} == {"int8", "float16"}
    assert sum(layer.requested == "int8" for layer in layers) == sidecar.requested[0].layers
    assert len(result.kept) == KEPT.get(model.stem, FPN_KEPT)
    assert int8_share(sidecar.requested) > 0.95
    assert result.size_bytes < 0.27 * model.stat().st_size + KERNELS_BYTES
    result.engine.unlink()


@pytest.mark.slow
def test_an_int8_model_of_each_model_for_a_cpu(
    model: Path, ranges: Path, options: Callable[..., BuildOptions], tmp_path: Path
) -> None:
    result = build_engine(model, options(precision="int8", ranges=ranges, target="cpu"), tmp_path)
    assert result.realised == result.requested
    assert len(result.kept) == KEPT.get(model.stem, FPN_KEPT)
    assert int8_share(result.requested) > 0.95
    assert result.size_bytes < 0.30 * model.stat().st_size
    result.engine.unlink()


@pytest.mark.parametrize("model", ["maskrcnn_resnet50_fpn"], indirect=True)
def test_the_work_is_what_torchvision_publishes(model: Path) -> None:
    """Of a ResNet-50 at 224 x 224, its classifier's 2.05 million included."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    published = models.ResNet50_Weights.IMAGENET1K_V1.meta["_ops"] * 1e9
    exported = onnx.load(model)
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in exported.metadata_props})
    body = sum(layer.macs for layer in layer_precisions(exported, spec) if layer.name.startswith("backbone.body"))
    assert body * (224 * 224) / (128 * 160) + 2048 * 1000 == pytest.approx(published, rel=1e-3)
