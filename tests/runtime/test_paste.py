"""Mask pasting: the same pixels as torchvision, the same RLE as pycocotools, and no box that it trips over."""

import cv2
import numpy as np
import pytest

from edge_mrcnn.runtime import paste
from edge_mrcnn.runtime.paste import encode_rle, iter_masks, outline_polygons, paste_instance_map, paste_masks

IMAGE_HW = (120, 160)

EVIL_BOXES = {
    "off to the left": (-50, 10, -20, 40),
    "off to the top": (10, -50, 40, -20),
    "off to the right": (200, 10, 240, 40),
    "off below": (10, 150, 40, 190),
    "not a number": (np.nan, 10, 40, 40),
    "infinite": (0, 0, np.inf, 50),
    "inverted": (60, 60, 20, 20),
    "beyond 32 bits": (-1e12, -1e12, 1e12, 1e12),
}


def blobs(count: int, size: int = 28, seed: int = 0) -> np.ndarray:
    """Smooth patches with holes and islands, `(N, M, M)` float32."""
    noise = np.random.default_rng(seed).standard_normal((count, size, size)).astype(np.float32)
    return np.stack([1 / (1 + np.exp(-8 * cv2.GaussianBlur(patch, (0, 0), 2.5))) for patch in noise]).astype(np.float32)


def random_boxes(count: int, image_hw: tuple[int, int] = IMAGE_HW, seed: int = 0) -> np.ndarray:
    """Boxes of all sizes, some reaching over the edges, `(N, 4)` float32."""
    rng = np.random.default_rng(seed)
    height, width = image_hw
    center = rng.uniform(0, 1, (count, 2)) * (width, height)
    half = np.exp(rng.uniform(np.log(0.3), np.log(max(image_hw) * 0.7), (count, 2)))
    return np.concatenate([center - half, center + half], axis=1).astype(np.float32)


def iou(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    union = np.count_nonzero(ours | theirs, axis=(1, 2))
    return np.where(union, np.count_nonzero(ours & theirs, axis=(1, 2)) / np.maximum(union, 1), 1.0)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("size", "image_hw"),
    [
        (28, (120, 160)),
        (14, (120, 160)),  # C4
        (28, (1080, 1920)),
        (28, (7, 5)),
        (1, (33, 31)),
    ],
)
def test_masks_are_torchvisions(size: int, image_hw: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    roi_heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    patches, boxes = blobs(60, size), random_boxes(60, image_hw)
    height, width = image_hw
    # torchvision fails on boxes that are wholly outside, so they stay in its reach here.
    boxes[:, 0::2] = boxes[:, 0::2].clip(-0.2 * width, 1.2 * width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(-0.2 * height, 1.2 * height)
    inside = (boxes[:, 0] < width - 1) & (boxes[:, 1] < height - 1) & (boxes[:, 2] > 1) & (boxes[:, 3] > 1)
    patches, boxes = patches[inside], boxes[inside]
    pasted = roi_heads.paste_masks_in_image(torch.from_numpy(patches)[:, None], torch.from_numpy(boxes), image_hw)
    theirs = (pasted[:, 0] >= 0.5).numpy()
    ours = paste_masks(patches, boxes, image_hw)
    assert ours.shape == theirs.shape
    assert len(ours) > 30
    assert iou(ours, theirs).min() >= 0.99


def test_a_full_patch_fills_its_box() -> None:
    mask = paste_masks(np.ones((1, 28, 28), np.float32), np.array([[20, 30, 76, 86]], np.float32), IMAGE_HW)[0]
    assert mask[31:86, 21:76].all()
    assert mask.sum() <= 60 * 60


def test_masks_into_a_used_buffer() -> None:
    patches, boxes = blobs(5), random_boxes(5)
    buffer = np.ones((5, *IMAGE_HW), np.bool_)
    assert paste_masks(patches, boxes, IMAGE_HW, out=buffer) is buffer
    np.testing.assert_array_equal(buffer, paste_masks(patches, boxes, IMAGE_HW))
    with pytest.raises(ValueError, match=r"out must be bool \(5, 120, 160\), got uint8"):
        paste_masks(patches, boxes, IMAGE_HW, out=buffer.view(np.uint8))


@pytest.mark.parametrize("name", EVIL_BOXES)
def test_boxes_that_show_nothing_give_empty_masks(name: str) -> None:
    boxes = np.array([EVIL_BOXES[name], (10, 10, 60, 60)], np.float32)
    patches = np.ones((2, 28, 28), np.float32)
    masks = paste_masks(patches, boxes, IMAGE_HW)
    assert not masks[0].any()
    assert masks[1].any()
    assert set(np.unique(paste_instance_map(patches, boxes, IMAGE_HW))) == {0, 2}
    assert encode_rle(patches, boxes, IMAGE_HW)[0]["size"] == list(IMAGE_HW)
    assert outline_polygons(patches, boxes, IMAGE_HW)[0] == []


def test_huge_boxes_need_no_more_memory_than_the_image() -> None:
    box = np.array([[-4e6, -4e6, 5e6, 5e6]], np.float32)
    patch = np.zeros((1, 28, 28), np.float32)
    patch[:, :, :12] = 1  # the image is a small spot at 4/9 of the box: in column 12.4 of 28
    assert not paste_masks(patch, box, IMAGE_HW).any()
    patch[:, :, 12:14] = 1
    assert paste_masks(patch, box, IMAGE_HW).all()


def test_both_ways_to_stretch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A box that is mostly outside is stretched in another way than one that is inside."""
    patches, boxes = blobs(40, seed=3), random_boxes(40, seed=3)
    found = {}
    for factor in (0, 1e9):
        monkeypatch.setattr(paste, "_WHOLE_RESIZE_FACTOR", factor)
        found[factor] = paste_masks(patches, boxes, IMAGE_HW)
    assert iou(found[0], found[1e9]).min() > 0.999


def test_no_detections() -> None:
    none, boxes = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32)
    assert paste_masks(none, boxes, IMAGE_HW).shape == (0, *IMAGE_HW)
    assert not paste_instance_map(none, boxes, IMAGE_HW).any()
    assert encode_rle(none, boxes, IMAGE_HW) == []
    assert outline_polygons(none, boxes, IMAGE_HW) == []


@pytest.mark.parametrize(
    ("patches", "boxes", "message"),
    [
        (np.zeros((2, 28, 14)), np.zeros((2, 4)), r"patches must have shape \(N, M, M\), got \(2, 28, 14\)"),
        (np.zeros((2, 28, 28)), np.zeros((3, 4)), r"xyxy must have shape \(2, 4\).*got \(3, 4\)"),
    ],
)
def test_wrong_shapes(patches: np.ndarray, boxes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paste_masks(patches, boxes, IMAGE_HW)


def test_instance_map_puts_the_best_on_top() -> None:
    patches, boxes = blobs(30), random_boxes(30)
    masks = paste_masks(patches, boxes, IMAGE_HW)
    expected = np.where(masks.any(0), masks.argmax(0) + 1, 0)
    instances = paste_instance_map(patches, boxes, IMAGE_HW)
    assert instances.dtype == np.uint16
    np.testing.assert_array_equal(instances, expected)


def test_instance_map_counts_past_a_byte_and_not_past_two() -> None:
    count = 300
    boxes = np.tile(np.array([[2, 2, 20, 20]], np.float32), (count, 1))
    boxes[-1] += 60
    assert paste_instance_map(np.ones((count, 2, 2), np.float32), boxes, IMAGE_HW).max() == count
    with pytest.raises(ValueError, match="up to 65535 detections in 16 bits, got 65536"):
        paste_instance_map(np.ones((65536, 1, 1), np.float32), np.zeros((65536, 4), np.float32), IMAGE_HW)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_thresholds(threshold: float) -> None:
    patches, boxes = blobs(10), random_boxes(10)
    for _, _, _, mask in iter_masks(patches, boxes, IMAGE_HW, threshold):
        assert mask.dtype == np.bool_
    areas = paste_masks(patches, boxes, IMAGE_HW, threshold).sum()
    assert areas <= paste_masks(patches, boxes, IMAGE_HW, max(threshold - 0.2, 0)).sum()


@pytest.mark.parametrize("seed", range(5))
def test_rle_is_pycocotools(seed: int) -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    image_hw = [(120, 160), (7, 5), (1, 40), (40, 1), (300, 200)][seed]
    patches = np.concatenate(
        [blobs(25, seed=seed), np.ones((3, 28, 28), np.float32), np.zeros((1, 28, 28), np.float32)]
    )
    boxes = random_boxes(29, image_hw, seed)
    boxes[-4:-1] = [(-50, -50, 999, 999), (-5, -5, 3, 999), (2, -9, 999, 999)]  # to the edges, where runs join
    masks = paste_masks(patches, boxes, image_hw)
    expected = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    found = encode_rle(patches, boxes, image_hw)
    assert [item["counts"] for item in found] == [item["counts"].decode() for item in expected]
    assert all(item["size"] == list(image_hw) for item in found)


def test_polygons_filled_are_the_mask_without_holes() -> None:
    patches, boxes = blobs(12), random_boxes(12)
    masks = paste_masks(patches, boxes, IMAGE_HW)
    for mask, outlines in zip(masks, outline_polygons(patches, boxes, IMAGE_HW), strict=True):
        filled = np.zeros(IMAGE_HW, np.uint8)
        for outline in outlines:
            assert outline.dtype == np.float32
            cv2.fillPoly(filled, [outline.astype(np.int32)], 1)
        assert (filled.astype(bool) >= mask).all()
        added = filled.astype(bool) & ~mask
        outside, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        solid = cv2.drawContours(np.zeros(IMAGE_HW, np.uint8), outside, -1, 1, cv2.FILLED).astype(bool)
        assert (added <= solid).all()
