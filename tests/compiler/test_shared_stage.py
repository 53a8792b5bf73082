"""A C4, whose box and mask heads share a whole stage, through every precision of both dialects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.placement import quantisable_nodes, sensitive_nodes
from edge_mrcnn.compiler.recipe import Precision, Recipe
from edge_mrcnn.evaluation.groups import layer_groups
from edge_mrcnn.runtime.runners import EXACT, OrtRunner
from edge_mrcnn.sidecar import EngineSidecar, hash_file
from tests.compiler.ranges import measured_ranges

pytestmark = pytest.mark.torch

STAGE = "box_head.layer4."
CONVOLUTIONS = 5
"""Of the stage of a ResNet-18."""

WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


def stored(model: onnx.ModelProto, kind: int) -> list[onnx.TensorProto]:
    """The weights of the stage of a type of elements; biases and scales have one dimension."""
    return [w for w in model.graph.initializer if STAGE in w.name and w.data_type == kind and len(w.dims) > 1]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    export = pytest.importorskip("edge_mrcnn.training.export", reason="torch is not installed")
    from tests.training.small_c4 import HW, NAMES, small_c4

    model = small_c4(box_score_thresh=0.0)
    path = tmp_path_factory.mktemp("c4") / "c4.onnx"
    onnx.save(export.trace_model(model, "c4", HW, NAMES)[0], path)
    return path


@pytest.fixture(scope="module")
def model(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


@pytest.fixture(scope="module")
def feed() -> dict[str, npt.NDArray[np.generic]]:
    small = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 3), dtype=np.uint8)
    return {"images": small.repeat(16, axis=1).repeat(16, axis=2), "image_hw": np.array([[96, 128]], np.float32)}


@pytest.fixture(scope="module")
def ranges(path: Path, model: onnx.ModelProto, feed: dict[str, npt.NDArray[np.generic]]) -> Path:
    measured_ranges(model, [feed], hash_file(path)).save(path.with_name("ranges.json"))
    return path.with_name("ranges.json")


def test_both_uses_of_each_layer_are_quantised_and_no_other_is_sensitive(model: onnx.ModelProto) -> None:
    names = [node.name for node in quantisable_nodes(model) if node.name.startswith(STAGE)]
    assert len(names) == len(set(names)) == 2 * CONVOLUTIONS
    kept = {re.sub(r"_\d+$", "", node.name) for node in sensitive_nodes(model)}
    assert kept == {
        *("rpn_head.cls_logits", "rpn_head.bbox_pred", "box_predictor.cls_score", "box_predictor.bbox_pred"),
        "mask_predictor.mask_fcn_logits",
    }


def test_each_use_has_ranges_of_its_own(ranges: Path) -> None:
    first, second = (Ranges.load(ranges).tensors[f"{STAGE}0.{name}"] for name in ("relu", "relu_2"))
    assert first.high > 0
    assert second.high > 0
    assert first.high != second.high, "the box head sees proposals, the mask head detections"


def test_what_is_kept_of_one_use_leaves_the_other(model: onnx.ModelProto, ranges: Path) -> None:
    """The mask head's use alone stays in float16: the weight is stored in both types, and each layer reads its own."""
    recipe = Recipe("int8", Ranges.load(ranges), keep_fp16=(rf"^{re.escape(STAGE)}0\.conv1_1$",))
    made = run_passes(model, recipe)
    name = f"{STAGE}0.conv1"
    readers = {n.name: n.input[1] for n in made.graph.node if n.op_type == "Conv" and n.name.startswith(name)}
    assert set(readers) == {name, f"{name}_1"}
    assert {w.data_type for w in made.graph.initializer if w.name in readers.values()} == {onnx.TensorProto.FLOAT16}
    assert len(stored(made, onnx.TensorProto.INT8)) == CONVOLUTIONS


@pytest.mark.parametrize(
    ("precision", "dialect", "kind"),
    [
        ("fp16", "tensorrt", onnx.TensorProto.FLOAT16),
        ("int8", "tensorrt", onnx.TensorProto.INT8),
        ("int8", "ort", onnx.TensorProto.INT8),
    ],
)
def test_the_stage_is_stored_once(
    model: onnx.ModelProto, ranges: Path, precision: Precision, dialect: str, kind: int
) -> None:
    made = run_passes(model, Recipe(precision, Ranges.load(ranges), dialect=dialect))
    assert len(stored(made, kind)) == CONVOLUTIONS
    assert sum(len(stored(made, other)) for other in (onnx.TensorProto.FLOAT, kind)) == CONVOLUTIONS


def test_groups_name_the_stage(model: onnx.ModelProto) -> None:
    groups = layer_groups(model)
    assert len(groups["box_head"]) == 2 * CONVOLUTIONS
    assert sum(map(len, groups.values())) == len(quantisable_nodes(model))


@pytest.mark.parametrize("config", [{}, EXACT], ids=["fast", "exact"])
def test_it_runs_in_integers_on_a_cpu(
    path: Path,
    ranges: Path,
    feed: dict[str, npt.NDArray[np.generic]],
    options: Callable[..., BuildOptions],
    tmp_path: Path,
    config: dict[str, str],
) -> None:
    result = build_engine(path, options(precision="int8", ranges=ranges, target="cpu"), tmp_path)
    assert result.realised == result.requested
    assert result.size_bytes < 0.30 * path.stat().st_size
    with OrtRunner(path) as exported, OrtRunner(result.engine, config=config) as quantised:
        expected, found = exported.infer(feed), quantised.infer(feed)
    assert expected["num_detections"].tolist() == found["num_detections"].tolist() == [8]
    assert np.abs(expected["scores"] - found["scores"]).mean() < 0.1
    assert np.ptp(expected["scores"]) > 0.2
    assert found["masks"].shape == (1, 8, 14, 14)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("int8", "int8")])
def test_an_engine(
    rtx: None,
    path: Path,
    ranges: Path,
    options: Callable[..., BuildOptions],
    tmp_path: Path,
    precision: Precision,
    dtype: str,
) -> None:
    given = {"ranges": ranges} if precision == "int8" else {}
    result = build_engine(path, options(precision=precision, target="rtx", cache_limit_gib=0.0, **given), tmp_path)
    sidecar = EngineSidecar.load_for(result.engine)
    assert sum(layer.type == "PLUGIN_V3" for layer in sidecar.layers) == 4
    stage = [layer for layer in sidecar.layers if layer.type in WEIGHTED and layer.name.startswith(STAGE)]
    assert Counter(layer.requested for layer in stage) == {dtype: 2 * CONVOLUTIONS}
    assert {tensor.name: tensor.shape for tensor in sidecar.outputs}["masks"] == (-1, 8, 14, 14)
