"""Engines are built for real, by TensorRT-RTX, which takes no GPU; the tiny network takes it about a second."""

from __future__ import annotations

import dataclasses
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge_mrcnn import device
from edge_mrcnn.compiler import builder, preparation
from edge_mrcnn.compiler.builder import BuildOptions, build_engine, parse_batch, resolve_target
from edge_mrcnn.compiler.passes import apply_passes, passes_of
from edge_mrcnn.compiler.preparation import PreparedModel, prepare_model
from edge_mrcnn.compiler.recipe import Dialect, Recipe
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.gpu import tensorrt_api
from edge_mrcnn.ops import PLUGIN_ATTRIBUTES
from edge_mrcnn.sidecar import EngineSidecar, RecipeRecord, TensorInfo, hash_file
from tests.compiler.tiny_model import DETECTIONS, MASK, SPEC, build_tiny_model

Options = Callable[..., BuildOptions]

GPU = device.Gpu("Test GPU", (8, 7), 8 << 30, integrated=True)

WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_an_engine_with_its_sidecar(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, precision: str, dtype: str
) -> None:
    out = tmp_path / "new" / "folder"
    result = build_engine(tiny_path, options(precision=precision, target="rtx:sm_86,sm_89", batch="1,2,4"), out)
    assert sorted(path.name for path in out.iterdir()) == [
        f"tiny.rtx-sm_86-sm_89.{precision}.engine",
        f"tiny.rtx-sm_86-sm_89.{precision}.json",
    ]
    assert (result.cached, result.target, result.size_bytes) == (False, "rtx:sm_86,sm_89", result.engine.stat().st_size)
    assert result.size_bytes > 100_000
    sidecar = EngineSidecar.load_for(result.engine)
    assert (sidecar.precision, sidecar.batch, sidecar.spec) == (precision, (1, 2, 4), SPEC)
    assert (sidecar.flavour, sidecar.tensorrt) == ("rtx", tensorrt_api.installed_version("rtx"))
    assert sidecar.onnx_sha256 == hash_file(tiny_path)
    assert {layer.requested for layer in sidecar.layers if layer.type in WEIGHTED} == {dtype}
    assert sum(layer.type == "PLUGIN_V3" for layer in sidecar.layers) == 4
    assert all(layer.realised is None for layer in sidecar.layers), "only a GPU can tell"
    assert sidecar.inputs == (
        TensorInfo("images", "uint8", (-1, 64, 96, 3)),
        TensorInfo("image_hw", "float32", (-1, 2)),
    )
    assert sidecar.outputs == (
        TensorInfo("num_detections", "int32", (-1,)),
        TensorInfo("boxes", "float32", (-1, DETECTIONS, 4)),
        TensorInfo("scores", "float32", (-1, DETECTIONS)),
        TensorInfo("labels", "int32", (-1, DETECTIONS)),
        TensorInfo("masks", "float32", (-1, DETECTIONS, MASK, MASK)),
    )


def test_a_fixed_batch(rtx: None, options: Options, tmp_path: Path) -> None:
    model = tmp_path / "fixed.onnx"
    onnx.save(build_tiny_model(batch=2), model)
    sidecar = EngineSidecar.load_for(build_engine(model, options(batch="2")).engine)
    assert sidecar.batch == (2, 2, 2)
    assert sidecar.inputs[0].shape == (2, 64, 96, 3)
    with pytest.raises(EngineError, match=r"images has a fixed batch of 2.*--batch 2"):
        build_engine(model, options(batch="1,1,4"))


def test_the_same_engine_is_not_built_twice(rtx: None, tiny_path: Path, options: Options, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    first = build_engine(tiny_path, options(), out)
    in_place = build_engine(tiny_path, options(), out)
    from_cache = build_engine(tiny_path, options(), elsewhere)
    assert [first.cached, in_place.cached, from_cache.cached] == [False, True, True]
    assert from_cache.engine.read_bytes() == first.engine.read_bytes()
    assert EngineSidecar.load_for(from_cache.engine) == EngineSidecar.load_for(first.engine)
    assert not build_engine(tiny_path, options(force=True), out).cached


@pytest.mark.parametrize(
    "changed",
    [{"precision": "fp32"}, {"batch": "1,1,2"}, {"target": "rtx:sm_89"}, {"workspace": 64.0}, {"cache_limit_gib": 0.0}],
    ids=str,
)
def test_another_engine_is_built(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, changed: dict[str, Any]
) -> None:
    if "cache_limit_gib" in changed:
        build_engine(tiny_path, options(**changed), tmp_path / "a")
    else:
        build_engine(tiny_path, options(), tmp_path / "a")
    assert not build_engine(tiny_path, options(**changed), tmp_path / "b").cached


def test_a_changed_engine_is_replaced(rtx: None, tiny_path: Path, options: Options, tmp_path: Path) -> None:
    first = build_engine(tiny_path, options(), tmp_path / "out")
    good = first.engine.read_bytes()
    first.engine.unlink()
    first.engine.write_bytes(b"x" + good[1:])
    second = build_engine(tiny_path, options(), tmp_path / "out")
    assert second.cached
    assert second.engine.read_bytes() == good


def test_a_damaged_cache_is_not_believed(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_engine(tiny_path, options(), tmp_path / "a")
    first.engine.unlink()
    (kept,) = (tmp_path / "cache").glob("*.engine")
    kept.write_bytes(kept.read_bytes()[:-1])
    second = build_engine(tiny_path, options(), tmp_path / "b")
    assert not second.cached
    assert "is not the engine its sidecar was written for" in caplog.text
    EngineSidecar.load_for(second.engine)


def test_a_cache_that_cannot_be_written_costs_no_build(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    result = build_engine(tiny_path, options(cache_dir=tmp_path / "file" / "cache"), tmp_path / "out")
    EngineSidecar.load_for(result.engine)
    assert "not kept in the cache" in caplog.text


def test_a_precision_that_cannot_be_honoured_fails(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "run_passes", lambda model, recipe: apply_passes(model, passes_of(Recipe("fp32"))))
    with pytest.raises(EngineError, match=r"fp16 was asked for, but 12 weighted layers .*'float32': 12"):
        build_engine(tiny_path, options(precision="fp16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_precision_that_tensorrt_does_not_see_fails(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is float32 and is said to be float16, as if TensorRT's parser had read it differently."""

    def prepare(path: Path, given: BuildOptions, dialect: Dialect) -> PreparedModel:
        prepared = prepare_model(path, dataclasses.replace(given, precision="fp32"), dialect)
        layers = tuple(dataclasses.replace(layer, precision="float16") for layer in prepared.layers)
        return dataclasses.replace(prepared, layers=layers)

    monkeypatch.setattr(builder, "prepare_model", prepare)
    with pytest.raises(EngineError, match=r"fp16 was asked for, .* 12 weighted layers .*'float32': 12.*\(float16\)"):
        build_engine(tiny_path, options(precision="fp16"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_custom_op_that_became_no_plugin_fails(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where bodies are kept and the names of the plugins are not, the parser takes the bodies."""

    def keep_bodies(model: onnx.ModelProto, recipe: Recipe) -> onnx.ModelProto:
        changed = apply_passes(model, passes_of(Recipe("fp32"), keep_bodies=True))
        for node in changed.graph.node:
            for attribute in [a for a in node.attribute if a.name in PLUGIN_ATTRIBUTES]:
                node.attribute.remove(attribute)
        return changed

    monkeypatch.setattr(preparation, "run_passes", keep_bodies)
    with pytest.raises(EngineError, match=r"parser refuses the model: .*RoiAlign"):
        build_engine(tiny_path, options(precision="fp32"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_target_that_rtx_lacks(rtx: None, tiny_path: Path, options: Options, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot build for sm_87, only for sm_75"):
        build_engine(tiny_path, options(target="rtx:sm_87"), tmp_path)


def test_a_full_disk_leaves_nothing(rtx: None, tiny_path: Path, options: Options, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the disk: the worker's write fails half way through."""
    out = tmp_path / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, limits[1]))
    try:
        with pytest.raises(EngineError, match=r"cannot write the engine .*free some space.*-o DIR"):
            build_engine(tiny_path, options(), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(out.iterdir())


def test_a_folder_that_cannot_be_written_is_said_before_building(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(builder, "run_worker", lambda *_: pytest.fail("built before looking at the folder"))
    with pytest.raises(EngineError, match=r"cannot write to the folder .*file/out.*-o DIR"):
        build_engine(tiny_path, options(), tmp_path / "file" / "out")


BAD_MODELS = [
    # what is in the file, what is said
    (None, "there is no file .*edge-mrcnn export"),
    (b"", "holds no network .0 bytes.*export it again"),
    (b"\x89PNG not a model", "not a readable ONNX file"),
    (b"truncated", "not a readable ONNX file"),
]


@pytest.mark.parametrize(("data", "message"), BAD_MODELS)
def test_what_is_no_model_of_ours(
    rtx: None, tiny_path: Path, options: Options, tmp_path: Path, data: bytes | None, message: str
) -> None:
    path = tmp_path / "model.onnx"
    if data is not None:
        path.write_bytes(tiny_path.read_bytes()[:-100] if data == b"truncated" else data)
    with pytest.raises(ExportError, match=message):
        build_engine(path, options())


def machine(monkeypatch: pytest.MonkeyPatch, gpus: list[device.Gpu], **versions: str) -> None:
    monkeypatch.setattr(device, "find_gpus", lambda: gpus)
    monkeypatch.setattr(tensorrt_api, "installed_version", versions.get)


TARGETS = [
    # GPU there, TensorRTs installed, asked for, what it becomes
    (False, ["rtx"], None, "rtx"),
    (True, ["rtx"], None, "rtx"),
    (True, ["rtx", "tensorrt"], None, "tensorrt"),
    (False, ["rtx", "tensorrt"], None, "rtx"),
    (True, ["rtx"], "current", "rtx:current"),
    (True, ["rtx", "tensorrt"], "current", "tensorrt"),
    (True, ["rtx", "tensorrt"], "rtx:sm_86", "rtx:sm_86"),
]


@pytest.mark.parametrize(("gpu", "installed", "asked", "target"), TARGETS)
def test_the_target_follows_the_machine(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, installed: list[str], asked: str | None, target: str
) -> None:
    machine(monkeypatch, [GPU] if gpu else [], **dict.fromkeys(installed, "10.3"))
    assert str(resolve_target(asked)) == target


IMPOSSIBLE = [
    # GPU there, TensorRTs installed, asked for, what is said
    (False, [], None, r"no TensorRT is installed.*pip install 'edge-mrcnn\[rtx\]'.*runs on the CPU"),
    (False, ["rtx"], "tensorrt", r"shows no NVIDIA GPU; run this command on the Jetson or PC itself.*--target rtx"),
    (False, ["rtx", "tensorrt"], "tensorrt", r"shows no NVIDIA GPU"),
    (True, ["rtx"], "tensorrt", r"TensorRT is not installed; pip install 'edge-mrcnn\[tensorrt\]'.*python3-libnvinfer"),
    (True, ["tensorrt"], "rtx:sm_86", r"TensorRT-RTX is not installed; pip install 'edge-mrcnn\[rtx\]'"),
    (False, ["rtx"], "rtx:current", r"'current' needs an NVIDIA GPU.*--target rtx:sm_86,sm_89"),
    (False, ["rtx"], "current", r"'current' needs an NVIDIA GPU"),
]


@pytest.mark.parametrize(("gpu", "installed", "asked", "message"), IMPOSSIBLE)
def test_what_cannot_be_built_here_comes_with_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, installed: list[str], asked: str | None, message: str
) -> None:
    machine(monkeypatch, [GPU] if gpu else [], **dict.fromkeys(installed, "10.3"))
    with pytest.raises(EngineError, match=message):
        resolve_target(asked)


def test_an_engine_for_this_gpu_goes_by_the_gpu(monkeypatch: pytest.MonkeyPatch, options: Options) -> None:
    machine(monkeypatch, [GPU], tensorrt="10.3")
    target = resolve_target("tensorrt")
    plan = builder._Plan(options(target="tensorrt"), target, "0", SPEC, b"", {}, (), RecipeRecord())
    key = plan.key()
    assert plan.gpu == GPU
    machine(monkeypatch, [dataclasses.replace(GPU, capability=(11, 0))], tensorrt="10.3")
    assert plan.key() != key


@pytest.mark.parametrize(
    ("given", "sizes"),
    [("1,1,4", (1, 1, 4)), ("1..4", (1, 1, 4)), ("2", (2, 2, 2)), ((1, 2, 3), (1, 2, 3)), (" 1, 2 ,2", (1, 2, 2))],
)
def test_batches_are_read(given: str | tuple[int, int, int], sizes: tuple[int, int, int]) -> None:
    assert parse_batch(given) == sizes


@pytest.mark.parametrize("given", ["", "0", "4,1,4", "1,4,2", "1,2", "a", "1..", (1, 2), (0, 1, 2)])
def test_other_batches_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"batch .* three rising numbers"):
        parse_batch(given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "bf16"}, "one of fp32, fp16, int8"),
        ({"ranges": Path("r.json")}, "ranges are for int8, not for fp16: give --precision int8"),
        ({"keep_fp16": ("a",)}, "keep_fp16 keeps layers out of int8, not out of fp16"),
        ({"precision": "fp32", "keep_fp32": ("a",)}, "with precision fp32 all are"),
        ({"precision": "int8", "keep_fp16": ("(",)}, "keep_fp16: '.' is no regular expression"),
        ({"target": "cpu", "precision": "fp32"}, "model.onnx runs on a CPU as it is, in float32 already.*int8"),
        ({"target": "cpu"}, "model.onnx runs on a CPU as it is, and float16 gains nothing on a CPU.*int8"),
        ({"target": "cuda"}, "is not one of the forms"),
        ({"batch": "4,1"}, "three rising numbers"),
        ({"workspace": 0.0}, "workspace must be above 0"),
        ({"timeout_s": -1.0}, "timeout_s must be above 0"),
        ({"cache_limit_gib": float("nan")}, "cache_limit_gib must be 0 or more"),
    ],
)
def test_options_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BuildOptions(**fields)


def test_the_options_make_flags() -> None:
    tyro = pytest.importorskip("tyro", reason="the CLI's library is not installed")
    flags = ["--precision", "fp32", "--target", "rtx:sm_86,sm_89", "--batch", "1..2", "--force"]
    assert tyro.cli(BuildOptions, args=flags) == BuildOptions("fp32", "rtx:sm_86,sm_89", batch="1..2", force=True)
    assert tyro.cli(BuildOptions, args=[]) == BuildOptions()
    flags = ["--precision", "int8", "--ranges", "r.json", "--keep-fp16", "a", "b", "--keep-fp32", "c"]
    kept = BuildOptions("int8", ranges=Path("r.json"), keep_fp16=("a", "b"), keep_fp32=("c",))
    assert tyro.cli(BuildOptions, args=flags) == kept
