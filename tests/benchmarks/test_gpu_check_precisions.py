"""Precisions side by side in `make gpu-check`: verdicts, and the whole way on a stand-in GPU that emulates int8."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")

from benchmarks.gpu_check import engines, precisions
from edge_mrcnn.compiler.build_options import BuildOptions, BuildResult
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.emulation import emulate
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import EngineError
from edge_mrcnn.evaluation.comparison import Agreement, Drop, Interval
from edge_mrcnn.runtime.sources.pictures import read_picture
from edge_mrcnn.sidecar import EngineSidecar, PrecisionShare, hash_file, sidecar_path, tabulate
from tests.evaluation.tabletop import save_spoilt
from tests.gpu.fake_gpu import FakeGpu

MODEL = engines.SAMPLES / "model.onnx"
ASKED = tabulate([("int8", 90), ("float16", 10)])


# ----------------------------------------------------------------------------------------------------------- Verdicts
@pytest.mark.parametrize(
    ("precision", "asked", "realised", "ok"),
    [
        ("int8", ASKED, ASKED, True),
        ("int8", ASKED, tabulate([("int8", 82), ("float16", 18)]), True),  # a small layer in more bits
        ("int8", ASKED, tabulate([("int8", 80), ("float16", 20)]), False),
        ("int8", ASKED, tabulate([("unknown", 90), ("float16", 10)]), False),  # the inspector was not understood
        ("int8", ASKED, (), False),
        ("int8", ASKED, None, False),
        ("int8", tabulate([("float16", 100)]), tabulate([("float16", 100)]), False),  # nothing was quantised
        ("fp16", tabulate([("float16", 100)]), tabulate([("float16", 95), ("float32", 5)]), True),
        ("fp32", tabulate([("float32", 100)]), tabulate([("float16", 100)]), False),
    ],
)
def test_work_is_held_against_what_was_asked_for(
    precision: str, asked: tuple[PrecisionShare, ...], realised: tuple[PrecisionShare, ...] | None, ok: bool
) -> None:
    row = precisions.judge_work("model", precision, asked, realised)
    assert (row["what"], row["ok"]) == ("work", ok)


def test_work_in_words() -> None:
    row = precisions.judge_work("model", "int8", ASKED, tabulate([("int8", 60), ("int8", 25), ("float16", 15)]))
    assert row["detail"] == (
        "asked for int8 90.0% in 1 layers, float16 10.0% in 1 layers; "
        "realised int8 85.0% in 2 layers, float16 15.0% in 1 layers"
    )
    assert precisions.judge_work("model", "int8", ASKED, None)["detail"].endswith("; realised nothing: not looked into")


def test_agreement_and_drop_in_words() -> None:
    some = Agreement(10, 9, 0.9, 1, 2, 0.98765, None, -0.01, 0.02)
    assert precisions.describe_agreement(some) == (
        "9 of 10 matched, 2 extra, mean IoU of boxes 0.9877, scores off by 0.0200 on average"
    )
    nothing = Agreement(0, 0, 1.0, 0, 0, None, None, None, None)
    assert precisions.describe_agreement(nothing) == "0 of 0 matched, 0 extra"
    drop = Drop(Interval(0.125, -0.5, 1.0), None)
    assert precisions.describe_drop(drop) == "points of AP lost: box 0.12 (-0.50 to 1.00)"


def test_times_are_compared_frame_by_frame() -> None:
    times = {"fp32": np.array([4.0, 8.0, 6.0]), "int8": np.array([1.0, 4.0, 3.0])}
    assert precisions.describe_times(times) == "fp32 p50 6.00 ms, int8 p50 3.00 ms; int8 takes 0.50 of fp32's time"


def test_frames_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "FRAMES", 3)
    monkeypatch.setattr(precisions, "WARM_UP", 1)
    calls: list[tuple[str, int]] = []
    detectors = {name: lambda picture, name=name: calls.append((name, int(picture[0]))) for name in ("a", "b")}
    times = precisions.time_frames(detectors, [np.array([0]), np.array([1])])
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)] * 2
    assert {name: taken.shape for name, taken in times.items()} == {"a": (3,), "b": (3,)}


# ------------------------------------------------------------------------------------------------------ The whole way
class Builder:
    """In the place of `build_engine`: engines for the stand-in GPU, with sidecars that say what a real one's would."""

    def __init__(self, gpu: FakeGpu, networks: dict[str, Path]) -> None:
        self._gpu, self._networks = gpu, networks
        self.asked: list[BuildOptions] = []

    def __call__(self, model: Path, options: BuildOptions, folder: Path) -> BuildResult:
        self.asked.append(options)
        if options.precision not in self._networks:
            raise EngineError(f"{options.precision} was asked for, but TensorRT computes in more bits")
        table = ASKED if options.precision == "int8" else tabulate([(precisions.TYPES[options.precision], 100)])
        part = folder / options.precision
        part.mkdir()
        written = self._gpu.engine(
            self._networks[options.precision], part, precision=options.precision, requested=table, realised=table
        )
        engine = folder / f"model.tensorrt.{options.precision}.engine"
        sidecar_path(written).rename(sidecar_path(engine))
        return BuildResult.of(written.rename(engine), EngineSidecar.load_for(engine), 0.5)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "_layers", lambda flavour, path: [{"Name": "conv1"}])
    monkeypatch.setattr(precisions, "FRAMES", 2)
    monkeypatch.setattr(precisions, "WARM_UP", 1)
    monkeypatch.setattr(precisions, "COMPARED", 3)
    return FakeGpu(monkeypatch)


def check(gpu: FakeGpu, networks: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], Builder]:
    """Rows of all precisions of the bundled model, and who built them."""
    builder = Builder(gpu, networks)
    monkeypatch.setattr("edge_mrcnn.compiler.builder.build_engine", builder)
    pictures = [read_picture(path) for path in sorted((precisions.VAL / "images").glob("*.jpg"))[:2]]
    rows: list[dict[str, Any]] = []
    engines.check_precisions(MODEL, "tensorrt", pictures, rows.append)
    return rows, builder


def test_the_ranges_are_those_of_the_bundled_model() -> None:
    Ranges.load(precisions.RANGES).check_model(hash_file(MODEL), MODEL)


def score_shift(detail: str) -> float:
    """How far scores are off, as a row says."""
    found = re.search(r"scores off by (\d\.\d{4}) on average", detail)
    assert found, detail
    return float(found[1])


@pytest.mark.slow
def test_precisions_are_set_side_by_side(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    emulated = tmp_path / "emulated.onnx"
    onnx.save(emulate(onnx.load(MODEL), Recipe("int8", Ranges.load(precisions.RANGES))), emulated)
    rows, builder = check(gpu, {"fp32": MODEL, "fp16": MODEL, "int8": emulated}, monkeypatch)
    assert [row for row in rows if not row["ok"]] == []
    assert [one.ranges for one in builder.asked] == [None, None, precisions.RANGES]
    side = {(row["engine"], row["what"]): row["detail"] for row in rows[-6:]}
    against_fp32, against_emulation = "against fp32 in ONNX Runtime, 3 pictures", "against its emulation, 2 pictures"
    assert list(side) == [
        ("model int8 emulated", against_fp32),
        *((f"model tensorrt {precision}", against_fp32) for precision in ("fp32", "fp16", "int8")),
        ("model tensorrt int8", against_emulation),
        ("model tensorrt", "frames in turn"),
    ]
    same = side["model tensorrt fp32", against_fp32]
    assert ", 0 extra, mean IoU of boxes 1.0000, mean IoU of masks 1.0000, " in same
    assert same.endswith("; points of AP lost: box 0.00 (0.00 to 0.00), mask 0.00 (0.00 to 0.00)")
    rounded, emulation = (score_shift(side["model tensorrt int8", what]) for what in (against_fp32, against_emulation))
    assert score_shift(same) == 0
    assert rounded > 2 * emulation, "int8 rounds, and so does its emulation"
    gpu.check()


def test_without_labels_there_is_agreement_and_no_ap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(precisions, "COMPARED", 1)
    rows: list[dict[str, Any]] = []
    precisions._compare_with_fp32("model tensorrt", MODEL, {}, rows.append)
    (row,) = rows
    assert (row["engine"], row["ok"]) == ("model int8 emulated", True)
    assert 0 < score_shift(row["detail"]) < 0.05
    assert "AP" not in row["detail"]


@pytest.mark.slow
def test_an_engine_unlike_its_emulation_fails(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = save_spoilt(tmp_path / "spoilt.onnx", 0.35)
    rows, _ = check(gpu, {"fp32": MODEL, "fp16": MODEL, "int8": spoilt}, monkeypatch)
    wrong = [(row["engine"], row["what"].partition(",")[0]) for row in rows if not row["ok"]]
    assert ("model tensorrt int8", "against its emulation") in wrong
    assert {engine for engine, _ in wrong} == {"model tensorrt int8"}


@pytest.mark.slow
def test_int8_alone_must_not_be_refused(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = check(gpu, {"fp16": MODEL}, monkeypatch)
    refused, last = rows[-2:]
    assert refused["what"] == "refused"
    assert refused["detail"] == "int8 was asked for, but TensorRT computes in more bits"
    assert (last["ok"], last["detail"]) == (False, "only fp16 could be built, not fp32, int8")


def test_a_gpu_that_is_refused_altogether_is_no_failure(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = check(gpu, {}, monkeypatch)
    assert [row["what"] for row in rows] == ["refused"] * 3
    assert not any(row.get("ok") is False for row in rows)
