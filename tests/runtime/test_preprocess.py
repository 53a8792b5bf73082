"""Letterboxing: torchvision's geometry, PyTorch's pixels."""

import numpy as np
import pytest

from edge_mrcnn.runtime.preprocess import Geometry, fit, letterbox, letterbox_batch


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("original", "canvas", "content"),
    [
        ((480, 640), (480, 640), (480, 640)),  # identity
        ((960, 1280), (480, 640), (480, 640)),
        ((1080, 1920), (480, 640), (360, 640)),
        ((1920, 1080), (480, 640), (480, 270)),
        ((100, 100), (256, 320), (256, 256)),
        ((1, 1), (64, 96), (64, 64)),
        ((1, 5000), (64, 96), (1, 96)),  # never less than a pixel
        ((5000, 1), (64, 96), (64, 1)),
        ((333, 500), (800, 1088), (724, 1088)),  # 724.6
    ],
)
def test_content(original: tuple[int, int], canvas: tuple[int, int], content: tuple[int, int]) -> None:
    assert fit(original, canvas).content_hw == content


def test_no_size_is_lost_to_rounding() -> None:
    """Every picture that is a whole multiple or fraction of the canvas fills it."""
    for side in range(1, 400):
        assert fit((side, side), (480, 640)).content_hw == (480, 480)
        assert fit((3 * side, 4 * side), (480, 640)).content_hw == (480, 640)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("original", "canvas"),
    [
        ((240, 320), (480, 640)),
        ((481, 639), (256, 320)),
        ((720, 1280), (320, 320)),
        ((960, 1280), (480, 640)),
        ((7, 9), (64, 96)),
    ],
)
def test_pixels_are_torchs(original: tuple[int, int], canvas: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    image = picture(*original)
    out, geometry = letterbox(image, canvas)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(
        tensor, size=geometry.content_hw, mode="bilinear", align_corners=False, antialias=False
    )[0].permute(1, 2, 0)
    height, width = geometry.content_hw
    assert np.abs(out[:height, :width] - scaled.numpy()).max() <= 1


def test_padding_is_zero_at_the_bottom_and_right_even_in_a_used_buffer() -> None:
    buffer = np.full((64, 96, 3), 255, np.uint8)
    out, geometry = letterbox(picture(100, 100) | 1, (64, 96), out=buffer)
    assert out is buffer
    assert geometry.content_hw == (64, 64)
    assert out[:, :64].all()
    assert not out[:, 64:].any()


def test_same_size_is_copied_as_it_is() -> None:
    image = picture(64, 96)
    out, _ = letterbox(image, (64, 96))
    np.testing.assert_array_equal(out, image)
    assert not np.shares_memory(out, image)


def test_views_with_negative_strides() -> None:
    image = picture(50, 70)
    np.testing.assert_array_equal(letterbox(image[..., ::-1], (64, 96))[0], letterbox(image, (64, 96))[0][..., ::-1])


@pytest.mark.parametrize("out", [np.zeros((64, 95, 3), np.uint8), np.zeros((64, 96, 3), np.float32)])
def test_wrong_buffer(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"out must be uint8 \(64, 96, 3\), got"):
        letterbox(picture(5, 5), (64, 96), out=out)


def test_batch() -> None:
    images = [picture(64, 96), picture(128, 96, 1), picture(10, 200, 2)]
    batch, image_hw, geometries = letterbox_batch(images, (64, 96))
    assert batch.shape == (3, 64, 96, 3)
    assert image_hw.dtype == np.float32
    np.testing.assert_array_equal(image_hw, [(64, 96), (64, 48), (4, 96)])
    assert [geometry.original_hw for geometry in geometries] == [(64, 96), (128, 96), (10, 200)]
    buffer = np.full((5, 64, 96, 3), 7, np.uint8)
    again, _, _ = letterbox_batch(images, (64, 96), out=buffer)
    assert np.shares_memory(again, buffer)
    np.testing.assert_array_equal(again, batch)
    with pytest.raises(ValueError, match=r"out must be uint8 \(3, 64, 96, 3\)"):
        letterbox_batch(images, (64, 96), out=buffer[:2])


def test_boxes_go_there_and_back() -> None:
    geometry = fit((333, 500), (800, 1088))
    boxes = np.array([[10, 20, 110, 220], [0, 0, 500, 333]], np.float32)
    there = boxes * np.array(geometry.scale_xy * 2, np.float32)
    np.testing.assert_allclose(geometry.unletterbox_boxes(there), boxes, atol=1e-3)
    assert there[1, 2:] == pytest.approx((1088, 724))


def test_boxes_are_clipped_to_the_picture() -> None:
    geometry = Geometry((100, 200), (32, 64))
    found = geometry.unletterbox_boxes(np.array([[-5, -5, 80, 40]], np.float32))
    assert found.tolist() == [[0, 0, 200, 100]]
    assert geometry.unletterbox_boxes(np.zeros((0, 4), np.float32)).shape == (0, 4)
