from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_mrcnn import ops, sidecar
from edge_mrcnn.errors import EngineError
from edge_mrcnn.sidecar import (
    EngineSidecar,
    LayerInfo,
    PrecisionShare,
    RecipeRecord,
    TensorInfo,
    hash_file,
    int8_share,
    plugins_hash,
    sidecar_path,
    tabulate,
)
from edge_mrcnn.spec import ModelSpec

SPEC = ModelSpec("tiny", (64, 96), ("__background__", "cup"), ops={"detection_nms": {"background": "first"}})


def make_sidecar(**fields: Any) -> EngineSidecar:
    given = {
        "edge_mrcnn": "0.1.0",
        "flavour": "rtx",
        "tensorrt": "1.7.1.116",
        "target": "rtx:sm_86",
        "device": None,
        "capability": None,
        "precision": "fp16",
        "batch": (1, 1, 4),
        "spec": SPEC,
        "inputs": (TensorInfo("images", "uint8", (-1, 64, 96, 3)),),
        "outputs": (TensorInfo("boxes", "float32", (-1, 100, 4)),),
        "layers": (LayerInfo("conv", "CONVOLUTION", "float16"), LayerInfo("nms", "PLUGIN_V3", "float16", "float16")),
        "onnx_sha256": "1" * 64,
        "engine_sha256": "2" * 64,
        "plugins_sha256": "3" * 64,
        "build_key": "4" * 64,
        "created": "2026-01-02T03:04:05+00:00",
    }
    return EngineSidecar(**{**given, **fields})


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.rtx.fp16.engine"
    path.write_bytes(b"code")
    sidecar_path(path).write_text(make_sidecar(engine_sha256=hash_file(path)).to_json())
    return path


TABLE = tabulate([("int8", 96), ("float16", 4)])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"device": "Orin", "capability": "sm_87"},
        {"recipe": RecipeRecord("5" * 64, "mse", 128, ("a", "b"), ("c",)), "requested": TABLE, "realised": TABLE},
        {"layers": (LayerInfo("conv", "CONVOLUTION", "int8", "float16", 12345),)},
    ],
)
def test_it_survives_json(fields: dict[str, Any]) -> None:
    original = make_sidecar(**fields)
    assert EngineSidecar.from_json(original.to_json()) == original


def test_the_engine_beside_it_is_the_one_it_was_written_for(engine: Path) -> None:
    assert EngineSidecar.load_for(engine).spec == SPEC
    engine.write_bytes(b"codf")
    with pytest.raises(EngineError, match=r"is not the engine its sidecar was written for.*edge-mrcnn build"):
        EngineSidecar.load_for(engine)


def test_an_engine_alone_is_refused(engine: Path) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(EngineError, match=r"no sidecar model\.rtx\.fp16\.json.*An engine is code.*copy the sidecar"):
        EngineSidecar.load_for(engine)


def test_a_missing_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"there is no engine .*a\.engine; build it"):
        EngineSidecar.load_for(tmp_path / "a.engine")


def change(**fields: Any) -> str:
    return json.dumps(json.loads(make_sidecar().to_json()) | fields)


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(make_sidecar().to_json()).items() if key != name})


DAMAGED = [
    # what the sidecar holds, what is said
    ("", "is not an engine's sidecar or is damaged"),
    ("[1]", "is not an engine's sidecar or is damaged"),
    ("null", "is not an engine's sidecar or is damaged"),
    ('{"a": 1}', "is not an engine's sidecar or is damaged"),
    (make_sidecar().to_json()[:300], "is not an engine's sidecar or is damaged"),
    (change(format=1), "has format 1, this version of edge_mrcnn reads 2"),
    (without("spec"), "is damaged .*spec"),
    (without("engine_sha256"), "is damaged .*engine_sha256"),
    (change(batch=[1, 2]), "is damaged"),
    (change(batch=["1", 1, 4]), "is damaged .*batch"),
    (change(precision=16), "is damaged .*precision"),
    (change(device=5), "is damaged .*device"),
    (change(spec={"name": "x"}), "is damaged .*spec"),
    (change(inputs=[{"name": "x"}]), "is damaged"),
    (change(layers=[{"name": "x", "unknown": 1}]), "is damaged"),
    (change(layers=5), "is damaged"),
    (without("recipe"), "is damaged .*recipe"),
    (change(recipe={}), "is damaged .*ranges_sha256"),
    (change(recipe=dataclasses.asdict(RecipeRecord()) | {"keep_fp16": "a"}), "is damaged .*keep_fp16"),
    (change(recipe=dataclasses.asdict(RecipeRecord()) | {"pictures": "9"}), "is damaged .*pictures"),
    (change(requested=[{"precision": "int8"}]), "is damaged .*layers"),
    (change(realised=[{"precision": "int8", "layers": 1, "macs": 0.5, "share": 1.0}]), "is damaged .*macs"),
]


@pytest.mark.parametrize(("text", "message"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_sidecar_is_refused(engine: Path, text: str, message: str) -> None:
    sidecar_path(engine).write_text(text)
    with pytest.raises(EngineError, match=f"{sidecar_path(engine)} {message}"):
        EngineSidecar.load_for(engine)


def test_a_sidecar_that_is_no_text_is_refused(engine: Path) -> None:
    sidecar_path(engine).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match="cannot read the sidecar"):
        EngineSidecar.load_for(engine)


def test_the_plugins_hash_follows_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plugins_hash()
    assert before == plugins_hash()
    name, op = next(iter(ops.OPS.items()))
    monkeypatch.setattr(sidecar, "OPS", {**ops.OPS, name: dataclasses.replace(op, attributes=op.attributes[1:])})
    assert plugins_hash() != before


def test_work_by_precision() -> None:
    table = tabulate([("float16", 10), ("int8", 60), ("float32", 0), ("int8", 30)])
    assert table == (
        PrecisionShare("int8", 2, 90, 0.9),
        PrecisionShare("float16", 1, 10, 0.1),
        PrecisionShare("float32", 1, 0, 0.0),
    )
    assert [int8_share(rows) for rows in (table, table[1:], ())] == [0.9, 0.0, 0.0]
    assert tabulate([("int8", 0)]) == (PrecisionShare("int8", 1, 0, 0.0),)


def test_it_takes_the_standard_library_only() -> None:
    code = (
        "import sys; from edge_mrcnn import sidecar, device, doctor; "
        "bad = {'numpy', 'onnx', 'torch', 'cv2', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
