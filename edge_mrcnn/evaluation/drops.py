"""What recipes cost in average precision, on a labelled set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from edge_mrcnn.compiler.recipe import Recipe
from edge_mrcnn.evaluation.bootstrap import RESAMPLES, Matches, ap_drops
from edge_mrcnn.evaluation.coco import kinds_of, run_cocoeval, to_results
from edge_mrcnn.evaluation.comparison import Drop, Interval
from edge_mrcnn.evaluation.dataset import LabelledSet
from edge_mrcnn.evaluation.emulated_runner import open_recipe
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.runners import OrtRunner
from edge_mrcnn.spec import ModelSpec


class DropMeter:
    """Measures recipes against the model in float32, which is run once.

    Attributes:
        pictures: Number of pictures.
        backend: What ran the recipe measured last.
    """

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        data: Path,
        limit: int | None = None,
        threads: int | None = None,
        resamples: int = RESAMPLES,
    ) -> None:
        """Read the labels and run the reference.

        Args:
            path: The model's file.
            model: What is in it.
            data: COCO annotation file with the model's classes.
            limit: Take the first so many pictures only.
            threads: CPU threads; None or 0 for one per core.
            resamples: Of the paired bootstrap.

        Raises:
            StreamError: The set cannot be used, or has other classes than the model.
        """
        spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props}, path)
        self._path, self._model, self._threads, self._resamples = path, model, threads, resamples
        self._kinds = kinds_of(spec)
        self._labelled = LabelledSet.read(data, spec.class_names, "equal", limit, spec.keypoint_names)
        self.pictures = len(self._labelled.paths)
        self.backend = OrtRunner.backend
        with OrtRunner(path, threads, content=model.SerializeToString()) as runner:
            self._reference = self._matches(runner)

    def measure(self, recipe: Recipe) -> Drop:
        """Run a recipe over the set.

        Raises:
            EdgeMrcnnError: The recipe cannot be made of the model.
        """
        with open_recipe(self._path, recipe, self._threads, model=self._model) as runner:
            self.backend = runner.backend
            return ap_drops(self._reference, [self._matches(runner)], self._resamples)[0]

    def _matches(self, runner: OrtRunner) -> Mapping[str, Matches]:
        detector = Detector(runner, threshold=None)
        results: list[dict[str, Any]] = []
        for image, frame in self._labelled.frames():
            results += to_results(detector(frame), image["id"], self._labelled.categories)
        evaluations = run_cocoeval(self._labelled.truth, results, self._kinds)
        return {kind: Matches.of(found) for kind, found in evaluations.items()}


def larger(drop: Drop) -> Interval:
    """The largest of the drops of boxes, masks and keypoints."""
    return max(drop.kinds.values(), key=lambda lost: lost.value)


def upper_end(drop: Drop) -> float:
    """The highest upper end of the intervals of boxes, masks and keypoints."""
    return max(lost.high for lost in drop.kinds.values())
