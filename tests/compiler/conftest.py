"""The tiny network in memory and in a file, and what every build in these tests is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from edge_mrcnn.compiler.builder import BuildOptions
from edge_mrcnn.sidecar import hash_file
from tests.compiler.ranges import measured_ranges
from tests.compiler.tiny_model import build_tiny_model


@pytest.fixture
def tiny() -> onnx.ModelProto:
    return build_tiny_model()


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(build_tiny_model(), path)
    return path


@pytest.fixture(scope="session")
def tiny_ranges(tiny_path: Path) -> Path:
    """Ranges of the tiny network, beside it."""
    path = tiny_path.with_name("ranges.json")
    measured_ranges(onnx.load(tiny_path), sha256=hash_file(tiny_path)).save(path)
    return path


@pytest.fixture
def options(tmp_path: Path) -> Any:
    """Makes options whose cache is the test's own."""

    def make(**fields: Any) -> BuildOptions:
        return BuildOptions(**{"target": "rtx:sm_86", "cache_dir": tmp_path / "cache", "timeout_s": 300.0, **fields})

    return make
