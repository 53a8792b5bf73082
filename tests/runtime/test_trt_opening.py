"""Opening an engine on a stand-in GPU: what fits is loaded, all else refused, nothing left behind; RTX's cache."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from edge_mrcnn.device import find_gpus
from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import cuda
from edge_mrcnn.runtime.runners import OrtRunner, open_runner
from edge_mrcnn.runtime.trt_runner import TrtRunner
from edge_mrcnn.sidecar import sidecar_path
from tests.gpu.fake_driver import FakeDriver
from tests.gpu.fake_gpu import FakeGpu, assert_same
from tests.runtime.tiny_detector import SPEC
from tests.runtime.trt_cases import feeds

pytestmark = pytest.mark.usefixtures("own_cache")


def test_backend(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for flavour, backend in (("tensorrt", "tensorrt-10.3.0 sm_86 fp16"), ("rtx", "tensorrt-rtx-1.7.1 sm_86 fp16")):
        gpu = FakeGpu(monkeypatch, flavour=flavour)
        with open_runner(gpu.engine(model, tmp_path)) as runner:
            assert isinstance(runner, TrtRunner)
            assert (runner.backend, runner.max_batch, runner.spec) == (backend, 4, SPEC)
        gpu.check()


def test_without_sidecar_only_if_asked(engine: Path, gpu: FakeGpu, network: OrtRunner) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(EngineError, match="no sidecar"):
        TrtRunner(engine)
    with TrtRunner(engine, spec=SPEC) as runner:
        assert runner.backend == "tensorrt-10.3.0 sm_86"
        assert_same(runner.infer(feeds(1)), network.infer(feeds(1)))
    gpu.check()


UNFIT = [
    # what is different in the sidecar, what is said
    ({"tensorrt": "10.4.0"}, r"runs with no other, here is 10\.3\.0; .*edge-mrcnn build"),
    ({"capability": "sm_87", "device": "Orin"}, r"built on Orin \(sm_87\) and cannot run on NVIDIA RTX A2000"),
    ({"plugins_sha256": "0" * 64}, "plugins of edge_mrcnn"),
    ({"engine_sha256": "0" * 64}, "is not the engine its sidecar was written for"),
    ({"flavour": "openvino"}, "runs engines for"),
]


@pytest.mark.parametrize(("fields", "message"), UNFIT, ids=range(len(UNFIT)))
def test_what_does_not_fit_is_refused_before_it_is_loaded(
    gpu: FakeGpu, model: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = gpu.engine(model, tmp_path, **fields)
    gpu.tensorrt.Runtime = None  # it is not come to
    with pytest.raises(EngineError, match=message):
        TrtRunner(path)
    gpu.check()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("deserialize", r"TensorRT 10\.3\.0 cannot load the engine: \[deserialize\] failed on purpose"),
        ("create_execution_context", "cannot make an execution context: .*failed on purpose$"),
        ("out of memory", r"cannot load the engine: .*out of memory.*; close other programs .* a smaller --batch"),
    ],
)
def test_what_fails_while_opening_leaves_nothing(gpu: FakeGpu, engine: Path, step: str, message: str) -> None:
    gpu.tensorrt.fail_next = step
    with pytest.raises(EngineError, match=message):
        TrtRunner(engine)
    gpu.check()


@pytest.mark.parametrize("flavour", ["tensorrt", "rtx"])
def test_a_missing_engine(flavour: str, tmp_path: Path, monkeypatch: Any) -> None:
    gpu = FakeGpu(monkeypatch, flavour=flavour)
    with pytest.raises(EngineError, match="there is no engine"):
        TrtRunner(tmp_path / "model.engine")
    with pytest.raises(EngineError, match=r"cannot read .*model\.engine"):
        TrtRunner(tmp_path / "model.engine", spec=SPEC, flavour=flavour)
    gpu.check()


def test_a_file_that_is_no_engine(gpu: FakeGpu, tmp_path: Path) -> None:
    path = tmp_path / "foreign.engine"
    path.write_bytes(b"\x00garbage")
    with pytest.raises(EngineError, match="cannot load the engine: Magic tag does not match"):
        TrtRunner(path, spec=SPEC)
    gpu.check()


def test_another_networks_engine(gpu: FakeGpu, engine: Path, monkeypatch: Any) -> None:
    from tests.gpu.fake_tensorrt import DataType, ICudaEngine

    monkeypatch.setattr(ICudaEngine, "get_tensor_dtype", lambda self, name: DataType.FLOAT)
    with pytest.raises(EngineError, match=r"is no engine of ours: its inputs are .*'images': 'float32'"):
        TrtRunner(engine)
    gpu.check()


@pytest.mark.parametrize("limit", [1000, 5000, 30000, 90000, 110_000])
def test_out_of_memory(limit: int, model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Wherever memory ends, it is named and what was taken is given back."""
    gpu = FakeGpu(monkeypatch, memory_limit=limit)
    path = gpu.engine(model, tmp_path)
    with pytest.raises(EngineError, match=r"the GPU is out of memory: .* asked for, .*smaller --batch"):
        TrtRunner(path)
    gpu.check()


def test_out_of_memory_for_the_second_slot(model: Path, tmp_path: Path, monkeypatch: Any, network: OrtRunner) -> None:
    gpu = FakeGpu(monkeypatch, memory_limit=200_000)
    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        first = runner.submit(feeds(1))
        with pytest.raises(EngineError, match="out of memory"):
            runner.submit(feeds(1))
        assert_same(first.result(), network.infer(feeds(1)))
    gpu.check()


def test_without_a_gpu_it_says_so(gpu: FakeGpu, engine: Path, monkeypatch: Any) -> None:
    def no_driver() -> Any:
        raise EngineError("the NVIDIA driver does not load (no libcuda); install it")

    monkeypatch.setattr("edge_mrcnn.gpu.cuda.driver", no_driver)
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU: .*does not load.*edge-mrcnn run model\.onnx SOURCE"):
        TrtRunner(engine)


def test_rtx_keeps_what_it_compiled(model: Path, tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    gpu = FakeGpu(monkeypatch, flavour="rtx")
    path, folder = gpu.engine(model, tmp_path), tmp_path / "cache" / "edge_mrcnn" / "runtime"

    def run(*batches: int) -> bytes:
        with TrtRunner(path) as runner:
            for rows in batches:
                runner.infer(feeds(rows))
        gpu.check()
        (file,) = folder.iterdir()
        return file.read_bytes()[32:]

    assert run(1, 1).endswith(b"batch 1")
    assert run(2).endswith(b"batch 1,batch 2")  # what was kept is there again
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        assert run(1).endswith(b": batch 1")
    assert "is damaged and is made anew" in caplog.text
    monkeypatch.setattr("tests.gpu.fake_tensorrt.IRuntimeCache.deserialize", lambda self, blob: False)
    assert run(4).endswith(b": batch 4")  # not taken by TensorRT-RTX: of another driver


def test_the_runtime_cache_is_there_after_the_first_frame(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    gpu = FakeGpu(monkeypatch, flavour="rtx")
    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        runner.infer(feeds(1))
        (file,) = (tmp_path / "cache" / "edge_mrcnn" / "runtime").iterdir()
        written = file.stat().st_mtime_ns
        runner.infer(feeds(1))
        assert file.stat().st_mtime_ns == written
    gpu.check()


def test_a_cache_that_cannot_be_written_costs_time_only(
    model: Path, tmp_path: Path, monkeypatch: Any, caplog: Any, network: OrtRunner
) -> None:
    gpu = FakeGpu(monkeypatch, flavour="rtx")
    (tmp_path / "cache").write_text("not a folder")
    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        assert_same(runner.infer(feeds(1)), network.infer(feeds(1)))
    assert "the runtime cache is not kept" in caplog.text
    gpu.check()


# --------------------------------------------------------------------------------------------------- the real TensorRT
@pytest.fixture(scope="module")
def real_engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that the real TensorRT-RTX built for sm_86, which takes no GPU."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon is not installed")
    from edge_mrcnn.compiler.builder import BuildOptions, build_engine
    from tests.compiler.tiny_model import build_tiny_model

    folder = tmp_path_factory.mktemp("real")
    onnx.save(build_tiny_model(), folder / "tiny.onnx")
    options = BuildOptions(target="rtx:sm_86", cache_dir=folder / "cache", timeout_s=300.0)
    return build_engine(folder / "tiny.onnx", options, folder).engine


def test_a_real_engine_for_another_gpu(real_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(capability=(7, 5), name="NVIDIA T4")
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    with pytest.raises(
        EngineError, match=r"for sm_86, here is NVIDIA T4 \(sm_75\); .* --target rtx:sm_86,sm_75 --prec"
    ):
        TrtRunner(real_engine)
    driver.finish()


def test_a_real_engine_comes_as_far_as_the_gpu(real_engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sidecar, GPU, plugins and TensorRT-RTX are in order; then the GPU is missing that the driver stands in for."""
    if find_gpus():
        pytest.skip("there is a GPU, on which TensorRT-RTX would load the engine beside the stand-in driver")
    driver = FakeDriver(capability=(8, 6))
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    with pytest.raises(EngineError, match=r"TensorRT-RTX [\d.]+ cannot load the engine: .*[Cc]uda"):
        TrtRunner(real_engine)
    driver.finish()
