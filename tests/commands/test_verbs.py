"""Every verb that needs no torch, on the bundled model, as a person types it."""

import ast
import inspect
import itertools
import json
import re
from pathlib import Path

import onnx
import pytest

from edge_mrcnn.cli import VERBS, main
from edge_mrcnn.sidecar import hash_file
from tests.compiler.ranges import bundled_inputs, measured_ranges

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop"
MODEL, CLIP, VAL = (str(TABLETOP / name) for name in ("model.onnx", "clip.mp4", "val/annotations.json"))


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_run_finds_things_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records, video = tmp_path / "out.jsonl", tmp_path / "out.mp4"
    summary = json_of(capsys, "run", MODEL, CLIP, "--to", str(records), str(video), "--max-frames", "3")
    assert summary["frames"] == 3
    assert sum(summary["detections"].values()) >= 9  # the clip opens with five objects in plain sight
    assert len(records.read_text().splitlines()) == 3
    assert video.stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.mp4"]


def test_run_takes_several_sources(capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(TABLETOP / "val" / "images" / "000000.jpg")
    assert json_of(capsys, "run", MODEL, picture, "test://64x48?frames=2")["frames"] == 3


def test_eval(capsys: pytest.CaptureFixture[str]) -> None:
    result = json_of(capsys, "eval", MODEL, VAL, "--limit", "6")
    assert result["pictures"] == 6
    assert result["mask"]["ap"] > 40
    assert result["backend"] == "onnxruntime-cpu"


def test_bench_against_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    result = json_of(capsys, "bench", MODEL, "--against", MODEL, "--runs", "2", "--warmup", "0")
    assert len(result["results"]) == 2
    assert 0.1 < result["ratios"][0]["network"] < 10


def test_bench_against_torchvision_needs_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", MODEL, "--against", "torchvision"]) == 2
    assert "--weights FILE" in capsys.readouterr().err


def test_build_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    options = ["--precision", "fp16", "--target", "rtx:sm_89", "--cache-dir", str(tmp_path / "cache")]
    built = json_of(capsys, "build", MODEL, "-o", str(tmp_path), *options)
    assert built["cached"] is False
    assert Path(built["engine"]).name == "model.rtx-sm_89.fp16.engine"
    found = json_of(capsys, "inspect", built["engine"])
    assert {layer["requested"] for layer in found["layers"] if layer["type"] == "CONVOLUTION"} == {"float16"}
    assert sum(layer["type"] == "PLUGIN_V3" for layer in found["layers"]) == 4
    assert json_of(capsys, "build", MODEL, "-o", str(tmp_path), *options)["cached"] is True


@pytest.fixture(scope="module")
def ranges(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ranges of the bundled model from two pictures."""
    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    measured_ranges(onnx.load(MODEL), bundled_inputs(2), hash_file(Path(MODEL))).save(path)
    return str(path)


def test_build_int8_says_how_much_of_the_work_is_int8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ranges: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    options = ["--precision", "int8", "--ranges", ranges, "--target", "rtx:sm_89", "--cache-limit-gib", "0"]
    assert main(["build", MODEL, "-o", str(tmp_path), *options, "--keep-fp16", "^box_head", "mask_head.0"]) == 0
    text = capsys.readouterr().out
    assert "model.rtx-sm_89.int8.engine: " in text
    assert re.search(
        r"multiply-accumulates as asked for: [789]\d\.\d % int8 \(59 layers\), .* float16 \(16 layers\)", text
    )
    assert "not in int8: 16 layers: " in text
    assert "as realised" not in text, "only a GPU can tell"


def test_build_for_a_cpu_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], ranges: str) -> None:
    options = ["--precision", "int8", "--ranges", ranges, "--target", "cpu"]
    built = json_of(capsys, "build", MODEL, "-o", str(tmp_path), *options)
    assert Path(built["engine"]).name == "model.cpu.int8.onnx"
    assert built["requested"] == built["realised"]
    assert built["realised"][0]["precision"] == "int8"
    assert built["realised"][0]["share"] > 0.85
    assert json_of(capsys, "inspect", built["engine"])["realised"] == built["realised"]
    assert json_of(capsys, "run", built["engine"], CLIP, "--max-frames", "3")["frames"] == 3
    assert main(["inspect", built["engine"]]) == 0
    assert "  realised   int8 " in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_build_for_a_cpu_is_for_int8(capsys: pytest.CaptureFixture[str], precision: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["build", MODEL, "--target", "cpu", "--precision", precision])
    assert ended.value.code == 2
    assert "--target cpu --precision int8" in " ".join(re.sub("[│╭╰─╮╯]", "", capsys.readouterr().err).split())


def test_inspect_onnx(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", MODEL, "--layers"]) == 0
    printed = capsys.readouterr().out
    assert "mug, bottle, bowl" in printed
    assert "RpnProposals (rpn_proposals)" in printed


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "verbs:" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("train", "export")])
def test_help_explains_every_flag(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert "MISSING" not in capsys.readouterr().out


@pytest.mark.torch
@pytest.mark.parametrize("verb", ["train", "export"])
def test_help_of_the_verbs_with_torch(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    test_help_explains_every_flag(verb, capsys)


def test_every_option_is_documented() -> None:
    """The command line's help comes from the docstrings of the fields: none may be without."""
    from edge_mrcnn.compiler.builder import BuildOptions
    from edge_mrcnn.evaluation.bench import BenchOptions
    from edge_mrcnn.evaluation.coco import EvalOptions
    from edge_mrcnn.runtime.pipeline import RunOptions

    for options in (BuildOptions, BenchOptions, EvalOptions, RunOptions):
        body = ast.parse(inspect.getsource(options)).body[0].body
        for field, after in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{options.__name__}.{field.target.id} has no docstring"
