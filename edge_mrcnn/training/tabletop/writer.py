"""Writes pictures and clips of the tabletop as COCO-format data sets, all or nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edge_mrcnn.errors import EdgeMrcnnError

from .keypoints import ABSENT, KEYPOINT_NAMES, SKELETON
from .objects import CLASS_NAMES
from .render import DEFAULT_SIZE, Instance, Picture, render_picture

VERSION = "1"
"""Raised whenever the same seed gives different pictures."""

log = logging.getLogger(__name__)


class OutputExistsError(EdgeMrcnnError):
    """The output folder holds something already."""


@dataclass(frozen=True)
class Record:
    """What annotations.json says about one picture: its `images` entry and its annotations, still without ids."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of an (H, W) bool mask, as JSON can hold them."""
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def annotation(instance: Instance) -> dict[str, Any]:
    """An instance as a COCO annotation without `id` and `image_id`.

    `bbox` is x, y, width, height in pixels; `keypoints` are x, y in pixels and visibility of each of `KEYPOINT_NAMES`.
    """
    rows, columns = np.flatnonzero(instance.mask.any(1)), np.flatnonzero(instance.mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": instance.class_id,
        "segmentation": encode_mask(instance.mask),
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(instance.mask.sum()),
        "iscrowd": 0,
        "keypoints": [number for x, y, v in instance.keypoints for number in (round(x, 2), round(y, 2), int(v))],
        "num_keypoints": int((instance.keypoints[:, 2] != ABSENT).sum()),
    }


def write_image(path: Path, image: NDArray[np.uint8], quality: int = 90) -> None:
    """Writes an (H, W, 3) uint8 RGB picture as JPEG or PNG, whatever the suffix says.

    Raises:
        EdgeMrcnnError: the file cannot be written.
    """
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flags):
        raise EdgeMrcnnError(
            f"{path} cannot be written. Check that the disk has room and the folder may be written to."
        )


def picture_record(picture: Picture, name: str) -> Record:
    """Describes `picture`, stored as images/`name`."""
    height, width = picture.image.shape[:2]
    image = {"file_name": name, "width": width, "height": height, "seed": [picture.seed, picture.index]}
    return Record(image, [annotation(instance) for instance in picture.instances])


def _render_and_write(index: int, seed: int, size: tuple[int, int], quality: int, images: Path) -> Record:
    picture = render_picture(seed, index, size)
    name = f"{index:06d}.jpg"
    write_image(images / name, picture.image, quality)
    return picture_record(picture, name)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `out` that becomes `out` when the block ends well, and vanishes otherwise.

    Raises:
        OutputExistsError: `out` is a file, or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputExistsError(f"{out} is not empty. Choose another --out, or remove it first: rm -r {out}")
    partial_folder = out.parent / f".{out.name}.partial-{os.getpid()}"
    partial_folder.mkdir(parents=True)
    try:
        yield partial_folder
        os.replace(partial_folder, out)
    except BaseException:
        shutil.rmtree(partial_folder, ignore_errors=True)
        raise


def write_annotations(path: Path, records: Iterable[Record], seed: int) -> int:
    """Writes a COCO file and returns how many annotations it holds."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, 1):
        images.append({"id": image_id, **record.image})
        for fields in record.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **fields})
    # One head serves all classes, so that each lists all keypoints; COCO counts them from 1 in a skeleton.
    points = {"keypoints": KEYPOINT_NAMES, "skeleton": [[start + 1, end + 1] for start, end in SKELETON]}
    categories = [
        {"id": k, "name": name, "supercategory": "tabletop", **points} for k, name in enumerate(CLASS_NAMES, 1)
    ]
    info = {"generator": "edge_mrcnn.training.tabletop", "version": VERSION, "seed": seed}
    document = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    return len(annotations)


def write_pictures(
    out: Path,
    seed: int,
    count: int,
    size: tuple[int, int] = DEFAULT_SIZE,
    workers: int = 1,
    quality: int = 90,
) -> None:
    """Writes `out`/images/ and `out`/annotations.json.

    Args:
        out: a folder that does not exist or is empty.
        seed: names the series; picture `i` depends on the seed and `i` alone.
        count: number of pictures.
        size: height and width, pixels.
        workers: number of processes.
        quality: of the JPEG files, 0 to 100.

    Raises:
        OutputExistsError: `out` is not empty.
        EdgeMrcnnError: this machine cannot render, or a file cannot be written.
    """
    with new_folder(out) as folder:
        images = folder / "images"
        images.mkdir()
        job = partial(_render_and_write, seed=seed, size=size, quality=quality, images=images)
        with contextlib.ExitStack() as stack:
            records: Iterable[Record] = map(job, range(count))
            if workers > 1:
                # Each software renderer would otherwise start a thread for every core.
                os.environ.setdefault("LP_NUM_THREADS", "1")
                # Ctrl-C reaches the whole process group: the parent cleans up, the workers keep quiet.
                ignore = (signal.SIGINT, signal.SIG_IGN)
                context = multiprocessing.get_context("spawn")
                pool = stack.enter_context(context.Pool(workers, initializer=signal.signal, initargs=ignore))
                records = pool.imap(job, range(count))
            records = tqdm(records, total=count, desc=str(out), unit="picture", disable=None)
            total = write_annotations(folder / "annotations.json", records, seed)
    log.info("wrote %d pictures with %d objects to %s", count, total, out)
