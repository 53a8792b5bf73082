"""Runners: the real ONNX Runtime on a tiny network, and every way in which a model file can be wrong."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn import device
from edge_mrcnn.errors import EngineError, ExportError
from edge_mrcnn.runtime.runners import OrtRunner, open_runner
from edge_mrcnn.sidecar import EngineSidecar, sidecar_path
from tests.runtime.tiny_detector import CANVAS, SPEC, disc, save_detector


def feeds(batch: int = 1) -> dict[str, np.ndarray]:
    return {
        "images": np.zeros((batch, *CANVAS, 3), np.uint8),
        "image_hw": np.full((batch, 2), 32, np.float32),
    }


def test_infer(model: Path) -> None:
    with OrtRunner(model, threads=1) as runner:
        assert runner.spec == SPEC
        assert runner.backend == "onnxruntime-cpu"
        assert runner.max_batch is None
        outputs = runner.infer(feeds(2))
    assert list(outputs) == ["num_detections", "boxes", "scores", "labels", "masks"]
    assert outputs["num_detections"].tolist() == [2, 2]
    assert outputs["boxes"].shape == (2, 3, 4)
    np.testing.assert_allclose(outputs["masks"][1, 0], disc(), rtol=1e-6)


@pytest.mark.parametrize(("instructions", "expected"), [("AVX-512 VNNI", None), (None, "1")])
def test_sums_of_bytes_do_not_overflow(
    instructions: str | None, expected: str | None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "integer_dot_products", lambda: instructions)
    with OrtRunner(model) as runner:
        assert entry_of(runner, "session.x64quantprecision") == expected
    with OrtRunner(model, config={"session.x64quantprecision": "0"}) as runner:
        assert entry_of(runner, "session.x64quantprecision") == "0", "a caller's word counts"


def entry_of(runner: OrtRunner, key: str) -> str | None:
    try:
        return str(runner._session.get_session_options().get_session_config_entry(key))
    except RuntimeError:
        return None


def test_fixed_batch(tmp_path: Path) -> None:
    with open_runner(save_detector(tmp_path / "model.onnx", batch=2)) as runner:
        assert runner.max_batch == 2


def test_closed(model: Path) -> None:
    runner = OrtRunner(model)
    runner.close()
    runner.close()
    assert "closed" in repr(runner)
    with pytest.raises(EngineError, match=r"is closed; open a new one: OrtRunner\("):
        runner.infer(feeds())


def test_wrong_feeds(model: Path) -> None:
    with OrtRunner(model) as runner:
        with pytest.raises(ValueError, match="inputs of the network are images, image_hw, got images"):
            runner.infer({"images": feeds()["images"]})
        with pytest.raises(EngineError, match=r"cannot run .* on .*float32 \(1, 64, 96, 3\).*takes images uint8"):
            runner.infer(feeds() | {"images": np.zeros((1, *CANVAS, 3), np.float32)})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"there is no model .*nothing\.onnx.*edge-mrcnn export"):
        open_runner(tmp_path / "nothing.onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(EngineError, match="is a folder"):
        open_runner(tmp_path / "folder.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\).*edge-mrcnn export"),
        (b"\x89PNG\r\n\x1a\n not a network at all", "damaged or no ONNX file.*edge-mrcnn export"),
        (None, "damaged or no ONNX file.*edge-mrcnn export"),  # cut short
    ],
)
def test_damaged_file(content: bytes | None, message: str, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(ExportError, match=message):
        open_runner(path)


def test_foreign_network(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="carries no edge_mrcnn spec"):
        open_runner(save_detector(tmp_path / "foreign.onnx", spec=None))


def test_unknown_operator(model: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    network = onnx.load(model)
    network.graph.node[0].domain = "somebody_else"
    onnx.save(network, tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="cannot load"):
        open_runner(tmp_path / "model.onnx")


def test_without_onnxruntime(model: Path) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from edge_mrcnn.runtime.runners import open_runner\n"
        f"open_runner({str(model)!r})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install 'edge-mrcnn[cpu]'" in result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("threads", [-1])
def test_wrong_threads(threads: int, model: Path) -> None:
    with pytest.raises(ValueError, match="threads must be 0"):
        OrtRunner(model, threads)


def test_unknown_suffix() -> None:
    with pytest.raises(ValueError, match=r"model\.pth is neither a model\.onnx nor an \.engine.*edge-mrcnn export"):
        open_runner("model.pth")


def test_an_engine_without_its_sidecar(tmp_path: Path) -> None:
    engine = tmp_path / "model.rtx-sm_86.fp16.engine"
    with pytest.raises(EngineError, match="there is no engine"):
        open_runner(engine)
    engine.write_bytes(b"plan")
    with pytest.raises(EngineError, match="no sidecar"):
        open_runner(engine)


ABSENT = [
    # module that is not there, what is said
    ("tensorrt_rtx", "TensorRT-RTX is not installed; pip install 'edge-mrcnn[rtx]'"),
    ("cuda.bindings.driver", "cuda-bindings is not installed"),
    ("cuda.bindings.driver", "pip install 'edge-mrcnn[gpu-cu13]'"),
    ("cuda.bindings.driver", "run the ONNX file that it was built from: edge-mrcnn run model.onnx SOURCE"),
]


@pytest.mark.parametrize(("module", "message"), ABSENT)
def test_what_an_engine_needs_is_named(tmp_path: Path, rtx: None, module: str, message: str) -> None:
    """With the real TensorRT-RTX."""
    engine = tmp_path / "model.rtx-sm_86.fp16.engine"
    engine.write_bytes(b"plan")
    sidecar = EngineSidecar(
        edge_mrcnn="0",
        flavour="rtx",
        tensorrt="1.7",
        target="rtx:sm_86",
        device=None,
        capability=None,
        precision="fp16",
        batch=(1, 1, 4),
        spec=SPEC,
        inputs=(),
        outputs=(),
        layers=(),
        onnx_sha256="",
        engine_sha256=hashlib.sha256(b"plan").hexdigest(),
        plugins_sha256="",
        build_key="",
        created="",
    )
    sidecar_path(engine).write_text(sidecar.to_json())
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from edge_mrcnn.runtime.runners import open_runner\n"
        f"open_runner({str(engine)!r})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert message in result.stderr.strip().splitlines()[-1]
