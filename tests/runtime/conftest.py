"""Fixtures of the runtime's tests."""

from pathlib import Path

import pytest

from tests.runtime.tiny_detector import save_detector


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector as an ONNX file."""
    return save_detector(tmp_path_factory.mktemp("model") / "model.onnx")
