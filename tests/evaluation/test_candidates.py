"""What a comparison opens: precisions of the bundled model, files made of it, engines on a stand-in GPU."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_mrcnn.compiler.build_options import BuildOptions
from edge_mrcnn.compiler.builder import build_engine
from edge_mrcnn.compiler.calibration.ranges import Ranges
from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.errors import CalibrationError, EdgeMrcnnError, EngineError
from edge_mrcnn.evaluation.candidates import Candidate, kept_groups, open_candidates
from edge_mrcnn.evaluation.compare_options import CompareOptions
from edge_mrcnn.evaluation.groups import layer_groups
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.sources.pictures import read_picture
from edge_mrcnn.sidecar import EngineSidecar, PrecisionShare, hash_file, int8_share
from tests.compiler.ranges import BUNDLED, TABLETOP, measured_ranges
from tests.compiler.tiny_model import build_tiny_model
from tests.evaluation.tabletop import make_ranges, save_quantised
from tests.gpu.fake_gpu import FakeGpu
from tests.runtime.tiny_detector import save_detector


@pytest.fixture(scope="module")
def ranges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    make_ranges().save(path)
    return path


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory, ranges: Path) -> Path:
    return save_quantised(tmp_path_factory.mktemp("quantised") / "quantised.onnx", Ranges.load(ranges))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(build_tiny_model(), path)
    return path


@pytest.fixture(scope="module")
def tiny_ranges(tiny: Path) -> Path:
    path = tiny.with_name("ranges.json")
    measured_ranges(onnx.load(tiny), sha256=hash_file(tiny)).save(path)
    return path


def options(*precisions: str, **more) -> CompareOptions:
    return CompareOptions(precisions, threads=1, **more)


def opened(model: Path, *others: Path, reference: Path | None = None, told: CompareOptions) -> tuple[Candidate, ...]:
    """The candidates after they were opened and closed again."""
    with open_candidates(model, others, reference, told) as found:
        return found


@pytest.mark.slow
def test_each_precision_is_what_it_says_and_finds_what_the_model_finds(ranges: Path) -> None:
    picture = read_picture(TABLETOP / "val" / "images" / "000003.jpg")
    with open_candidates(BUNDLED, (), None, options("fp32,fp16,int8,int8-cpu", ranges=ranges)) as found:
        by_label = {one.label: one for one in found}
        counts = [len(Detector(one.runner, threshold=0.5)(picture)) for one in found]
    assert list(by_label) == ["fp32", "fp16", "int8", "int8-cpu"]
    assert [one.emulated for one in found] == [False, True, True, False]
    assert [one.runner.backend for one in found] == [
        "onnxruntime-cpu",
        "onnxruntime-cpu, fp16 emulated",
        "onnxruntime-cpu, int8 emulated",
        "onnxruntime-cpu",
    ]
    assert by_label["fp16"].size_bytes is by_label["int8"].size_bytes is None
    assert by_label["fp32"].size_bytes == BUNDLED.stat().st_size
    assert by_label["int8-cpu"].size_bytes < 0.35 * BUNDLED.stat().st_size
    assert (by_label["fp32"].int8_share, by_label["fp16"].int8_share) == (0, 0)
    assert 0.9 < by_label["int8"].int8_share < 1
    assert 0.5 < by_label["int8-cpu"].int8_share < 1
    assert {one.kept for one in found} == {()}
    assert counts[0] >= 4
    assert max(counts) - min(counts) <= 1
    with pytest.raises(EngineError, match="is closed"):
        Detector(by_label["fp32"].runner)(picture)


def test_the_model_in_float32_is_always_there_and_first(tiny: Path, tiny_ranges: Path) -> None:
    told = [options("int8", ranges=tiny_ranges), options(), options(ranges=tiny_ranges)]
    labels = [[one.label for one in opened(tiny, told=each)] for each in told]
    assert labels == [["fp32", "int8"], ["fp32", "fp16"], ["fp32", "fp16", "int8"]]


def test_layers_kept_out_of_int8_are_named_and_not_counted(tiny: Path, tiny_ranges: Path) -> None:
    _, whole = opened(tiny, told=options("int8", ranges=tiny_ranges))
    name = layer_groups(onnx.load(tiny)).popitem()[1][0]
    _, some = opened(tiny, told=options("int8", ranges=tiny_ranges, keep_fp16=(f"^{name}$",)))
    assert (whole.kept, some.kept) == ((), (name,))
    assert 0 < some.int8_share < whole.int8_share
    with pytest.raises(ValueError, match="is found in no layer's name"):
        opened(tiny, told=options("int8", ranges=tiny_ranges, keep_fp16=("nothing",)))


def test_what_is_kept_is_named_by_group_or_else_by_layer() -> None:
    model, block = onnx.load(BUNDLED), "backbone.body.stride8.1"
    layers = [name for nodes in layer_groups(model).values() for name in nodes if name.startswith(f"{block}.")]
    assert kept_groups(model, Recipe("int8", keep_fp16=("box_head",), keep_fp32=(block,))) == (block, "box_head")
    assert kept_groups(model, Recipe("int8", keep_fp16=(layers[0],))) == (layers[0],)
    assert kept_groups(model, Recipe("int8")) == ()


def test_a_quantised_file_is_compared_under_its_name(quantised: Path) -> None:
    reference, file = opened(BUNDLED, quantised, told=options("fp32"))
    assert (reference.label, file.label) == ("fp32", "quantised.onnx")
    assert (file.emulated, file.size_bytes) == (False, quantised.stat().st_size)
    assert 0.5 < file.int8_share < 1
    assert file.runner.backend == "onnxruntime-cpu"
    assert [one.label for one in opened(quantised, reference=BUNDLED, told=options())] == ["fp32", "quantised.onnx"]


@pytest.mark.slow
def test_what_was_built_for_a_cpu_is_told_by_its_sidecar(ranges: Path, tmp_path: Path) -> None:
    told = BuildOptions("int8", "cpu", ranges, keep_fp16=("box_head",))
    built = build_engine(BUNDLED, told, tmp_path).engine
    _, file = opened(BUNDLED, built, told=options("fp32"))
    assert (file.label, file.emulated, file.kept) == (built.name, False, ("box_head",))
    sidecar = EngineSidecar.load_for(built)
    assert sidecar.realised is not None
    assert file.int8_share == int8_share(sidecar.realised) > 0.5


def test_integer_kernels_without_qdq_nodes_leave_the_share_unknown(tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny)
    codes = [onnx.numpy_helper.from_array(np.ones((4, 4), np.int8), name) for name in ("codes", "weight")]
    model.graph.initializer.extend(codes)
    model.graph.node.append(onnx.helper.make_node("MatMulInteger", ["codes", "weight"], ["unused"]))
    onnx.save(model, tmp_path / "integer.onnx")
    assert opened(tiny, tmp_path / "integer.onnx", told=options("fp32"))[1].int8_share is None
    with pytest.raises(ValueError, match=r"integer\.onnx is quantised already"):
        opened(tmp_path / "integer.onnx", told=options())


def test_int8_of_a_model_with_its_own_qdq_nodes_needs_no_ranges(quantised: Path) -> None:
    _, made, file = opened(quantised, reference=BUNDLED, told=options("int8-cpu"))
    assert (made.label, file.label) == ("int8-cpu", "quantised.onnx")
    assert made.int8_share == file.int8_share


def test_files_of_the_same_name_are_told_apart_by_their_paths(tiny: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "tiny.onnx", tmp_path / "other.onnx"
    for path in (copy, other):
        shutil.copy(tiny, path)
    assert [one.label for one in opened(tiny, copy, other, told=options("fp32"))] == ["fp32", str(copy), "other.onnx"]
    assert [one.label for one in opened(tiny, reference=other, told=options("fp32"))] == ["other.onnx", "fp32"]


@pytest.mark.usefixtures("own_cache")
def test_engines_say_what_they_are_by_their_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, model = FakeGpu(monkeypatch, flavour="rtx"), save_detector(tmp_path / "model.onnx")
    requested = (PrecisionShare("int8", 3, 75, 0.75), PrecisionShare("float16", 1, 25, 0.25))
    engine = gpu.engine(model, tmp_path, requested=requested)
    picture = np.full((64, 96, 3), 128, np.uint8)
    with open_candidates(model, [engine], None, options("fp32")) as found:
        same, other = (Detector(one.runner, threshold=None)(picture) for one in found)
        assert np.allclose(same.xyxy, other.xyxy, atol=1e-3)
    assert (found[1].label, found[1].emulated) == (engine.name, False)
    assert found[1].runner.backend.startswith("tensorrt-rtx")
    assert (found[1].size_bytes, found[1].int8_share) == (engine.stat().st_size, 0.75)
    realised = (PrecisionShare("int8", 2, 50, 0.5), PrecisionShare("float16", 2, 50, 0.5))
    gpu.engine(model, tmp_path, requested=requested, realised=realised)
    assert opened(engine, reference=model, told=options())[1].int8_share == 0.5


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_cannot_be_compared_is_refused_with_the_remedy(tmp_path: Path, quantised: Path, ranges: Path) -> None:
    engine, text = tmp_path / "model.engine", tmp_path / "model.txt"
    engine.write_bytes(b"plan")
    text.touch()
    cases = [
        ((BUNDLED,), options("fp32"), ValueError, "nothing to compare .* --precisions fp32,fp16 or --with FILE"),
        ((BUNDLED, BUNDLED), options("fp16"), ValueError, "each file must be named once"),
        ((BUNDLED, text), options("fp16"), ValueError, "neither a model.onnx nor an .engine"),
        ((BUNDLED, tmp_path / "no.engine"), options("fp16"), EngineError, "there is no engine"),
        ((tmp_path / "no.onnx",), options("fp16"), EdgeMrcnnError, "there is no file .*no.onnx"),
        ((BUNDLED,), options("int8"), CalibrationError, f"edge-mrcnn calibrate {BUNDLED} PICTURES -o ranges.json"),
        ((BUNDLED,), options("int8-cpu"), CalibrationError, "int8-cpu of .* needs the ranges"),
        ((engine,), options("fp16"), ValueError, "is an engine: .* --reference model.onnx"),
        ((quantised,), options("fp16"), ValueError, "is quantised already: .* --reference model.onnx"),
    ]
    for (model, *others), told, kind, message in cases:
        with pytest.raises(kind, match=message):
            opened(model, *others, told=told)
    other = save_detector(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other\.onnx has the classes .*bottle, fp32 has .*hammer"):
        opened(BUNDLED, other, told=options("fp32"))
    with pytest.raises(CalibrationError, match=r"but .*other\.onnx has"):
        opened(other, told=options("int8", ranges=ranges))
    with pytest.raises(ValueError, match=r"fp16 is made of an FP32 ONNX file, but .* is quantised"):
        opened(quantised, reference=_copy(quantised, tmp_path), told=options("fp16"))


def _copy(path: Path, folder: Path) -> Path:
    return Path(shutil.copy(path, folder / f"copy_of_{path.name}"))


def test_precisions_are_written_with_commas_or_spaces() -> None:
    assert CompareOptions(("fp32,fp16", "int8", "fp16")).precisions == ("fp32", "fp16", "int8")
    assert CompareOptions(("fp32, int8-cpu ,",)).precisions == ("fp32", "int8-cpu")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precisions": ("int4",)}, "precision 'int4': fp32, fp16, int8, int8-cpu are known"),
        ({"keep_fp16": ("(",)}, "keep_fp16: .* is no regular expression"),
        ({"threshold": 2.0}, "threshold must be from 0 to 1, got 2.0"),
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"worst": -1}, "worst must be at least 0, got -1"),
        ({"runs": -1}, "runs must be at least 0, got -1"),
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareOptions(**wrong)
