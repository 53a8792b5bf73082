"""The runner of engines on a stand-in GPU: right results in every order of work, nothing left behind, clear errors."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mrcnn.errors import EngineError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.runners import OrtRunner, open_runner
from edge_mrcnn.runtime.trt_runner import TrtRunner
from edge_mrcnn.sidecar import sidecar_path
from tests.gpu.fake_device import FaultError
from tests.gpu.fake_gpu import FakeGpu, assert_same, expected
from tests.runtime.tiny_detector import CANVAS, SPEC

Array = np.ndarray
SEEDS = range(6)
SIZES = [(50, 70), (100, 40), (64, 96), (31, 33)]


@pytest.fixture(scope="module")
def network(model: Path) -> Iterator[OrtRunner]:
    with OrtRunner(model, threads=1) as runner:
        yield runner


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu(monkeypatch)


@pytest.fixture
def engine(gpu: FakeGpu, model: Path, tmp_path: Path) -> Path:
    return gpu.engine(model, tmp_path)


def draw(rng: np.random.Generator, hw: tuple[int, int]) -> Array:
    return rng.integers(0, 256, (*hw, 3), dtype=np.uint8)


def feeds(rows: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (rows, *CANVAS, 3), dtype=np.uint8),
        "image_hw": rng.integers(20, 64, (rows, 2)).astype(np.float32),
    }


# ------------------------------------------------------------------------------------------------------ right results
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("flavour", "graphs"), [("tensorrt", "auto"), ("tensorrt", "off"), ("rtx", "auto"), ("rtx", "frame")]
)
def test_pictures_give_what_the_cpu_gives(
    seed: int, flavour: str, graphs: Any, network: OrtRunner, model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    gpu, rng = FakeGpu(monkeypatch, seed, flavour), np.random.default_rng(seed)
    with TrtRunner(gpu.engine(model, tmp_path), graphs=graphs, slots=1 + seed % 3) as runner:
        batches = []
        for _ in range(14):
            pictures = [draw(rng, SIZES[rng.integers(2)]) for _ in range(rng.integers(1, 3))]
            batches.append((runner.submit_pictures(pictures), [picture.copy() for picture in pictures]))
            for picture in pictures:
                picture[:] = 0  # the caller's again
        for index in rng.permutation(len(batches)):
            pending, pictures = batches[index]
            assert_same(pending.result(), expected(network, pictures))
            assert [geometry.original_hw for geometry in pending.geometries] == [p.shape[:2] for p in pictures]
            assert pending.done()
    gpu.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_feeds_give_what_the_cpu_gives(
    seed: int, network: OrtRunner, model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    gpu = FakeGpu(monkeypatch, seed)
    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        for index, rows in enumerate([1, 1, 1, 3, 4, 1, 1, 2]):
            given = feeds(rows, index)
            assert_same(runner.infer(given), network.infer(given))
    gpu.check()


def test_results_are_the_callers(engine: Path, gpu: FakeGpu, network: OrtRunner) -> None:
    with TrtRunner(engine) as runner:
        first = runner.infer(feeds(1, 1))
        runner.infer(feeds(1, 2))
        assert_same(first, network.infer(feeds(1, 1)))
        first["boxes"][:] = 0  # may be written to
    gpu.check()


def test_a_fixed_batch_is_padded(gpu: FakeGpu, model: Path, tmp_path: Path, network: OrtRunner) -> None:
    pictures = [draw(np.random.default_rng(1), hw) for hw in SIZES[:2]]
    with TrtRunner(gpu.engine(model, tmp_path, (3, 3, 3))) as runner:
        assert runner.max_batch == 3
        for rows in (1, 2):
            assert_same(runner.infer_pictures(pictures[:rows])[0], expected(network, pictures[:rows]))
            assert_same(runner.infer(feeds(rows)), network.infer(feeds(rows)))
    gpu.check()


def test_a_view_of_a_picture(engine: Path, gpu: FakeGpu, network: OrtRunner) -> None:
    bgr = draw(np.random.default_rng(1), (80, 90))
    with TrtRunner(engine) as runner:
        outputs, _ = runner.infer_pictures([bgr[::2, :, ::-1]])
    assert_same(outputs, expected(network, [bgr[::2, :, ::-1]]))
    gpu.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_threads_share_a_runner(seed: int, model: Path, tmp_path: Path, network: OrtRunner, monkeypatch: Any) -> None:
    gpu, failures = FakeGpu(monkeypatch, seed), []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                given = feeds(1 + turn % 2, number * 10 + turn)
                assert_same(runner.infer(given), network.infer(given))
        except BaseException as error:
            failures.append(error)

    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures[0]
    gpu.check()


# ------------------------------------------------------------------------------------------------------------- graphs
@pytest.mark.parametrize(
    ("flavour", "graphs", "launches"),
    [
        ("tensorrt", "auto", 4),
        ("tensorrt", "off", 0),
        ("rtx", "auto", 0),
        ("rtx", "frame", 4),
        ("tensorrt", "frame", 4),
    ],
)
def test_from_the_second_frame_of_a_kind_on_it_is_a_graph(
    flavour: str, graphs: Any, launches: int, model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    gpu = FakeGpu(monkeypatch, flavour=flavour)
    picture = draw(np.random.default_rng(1), (50, 70))
    with TrtRunner(gpu.engine(model, tmp_path), graphs=graphs) as runner:
        for pictures in ([picture], [picture], [picture, picture], [picture], [picture, picture], [picture]):
            runner.infer_pictures(pictures)
    assert gpu.driver.graphs_launched == launches
    gpu.check()


def test_what_cannot_be_captured_is_not(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    gpu = FakeGpu(monkeypatch, flavour="rtx")
    gpu.tensorrt.capturable = False
    with TrtRunner(gpu.engine(model, tmp_path), graphs="frame") as runner:
        for _ in range(3):
            runner.infer(feeds(1))
    assert gpu.driver.graphs_launched == 0
    gpu.check()


def test_a_capture_that_fails_is_said_once(
    engine: Path, gpu: FakeGpu, network: OrtRunner, caplog: pytest.LogCaptureFixture
) -> None:
    with TrtRunner(engine) as runner, caplog.at_level(logging.WARNING, "edge_mrcnn.runtime"):
        runner.infer(feeds(1, 1))
        gpu.tensorrt.fail_next = "execute"  # within the capture
        for seed in range(2, 6):
            assert_same(runner.infer(feeds(1, seed)), network.infer(feeds(1, seed)))
    assert [record.message for record in caplog.records if record.name.startswith("edge_mrcnn.runtime")] == [
        "frames run without a CUDA graph, a little slower: TensorRT cannot run the engine: [execute] failed on purpose"
    ]
    assert gpu.driver.graphs_launched == 0
    gpu.check()


def test_graphs_that_take_turns_are_few(engine: Path, gpu: FakeGpu, network: OrtRunner) -> None:
    rng = np.random.default_rng(0)
    with TrtRunner(engine, slots=1) as runner:
        for _, side in itertools.product(range(3), range(30, 42)):
            picture = draw(rng, (side, 50))
            assert_same(runner.infer_pictures([picture])[0], expected(network, [picture]))
        alive = sum(type(item).__name__ == "Graph" for item in gpu.driver._objects.values())
        assert alive <= 8
    gpu.check()


# --------------------------------------------------------------------------------------------------- arrays on the GPU
class Foreign:
    """Another library's array on the GPU, which its own stream is still filling."""

    def __init__(self, gpu: FakeGpu, values: Array) -> None:
        self.driver, self.values = gpu.driver, values
        self.driver.cuCtxPushCurrent(0xC0)
        self.stream = self.driver.cuStreamCreate(1)[1]
        self.address = self.driver.cuMemAlloc(values.nbytes)[1]
        self.driver.enqueue(self.stream, "foreign", self._fill)
        self.__cuda_array_interface__ = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.address, False),
            "stream": self.stream,
            "version": 3,
        }

    def _fill(self) -> None:
        self.driver.device_view(self.address, self.values.nbytes)[:] = self.values.reshape(-1).view(np.uint8)

    def free(self) -> None:
        self.driver.cuStreamSynchronize(self.stream)
        self.driver.cuStreamDestroy(self.stream)
        self.driver.cuMemFree(self.address)
        self.driver.cuCtxPopCurrent()


@pytest.mark.parametrize("seed", SEEDS)
def test_inputs_on_the_gpu_are_read_where_they_lie(
    seed: int, model: Path, tmp_path: Path, network: OrtRunner, monkeypatch: Any
) -> None:
    gpu = FakeGpu(monkeypatch, seed)
    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        for turn in range(4):
            given = feeds(2, turn)
            images, image_hw = Foreign(gpu, given["images"]), Foreign(gpu, given["image_hw"])
            mixed = {"images": images, "image_hw": image_hw if turn % 2 else given["image_hw"]}
            assert_same(runner.infer(mixed), network.infer(given))
            assert_same(runner.infer(given), network.infer(given))  # a graph of our own buffers still holds
            images.free()
            image_hw.free()
    copies = [name for name in gpu.driver.device.executed if name == "copy to device"]
    assert len(copies) <= 4
    gpu.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_pictures_on_the_gpu_are_read_where_they_lie(
    seed: int, model: Path, tmp_path: Path, network: OrtRunner, monkeypatch: Any
) -> None:
    gpu, rng = FakeGpu(monkeypatch, seed), np.random.default_rng(seed)
    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        for _ in range(3):
            pictures = [draw(rng, hw) for hw in SIZES]
            given = [Foreign(gpu, pictures[0]), pictures[1], Foreign(gpu, pictures[2]), pictures[3]]
            assert_same(runner.infer_pictures(given)[0], expected(network, pictures))
            given[0].free()
            given[2].free()
    gpu.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_results_stay_on_the_gpu_as_long_as_they_are_used(
    seed: int, model: Path, tmp_path: Path, network: OrtRunner, monkeypatch: Any
) -> None:
    gpu = FakeGpu(monkeypatch, seed)
    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        arrays = runner.submit(feeds(2, 1), on_device=True).result()
        for turn in range(3):
            runner.infer(feeds(1, turn))
        for name, wanted in network.infer(feeds(2, 1)).items():
            shown = arrays[name].__cuda_array_interface__
            raw = gpu.driver.device_view(shown["data"][0], wanted.nbytes)
            np.testing.assert_array_equal(raw.view(shown["typestr"]).reshape(shown["shape"]), wanted)
        more = runner.submit(feeds(1, 2), on_device=True).result()
        with pytest.raises(EngineError, match=r"occupy all 2 slots; drop those .* TrtRunner\(\.\.\., slots=4\)"):
            runner.infer(feeds(1))
        del arrays, shown
        assert_same(runner.infer(feeds(1)), network.infer(feeds(1)))
        del more
    assert sum(name.endswith("copy to host") for name in gpu.driver.device.executed) == 4  # of the other four
    gpu.check()


def test_too_few_rows_on_the_gpu(gpu: FakeGpu, model: Path, tmp_path: Path) -> None:
    given = feeds(1)
    with TrtRunner(gpu.engine(model, tmp_path, (2, 2, 2))) as runner:
        images = Foreign(gpu, given["images"])
        with pytest.raises(ValueError, match=r"must have the 2 pictures at least .* got 1"):
            runner.infer({**given, "images": images})
        images.free()
    gpu.check()


# --------------------------------------------------------------------------------------------------- slots and pendings
def test_a_synchronous_caller_needs_one_slot(engine: Path, gpu: FakeGpu) -> None:
    def streams() -> int:
        return len(gpu.driver.device.streams) - 2

    with TrtRunner(engine, slots=3) as runner:
        for seed in range(4):
            runner.infer(feeds(1, seed))
        assert streams() == 1
        first, second = runner.submit(feeds(1)), runner.submit(feeds(1))
        assert streams() == 2
        second.result()
        assert first.settled
    gpu.check()


def test_copies_of_one_frame_overlap_the_other(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing waits on the host between two submissions, and the second may run before the first."""
    orders = set()
    for seed in range(20):
        gpu = FakeGpu(monkeypatch, seed)
        with TrtRunner(gpu.engine(model, tmp_path)) as runner:
            pendings = [runner.submit(feeds(1, turn)) for turn in range(2)]
            orders.add(tuple(name for name in gpu.driver.device.executed if name.startswith("engine")))
            for pending in pendings:
                pending.result()
            work = gpu.driver.device.executed
            orders.add(work.index("copy to host") > len(work) - 1 - work[::-1].index("engine ends"))
        gpu.check()
    assert () in orders  # submitted, and nothing run yet
    assert {True, False} <= orders


def test_forgotten_batches_do_no_harm(engine: Path, gpu: FakeGpu, network: OrtRunner) -> None:
    with TrtRunner(engine) as runner:
        for seed in range(7):
            runner.submit(feeds(1, seed))
        assert_same(runner.infer(feeds(1, 9)), network.infer(feeds(1, 9)))
        runner.submit(feeds(1))
    gpu.check()


def test_a_result_may_be_asked_for_again(engine: Path, gpu: FakeGpu) -> None:
    with TrtRunner(engine) as runner:
        pending = runner.submit(feeds(1))
        assert_same(pending.result(), pending.result())
    gpu.check()


def test_results_outlive_the_runner(engine: Path, gpu: FakeGpu, network: OrtRunner) -> None:
    with TrtRunner(engine) as runner:
        pendings = [runner.submit(feeds(1, seed)) for seed in range(2)]
    for seed, pending in enumerate(pendings):
        assert_same(pending.result(), network.infer(feeds(1, seed)))
    gpu.check()


# ------------------------------------------------------------------------------------------------------------- errors
WRONG_FEEDS = [
    # what is different, error, what is said
    ({"image_hw": None}, ValueError, "inputs of the network are images, image_hw, got images$"),
    ({"images": np.zeros((1, *CANVAS, 3), np.float32)}, TypeError, r"images must be uint8, got float32 \(1, 64, 96"),
    ({"images": np.zeros((1, 64, 64, 3), np.uint8)}, ValueError, r"images must have shape \(any, 64, 96, 3\), got"),
    ({"images": np.zeros((2, *CANVAS, 3), np.uint8)}, ValueError, "the same number of pictures, got .*images.*: 2"),
    (feeds(5), ValueError, r"takes 1 to 4 pictures, .*fp16\.engine was built, got 5; .* --batch 1,1,5"),
    (feeds(0), ValueError, "takes 1 to 4 pictures"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG_FEEDS, ids=range(len(WRONG_FEEDS)))
def test_wrong_feeds(
    engine: Path, gpu: FakeGpu, change: dict[str, Any], error: type[Exception], message: str, network: OrtRunner
) -> None:
    given = {name: value for name, value in {**feeds(1), **change}.items() if value is not None}
    with TrtRunner(engine) as runner:
        with pytest.raises(error, match=message):
            runner.infer(given)
        assert_same(runner.infer(feeds(1)), network.infer(feeds(1)))
    gpu.check()


WRONG_PICTURES = [
    ([np.zeros((5, 5, 3))], TypeError, r"pictures\[0\] must be uint8, got float64"),
    ([np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5), np.uint8)], ValueError, r"pictures\[1\] must have shape \(any"),
    ([np.zeros((0, 5, 3), np.uint8)], ValueError, r"pictures\[0\] is empty"),
    ([], ValueError, "takes 1 to 4 pictures"),
]


@pytest.mark.parametrize(("pictures", "error", "message"), WRONG_PICTURES, ids=range(len(WRONG_PICTURES)))
def test_wrong_pictures(
    engine: Path, gpu: FakeGpu, pictures: list[Array], error: type[Exception], message: str
) -> None:
    with TrtRunner(engine) as runner, pytest.raises(error, match=message):
        runner.infer_pictures(pictures)
    gpu.check()


def test_a_run_that_tensorrt_refuses(engine: Path, gpu: FakeGpu, network: OrtRunner) -> None:
    with TrtRunner(engine) as runner:
        gpu.tensorrt.fail_next = "execute"
        with pytest.raises(EngineError, match=r"TensorRT cannot run the engine: \[execute\] failed on purpose"):
            runner.infer(feeds(1))
        assert_same(runner.infer(feeds(1)), network.infer(feeds(1)))
    gpu.check()


def test_a_fault_of_the_gpu(model: Path, tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    def fail(driver: Any, args: Any) -> None:
        raise FaultError("out of bounds")

    gpu = FakeGpu(monkeypatch, seed=1)  # which runs nothing before it is waited for
    _, arguments = gpu.driver.kernels["letterbox"]
    gpu.driver.kernels["letterbox"] = (fail, arguments)
    picture = np.zeros((5, 5, 3), np.uint8)
    with TrtRunner(gpu.engine(model, tmp_path)) as runner:
        first, second = runner.submit_pictures([picture]), runner.submit_pictures([picture])
        for pending in (first, second, second):
            with pytest.raises(EngineError, match=r"ILLEGAL_ADDRESS.*start the program again"):
                pending.result()
        with pytest.raises(EngineError, match="ILLEGAL_ADDRESS"):
            runner.infer(feeds(1))
    assert "could not be closed properly" in caplog.text
    assert gpu.driver.violations == ["letterbox: out of bounds"]


def test_closed(engine: Path, gpu: FakeGpu) -> None:
    runner = TrtRunner(engine)
    assert repr(runner) == f"TrtRunner({str(engine)!r}, tiny_detector, tensorrt-10.3.0 sm_86 fp16)"
    runner.close()
    runner.close()
    assert "closed" in repr(runner)
    for call in (lambda: runner.infer(feeds(1)), lambda: runner.submit_pictures([np.zeros((5, 5, 3), np.uint8)])):
        with pytest.raises(EngineError, match=r"is closed; open a new one: TrtRunner\("):
            call()
    gpu.check()


def test_slots(engine: Path) -> None:
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        TrtRunner(engine, slots=0)


# ------------------------------------------------------------------------------------------------------------ opening
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
        ("create_execution_context", "cannot make an execution context: .*smaller --batch"),
    ],
)
def test_what_fails_while_opening_leaves_nothing(gpu: FakeGpu, engine: Path, step: str, message: str) -> None:
    gpu.tensorrt.fail_next = step
    with pytest.raises(EngineError, match=message):
        TrtRunner(engine)
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


# ------------------------------------------------------------------------------------------------------ runtime cache
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


# ----------------------------------------------------------------------------------------------------------- detector
def test_a_detector_finds_the_same(engine: Path, gpu: FakeGpu, model: Path) -> None:
    rng = np.random.default_rng(3)
    frames = [Frame(draw(rng, hw)) for hw in (*SIZES, *SIZES)]
    with Detector(engine, threshold=0.2, batch=3) as on_gpu, Detector(model, threshold=0.2, batch=3) as on_cpu:
        assert on_gpu.backend == "tensorrt-10.3.0 sm_86 fp16"
        assert "letterboxing, network and download" in on_gpu.stages
        found, timings = on_gpu.detect_timed(frames)
        assert timings.frames == 8
        assert min(timings.pre_ns, timings.infer_ns, timings.post_ns) > 0
        for ours, theirs in zip(found, on_cpu(frames), strict=True):
            np.testing.assert_array_equal(ours.xyxy, theirs.xyxy)
            np.testing.assert_array_equal(ours.score, theirs.score)
            np.testing.assert_array_equal(ours.mask, theirs.mask)
            assert len(ours) == 2
    gpu.check()


def test_a_detector_names_the_largest_batch(engine: Path, gpu: FakeGpu) -> None:
    with pytest.raises(ValueError, match="batch must be at most 4"):
        Detector(engine, batch=5)
    gpu.check()
