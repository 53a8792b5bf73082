"""Mask patches at full resolution: boolean masks, one instance map, COCO RLE or outlines, without torch.

A network gives each mask as a small patch stretched over its box. Everything here goes through `iter_masks`, which
stretches one patch at a time and only over the pixels that are inside the image, so that memory stays that of one box.

Source: `paste_masks_in_image` of torchvision/models/detection/roi_heads.py, whose geometry this repeats: the patch gets
a border of one zero pixel, the box grows by the same share and is truncated to whole pixels, and the patch is stretched
over it bilinearly (`align_corners=False`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

_FARTHEST = 2**31
"""A box that reaches farther than this many pixels is damaged, and so is one that is not a number."""

_WHOLE_RESIZE_FACTOR = 2
"""A box that sticks out of the image is stretched whole, which is fastest, up to this many times its visible part."""

_MAX_ROWS = np.iinfo(np.uint16).max


class Window(NamedTuple):
    """The visible part of one mask.

    Attributes:
        row: Which detection.
        x: Left edge in the image, pixels.
        y: Top edge in the image, pixels.
        mask: `(h, w)` bool, at least one pixel; all of it lies inside the image.
    """

    row: int
    x: int
    y: int
    mask: npt.NDArray[np.bool_]


def paste_masks(
    patches: npt.NDArray[np.float32],
    xyxy: npt.NDArray[np.float32],
    image_hw: tuple[int, int],
    threshold: float = 0.5,
    out: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.bool_]:
    """Full-size masks, as `paste_masks_in_image(...) >= threshold` of torchvision.

    Boxes outside of the image, and boxes that are not numbers, give an empty mask.

    Args:
        patches: `(N, M, M)` float32 probabilities, each stretched over its box.
        xyxy: `(N, 4)` float32 boxes, pixels of the image.
        image_hw: Height and width of the image in pixels.
        threshold: A pixel belongs to the mask where the probability is at least this.
        out: `(N, H, W)` bool to write into; whatever it held is overwritten. Most of the time of a fresh array goes
            into getting its memory from the system, so loops gain from keeping one.

    Returns:
        `(N, H, W)` bool, which is `out` where that was given.

    Raises:
        ValueError: The shapes do not fit each other, or `out` has another shape or type.
    """
    shape = (len(patches), *image_hw)
    if out is not None and (out.shape != shape or out.dtype != np.bool_):
        raise ValueError(f"out must be bool {shape}, got {out.dtype} {out.shape}")
    masks = np.zeros(shape, np.bool_) if out is None else out
    if out is not None:
        out.fill(False)
    for row, x, y, mask in iter_masks(patches, xyxy, image_hw, threshold):
        height, width = mask.shape
        masks[row, y : y + height, x : x + width] = mask
    return masks


def paste_instance_map(
    patches: npt.NDArray[np.float32], xyxy: npt.NDArray[np.float32], image_hw: tuple[int, int], threshold: float = 0.5
) -> npt.NDArray[np.uint16]:
    """All masks in one picture; where they overlap, the earlier row is on top.

    Args:
        patches: `(N, M, M)` float32 probabilities, each stretched over its box.
        xyxy: `(N, 4)` float32 boxes, pixels of the image.
        image_hw: Height and width of the image in pixels.
        threshold: A pixel belongs to a detection where the probability is at least this.

    Returns:
        `(H, W)` uint16: row + 1 of the detection that each pixel belongs to, 0 for none.

    Raises:
        ValueError: The shapes do not fit each other, or there are more than 65535 rows.
    """
    if len(patches) > _MAX_ROWS:
        raise ValueError(f"an instance map counts up to {_MAX_ROWS} detections in 16 bits, got {len(patches)}")
    instances = np.zeros(image_hw, np.uint16)
    for row, x, y, mask in iter_masks(patches, xyxy, image_hw, threshold, last_first=True):
        height, width = mask.shape
        region = instances[y : y + height, x : x + width]
        # Seven times faster than `region[mask] = row + 1` (single core), and it writes into `region` itself.
        cv2.copyTo(np.full(mask.shape, row + 1, np.uint16), mask.view(np.uint8), region)
    return instances


def encode_rle(
    patches: npt.NDArray[np.float32], xyxy: npt.NDArray[np.float32], image_hw: tuple[int, int], threshold: float = 0.5
) -> list[dict[str, Any]]:
    """Each mask as COCO's compressed RLE, the same string as `pycocotools.mask.encode` of the full-size mask.

    Args:
        patches: `(N, M, M)` float32 probabilities, each stretched over its box.
        xyxy: `(N, 4)` float32 boxes, pixels of the image.
        image_hw: Height and width of the image in pixels.
        threshold: A pixel belongs to the mask where the probability is at least this.

    Returns:
        A dictionary for each row: `{"size": [H, W], "counts": str}`.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    height, width = int(image_hw[0]), int(image_hw[1])
    counts = [_compress(np.array([height * width]))] * len(patches)
    # RLE runs down the columns: working on the transposed image makes them rows.
    transposed = np.swapaxes(np.asarray(patches), 1, 2)
    for row, y, x, mask in iter_masks(transposed, np.asarray(xyxy)[:, [1, 0, 3, 2]], (width, height), threshold):
        counts[row] = _compress(_runs(mask, x, y, (height, width)))
    return [{"size": [height, width], "counts": text} for text in counts]


def outline_polygons(
    patches: npt.NDArray[np.float32], xyxy: npt.NDArray[np.float32], image_hw: tuple[int, int], threshold: float = 0.5
) -> list[list[npt.NDArray[np.float32]]]:
    """Outer outlines of each mask; holes are left out, as in COCO's polygons.

    Vertices are pixels of the mask's border, so `cv2.fillPoly` of them gives back the mask with its holes filled.

    Args:
        patches: `(N, M, M)` float32 probabilities, each stretched over its box.
        xyxy: `(N, 4)` float32 boxes, pixels of the image.
        image_hw: Height and width of the image in pixels.
        threshold: A pixel belongs to the mask where the probability is at least this.

    Returns:
        For each row a list of outlines, `(V, 2)` float32 x, y; an empty list for an empty mask.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    outlines: list[list[npt.NDArray[np.float32]]] = [[] for _ in range(len(patches))]
    for row, x, y, mask in iter_masks(patches, xyxy, image_hw, threshold):
        found, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
        outlines[row] = [outline.reshape(-1, 2).astype(np.float32) for outline in found]
    return outlines


def iter_masks(
    patches: npt.NDArray[np.float32],
    xyxy: npt.NDArray[np.float32],
    image_hw: tuple[int, int],
    threshold: float = 0.5,
    *,
    last_first: bool = False,
) -> Iterator[Window]:
    """The visible part of one mask after the other; rows without a visible pixel are left out.

    Args:
        patches: `(N, M, M)` float32 probabilities, each stretched over its box.
        xyxy: `(N, 4)` float32 boxes, pixels of the image.
        image_hw: Height and width of the image in pixels.
        threshold: A pixel belongs to the mask where the probability is at least this.
        last_first: Begin with the last row, so that a painter ends with the best on top.

    Yields:
        `Window(row, x, y, mask)`.

    Raises:
        ValueError: The shapes do not fit each other.
    """
    patches, xyxy = np.asarray(patches, np.float32), np.asarray(xyxy, np.float32)
    _check_shapes(patches, xyxy)
    if len(patches) == 0 or patches.shape[1] == 0:
        return
    padded = np.pad(patches, ((0, 0), (1, 1), (1, 1)))
    boxes, usable = _expand_boxes(xyxy, padded.shape[1] / patches.shape[1])
    rows = np.flatnonzero(usable)
    height, width = image_hw
    for row in rows[::-1] if last_first else rows:
        left, top, right, bottom = boxes[row]
        x, y = max(left, 0), max(top, 0)
        visible = (x - left, y - top, min(right + 1, width) - left, min(bottom + 1, height) - top)
        if visible[2] <= visible[0] or visible[3] <= visible[1]:
            continue
        probability = _stretch(padded[row], (right - left + 1, bottom - top + 1), visible)
        yield Window(int(row), x, y, np.greater_equal(probability, np.float32(threshold)))


def _check_shapes(patches: npt.NDArray[np.float32], xyxy: npt.NDArray[np.float32]) -> None:
    if patches.ndim != 3 or patches.shape[1] != patches.shape[2]:
        raise ValueError(f"patches must have shape (N, M, M), got {patches.shape}")
    if xyxy.shape != (len(patches), 4):
        raise ValueError(f"xyxy must have shape ({len(patches)}, 4), as there are so many patches, got {xyxy.shape}")


def _expand_boxes(xyxy: npt.NDArray[np.float32], scale: float) -> tuple[list[list[int]], npt.NDArray[np.bool_]]:
    """Boxes grown by the patch's border and truncated to whole pixels, and which of them are sound.

    Source: `expand_boxes` in torchvision; float32 like there, so that truncation meets the same pixel.
    """
    usable: npt.NDArray[np.bool_] = np.all(np.isfinite(xyxy) & (np.abs(xyxy) < _FARTHEST / 4), axis=1)
    sound = np.where(usable[:, None], xyxy, np.float32(0))
    half = (sound[:, 2:] - sound[:, :2]) * np.float32(0.5) * np.float32(scale)
    center = (sound[:, 2:] + sound[:, :2]) * np.float32(0.5)
    boxes: list[list[int]] = np.concatenate([center - half, center + half], axis=1).astype(np.int64).tolist()
    return boxes, usable


def _stretch(
    patch: npt.NDArray[np.float32], size_wh: tuple[int, int], visible: tuple[int, int, int, int]
) -> npt.NDArray[np.float32]:
    """Stretch a patch over a box of `size_wh` pixels and cut out `visible`, xyxy from the box's corner."""
    width, height = size_wh
    x0, y0, x1, y1 = visible
    if width * height <= _WHOLE_RESIZE_FACTOR * (x1 - x0) * (y1 - y0):
        whole: npt.NDArray[np.float32] = cv2.resize(patch, size_wh, interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
        return whole[y0:y1, x0:x1]
    upper, lower, down = _taps(patch.shape[0], height, y0, y1)
    left, right, along = _taps(patch.shape[1], width, x0, x1)
    rows = patch[upper] + (patch[lower] - patch[upper]) * down[:, None]
    return rows[:, left] + (rows[:, right] - rows[:, left]) * along


def _taps(
    count: int, size: int, start: int, stop: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Bilinear taps of the outputs `start` to `stop`, of `size` in all, over `count` samples: two indices, a weight.

    Source: `area_pixel_compute_source_index` in PyTorch, `align_corners=False`.
    """
    position = np.maximum((np.arange(start, stop) + 0.5) * (count / size) - 0.5, 0)
    low = np.minimum(position.astype(np.intp), count - 1)
    return low, np.minimum(low + 1, count - 1), (position - low).astype(np.float32)


def _runs(mask: npt.NDArray[np.bool_], x: int, y: int, image_hw: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Lengths of the runs of 0, 1, 0, ... down the columns of a whole image.

    Args:
        mask: `(w, h)` bool, the visible part, transposed: a row is a column of the image.
        x: Left edge of the visible part in the image.
        y: Top edge of the visible part in the image.
        image_hw: Height and width of the image.
    """
    width, height = mask.shape
    fenced = np.zeros((width, height + 2), np.bool_)
    fenced[:, 1:-1] = mask
    column, line = np.divmod(np.flatnonzero(fenced[:, 1:] != fenced[:, :-1]), height + 1)
    changes = (column + x) * image_hw[0] + line + y
    # A run that goes on from the bottom of a column at the top of the next one ends and begins at the same place.
    joined = np.zeros(len(changes) + 1, np.bool_)
    joined[1:-1] = changes[1:] == changes[:-1]
    changes = changes[~(joined[1:] | joined[:-1])]
    runs = np.diff(changes, prepend=0, append=image_hw[0] * image_hw[1])
    return runs if runs[-1] else runs[:-1]


def _compress(runs: npt.NDArray[np.int64]) -> str:
    """Run lengths as text: differences to the run before the last, five bits a character, least significant first.

    Source: `rleToString` in maskApi.c of pycocotools.
    """
    value = runs.copy()
    value[3:] -= runs[1:-2]
    characters: list[npt.NDArray[np.int64]] = []
    used: list[npt.NDArray[np.bool_]] = []
    active = np.ones(len(value), np.bool_)
    while active.any():
        bits = value & 0x1F
        value >>= 5
        more = np.where(bits & 0x10, value != -1, value != 0)
        characters.append(bits + (more << 5) + 48)
        used.append(active)
        active = active & more
    return bytes(np.stack(characters, 1)[np.stack(used, 1)].astype(np.uint8)).decode("ascii")
