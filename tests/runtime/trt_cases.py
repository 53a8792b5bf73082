"""Inputs of the tiny detector, drawn at random."""

from __future__ import annotations

import numpy as np

from edge_mrcnn.frame import Frame
from tests.runtime.tiny_detector import CANVAS

Array = np.ndarray

SIZES = [(50, 70), (100, 40), (64, 96), (31, 33)]


def draw(rng: np.random.Generator, hw: tuple[int, int]) -> Array:
    """A picture `(h, w, 3)`."""
    return rng.integers(0, 256, (*hw, 3), dtype=np.uint8)


def draw_nv12(rng: np.random.Generator, hw: tuple[int, int]) -> Frame:
    """A frame in NV12 of any luma and chroma."""
    return Frame(rng.integers(0, 256, (hw[0] * 3 // 2, hw[1]), dtype=np.uint8), pixel_format="nv12")


def feeds(rows: int, seed: int = 0) -> dict[str, Array]:
    """The network's inputs."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (rows, *CANVAS, 3), dtype=np.uint8),
        "image_hw": rng.integers(20, 64, (rows, 2)).astype(np.float32),
    }
