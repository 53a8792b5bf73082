"""The runner on a real GPU with a real engine: the bundled model, built for the device at hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mrcnn import device
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources import open_source
from edge_mrcnn.runtime.trt_runner import TrtRunner

pytestmark = pytest.mark.gpu

TABLETOP = Path(__file__).parents[2] / "samples" / "tabletop"
Array = np.ndarray


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not device.find_gpus():
        pytest.skip("there is no NVIDIA GPU")
    pytest.importorskip("onnx_graphsurgeon", reason="onnx-graphsurgeon, which building takes, is not installed")
    from edge_mrcnn.compiler.builder import BuildOptions, build_engine

    folder = tmp_path_factory.mktemp("engine")
    options = BuildOptions(precision="fp32", target="current", batch=(1, 1, 2), cache_dir=folder / "cache")
    return build_engine(TABLETOP / "model.onnx", options, folder).engine


@pytest.fixture(scope="module")
def pictures() -> list[Array]:
    with open_source(str(TABLETOP / "clip.mp4")) as frames:
        return [frame.image for frame in itertools.islice(frames, 0, 40, 8)]


@pytest.fixture(params=["auto", "frame", "off"])
def runner(request: pytest.FixtureRequest, engine: Path) -> Iterator[TrtRunner]:
    with TrtRunner(engine, graphs=request.param) as runner:
        yield runner


def assert_equal(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_it_finds_what_the_cpu_finds(engine: Path, pictures: list[Array]) -> None:
    with Detector(engine, batch=2) as on_gpu, Detector(TABLETOP / "model.onnx") as on_cpu:
        for ours, theirs in zip(on_gpu(pictures), on_cpu(pictures), strict=True):
            assert len(ours) == len(theirs) > 0
            ours, theirs = (found[np.lexsort((found.xyxy[:, 0].round(), found.class_id))] for found in (ours, theirs))
            np.testing.assert_array_equal(ours.class_id, theirs.class_id)
            np.testing.assert_allclose(ours.xyxy, theirs.xyxy, atol=1.0)
            np.testing.assert_allclose(ours.score, theirs.score, atol=0.01)
            assert ours.mask is not None
            assert theirs.mask is not None
            assert np.abs(ours.mask - theirs.mask).mean() < 0.01


def test_frames_run_the_same_again_and_pipelined(runner: TrtRunner, pictures: list[Array]) -> None:
    first = [runner.infer_pictures([picture])[0] for picture in pictures]
    for _ in range(3):  # as they are, captured, replayed
        waiting = [runner.submit_pictures([picture]) for picture in pictures]
        for pending, wanted in zip(reversed(waiting), reversed(first), strict=True):
            assert_equal(pending.result(), wanted)


def test_batches_take_turns(runner: TrtRunner, pictures: list[Array]) -> None:
    both = runner.infer_pictures(pictures[:2])[0]
    for _ in range(3):
        runner.infer_pictures(pictures[2:3])
        assert_equal(runner.infer_pictures(pictures[:2])[0], both)


def test_the_cpu_may_letterbox(runner: TrtRunner, pictures: list[Array]) -> None:
    images, image_hw, _ = letterbox_batch(pictures[:1], runner.spec.input_hw)
    on_cpu = runner.infer({"images": images, "image_hw": image_hw})
    on_gpu = runner.infer_pictures(pictures[:1])[0]
    assert on_cpu["num_detections"][0] > 0
    np.testing.assert_allclose(on_cpu["scores"][0, :3], on_gpu["scores"][0, :3], atol=0.05)


def test_nv12_is_converted_there(runner: TrtRunner, pictures: list[Array]) -> None:
    height, width, _ = pictures[0].shape
    planar = cv2.cvtColor(pictures[0], cv2.COLOR_RGB2YUV_I420)
    chroma = planar[height:].reshape(2, -1).T.reshape(height // 2, width)  # U, V pairs rather than planes
    frame = Frame(np.concatenate([planar[:height], chroma]), pixel_format="nv12")
    assert np.abs(frame.image.astype(int) - pictures[0]).mean() < 5
    from_nv12, from_rgb = (runner.infer_pictures([picture])[0] for picture in (frame, frame.image))
    assert from_rgb["num_detections"][0] > 0
    np.testing.assert_allclose(from_nv12["scores"][0, :3], from_rgb["scores"][0, :3], atol=0.05)


def test_arrays_of_torch_go_in_and_out(engine: Path, pictures: list[Array]) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    with TrtRunner(engine) as runner:
        wanted = runner.infer_pictures(pictures[:1])[0]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                picture = (
                    torch.from_numpy(pictures[0]).pin_memory().cuda(non_blocking=True).flip(0).flip(0).contiguous()
                )
                assert_equal(runner.infer_pictures([picture])[0], wanted)
        arrays = runner.submit_pictures(pictures[:1], on_device=True).result()
        for name, array in arrays.items():
            taken = torch.as_tensor(array, device="cuda")
            assert taken.data_ptr() == array.address
            np.testing.assert_array_equal(taken.cpu().numpy(), wanted[name])
