"""COCO-format data sets as torchvision detection targets, in the same geometry as the runtime's letterbox."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import Dataset

from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.training.augment import Augmentation, View, mirrored_order, warp_mask, warp_picture
from edge_mrcnn.training.keypoint_labels import KeypointNames, check_keypoints, read_keypoint_names, stack_keypoints

log = logging.getLogger(__name__)

MIN_SIDE = 2.0
"""Objects whose box is narrower or lower than this, in pixels of the canvas, are left out of training."""

MIN_VISIBLE = 0.1
"""Objects of which a crop leaves a smaller part than this are left out."""

Target = dict[str, Any]
"""`boxes (N, 4) float32 xyxy`, `labels (N,) int64`, `masks (N, H, W) uint8`, `area (N,)`, `iscrowd (N,)`, `image_id`,
and `image_hw`, the (height, width) of the content; in pixels of the canvas. Where the data has keypoints, also
`keypoints (N, K, 3) float32`: x, y and visibility, which is 0 where there is nothing to learn from."""


class PackedMask(NamedTuple):
    """A binary mask, cropped to its extent and packed eight pixels a byte."""

    bits: NDArray[np.uint8]
    shape: tuple[int, int]
    origin: tuple[int, int]

    def crop(self) -> NDArray[np.uint8]:
        """The cropped mask, 0 or 1; its top left pixel is at `origin` (x, y) in the picture."""
        count = self.shape[0] * self.shape[1]
        return np.unpackbits(self.bits, count=count).reshape(self.shape)


@dataclass(frozen=True)
class Record:
    """A picture and its objects, as the annotations say.

    Attributes:
        path: The picture.
        image_id: Its id in the annotations.
        hw: (height, width) of the picture.
        boxes: `(N, 4)` float32 xyxy, pixels of the picture.
        labels: `(N,)` int64, 1 to K.
        iscrowd: `(N,)` int64, 0 or 1.
        segments: Polygons or run lengths of each object, as in the file.
        keypoints: `(N, K, 3)` float32: x, y in pixels of the picture, and visibility: 0 not labelled, 1 hidden,
            2 visible.
    """

    path: Path
    image_id: int
    hw: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.int64]
    segments: Sequence[Any]
    keypoints: NDArray[np.float32]


@dataclass
class _Cache:
    """Decoded pictures and masks, kept while there is room."""

    room: int
    pictures: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    masks: dict[int, list[PackedMask]] = field(default_factory=dict)


class CocoDataset(Dataset[tuple[Tensor, Target]]):
    """A COCO-format data set.

    A picture is looked for at `<folder of the annotations>/images/<file_name>`, then at `<folder>/<file_name>`. It is
    read as 8-bit RGB: grey is spread over the channels, alpha is dropped, 16 bits are scaled to 8, and the EXIF
    orientation is applied, so the annotations must refer to the upright picture.

    Attributes:
        class_names: `__background__`, then the categories by ascending id: label k is `class_names[k]`.
        category_ids: COCO category id of each label; 0 for the background.
        records: The pictures, by ascending id.
        keypoints: Names and lines of the keypoints, and which labels have them.
    """

    def __init__(
        self,
        annotations: str | Path,
        canvas_hw: tuple[int, int],
        augmentation: Augmentation | None = None,
        *,
        seed: int = 0,
        cache_gb: float = 0.0,
    ) -> None:
        """Read the annotations.

        Args:
            annotations: The JSON file.
            canvas_hw: (H, W) to letterbox pictures into.
            augmentation: None for the plain letterbox.
            seed: Of the augmentation.
            cache_gb: Memory for decoded pictures, in 10^9 bytes.

        Raises:
            EdgeMrcnnError: The file is missing or no COCO annotations, an annotation lacks a box or a mask or has
                an unknown category, or categories and annotations disagree about keypoints.
        """
        self.annotations = Path(annotations)
        content = _read_annotations(self.annotations)
        categories = sorted(content["categories"], key=lambda category: int(category["id"]))
        self.class_names = ("__background__", *(str(category["name"]) for category in categories))
        self.category_ids = (0, *(int(category["id"]) for category in categories))
        names, skeleton = read_keypoint_names(categories, self.annotations)
        self.records = _make_records(self.annotations, content, self.category_ids, len(names))
        self.keypoints = KeypointNames(names, skeleton, _labels_with_keypoints(self.records, len(names)))
        self._mirrored = mirrored_order(names)
        self.canvas_hw = canvas_hw
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0
        self._cache = _Cache(int(cache_gb * 1e9))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Picture `index` on its canvas, `(H, W, 3)` uint8 RGB, and its objects.

        The augmentation depends on seed, epoch and index only, not on the order of the calls.

        Raises:
            EdgeMrcnnError: The picture is missing, unreadable or of another size than the annotations say.
        """
        record = self.records[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        view = View.letterbox(record.hw, self.canvas_hw)
        if self.augmentation is not None:
            view = self.augmentation.view(record.hw, self.canvas_hw, rng)
        picture = warp_picture(self.picture(index), view)
        if self.augmentation is not None:
            content = picture[: view.content_hw[0], : view.content_hw[1]]
            content[:] = self.augmentation.colour(content, rng)
        return torch.from_numpy(picture), self._target(index, view)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Picture `index` as it is in the file, `(h, w, 3)` uint8 RGB."""
        if index in self._cache.pictures:
            return self._cache.pictures[index]
        record = self.records[index]
        picture = read_picture(record.path)
        if picture.shape[:2] != record.hw:
            raise EdgeMrcnnError(
                f"{record.path} is {picture.shape[0]}x{picture.shape[1]} (height x width, upright), but "
                f"{self.annotations} says {record.hw[0]}x{record.hw[1]}: correct the annotations"
            )
        if self._cache.room >= picture.nbytes:
            self._cache.room -= picture.nbytes
            self._cache.pictures[index] = picture
        return picture

    def preload(self) -> None:
        """Read all masks, and pictures until the cache is full, so that worker processes forked later share them."""
        for index in range(len(self)):
            self.masks(index)
            if self._cache.room >= np.prod(self.records[index].hw) * 3:
                self.picture(index)

    def masks(self, index: int) -> list[PackedMask]:
        """Masks of the objects of picture `index`, in its own pixels."""
        if index not in self._cache.masks:
            record = self.records[index]
            self._cache.masks[index] = [
                _pack(decode_segment(segment, record.hw, f"{record.path.name}, object {number}"))
                for number, segment in enumerate(record.segments)
            ]
        return self._cache.masks[index]

    def _target(self, index: int, view: View) -> Target:
        """The objects of picture `index` as seen in `view`; those (almost) out of sight are left out."""
        record = self.records[index]
        boxes, masks, keep = view.boxes(record.boxes), [], []
        for number, packed in enumerate(self.masks(index)):
            box, whole = boxes[number], record.boxes[number]
            if min(box[2] - box[0], box[3] - box[1]) < MIN_SIDE:
                continue
            mask = warp_mask(packed.crop(), packed.origin, view)
            full_area = packed_area(packed) * view.scale**2
            if mask.sum() < max(4.0, MIN_VISIBLE * full_area):
                continue
            if view.crops(whole):
                boxes[number] = _extent(mask)
            masks.append(mask)
            keep.append(number)
        stacked = np.stack(masks) if masks else np.zeros((0, *self.canvas_hw), np.uint8)
        points = view.points(record.keypoints[keep])
        if view.scale_x < 0:
            points = points[:, self._mirrored]
        return {
            **({"keypoints": torch.from_numpy(points)} if self.keypoints.names else {}),
            "boxes": torch.from_numpy(boxes[keep].reshape(-1, 4)),
            "labels": torch.from_numpy(record.labels[keep]),
            "masks": torch.from_numpy(stacked),
            "area": torch.from_numpy(stacked.sum((1, 2), dtype=np.float32)),
            "iscrowd": torch.from_numpy(record.iscrowd[keep]),
            "image_id": record.image_id,
            "image_hw": view.content_hw,
        }


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    """A batch: pictures `(B, H, W, 3)` uint8, and their targets."""
    return torch.stack([picture for picture, _ in samples]), [target for _, target in samples]


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read a picture as `(h, w, 3)` uint8 RGB, upright.

    Raises:
        EdgeMrcnnError: It is missing, empty or in no format that OpenCV reads.
    """
    path = Path(path)
    if not path.is_file():
        raise EdgeMrcnnError(f"picture {path} does not exist: check file_name in the annotations")
    data = np.fromfile(path, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise EdgeMrcnnError(
            f"picture {path} ({data.size} bytes) cannot be decoded: copy it again, or convert it to PNG"
        )
    return np.ascontiguousarray(picture[:, :, ::-1], dtype=np.uint8)


def decode_segment(segment: Any, hw: tuple[int, int], what: str) -> NDArray[np.uint8]:
    """Decode a COCO segmentation: polygons, compressed or uncompressed run lengths.

    Args:
        segment: The value of `segmentation`.
        hw: (height, width) of the picture.
        what: Names the object in an error.

    Returns:
        `(h, w)` uint8, 0 or 1.

    Raises:
        EdgeMrcnnError: It is none of these, or its size is not the picture's.
    """
    try:
        if isinstance(segment, Mapping):
            if [int(side) for side in segment["size"]] != list(hw):
                raise ValueError(f"size {segment['size']} instead of {list(hw)}")
            packed = rle.frPyObjects(segment, *hw) if isinstance(segment["counts"], list) else dict(segment)
            return np.asarray(rle.decode(packed), np.uint8)
        if not isinstance(segment, list) or not segment or any(len(polygon) < 6 for polygon in segment):
            raise ValueError(f"{str(segment)[:40]} is no list of polygons of three points or more")
        return np.asarray(rle.decode(rle.merge(rle.frPyObjects(segment, *hw))), np.uint8)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise EdgeMrcnnError(
            f"segmentation of {what} cannot be decoded: {error}. It must be polygons or run lengths as in COCO"
        ) from error


def packed_area(packed: PackedMask) -> float:
    """Number of pixels of the mask."""
    return float(packed.crop().sum())


def _pack(mask: NDArray[np.uint8]) -> PackedMask:
    x1, y1, x2, y2 = (int(side) for side in _extent(mask))
    crop = mask[y1:y2, x1:x2]
    return PackedMask(np.packbits(crop), (y2 - y1, x2 - x1), (x1, y1))


def _extent(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Tight xyxy box of a mask, zeros where it is empty."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _read_annotations(path: Path) -> dict[str, Any]:
    """The JSON file, checked to be COCO's format."""
    if not path.is_file():
        raise EdgeMrcnnError(f"annotations {path} do not exist: give the path of a COCO-format JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise EdgeMrcnnError(f"annotations {path} are no valid JSON: {error}. Write or copy the file again") from error
    lacking = [key for key in ("images", "annotations", "categories") if key not in content]
    if not isinstance(content, dict) or lacking:
        raise EdgeMrcnnError(f"annotations {path} lack {', '.join(lacking)}: expected a COCO-format instances file")
    if not content["images"]:
        raise EdgeMrcnnError(f"annotations {path} list no pictures: nothing to train on or to evaluate")
    return content


def _make_records(path: Path, content: Mapping[str, Any], category_ids: Sequence[int], points: int) -> list[Record]:
    labels = {category: label for label, category in enumerate(category_ids) if label}
    images = {int(image["id"]): image for image in content["images"]}
    grouped: dict[int, list[Mapping[str, Any]]] = {key: [] for key in images}
    for annotation in content["annotations"]:
        _check_annotation(annotation, grouped, labels, path)
        check_keypoints(annotation, points, path)
        if min(annotation["bbox"][2:]) > 0:
            grouped[int(annotation["image_id"])].append(annotation)
    folder = path.parent / "images"
    return [
        _make_record(folder / str(images[key]["file_name"]), images[key], grouped[key], labels, points)
        for key in sorted(images)
    ]


def _labels_with_keypoints(records: Sequence[Record], count: int) -> tuple[tuple[int, ...], ...]:
    """For each keypoint the labels of which any object has it."""
    having: list[set[int]] = [set() for _ in range(count)]
    for record in records:
        for row, place in np.argwhere(record.keypoints[..., 2] > 0):
            having[place].add(int(record.labels[row]))
    return tuple(tuple(sorted(labels)) for labels in having)


def _check_annotation(
    annotation: Mapping[str, Any], grouped: Mapping[int, Any], labels: Mapping[int, int], path: Path
) -> None:
    what = f"annotation {annotation.get('id')} in {path}"
    for key in ("bbox", "segmentation", "category_id", "image_id"):
        if key not in annotation:
            raise EdgeMrcnnError(f"{what} has no {key}: Mask R-CNN learns from boxes and masks of every object")
    if len(annotation["bbox"]) != 4:
        raise EdgeMrcnnError(f"{what} has bbox {annotation['bbox']}: expected [x, y, width, height]")
    if int(annotation["category_id"]) not in labels:
        raise EdgeMrcnnError(
            f"{what} has category {annotation['category_id']}, which is not among the file's categories "
            f"{sorted(labels)}: add it there or remove the annotation"
        )
    if int(annotation["image_id"]) not in grouped:
        raise EdgeMrcnnError(f"{what} is of picture {annotation['image_id']}, which the file does not list")


def _make_record(
    path: Path,
    image: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
    labels: Mapping[int, int],
    points: int,
) -> Record:
    if not path.is_file():
        path = path.parent.parent / str(image["file_name"])
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Record(
        path=path,
        image_id=int(image["id"]),
        hw=(int(image["height"]), int(image["width"])),
        boxes=boxes,
        labels=np.array([labels[int(annotation["category_id"])] for annotation in annotations], np.int64),
        iscrowd=np.array([int(annotation.get("iscrowd", 0)) for annotation in annotations], np.int64),
        segments=[annotation["segmentation"] for annotation in annotations],
        keypoints=stack_keypoints(annotations, points),
    )
