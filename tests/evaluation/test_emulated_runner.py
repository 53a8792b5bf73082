"""Emulated precisions behind the interface that every runner has."""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnx
import pytest

from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import CalibrationError, ExportError
from edge_mrcnn.evaluation.emulated_runner import EmulatedRunner, open_recipe
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.runtime.sources.pictures import read_picture
from edge_mrcnn.sidecar import hash_file
from tests.compiler.ranges import BUNDLED, TABLETOP, bundled_inputs, measured_ranges

PICTURE = read_picture(TABLETOP / "val" / "images" / "000000.jpg")


@pytest.fixture(scope="module")
def int8() -> Recipe:
    return Recipe("int8", measured_ranges(onnx.load(BUNDLED), bundled_inputs(4), hash_file(BUNDLED)))


def test_a_detector_runs_it_and_names_it(int8: Recipe) -> None:
    with OrtRunner(BUNDLED) as plain:
        expected = Detector(plain)(PICTURE)
    for recipe in (Recipe("fp16"), int8):
        with EmulatedRunner(BUNDLED, recipe) as runner:
            detector = Detector(runner)
            found = detector(PICTURE)
        assert detector.backend == f"onnxruntime-cpu, {recipe.precision} emulated"
        assert found.class_id[:4].tolist() == expected.class_id[:4].tolist()
        near = np.isclose(found.xyxy[:4], expected.xyxy[:4], atol=3).all(axis=1)
        assert near.sum() >= 3  # of two boxes for the same thing, NMS may take the other one
        assert np.abs(found.score[:4] - expected.score[:4]).max() > 0


def test_the_other_dialect_runs_as_it_is(int8: Recipe) -> None:
    with open_recipe(BUNDLED, Recipe("int8", int8.ranges, dialect="ort")) as runner:
        assert runner.backend == "onnxruntime-cpu"
        assert len(Detector(runner)(PICTURE)) > 3


def test_int8_without_ranges_is_refused() -> None:
    with pytest.raises(CalibrationError, match="edge-mrcnn calibrate"):
        EmulatedRunner(BUNDLED, Recipe("int8"))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ExportError, match=r"no file nowhere\.onnx"):
        EmulatedRunner("nowhere.onnx", Recipe("fp16"))


@pytest.mark.slow
def test_it_takes_at_most_twice_the_time(int8: Recipe) -> None:
    """Measured in turn, so that whatever else the machine does hits all of them."""
    runners = [OrtRunner(BUNDLED, 1), EmulatedRunner(BUNDLED, Recipe("fp16"), 1), EmulatedRunner(BUNDLED, int8, 1)]
    feeds = bundled_inputs(1)[0]
    times: list[list[float]] = [[] for _ in runners]
    for _ in range(15):
        for place, runner in enumerate(runners):
            start = time.perf_counter()
            runner.infer(feeds)
            times[place].append(time.perf_counter() - start)
    plain, fp16, quantised = (statistics.median(of_one[2:]) for of_one in times)
    assert fp16 < 2 * plain
    assert quantised < 2 * plain
