"""The runner of engines on a stand-in GPU: right results in every order of work, nothing left behind, clear errors."""

from __future__ import annotations

import itertools
import logging
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import EngineError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime import trt_buffers
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.runtime.sources import open_source
from edge_mrcnn.runtime.trt_runner import TrtRunner
from tests.gpu.fake_device import FaultError
from tests.gpu.fake_gpu import FakeGpu, assert_same, expected, paste_rows
from tests.runtime.tiny_detector import CANVAS
from tests.runtime.trt_cases import SIZES, Array, draw, draw_nv12, feeds

pytestmark = pytest.mark.usefixtures("own_cache")
SEEDS = range(6)
BUNDLED = Path(__file__).parents[2] / "samples" / "tabletop"


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
def test_nv12_goes_to_the_gpu_as_it_is(
    seed: int, model: Path, tmp_path: Path, network: OrtRunner, monkeypatch: Any
) -> None:
    """Beside RGB in the same batch, again and again in the same memory, with maps of the picture's own size."""
    gpu, rng = FakeGpu(monkeypatch, seed), np.random.default_rng(seed)
    copied, view = [], trt_buffers.Block.view
    monkeypatch.setattr(
        trt_buffers.Block, "view", lambda block, section: copied.append(section.shape) or view(block, section)
    )
    monkeypatch.setattr(Frame, "image", property(lambda _: pytest.fail("converted on the CPU")))
    with TrtRunner(gpu.engine(model, tmp_path), paste=0.4) as runner:
        for hw in [(64, 96), (64, 96), (64, 96), (100, 42), (2, 2)]:
            yuv, rgb = draw_nv12(rng, hw), draw(rng, (33, 31))
            found, geometries = runner.infer_pictures([yuv, rgb])
            maps = found.pop("instance_maps")
            assert_same(found, expected(network, [cv2.cvtColor(yuv.pixels, cv2.COLOR_YUV2RGB_NV12), rgb]))
            assert [geometry.original_hw for geometry in geometries] == [item.shape for item in maps] == [hw, (33, 31)]
            assert (hw[0] * 3 // 2, hw[1]) in copied
    gpu.check()


def test_a_view_of_nv12(engine: Path, gpu: FakeGpu, network: OrtRunner) -> None:
    """Decoders pad their rows: the gaps stay behind."""
    frame = Frame(np.random.default_rng(1).integers(0, 256, (48, 80), dtype=np.uint8)[:, :50], pixel_format="nv12")
    with TrtRunner(engine) as runner:
        assert_same(runner.infer_pictures([frame])[0], expected(network, [frame.image]))
    gpu.check()


def test_the_detector_finds_the_same_in_nv12(engine: Path, gpu: FakeGpu, model: Path) -> None:
    frame = draw_nv12(np.random.default_rng(1), (90, 120))
    with Detector(engine, threshold=0.1) as on_gpu, Detector(model, threshold=0.1) as on_cpu:
        for ours, theirs in ((on_gpu(frame), on_gpu(frame.image)), (on_gpu(frame), on_cpu(frame))):
            assert len(ours) == len(theirs) > 0
            assert ours.image_hw == theirs.image_hw == (90, 120)
            np.testing.assert_array_equal(ours.xyxy, theirs.xyxy)
            np.testing.assert_array_equal(ours.score, theirs.score)
    gpu.check()


@pytest.mark.parametrize("seed", SEEDS)
def test_instance_maps(seed: int, model: Path, tmp_path: Path, network: OrtRunner, monkeypatch: Any) -> None:
    gpu, rng = FakeGpu(monkeypatch, seed), np.random.default_rng(seed)
    with TrtRunner(gpu.engine(model, tmp_path, (2, 2, 4)), paste=0.4) as runner:
        waiting = []
        for count in (1, 2, 1, 1, 1, 3, 1):
            pictures = [draw(rng, SIZES[index]) for index in range(count)]
            waiting.append((runner.submit_pictures(pictures), pictures))
        for pending, pictures in reversed(waiting):
            found, wanted = pending.result(), expected(network, pictures)
            maps = found.pop("instance_maps")
            assert_same(found, wanted)
            for row, geometry in enumerate(pending.geometries):
                boxes = wanted["boxes"][row] / np.array(geometry.scale_xy * 2, np.float32)
                kept = wanted["scores"][row] >= 0.4  # of the two, the first
                count = wanted["num_detections"][row]
                assert maps[row].dtype == np.uint16
                np.testing.assert_array_equal(
                    maps[row], paste_rows(wanted["masks"][row], boxes, kept, count, geometry.original_hw)
                )
                assert set(np.unique(maps[row])) == {0, 1}
        assert "instance_maps" not in runner.infer(feeds(1))
        maps = runner.submit_pictures(pictures, on_device=True).result()["instance_maps"]
        assert [item.shape for item in maps] == [picture.shape[:2] for picture in pictures]
        del maps
    gpu.check()


@pytest.mark.parametrize("flavour", ["tensorrt", "rtx"])
def test_the_bundled_model(flavour: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A whole network: its outputs have as many rows as it finds in ONNX Runtime, all of them in an engine."""
    gpu = FakeGpu(monkeypatch, 2, flavour)
    with (
        OrtRunner(BUNDLED / "model.onnx", threads=2) as network,
        TrtRunner(gpu.engine(BUNDLED / "model.onnx", tmp_path)) as runner,
        open_source(str(BUNDLED / "clip.mp4")) as frames,
    ):
        pictures = [frame.image for frame in itertools.islice(frames, 0, 20, 10)]
        waiting = [runner.submit_pictures([picture]) for picture in pictures]
        for pending, picture in zip(waiting, pictures, strict=True):
            wanted = expected(network, [picture])
            assert wanted["num_detections"][0] > 0
            assert_same(pending.result(), wanted)
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


def test_a_forgotten_runner_gives_everything_back(engine: Path, gpu: FakeGpu) -> None:
    runner = TrtRunner(engine)
    runner.submit(feeds(1))
    runner.submit(feeds(1))
    del runner
    gpu.check()


def test_wrong_options(engine: Path) -> None:
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        TrtRunner(engine, slots=0)
    with pytest.raises(ValueError, match=r"paste must be None or from 0 to 1, got 2"):
        TrtRunner(engine, paste=2)


def test_a_network_with_keypoints_and_without_masks(gpu: FakeGpu, keypoint_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    frames = [Frame(draw(rng, hw)) for hw in SIZES]
    made = gpu.engine(keypoint_model, tmp_path)
    with Detector(made, threshold=None, batch=3) as on_gpu, Detector(keypoint_model, threshold=None) as on_cpu:
        for ours, theirs in zip(on_gpu(frames), on_cpu(frames), strict=True):
            assert ours.mask is None
            assert len(ours) == 2
            np.testing.assert_allclose(ours.keypoints, theirs.keypoints, atol=1e-3)
    with pytest.raises(ValueError, match=r"paste asks for instance maps, but .*engine has no output masks"):
        TrtRunner(made, paste=0.5)
    gpu.check()


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
