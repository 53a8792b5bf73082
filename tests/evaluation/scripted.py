"""A runner whose outputs are written by hand, so that a real `Detector` gives known detections."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np

from edge_mrcnn.spec import ModelSpec

CANVAS = (64, 96)
DEPTH = 5


class ScriptedRunner:
    """Gives the rows of `script` one after the other, from the start again at the end.

    A row is a picture's detections, best first: `(label, score, (x1, y1, x2, y2))` with a full mask each.
    """

    backend = "scripted"
    max_batch = None

    def __init__(
        self, script: Sequence[Sequence[tuple[int, float, Sequence[float]]]], class_names: Sequence[str]
    ) -> None:
        self.spec = ModelSpec("scripted_model", CANVAS, tuple(class_names), detections=DEPTH)
        self.script, self.calls = script, 0

    def infer(self, feeds: dict[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        assert len(feeds["images"]) == 1
        rows = self.script[self.calls % len(self.script)]
        self.calls += 1
        boxes, scores, labels = (
            np.zeros((1, DEPTH, 4), np.float32),
            np.zeros((1, DEPTH), np.float32),
            np.zeros((1, DEPTH)),
        )
        for place, (label, score, box) in enumerate(rows):
            boxes[0, place], scores[0, place], labels[0, place] = box, score, label
        return {
            "num_detections": np.array([len(rows)], np.int32),
            "boxes": boxes,
            "scores": scores,
            "labels": labels.astype(np.int32),
            "masks": np.ones((1, DEPTH, 28, 28), np.float32),
        }

    def close(self) -> None:
        self.spec = None

    def __enter__(self) -> ScriptedRunner:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
