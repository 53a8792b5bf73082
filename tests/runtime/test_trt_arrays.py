"""Arrays on a stand-in GPU as the runner's inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_mrcnn.errors import EngineError
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.runtime.trt_runner import TrtRunner
from tests.gpu.fake_gpu import FakeGpu, Foreign, assert_same, expected
from tests.runtime.trt_cases import SIZES, draw, feeds

pytestmark = pytest.mark.usefixtures("own_cache")
SEEDS = range(6)


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
