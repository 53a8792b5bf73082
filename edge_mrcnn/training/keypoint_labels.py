"""Keypoints in COCO-format annotations: their names, which must be the same for all classes, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_mrcnn.errors import EdgeMrcnnError

NUMBERS = 3
"""A keypoint is x, y and visibility."""


class KeypointNames(NamedTuple):
    """The keypoints of a data set, as `ModelSpec` has them.

    Attributes:
        names: Of the K keypoints; empty where the data has none.
        skeleton: Pairs of keypoints, counted from 0, to draw a line between.
        labels: For each keypoint the labels whose objects have it.
    """

    names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    labels: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_meta(cls, fields: object) -> KeypointNames | None:
        """What `_asdict` gave, after a checkpoint; None for anything else, or where it contradicts itself."""
        if not isinstance(fields, Mapping) or not fields.get("names"):
            return None
        try:
            names = tuple(str(name) for name in fields["names"])
            skeleton = tuple((int(start), int(end)) for start, end in fields["skeleton"])
            labels = tuple(tuple(int(label) for label in having) for having in fields["labels"])
        except (KeyError, TypeError, ValueError):
            return None
        fits = len(labels) in (0, len(names)) and all(0 <= end < len(names) for line in skeleton for end in line)
        return cls(names, skeleton, labels) if fits else None


def read_keypoint_names(
    categories: Sequence[Mapping[str, Any]], path: Path
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Names and skeleton, counted from 0, of the categories' keypoints; empty where no category has any.

    Args:
        categories: Of a COCO-format file.
        path: Names the file in an error.

    Raises:
        EdgeMrcnnError: Two categories name different keypoints, or a line of the skeleton has an end that is none.
    """
    having = [category for category in categories if category.get("keypoints")]
    if not having:
        return (), ()
    first = having[0]
    for other in having[1:]:
        if list(other["keypoints"]) != list(first["keypoints"]):
            raise EdgeMrcnnError(
                f"{path}: categories {first['name']!r} and {other['name']!r} name different keypoints, "
                f"{first['keypoints']} and {other['keypoints']}; one head serves all classes: give every category the "
                "same list, and visibility 0 to the points that an object does not have"
            )
    names = tuple(str(name) for name in first["keypoints"])
    lines = tuple((int(start) - 1, int(end) - 1) for start, end in first.get("skeleton", ()))
    if any(not 0 <= end < len(names) for line in lines for end in line):
        raise EdgeMrcnnError(
            f"{path}: the skeleton {first['skeleton']} has an end outside 1 to {len(names)}: COCO counts keypoints "
            "from 1"
        )
    return names, lines


def check_keypoints(annotation: Mapping[str, Any], count: int, path: Path) -> None:
    """Check the keypoints of an annotation, which may have none, against their number.

    Raises:
        EdgeMrcnnError: There are not 3 numbers for each of `count` keypoints, or one is not finite.
    """
    if not count or "keypoints" not in annotation:
        return
    numbers = annotation["keypoints"]
    if len(numbers) != NUMBERS * count:
        raise EdgeMrcnnError(
            f"annotation {annotation.get('id')} in {path} has {len(numbers)} numbers in keypoints: expected "
            f"{NUMBERS * count}, which are x, y and visibility of each of the category's {count} keypoints"
        )
    if not np.isfinite(np.asarray(numbers, float)).all():
        raise EdgeMrcnnError(
            f"annotation {annotation.get('id')} in {path} has keypoints that are not finite: {numbers}. Give a point "
            "that is not labelled as 0, 0, 0"
        )


def stack_keypoints(annotations: Sequence[Mapping[str, Any]], count: int) -> NDArray[np.float32]:
    """Keypoints of annotations as `(N, count, 3)` float32; zeros where an annotation has none."""
    rows = [annotation.get("keypoints") or [0] * (NUMBERS * count) for annotation in annotations]
    if not count:
        return np.zeros((len(rows), 0, NUMBERS), np.float32)
    return np.array(rows, np.float32).reshape(-1, count, NUMBERS)
