"""What was imported from a raw file goes through every later stage as an export does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_mrcnn.cli import main
from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.sidecar import EngineSidecar, hash_file, int8_share
from edge_mrcnn.spec import ModelSpec
from tests.compiler.ranges import measured_ranges
from tests.compiler.raw.seeded_weights import load, picture

FIXTURES = Path(__file__).parent / "fixtures"
WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
HW = (128, 160)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw file as a person has it: any name, any size of pictures."""
    path = tmp_path_factory.mktemp("raw") / "last_year.onnx"
    onnx.save(load(FIXTURES / "torch2.15_mask_13_dynamic.onnx.xz"), path)
    return path


@pytest.fixture(scope="module")
def model(raw: Path) -> Path:
    path = raw.with_name("model.onnx")
    assert main(["import", str(raw), "-o", str(path), "--size", "128x160", "--class-names", "a,b,c,d"]) == 0
    return path


@pytest.fixture(scope="module")
def ranges(model: Path) -> Path:
    images = picture(HW, 21)[None]
    path = model.with_suffix(".ranges.json")
    feeds = [{"images": images, "image_hw": np.array([HW], np.float32)}]
    measured_ranges(onnx.load(model), feeds, hash_file(model)).save(path)
    return path


def test_a_detector_takes_it(model: Path) -> None:
    with Detector(model, threshold=None, threads=1) as detector:
        found = detector(picture(HW, 7).repeat(2, 0).repeat(2, 1))
    assert detector.class_names == ("__background__", "a", "b", "c", "d")
    assert len(found) > 5
    assert found.mask is not None
    assert found.mask.shape[1:] == (28, 28)
    assert found.instance_map().max() > 0


def test_no_loop_and_no_branch_is_left(model: Path) -> None:
    graph = onnx.load(model).graph
    ops = {node.op_type for node in graph.node}
    assert {"RpnProposals", "PyramidRoiAlign", "DetectionNms"} <= ops
    assert not {"If", "Loop", "NonZero", "NonMaxSuppression", "RoiAlign", "TopK", "ScatterElements"} & ops
    assert len(graph.node) < 150


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_engine_of_it(
    rtx: None, model: Path, ranges: Path, options: Callable[..., BuildOptions], tmp_path: Path, precision: Any
) -> None:
    measured = {"ranges": ranges} if precision == "int8" else {}
    built = options(precision=precision, target="rtx", cache_limit_gib=0.0, timeout_s=900.0, **measured)
    result = build_engine(model, built, tmp_path)
    sidecar = EngineSidecar.load_for(result.engine)
    assert sum(layer.type == "PLUGIN_V3" for layer in sidecar.layers) == 4
    layers = {layer.requested for layer in sidecar.layers if layer.type in WEIGHTED}
    assert layers == ({"float16"} if precision == "fp16" else {"int8", "float16"})
    if precision == "int8":
        assert int8_share(sidecar.requested) > 0.9
        assert len(result.kept) == 13, "objectness and deltas of five levels, class, box and mask predictors"


def test_an_int8_model_of_it_for_a_cpu(
    model: Path, ranges: Path, options: Callable[..., BuildOptions], tmp_path: Path
) -> None:
    result = build_engine(model, options(precision="int8", ranges=ranges, target="cpu"), tmp_path)
    assert result.realised == result.requested
    assert int8_share(result.requested) > 0.9
    with Detector(result.engine, threshold=None, threads=1) as detector:
        assert len(detector(picture(HW, 22))) > 5


def test_its_spec_says_what_the_file_said(model: Path) -> None:
    spec = ModelSpec.from_metadata({entry.key: entry.value for entry in onnx.load(model).metadata_props})
    assert spec.input_hw == HW
    assert (spec.proposals, spec.detections, spec.score_threshold) == (300, 100, pytest.approx(0.04))
    assert spec.mean == pytest.approx((0.485, 0.456, 0.406))
    assert spec.std == pytest.approx((0.229, 0.224, 0.225))
    assert set(spec.ops) == {"rpn_proposals", "box_roi_align", "detection_nms", "mask_roi_align"}
