"""A raw file and what was made of it, both in ONNX Runtime on the same pictures, and how far they agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

from edge_mrcnn.runtime.keypoints import decode_keypoints
from edge_mrcnn.runtime.paste import paste_masks
from edge_mrcnn.spec import ModelSpec
from tests.compiler.raw.seeded_weights import feed, open_session

LEAST_DETECTIONS = 30
MATCHED, EXTRA = 0.995, 0.005
IOU = 0.99
SCORE = 2e-3
PATCH = 1e-3
PIXELS = 2e-3
"""Share of a pasted mask's picture that may differ: rounding errors decide pixels at 0.5."""
KEYPOINT = 0.5
"""Pixels of the canvas."""
KEYPOINTS = 0.99
MIN_SCORE, MIN_SIDE = 0.05, 2.0
"""As in the parity of exported networks: rounding errors decide slivers and scores at the threshold."""

Array = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]


@dataclass
class Found:
    """Detections of one picture; boxes in its pixels.

    Attributes:
        boxes: `(N, 4)`.
        labels: `(N,)`.
        scores: `(N,)`.
        masks: `(N, H, W)` bool, or patches `(N, M, M)`, or None.
        keypoints: `(N, K, 2)` or None.
    """

    boxes: Array
    labels: npt.NDArray[np.int64]
    scores: Array
    masks: Array | npt.NDArray[np.bool_] | None = None
    keypoints: Array | None = None

    def matter(self, least: float = MIN_SCORE) -> npt.NDArray[np.bool_]:
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return (self.scores >= least) & (sides >= MIN_SIDE).all(1)


@dataclass
class Score:
    """How many detections agree, over pictures."""

    least: float = MIN_SCORE
    expected: int = 0
    matched: int = 0
    given: int = 0
    extra: int = 0
    masks: list[float] = field(default_factory=list)
    keypoints: list[bool] = field(default_factory=list)

    def add(self, want: Found, got: Found) -> None:
        """Match one picture's detections one to one."""
        agree = box_iou(want.boxes, got.boxes) >= IOU
        agree &= want.labels[:, None] == got.labels
        agree &= np.abs(want.scores[:, None] - got.scores) <= SCORE
        pairs: dict[int, int] = {}
        for row, candidates in enumerate(agree):
            free = [int(column) for column in candidates.nonzero()[0] if int(column) not in pairs.values()]
            if free:
                pairs[row] = free[0]
        counts = want.matter(self.least)
        self.expected += int(counts.sum())
        self.matched += sum(bool(counts[row]) for row in pairs)
        self.given += len(got.scores)
        unpaired = [column for column in range(len(got.scores)) if column not in pairs.values()]
        self.extra += int(got.matter(self.least)[unpaired].sum())
        for row, column in pairs.items():
            if want.masks is not None and got.masks is not None:
                self.masks.append(float(np.abs(want.masks[row].astype(np.float32) - got.masks[column]).mean()))
            if want.keypoints is not None and got.keypoints is not None:
                self.keypoints += list(np.abs(want.keypoints[row] - got.keypoints[column]).max(1) <= KEYPOINT)

    def check(self, masks: float | None, keypoints: bool) -> None:
        assert self.expected >= LEAST_DETECTIONS, self
        assert self.matched >= MATCHED * self.expected, self
        assert self.extra <= EXTRA * self.given, self
        if masks is not None:
            assert np.mean(self.masks) <= masks, np.mean(self.masks)
        if keypoints:
            assert np.mean(self.keypoints) >= KEYPOINTS, np.mean(self.keypoints)


def box_iou(a: Array, b: Array) -> Array:
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    inside = (high - low).clip(0).prod(2)
    areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    result: Array = inside / np.maximum(areas[0][:, None] + areas[1] - inside, 1e-9)
    return result


def run_raw(raw: onnx.ModelProto, pictures: list[Picture]) -> list[Found]:
    """What the file itself finds: boxes, labels, scores and then masks, or keypoints and their scores."""
    session = open_session(raw)
    return [_read_raw(session.run(None, feed(raw, picture))) for picture in pictures]


def _read_raw(outputs: list[Array]) -> Found:
    boxes, labels, scores, *rest = outputs
    found = Found(boxes, labels.astype(np.int64), scores)
    if len(rest) == 1:
        masks = rest[0][:, 0]
        found.masks = masks if masks.shape[1:] == (28, 28) else masks >= 0.5
    elif rest:
        found.keypoints = rest[0][..., :2]
    return found


def run_imported(
    model: onnx.ModelProto, pictures: list[Picture], scale: float = 1.0, *, paste: bool = True
) -> list[Found]:
    """What the imported model finds in pictures that are shrunk by a whole factor, at the top left of its canvas.

    Args:
        model: As it was imported.
        pictures: Of any sizes that fit the canvas when scaled.
        scale: 1, or 0.5 for pictures whose pixels come in squares of four.
        paste: Whether masks are brought to the pictures' size.
    """
    spec = read_spec(model)
    session = open_session(model)
    step = round(1 / scale)
    canvas = np.full((len(pictures), *spec.input_hw, 3), 114, np.uint8)
    sizes = np.zeros((len(pictures), 2), np.float32)
    for row, size, picture in zip(canvas, sizes, pictures, strict=True):
        small = picture[::step, ::step]
        row[: len(small), : small.shape[1]] = small
        size[:] = small.shape[:2]
    names = [value.name for value in session.get_outputs()]
    values = dict(zip(names, session.run(None, {"images": canvas, "image_hw": sizes}), strict=True))
    return [
        _read_ours(spec, {k: v[row] for k, v in values.items()}, step, picture, paste)
        for row, picture in enumerate(pictures)
    ]


def _read_ours(spec: ModelSpec, values: dict[str, Array], step: int, picture: Picture, paste: bool) -> Found:
    count = int(values.pop("num_detections"))
    for name, value in values.items():
        assert not value[count:].any(), f"{name} is not zero beyond num_detections"
    inside = values["boxes"][:count]
    found = Found(inside * step, values["labels"][:count].astype(np.int64), values["scores"][:count])
    if spec.mask_size:
        found.masks = values["masks"][:count]
        if paste:
            found.masks = paste_masks(found.masks, found.boxes, picture.shape[:2])
    if spec.keypoint_names:
        found.keypoints = decode_keypoints(values["keypoint_logits"][:count], inside)[..., :2] * step
    return found


def read_spec(model: onnx.ModelProto) -> ModelSpec:
    return ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props})
