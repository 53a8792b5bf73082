"""Fixtures of the runtime's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_mrcnn.runtime.runners import OrtRunner
from tests.gpu.fake_gpu import FakeGpu
from tests.runtime.tiny_detector import KEYPOINT_SPEC, save_detector


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector as an ONNX file."""
    return save_detector(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="session")
def keypoint_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny detector of boxes and keypoints, without masks, as an ONNX file."""
    return save_detector(tmp_path_factory.mktemp("keypoints") / "keypoints.onnx", KEYPOINT_SPEC)


@pytest.fixture(scope="session")
def network(model: Path) -> Iterator[OrtRunner]:
    """The tiny detector on the CPU."""
    with OrtRunner(model, threads=1) as runner:
        yield runner


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A stand-in GPU with TensorRT."""
    return FakeGpu(monkeypatch)


@pytest.fixture
def engine(gpu: FakeGpu, model: Path, tmp_path: Path) -> Path:
    """The tiny detector as an engine for it."""
    return gpu.engine(model, tmp_path)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache folder is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
