from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import parser

from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.compiler.inspector import inspect
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.sidecar import PrecisionShare, RecipeRecord, TensorInfo, hash_file, sidecar_path, tabulate
from tests.compiler.tiny_model import NMS, SPEC
from tests.test_sidecar import make_sidecar

ROOT = Path(__file__).parents[2]


def test_a_model_of_ours(tiny_path: Path) -> None:
    found = inspect(tiny_path)
    assert (found.kind, found.spec, found.notes) == ("edge_mrcnn model", SPEC, ())
    assert found.inputs == (TensorInfo("images", "uint8", (-1, 64, 96, 3)), TensorInfo("image_hw", "float32", (-1, 2)))
    assert [tensor.name for tensor in found.outputs] == ["num_detections", "boxes", "scores", "labels", "masks"]
    assert [op.name for op in found.custom_ops] == [
        "RpnProposals",
        "PyramidRoiAlign",
        "DetectionNms",
        "PyramidRoiAlign",
    ]
    attributes = found.custom_ops[2].attributes
    assert set(attributes) == set(NMS)
    assert (attributes["background"], attributes["class_agnostic"]) == ("first", 0)
    assert attributes["box_weights"] == pytest.approx(NMS["box_weights"])
    assert ("Conv", "float32", None, 8) in found.precisions()
    assert found.facts["functions"] == "RpnProposals, PyramidRoiAlign, DetectionNms"
    assert (found.requested, found.realised) == ((PrecisionShare("float32", 12, 668288, 1.0),), None)
    text = "\n".join(found.lines())
    for said in (
        "canvas: 64x96",
        "3: __background__, box, ball",
        "images: uint8 (any, 64, 96, 3)",
        "background: first",
    ):
        assert said in text


def test_any_other_onnx(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(
        parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 20]>
            g (float[n, 3] x) => (float16[n, 3] y) <float[3] c = {1.0, 2.0, 3.0}> {
              s = Add (x, c)
              y = Cast <to: int = 10> (s)
            }"""
        ),
        path,
    )
    found = inspect(path)
    assert (found.kind, found.spec, found.custom_ops) == ("onnx", None, ())
    assert "carries no edge_mrcnn spec" in found.notes[0]
    assert found.precisions() == [("Add", "float32", None, 1), ("Cast", "float16", None, 1)]
    assert found.facts["weights"] == "3"


def test_an_engine_by_its_sidecar(
    rtx: None, tiny_path: Path, options: Callable[..., BuildOptions], tmp_path: Path
) -> None:
    found = inspect(build_engine(tiny_path, options(precision="fp16"), tmp_path).engine)
    assert (found.kind, found.spec) == ("engine", SPEC)
    assert ("PLUGIN_V3", "float16", None, 4) in found.precisions()
    assert "only on a GPU" in found.notes[0]
    assert found.facts["target"] == "rtx:sm_86"
    assert (found.requested, found.realised) == ((PrecisionShare("float16", 12, 668288, 1.0),), None)
    data = json.loads(found.to_json())
    assert data["layers"][0]["realised"] is None
    assert data["spec"]["input_hw"] == [64, 96]
    assert len(found.lines(every_layer=True)) > len(found.lines())


def test_a_model_of_ours_whose_work_cannot_be_counted(tmp_path: Path, tiny: onnx.ModelProto) -> None:
    path = tmp_path / "odd.onnx"
    next(node for node in tiny.graph.node if node.op_type == "MaxPool").op_type = "Unknown"
    onnx.save(tiny, path)
    found = inspect(path)
    assert (found.kind, found.requested) == ("edge_mrcnn model", ())
    assert "node 'n14' (Conv): the shape of t13, t14 is not known" in found.notes[0]
    assert "work by precision" not in "\n".join(found.lines())


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "a.engine"
    path.write_bytes(b"code")
    sidecar_path(path).write_text(
        make_sidecar(
            engine_sha256=hash_file(path),
            device="Orin",
            capability="sm_87",
            recipe=RecipeRecord("7" * 64, "mse", 128, ("box_head",), ("stem",)),
            requested=tabulate([("int8", 970_000_000), ("float16", 30_000_000)]),
            realised=tabulate([("int8", 960_000_000), ("float16", 40_000_000)]),
        ).to_json()
    )
    return path


def test_what_was_realised_is_shown(engine: Path) -> None:
    found = inspect(engine)
    assert found.notes == ()
    assert any(line.endswith("float16, realised float16") for line in found.lines())
    assert "built on: Orin (sm_87)" in "\n".join(found.lines())
    assert found.lines()[found.lines().index("work by precision (multiply-accumulates for one picture):") + 1 :][
        :4
    ] == [
        "  asked for  int8         1 layers        970.0 M   97.0%",
        "  asked for  float16      1 layers         30.0 M    3.0%",
        "  realised   int8         1 layers        960.0 M   96.0%",
        "  realised   float16      1 layers         40.0 M    4.0%",
    ]
    assert found.facts["ranges"] == f"mse, of 128 pictures, SHA-256 {'7' * 64}"
    assert (found.facts["kept in float16"], found.facts["kept in float32"]) == ("box_head", "stem")
    assert any(line.endswith("conv") for line in found.lines(every_layer=True))
    assert any(line.endswith("nms, realised float16") for line in found.lines(every_layer=True))
    table = {"precision": "int8", "layers": 1, "macs": 960_000_000, "share": 0.96}
    assert json.loads(found.to_json())["realised"][0] == table
    assert [(op.name, op.role) for op in found.custom_ops] == [("DetectionNms", "detection_nms")]


def test_an_engine_is_inspected_where_onnx_is_not_installed(engine: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnx_graphsurgeon'] = None\n"
        "from pathlib import Path; from edge_mrcnn.compiler.inspector import inspect\n"
        f"assert inspect(Path({str(engine)!r})).kind == 'engine'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_what_cannot_be_inspected(tmp_path: Path, engine: Path) -> None:
    with pytest.raises(ValueError, match=r"neither an \.onnx nor an \.engine"):
        inspect(tmp_path / "model.pth")
    with pytest.raises(ExportError, match="there is no file"):
        inspect(tmp_path / "none.onnx")
    sidecar_path(engine).unlink()
    with pytest.raises(EngineError, match="no sidecar"):
        inspect(engine)
