"""Pictures in a folder, and the tiny network spoilt in one way or another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.compiler.tiny_model import build_tiny_model

MakePictures = Callable[..., Path]
SpoiltModel = Callable[..., Path]


def blobs(seed: int, hw: tuple[int, int] = (48, 80)) -> np.ndarray:
    """A picture unlike that of any other seed, uint8 BGR."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(cells, hw[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def pictures(tmp_path: Path) -> MakePictures:
    """Makes a folder of pictures, some of them damaged."""

    def make(count: int = 6, damaged: int = 0, name: str = "pictures") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for index in range(count):
            cv2.imwrite(str(folder / f"{index:03}.png"), blobs(index))
        for index in range(damaged):
            (folder / f"damaged{index}.jpg").write_bytes(b"\xff\xd8\xff no picture")
        return folder

    return make


@pytest.fixture
def spoilt(tmp_path: Path) -> SpoiltModel:
    """Writes the tiny model with all values of the weights of some nodes set to one value."""

    def make(value: float, *nodes: str, which: slice = slice(1, None)) -> Path:
        model = build_tiny_model()
        for node in model.graph.node:
            for name in node.input[which] if node.name in nodes else []:
                weight = next(item for item in model.graph.initializer if item.name == name)
                weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, value, np.float32), name))
        path = tmp_path / "spoilt.onnx"
        onnx.save(model, path)
        return path

    return make
