"""`Frame` refuses anything but RGB bytes."""

import time

import numpy as np
import pytest

from edge_mrcnn import Frame


def test_defaults() -> None:
    before = time.monotonic_ns()
    frame = Frame(np.zeros((4, 6, 3), np.uint8))
    assert frame.image_hw == (4, 6)
    assert before <= frame.captured_ns <= time.monotonic_ns()
    assert abs(frame.stamp_ns - time.time_ns()) < 5e9
    assert (frame.source, frame.index, frame.stamp_source, frame.frame_id) == ("", 0, "host", "")


def test_the_picture_is_not_copied() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    assert Frame(image).image is image


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((4, 6, 3), np.float32), "float32"),
        (np.zeros((4, 6, 3), np.int8), "int8"),
        ([[0, 0, 0]], "list"),
        (None, "NoneType"),
    ],
)
def test_wrong_types(image: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"must be a uint8 array \(H, W, 3\) in RGB, got {got}"):
        Frame(image)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 4), (3, 4, 6), (0, 6, 3), (4, 0, 3), (1, 4, 6, 3)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) RGB"):
        Frame(np.zeros(shape, np.uint8))
