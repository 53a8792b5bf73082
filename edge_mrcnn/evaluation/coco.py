"""COCO average precision of boxes, masks and keypoints.

`evaluate` runs a detector over a COCO-format set; `average_precision` takes plain lists, so that a training loop can
use it on whatever its network gave.

Source: Lin et al., Microsoft COCO: Common Objects in Context (2014); the figures are pycocotools', in points of 100.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import EdgeMrcnnError
from edge_mrcnn.evaluation.dataset import LabelledSet
from edge_mrcnn.evaluation.keypoints import (
    NUMBERS,
    by_category,
    extent,
    has_keypoints,
    keypoint_sigmas,
    labelled_truth,
    result_numbers,
)
from edge_mrcnn.frame import Frame
from edge_mrcnn.spec import ModelSpec

logger = logging.getLogger(__name__)

DETECTIONS_PER_PICTURE = 100
"""COCO counts the best so many detections of a picture."""

Kind = Literal["bbox", "segm", "keypoints"]
"""What is compared with the truth: boxes, masks or keypoints, in pycocotools' words."""


@dataclass(frozen=True)
class EvalOptions:
    """How `evaluate` compares a model with a data set."""

    classes: Literal["equal", "common"] = "equal"
    """equal: the model's classes and the data's categories must have the same names.
    common: names that both have count; the others are left out, of detections and truth alike."""

    limit: int | None = None
    """Take the first so many pictures of the set only; all when not given."""

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            ValueError: The limit is not positive.
        """
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"EvalOptions.limit must be at least 1, got {self.limit}")


class Evaluable(Protocol):
    """What `evaluate` needs of a detector; `edge_mrcnn.Detector` opened with `threshold=None` has it."""

    @property
    def spec(self) -> ModelSpec:
        """Names of the classes, among others."""

    @property
    def backend(self) -> str:
        """What runs the network."""

    def __call__(self, frames: Frame, /) -> Detections:
        """Detections of one picture, best first."""


@dataclass(frozen=True)
class ApScores:
    """COCO's figures of boxes, masks or keypoints, in points of 100; None where the data has nothing to measure it on.

    Of keypoints, OKS takes the place of IoU, and 20 detections of a class that of 100; COCO knows no small ones.

    Attributes:
        ap: Mean over IoU 0.50:0.05:0.95 and classes.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        ap_small: `ap` of objects below 32 x 32 pixels.
        ap_medium: `ap` of objects from 32 x 32 to 96 x 96 pixels.
        ap_large: `ap` of objects above 96 x 96 pixels.
        ar100: Average recall with 100 detections a picture.
        per_class: `ap` by class name.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float | None
    per_class: Mapping[str, float | None]


@dataclass(frozen=True)
class ApSummary:
    """Average precision of boxes, masks and keypoints; None of what one side does not have."""

    box: ApScores
    mask: ApScores | None
    keypoint: ApScores | None = None


@dataclass(frozen=True)
class EvalResult:
    """What `evaluate` found.

    Attributes:
        box: Average precision of the boxes.
        mask: Average precision of the masks, or None when the model or the data has none.
        keypoint: Average precision of the keypoints, likewise.
        pictures: Number of pictures.
        detections: Number of detections counted.
        seconds: Time in the detector: letterboxing, network, decoding and run-length encoding of masks.
        backend: What ran the network.
        model: File or name of the model.
        data: Annotation file.
    """

    box: ApScores
    mask: ApScores | None
    keypoint: ApScores | None
    pictures: int
    detections: int
    seconds: float
    backend: str
    model: str
    data: str

    def to_json(self) -> str:
        """The result as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def lines(self) -> list[str]:
        """The result as lines of a text table."""
        fields = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
        heads = ("AP", "AP50", "AP75", "small", "medium", "large", "AR100")
        width = max(9 if self.keypoint else 5, *(len(name) for name in self.box.per_class)) + 2
        rows = [" " * width + "".join(f"{head:>8}" for head in heads)]
        every = (("box", "boxes", self.box), ("mask", "masks", self.mask), ("keypoint", "keypoints", self.keypoint))
        there = [(kind, name, scores) for kind, name, scores in every if scores is not None]
        for _, name, scores in there:
            rows.append(f"{name:<{width}}" + "".join(_cell(getattr(scores, field)) for field in fields))
        columns = [(f"{kind} AP", max(8, len(kind) + 5), scores.per_class) for kind, _, scores in there]
        rows += ["", f"{'class':<{width}}" + "".join(f"{head:>{room}}" for head, room, _ in columns)]
        for name in self.box.per_class:
            rows.append(f"{name:<{width}}" + "".join(_cell(values[name], room) for _, room, values in columns))
        rate = self.pictures / self.seconds if self.seconds else 0.0
        return [
            *rows,
            "",
            f"{self.pictures} pictures, {self.detections} detections, {self.seconds:.1f} s in the detector "
            f"({rate:.1f} pictures/s)",
            f"{self.model} on {self.backend}, data {self.data}",
        ]


def evaluate(
    detector: Evaluable, data: Path, options: EvalOptions | None = None, *, model: str | Path | None = None
) -> EvalResult:
    """Average precision of a detector on a COCO-format set.

    Every detection counts that the network gives by its own score threshold: open the detector with `threshold=None`.

    Args:
        detector: Gives the detections of a frame, in pixels of the frame's picture.
        data: Annotation file; its pictures are in the folder `images` beside it, or beside it.
        options: Class matching and limit.
        model: The model's file, for the record; its name when not given.

    Returns:
        The figures, in points of 100.

    Raises:
        StreamError: The data set cannot be used, or has other classes than the model.
    """
    options = options or EvalOptions()
    import_pycocotools()  # says what to install before minutes are spent
    spec = detector.spec
    labelled = LabelledSet.read(data, spec.class_names, options.classes, options.limit, spec.keypoint_names)
    results: list[dict[str, Any]] = []
    seconds = 0.0
    for image, frame in labelled.frames():
        start = time.perf_counter()
        results += to_results(detector(frame), image["id"], labelled.categories)
        seconds += time.perf_counter() - start
    summary = summarise(run_cocoeval(labelled.truth, results, kinds_of(spec)), labelled.truth["categories"])
    return EvalResult(
        box=summary.box,
        mask=summary.mask,
        keypoint=summary.keypoint,
        pictures=len(labelled.paths),
        detections=len(results),
        seconds=seconds,
        backend=detector.backend,
        model=str(model or spec.name),
        data=str(data),
    )


def kinds_of(spec: ModelSpec) -> tuple[Kind, ...]:
    """What a network gives that can be compared with the truth."""
    heads: tuple[tuple[Kind, object], ...] = (("segm", spec.mask_size), ("keypoints", spec.keypoint_names))
    return ("bbox", *(kind for kind, there in heads if there))


def to_results(detections: Detections, image_id: int, categories: Mapping[int, int]) -> list[dict[str, Any]]:
    """Detections of one picture as entries of a COCO result list.

    Args:
        detections: Of one picture, boxes `xyxy` in its pixels.
        image_id: The picture's id in the data set.
        categories: Category id by label; detections of other labels are left out.

    Returns:
        Dicts with `image_id`, `category_id`, `bbox` (x, y, width, height), `score` and, where they are there,
        `segmentation` as RLE and `keypoints` (x, y and 1 each; zeros for those that the class does not have).
    """
    known = detections[np.isin(detections.class_id, list(categories))]
    best = known[np.argsort(-known.score, kind="stable")[:DETECTIONS_PER_PICTURE]]
    masks: Sequence[Any] = best.rle() if best.mask is not None and len(best) else [None] * len(best)
    results = []
    for row, mask in enumerate(masks):
        x1, y1, x2, y2 = (float(value) for value in best.xyxy[row])
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": categories[int(best.class_id[row])],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(best.score[row]),
        }
        if mask is not None:
            entry["segmentation"] = mask
        if best.keypoints is not None:
            entry["keypoints"] = result_numbers(best.keypoints[row])
        results.append(entry)
    return results


def average_precision(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> ApSummary:
    """COCO average precision of a result list.

    Args:
        ground_truth: COCO-format content: `images` (with `height` and `width` where masks are polygons), `annotations`
            and `categories`. `area` and `iscrowd` may be missing: the box's area and 0 stand in.
        results: COCO result list: `image_id`, `category_id`, `bbox` (x, y, width, height), `score` and, for masks,
            `segmentation` as RLE, for keypoints `keypoints` in the order of the categories'.

    Returns:
        Figures of boxes, of masks when every annotation and every result has one, and of keypoints when every result
        has them and any annotation does.

    Raises:
        ValueError: A result has an image or category that the ground truth lacks, or a category has the wrong sigmas.
    """
    return summarise(run_cocoeval(ground_truth, results), ground_truth["categories"])


def run_cocoeval(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], given: Sequence[Kind] | None = None
) -> dict[Kind, Any]:
    """What `average_precision` is read off: pycocotools' `COCOeval` after `evaluate` and `accumulate`.

    Args:
        ground_truth: As `average_precision` takes it.
        results: Likewise.
        given: What the network gives, as `kinds_of` says; by default what the results have.

    Returns:
        `bbox`, and of `segm` and `keypoints` what both sides have.

    Raises:
        ValueError: A result has an image or category that the ground truth lacks, or a category has the wrong sigmas.
    """
    images = {row["id"] for row in ground_truth["images"]}
    categories = {row["id"] for row in ground_truth["categories"]}
    for row in results:
        if row["image_id"] not in images or row["category_id"] not in categories:
            raise ValueError(
                f"results: image_id {row['image_id']} and category_id {row['category_id']} must be in the ground truth"
            )
    kinds: list[Kind] = ["bbox"]
    masks = all(row.get("segmentation") for row in (*ground_truth["annotations"], *results))
    if masks and (given is None or "segm" in given):
        kinds.append("segm")
    points = has_keypoints(ground_truth) and all(row.get("keypoints") for row in results)
    if points and ("keypoints" in given if given is not None else results):
        kinds.append("keypoints")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress by print
        return {kind: _evaluate_kind(ground_truth, results, kind) for kind in kinds}


def summarise(evaluations: Mapping[Kind, Any], categories: Sequence[Mapping[str, Any]]) -> ApSummary:
    """The figures of what `run_cocoeval` gave.

    Args:
        evaluations: `COCOeval` by kind.
        categories: The ground truth's.
    """
    kinds: tuple[Kind, ...] = ("bbox", "segm", "keypoints")
    box, mask, keypoint = (
        _read_scores(evaluations[kind], categories) if kind in evaluations else None for kind in kinds
    )
    assert box is not None
    return ApSummary(box, mask, keypoint)


def _evaluate_kind(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], kind: Kind) -> Any:
    coco, coco_eval, rle = import_pycocotools()
    # Ids from 1: pycocotools takes a match with annotation 0 for no match.
    annotations = [
        {"iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3], **row, "id": place}
        for place, row in enumerate(truth["annotations"], 1)
    ]
    if kind == "keypoints":
        count = max(len(row.get("keypoints") or ()) for row in annotations) // NUMBERS
        annotations = [row | labelled_truth(row, count) for row in annotations]
        coco_eval = by_category(coco_eval, keypoint_sigmas(truth["categories"], count))
    # A result keeps no box but a box: pycocotools would sort masks into small, medium and large by their box's area.
    areas: dict[Kind, Callable[[Mapping[str, Any]], float]] = {
        "bbox": lambda row: row["bbox"][2] * row["bbox"][3],
        "segm": lambda row: float(rle.area(row["segmentation"])),
        "keypoints": lambda row: extent(row["keypoints"]),
    }
    found = [{**row, "id": place, "iscrowd": 0, "area": areas[kind](row)} for place, row in enumerate(results, 1)]
    head = {"images": truth["images"], "categories": truth["categories"]}
    sides = [_index(coco, {**head, "annotations": rows}) for rows in (annotations, found)]
    runner = coco_eval(*sides, kind)
    if kind != "keypoints":
        runner.params.maxDets = [1, 10, DETECTIONS_PER_PICTURE]
    runner.evaluate()
    runner.accumulate()
    return runner


def _index(coco: Callable[[], Any], content: dict[str, Any]) -> Any:
    indexed = coco()
    indexed.dataset = content
    indexed.createIndex()
    return indexed


def _read_scores(runner: Any, categories: Sequence[Mapping[str, Any]]) -> ApScores:
    precision = runner.eval["precision"]  # (IoU, recall, class, area, detections)
    areas = {name: place for place, name in enumerate(runner.params.areaRngLbl)}
    thresholds = runner.params.iouThrs
    place = {category: row for row, category in enumerate(runner.params.catIds)}
    return ApScores(
        ap=_mean(precision[:, :, :, 0, -1]),
        ap50=_mean(precision[np.isclose(thresholds, 0.5), :, :, 0, -1]),
        ap75=_mean(precision[np.isclose(thresholds, 0.75), :, :, 0, -1]),
        ap_small=_mean(precision[:, :, :, areas["small"], -1]) if "small" in areas else None,
        ap_medium=_mean(precision[:, :, :, areas["medium"], -1]),
        ap_large=_mean(precision[:, :, :, areas["large"], -1]),
        ar100=_mean(runner.eval["recall"][:, :, 0, -1]),
        per_class={str(row["name"]): _mean(precision[:, :, place[row["id"]], 0, -1]) for row in categories},
    )


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """Mean in points of 100 of what is measured; -1 marks what has no ground truth."""
    measured = values[values > -1]
    return round(float(measured.mean() * 100), 3) if measured.size else None


def import_pycocotools() -> tuple[Any, Any, Any]:
    """`COCO`, `COCOeval` and the module `mask` of pycocotools.

    Raises:
        EdgeMrcnnError: It is not installed.
    """
    try:
        from pycocotools import mask
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise EdgeMrcnnError(f"evaluation needs pycocotools ({error}): pip install 'edge-mrcnn[eval]'") from error
    return COCO, COCOeval, mask


def _cell(value: float | None, width: int = 8) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.1f}"
