"""Every model of the zoo becomes an engine in both precisions, by TensorRT-RTX, which takes no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.compiler.passes import Precision
from edge_mrcnn.sidecar import EngineSidecar

pytestmark = pytest.mark.torch

NAMES = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_resnext101_fpn",
    "maskrcnn_edge",
)

WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the zoo, exported small."""
    export = pytest.importorskip("edge_mrcnn.training.export", reason="torch is not installed")
    path = tmp_path_factory.mktemp("zoo") / f"{request.param}.onnx"
    export.export_model(request.param, export.ExportOptions(size="128x160"), path)
    return path


def test_the_list_is_the_zoos() -> None:
    zoo = pytest.importorskip("edge_mrcnn.training.zoo", reason="torch is not installed")
    assert set(NAMES) == set(zoo.MODELS)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
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
    assert sum(layer.type == "PLUGIN_V3" for layer in sidecar.layers) == 4
    assert {layer.requested for layer in sidecar.layers if layer.type in WEIGHTED} == {dtype}
    assert {layer.requested for layer in sidecar.layers if layer.type == "PLUGIN_V3"} == {dtype}
    count, size = sidecar.spec.detections, sidecar.spec.mask_size
    shapes = {tensor.name: tensor.shape for tensor in sidecar.outputs}
    assert shapes["boxes"] == (-1, count, 4)
    assert shapes["masks"] == (-1, count, size, size), (
        "shapes are fixed in TensorRT, so that a CUDA graph can hold them"
    )
    result.engine.unlink()
