"""Layer groups ranked by what quantising each alone costs: the planted bad one comes first."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_mrcnn.compiler.calibration.ranges import METHODS, Ranges
from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import CalibrationError, StreamError
from edge_mrcnn.evaluation.groups import layer_groups
from edge_mrcnn.evaluation.noise import NoiseMeter, read_frames, to_decibels
from edge_mrcnn.evaluation.sensitivity import SensitivityOptions, SensitivityResult, sensitivity, single_recipes
from edge_mrcnn.sidecar import hash_file
from tests.compiler.ranges import TABLETOP, bundled_inputs, measured_ranges
from tests.compiler.tiny_model import build_tiny_model
from tests.evaluation.planted import GROUP, plant_outliers

IMAGES = TABLETOP / "val" / "images"
VAL = TABLETOP / "val" / "annotations.json"


def scaled(ranges: Ranges, tensor: str, factor: float) -> Ranges:
    """Ranges of which one is far from what the tensor holds."""
    wrong = dataclasses.replace(
        ranges.tensors[tensor], symmetric=dict.fromkeys(METHODS, ranges.symmetric(tensor) * factor)
    )
    return dataclasses.replace(ranges, tensors={**ranges.tensors, tensor: wrong})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranges]:
    path = tmp_path_factory.mktemp("sensitivity") / "tiny.onnx"
    onnx.save(build_tiny_model(), path)
    return path, measured_ranges(build_tiny_model(), sha256=hash_file(path))


@pytest.fixture(scope="module")
def ranked(tiny: tuple[Path, Ranges]) -> SensitivityResult:
    return sensitivity(*tiny, IMAGES, SensitivityOptions(pictures=3), threads=1)


def test_every_group_is_ranked(tiny: tuple[Path, Ranges], ranked: SensitivityResult) -> None:
    assert {group.name for group in ranked.groups} == set(layer_groups(build_tiny_model()))
    ratios = [group.snr_db for group in ranked.groups]
    assert ratios == sorted(ratios)
    assert ranked.together.snr_db <= ratios[0]
    assert ranked.pictures == 3
    assert ranked.backend == "onnxruntime-cpu, int8 emulated"


def test_noise_shows_only_behind_the_layer(ranked: SensitivityResult) -> None:
    """The mask head's layer touches the masks and nothing else, beyond what float16 costs everywhere."""
    last = next(group for group in ranked.groups if group.name == "n37")
    assert last.worst_tap == "mask logits"
    assert last.worst_db < 45
    assert min(value for tap, value in last.taps_db.items() if tap != "mask logits") > 50


@pytest.mark.parametrize("node", ["n14", "n31"])
def test_a_layer_with_a_wrong_range_comes_first(node: str, tiny: tuple[Path, Ranges]) -> None:
    path, ranges = tiny
    layer = next(one for one in build_tiny_model().graph.node if one.name == node)
    tensor = layer.input[0] if layer.input[0] in ranges.tensors else source_of(layer.input[0], ranges)
    found = sensitivity(path, scaled(ranges, tensor, 100), IMAGES, SensitivityOptions(pictures=2), threads=1)
    assert found.groups[0].name == node
    assert found.groups[0].snr_db < 15


def source_of(tensor: str, ranges: Ranges) -> str:
    """The tensor measured in place of one that only moves its values."""
    producers = {name: node for node in build_tiny_model().graph.node for name in node.output}
    while tensor not in ranges.tensors:
        tensor = producers[tensor].input[0]
    return tensor


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["tensorrt", "ort"])
def test_a_layer_with_outlying_weights_comes_first(dialect: str, tmp_path: Path) -> None:
    """In float32 the planted model is the bundled one; only int8 shows what is wrong with it."""
    path = tmp_path / "planted.onnx"
    plant_outliers(path)
    ranges = measured_ranges(onnx.load(path), bundled_inputs(4), hash_file(path))
    found = sensitivity(path, ranges, VAL, SensitivityOptions(pictures=2, dialect=dialect), threads=1)
    assert found.groups[0].name == GROUP
    assert found.groups[0].snr_db < found.groups[1].snr_db - 6


def test_ap_is_measured_where_labels_are(tiny: tuple[Path, Ranges], tmp_path: Path) -> None:
    labels = json.loads(VAL.read_text(encoding="utf-8"))
    images = [{**image, "file_name": str(IMAGES / image["file_name"])} for image in labels["images"][:2]]
    classes = {1: "box", 2: "ball"}
    found = [{**row, "category_id": 1 + row["category_id"] % 2} for row in labels["annotations"]]
    content = {
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in classes.items()],
        "annotations": [row for row in found if row["image_id"] in {image["id"] for image in images}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content), encoding="utf-8")
    result = sensitivity(*tiny, tmp_path / "val.json", SensitivityOptions(pictures=1, ap=True, limit=2), threads=1)
    assert result.labelled == 2
    assert all(group.drop is not None and group.mask_drop is not None for group in result.groups)
    assert result.lines()[0].endswith("box AP mask AP")


def test_a_single_recipe_quantises_its_group_and_nothing_else(tiny: tuple[Path, Ranges]) -> None:
    model = build_tiny_model()
    recipe = single_recipes(model, tiny[1], "tensorrt")["n17"]
    typed = run_passes(model, recipe)
    dequantised = {name for node in typed.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    layers = [node for node in typed.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert [node.name for node in layers if node.input[1] in dequantised] == ["n17"]


def test_noise_is_the_error_over_the_signals_spread(tiny: tuple[Path, Ranges]) -> None:
    """Against float32 there is none; a recipe's own share follows from its definition."""
    path, _ = tiny
    meter = NoiseMeter(path, build_tiny_model(), read_frames(IMAGES, 1), 1)
    assert set(meter.measure(Recipe("fp32")).by_tap.values()) == {0.0}
    fp16 = meter.measure(Recipe("fp16"))
    assert all(1e-9 < share < 1e-4 for share in fp16.by_tap.values())
    assert fp16.mean == pytest.approx(np.mean(list(fp16.by_tap.values())))


def test_decibels() -> None:
    assert to_decibels(0.01) == pytest.approx(20)
    assert to_decibels(0.0) == math.inf


def test_pictures_of_a_coco_file_are_spread_evenly() -> None:
    names = [Path(frame.source).name for frame in read_frames(VAL, 4)]
    assert names == ["000000.jpg", "000021.jpg", "000042.jpg", "000063.jpg"]


def test_json_and_table(ranked: SensitivityResult) -> None:
    endless = dataclasses.replace(ranked.groups[-1], snr_db=math.inf, taps_db={"features": math.inf})
    result = dataclasses.replace(ranked, groups=(*ranked.groups[:-1], endless))
    read = json.loads(result.to_json())
    assert read["groups"][-1]["snr_db"] is None
    assert read["groups"][0]["worst_tap"] == ranked.groups[0].worst_tap
    assert read["together"]["layers"] == sorted(read["together"]["layers"], key=lambda name: int(name[1:]))
    lines = result.lines()
    assert all(group.name in line for group, line in zip(result.groups, lines[2:], strict=False))
    bars = [line.count("█") for line in lines[1:7]]
    assert bars[1:] == sorted(bars[1:], reverse=True)
    assert bars[-1] == 0


def test_ranges_of_another_model_are_refused(tiny: tuple[Path, Ranges]) -> None:
    with pytest.raises(CalibrationError, match="were measured on an ONNX file of"):
        sensitivity(tiny[0], dataclasses.replace(tiny[1], onnx_sha256="f" * 64), IMAGES)


def test_a_model_that_is_quantised_already_is_refused(tiny: tuple[Path, Ranges], tmp_path: Path) -> None:
    path = tmp_path / "quantised.onnx"
    onnx.save(run_passes(build_tiny_model(), Recipe("int8", tiny[1]), keep_bodies=True), path)
    with pytest.raises(CalibrationError, match="brings its own Q/DQ nodes"):
        sensitivity(path, dataclasses.replace(tiny[1], onnx_sha256=hash_file(path)), IMAGES)


def test_data_without_pictures_is_refused(tiny: tuple[Path, Ranges], tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="no picture"):
        sensitivity(*tiny, tmp_path)


@pytest.mark.parametrize("name", ["pictures", "limit"])
def test_numbers_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"SensitivityOptions\.{name} must be at least 1, got 0"):
        SensitivityOptions(**{name: 0})


def test_an_overflow_is_the_most_noise(tmp_path: Path) -> None:
    """Weights that float16 holds, but not what comes of them."""
    model = build_tiny_model()
    at = {node.name: node for node in model.graph.node}["n31"].input[1]
    weight = next(one for one in model.graph.initializer if one.name == at)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(50000), at))
    path = tmp_path / "large.onnx"
    onnx.save(model, path)
    shares = NoiseMeter(path, model, read_frames(IMAGES, 1), 1).measure(Recipe("fp16"))
    assert to_decibels(shares.by_tap["class logits"]) == pytest.approx(-60)
    assert to_decibels(shares.by_tap["features"]) > 40
