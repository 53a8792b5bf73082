"""A COCO-format data set on disk, read and checked before a network spends minutes on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_mrcnn.errors import StreamError
from edge_mrcnn.evaluation.keypoints import match_keypoints
from edge_mrcnn.frame import Frame

UNUSED_NAMES = frozenset({"__background__", "N/A"})
"""Labels that no network gives: torchvision's background and the gaps in COCO's numbering."""

_LISTED = 10
"""Names and files listed in an error before the rest is counted."""


@dataclass(frozen=True)
class LabelledSet:
    """A data set as a model is compared with it.

    Attributes:
        data: The annotation file.
        truth: Its content, with the classes and pictures that count.
        categories: Category id by the model's label.
        paths: File of each of `truth["images"]`.
    """

    data: Path
    truth: Mapping[str, Any]
    categories: Mapping[int, int]
    paths: tuple[Path, ...]

    @classmethod
    def read(
        cls,
        data: Path,
        class_names: Sequence[str],
        classes: Literal["equal", "common"],
        limit: int | None = None,
        keypoint_names: Sequence[str] = (),
    ) -> LabelledSet:
        """Read a set and match its categories with a model's classes, and keypoints with keypoints.

        Args:
            data: Annotation file; its pictures are in the folder `images` beside it, or beside it.
            class_names: The model's name of each label.
            classes: As `match_classes` takes it.
            limit: Take the first so many pictures only.
            keypoint_names: The model's keypoints, into whose order those of the set are put, as `match_keypoints` does.

        Raises:
            StreamError: The set cannot be used, or has other classes or keypoints than the model.
        """
        content = read_annotations(data)
        categories = match_classes(class_names, content["categories"], classes, data)
        truth = match_keypoints(_restrict(content, set(categories.values()), limit), keypoint_names, classes, data)
        return cls(data, truth, categories, tuple(locate_pictures(truth["images"], data)))

    def frames(self) -> Iterator[tuple[Mapping[str, Any], Frame]]:
        """Pictures with their entries in the file; a bar on a terminal.

        Raises:
            StreamError: A picture cannot be read, or has another size than the file says.
        """
        from tqdm import tqdm

        from edge_mrcnn.runtime.sources.pictures import read_picture

        bar = tqdm(self.truth["images"], "evaluating", unit=" pictures", disable=None)
        for index, (image, path) in enumerate(zip(bar, self.paths, strict=True)):
            frame = Frame(read_picture(path), str(path), index)
            expected = (image.get("height", frame.image_hw[0]), image.get("width", frame.image_hw[1]))
            if frame.image_hw != expected:
                raise StreamError(
                    f"{path} has {frame.image_hw[0]}x{frame.image_hw[1]} pixels (HxW), {self.data} says "
                    f"{expected[0]}x{expected[1]}: its boxes would be off; give the pictures the file was made for"
                )
            yield image, frame


def read_annotations(data: Path) -> dict[str, Any]:
    """Read a COCO-format file and check that it can be evaluated.

    Args:
        data: JSON file with `images`, `annotations` and `categories`.

    Returns:
        The file's content.

    Raises:
        StreamError: The file is missing, is not JSON, or has no pictures, annotations or categories.
    """
    try:
        content = json.loads(data.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StreamError(
            f"there is no annotation file {data}; make a set with: "
            "python -m edge_mrcnn.training.tabletop --seed 0 --images 64 --out DIR"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise StreamError(f"cannot read the annotation file {data} ({error}); give a COCO-format JSON file") from error
    except json.JSONDecodeError as error:
        raise StreamError(f"{data} is not valid JSON ({error}); give a COCO-format JSON file") from error
    _check_layout(content, data)
    return dict(content)


def _check_layout(content: Any, data: Path) -> None:
    keys = {
        "images": ("id", "file_name"),
        "annotations": ("image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for key, fields in keys.items():
        rows = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(rows, list) or not rows:
            raise StreamError(f"{data} has no {key}, so there is nothing to compare with; give a COCO-format JSON file")
        for place, row in enumerate(rows):
            missing = [name for name in fields if not isinstance(row, Mapping) or name not in row]
            if missing:
                raise StreamError(f"{data}: {key}[{place}] lacks {listed(missing)}; see cocodataset.org/#format-data")
    _check_references(content, data)


def _check_references(content: Mapping[str, Any], data: Path) -> None:
    """Refuse annotations that point nowhere and ids that name two things: both would change the figures unseen."""
    for key, field in (("images", "image_id"), ("categories", "category_id")):
        ids = [row["id"] for row in content[key]]
        if len(set(ids)) != len(ids):
            raise StreamError(f"{data}: two {key} share an id; give each its own")
        stray = {row[field] for row in content["annotations"]}.difference(ids)
        if stray:
            raise StreamError(f"{data}: annotations have {field} {listed(sorted(map(str, stray)))}, in no {key}")
    names = [row["name"] for row in content["categories"]]
    if len(set(names)) != len(names):
        raise StreamError(f"{data}: two categories share a name, so classes cannot be told apart by name")


def locate_pictures(images: Sequence[Mapping[str, Any]], data: Path) -> list[Path]:
    """Find each picture at `<folder of data>/images/<file_name>` or else at `<folder>/<file_name>`.

    Raises:
        StreamError: A picture is in neither place; the message lists the first ones.
    """
    folder = data.parent
    found, missing = [], []
    for image in images:
        places = [folder / "images" / image["file_name"], folder / image["file_name"]]
        at = next((place for place in places if place.is_file()), None)
        if at is None:
            missing.append(str(image["file_name"]))
        else:
            found.append(at)
    if missing:
        raise StreamError(
            f"{len(missing)} of {len(images)} pictures of {data} are missing: {listed(missing)}; "
            f"put them into {folder / 'images'}"
        )
    return found


def match_classes(
    class_names: Sequence[str], categories: Sequence[Mapping[str, Any]], mode: Literal["equal", "common"], data: Path
) -> dict[int, int]:
    """Match a network's labels with a data set's categories by name.

    Args:
        class_names: The network's name of each label; the background and `N/A` are no classes.
        categories: The data set's, with `id` and `name`.
        mode: `equal` wants the same names on both sides, `common` takes those that both have.
        data: Named in the error.

    Returns:
        Category id by label.

    Raises:
        StreamError: The names differ (`equal`), or none is in common.
    """
    labels = {name: label for label, name in enumerate(class_names) if name not in UNUSED_NAMES}
    ids = {str(row["name"]): int(row["id"]) for row in categories}
    both = [name for name in labels if name in ids]
    if both and (mode == "common" or len(both) == len(labels) == len(ids)):
        return {labels[name]: ids[name] for name in both}
    sides = f"the model has {len(labels)} classes and {data} has {len(ids)} categories"
    what = "class-count mismatch" if len(labels) != len(ids) else "the names differ"
    alone = [
        f"only {side}: {listed(names)}"
        for side, names in (
            ("the model", [name for name in labels if name not in ids]),
            ("the data", [name for name in ids if name not in labels]),
        )
        if names
    ]
    remedy = (
        f"to count the {len(both)} names in common only, add --classes common"
        if both
        else "no name is in common: take the model's own data, or fine-tune with edge-mrcnn train"
    )
    raise StreamError(f"{sides} ({what}); {'; '.join(alone)}; {remedy}")


def listed(names: Sequence[str]) -> str:
    """Names with commas; from the eleventh on they are counted."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _restrict(truth: dict[str, Any], categories: set[int], limit: int | None) -> dict[str, Any]:
    images = truth["images"][:limit]
    ids = {row["id"] for row in images}
    kept = [row for row in truth["annotations"] if row["image_id"] in ids and row["category_id"] in categories]
    return {
        "images": images,
        "annotations": kept,
        "categories": [row for row in truth["categories"] if row["id"] in categories],
    }
