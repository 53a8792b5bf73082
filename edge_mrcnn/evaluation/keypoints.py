"""Labelled keypoints, as the network orders them, and COCO's measure of how near the found ones are.

Source: cocodataset.org/#keypoints-eval. Object keypoint similarity (OKS) takes the place of IoU: the mean over the
labelled keypoints of `exp(-d^2 / (2 area (2 sigma)^2))`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_mrcnn.errors import StreamError

PERSON = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"),
    *("right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"),
    "right_ankle",
)
"""Keypoints of COCO's persons, in its order."""

PERSON_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087),
    *(0.089, 0.089),
)
"""How far people who label a keypoint of a person differ, in shares of the square root of the person's area: COCO's."""

OTHER_SIGMA = 0.05
"""Of keypoints whose data says nothing of it."""

NUMBERS = 3
"""A keypoint in COCO's files is x, y and visibility."""


def has_keypoints(truth: Mapping[str, Any]) -> bool:
    """Whether an annotation of COCO-format content has a labelled keypoint."""
    return any(_labelled(row.get("keypoints") or ()) for row in truth["annotations"])


def match_keypoints(
    truth: Mapping[str, Any], names: Sequence[str], mode: Literal["equal", "common"], data: Path
) -> dict[str, Any]:
    """Put the keypoints of a data set into the network's order.

    Args:
        truth: COCO-format content; each category names its own keypoints, or has none.
        names: The network's keypoints.
        mode: `equal` wants the same names on both sides, `common` leaves out names that only one side has.
        data: Named in the error.

    Returns:
        The content with `keypoints` of every category and annotation in the network's order: zeros for what is not
        labelled. It is the content as it was where there are no keypoints on one of the sides.

    Raises:
        StreamError: The names differ (`equal`), none is in common, an annotation has not three numbers for each, or a
            category has the wrong sigmas.
    """
    own = {row["id"]: [str(name) for name in row.get("keypoints") or ()] for row in truth["categories"]}
    known = {name for each in own.values() for name in each}
    if not names or not known:
        return dict(truth)
    both = known.intersection(names)
    if not both or (mode == "equal" and known != set(names)):
        remedy = "to count those in common only, add --classes common" if both else "take the model's own data"
        raise StreamError(
            f"the model has the keypoints {', '.join(names)}, {data} has {', '.join(sorted(known))}; {remedy}"
        )
    annotations = [_reordered(row, own[row["category_id"]], names, data) for row in truth["annotations"]]
    categories = [
        {**row, "keypoints": list(names), "sigmas": _sigmas_by_name(row, own[row["id"]], names)}
        for row in truth["categories"]
    ]
    try:
        keypoint_sigmas(categories, len(names))
    except ValueError as error:
        raise StreamError(f"{data}: {error}; leave sigmas out for {OTHER_SIGMA} each") from error
    return {**truth, "annotations": annotations, "categories": categories}


def keypoint_sigmas(categories: Sequence[Mapping[str, Any]], count: int) -> dict[int, npt.NDArray[np.float64]]:
    """Sigmas of each category by its id: its own `sigmas`, COCO's for COCO's persons, or else `OTHER_SIGMA`.

    Args:
        categories: Of COCO-format content.
        count: Keypoints of each (K).

    Raises:
        ValueError: A category has not K positive ones.
    """
    found = {}
    for row in categories:
        names = [str(name) for name in row.get("keypoints") or ()]
        sigmas = np.asarray(_sigmas_by_name(row, names, names or [""] * count), np.float64)
        if sigmas.shape != (count,) or not (sigmas > 0).all():
            raise ValueError(
                f"category {row['name']} must have {count} positive sigmas, one a keypoint, got {sigmas.tolist()}"
            )
        found[int(row["id"])] = sigmas
    return found


def labelled_truth(annotation: Mapping[str, Any], count: int) -> dict[str, Any]:
    """What pycocotools wants of an annotation besides the box: `keypoints` and `num_keypoints`."""
    numbers = list(annotation.get("keypoints") or [0] * (NUMBERS * count))
    return {"keypoints": numbers, "num_keypoints": _labelled(numbers)}


def result_numbers(keypoints: npt.NDArray[np.float32]) -> list[float]:
    """Keypoints `(K, 3)` as a COCO result has them; zeros for those that the class does not have."""
    there = keypoints[:, 2] > 0
    plain = np.where(there[:, None], np.column_stack([keypoints[:, :2], there]), 0.0)
    return [float(number) for number in plain.ravel()]


def extent(numbers: Sequence[float]) -> float:
    """Area in pixels of the box around the keypoints of a result, by which pycocotools sorts it by size."""
    points = np.asarray(numbers, np.float64).reshape(-1, NUMBERS)
    there = points[points[:, 2] > 0, :2]
    return float(np.ptp(there, axis=0).prod()) if len(there) else 0.0


def by_category(coco_eval: Any, sigmas: Mapping[int, npt.NDArray[np.float64]]) -> Any:
    """The `COCOeval` of pycocotools, with sigmas of each category's own.

    Args:
        coco_eval: The class.
        sigmas: By category id.
    """

    class ByCategory(coco_eval):  # type: ignore[misc]
        def computeOks(self, imgId: Any, catId: Any) -> Any:  # noqa: N802, N803
            self.params.kpt_oks_sigmas = sigmas[int(catId)]
            return super().computeOks(imgId, catId)

    return ByCategory


def _labelled(numbers: Sequence[float]) -> int:
    return sum(visible > 0 for visible in numbers[2::NUMBERS])


def _reordered(row: Mapping[str, Any], own: Sequence[str], names: Sequence[str], data: Path) -> dict[str, Any]:
    """An annotation with its keypoints in another order."""
    numbers = row.get("keypoints") or [0] * (NUMBERS * len(own))
    if len(numbers) != NUMBERS * len(own) or not np.isfinite(np.asarray(numbers, np.float64)).all():
        raise StreamError(
            f"{data}: annotation {row.get('id', '')} must have {NUMBERS * len(own)} finite numbers in keypoints, x, y "
            f"and visibility of each of its category's {len(own)}, got {len(numbers)}"
        )
    points = {name: numbers[NUMBERS * place :][:NUMBERS] for place, name in enumerate(own)}
    ordered = [number for name in names for number in points.get(name, (0, 0, 0))]
    return {**row, "keypoints": ordered, "num_keypoints": _labelled(ordered)}


def _sigmas_by_name(row: Mapping[str, Any], own: Sequence[str], names: Sequence[str]) -> list[float]:
    given = row.get("sigmas")
    known = dict(zip(own, given, strict=False)) if given else {}
    if not given and tuple(own) == PERSON:
        known = dict(zip(PERSON, PERSON_SIGMAS, strict=True))
    if given and len(given) != len(own):
        return [float(sigma) for sigma in given]  # refused by `keypoint_sigmas`
    return [float(known.get(name, OTHER_SIGMA)) for name in names]
