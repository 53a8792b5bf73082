"""Inputs of the ops: small ones with everything that is awkward, and large ones as a network gives them.

Arrays are NumPy's, float32, in the order of the op's contract; `cast` makes float16 features of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_mrcnn.ops import OPS

Array = npt.NDArray[Any]

CLIP = float(np.log(1000 / 16))


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        op: Its name.
        name: Of the case, within the op.
        inputs: In the contract's order, float32.
        attributes: The node's.
        gold: Small enough for the slow reference functions.
        torchvision: What torchvision's own code can do too.
    """

    op: str
    name: str
    inputs: tuple[Array, ...]
    attributes: dict[str, Any]
    gold: bool = True
    torchvision: bool = False

    def cast(self, dtype: str) -> Case:
        """The case with features of another type."""
        spec = OPS[self.op]
        tensors = spec.expand_inputs(spec.levels(len(self.inputs)))
        with np.errstate(over="ignore"):
            inputs = [
                x.astype(dtype) if t.dtype == "features" else x for x, t in zip(self.inputs, tensors, strict=True)
            ]
        return dataclasses.replace(self, inputs=tuple(inputs))

    def with_inputs(self, name: str, changes: dict[int, Array]) -> Case:
        """The case under another name with some inputs exchanged, not for torchvision any more."""
        inputs = tuple(changes.get(index, array) for index, array in enumerate(self.inputs))
        return dataclasses.replace(self, name=name, inputs=inputs, torchvision=False)


def pyramid(canvas: tuple[int, int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Grid `(H, W)` of each level of a canvas, rounded up as convolutions do."""
    return [(-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in strides]


def random_boxes(rng: np.random.Generator, count: int, canvas: tuple[int, int], largest: float = 0.9) -> Array:
    """Boxes `(count, 4)` of log-uniform sides within a canvas, xyxy in pixels."""
    limit = np.array([canvas[1], canvas[0]])
    size = np.exp(rng.uniform(np.log(4.0), np.log(limit * largest), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (limit - size)
    return np.concatenate([corner, corner + size], axis=-1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- RpnProposals
def cell_anchors(levels: int) -> list[float]:
    """Rounded anchors, as of torchvision: sides 32, 64, ... at ratios 0.5, 1 and 2."""
    found = []
    for level in range(levels):
        for ratio in (0.5, 1.0, 2.0):
            height, width = 32 * 2**level * ratio**0.5, 32 * 2**level / ratio**0.5
            found += [round(x / 2) for x in (-width, -height, width, height)]
    return [float(x) for x in found]


def rpn_case(name: str, canvas: tuple[int, int], levels: int, seed: int = 0, **attributes: Any) -> Case:
    """Two pictures on a canvas, strides from 4; logits all different, so that no sort has a choice."""
    rng = np.random.default_rng(seed)
    strides = [4 * 2**level for level in range(levels)]
    batch = attributes.pop("batch", 2)
    shapes = [(batch, 3, *grid) for grid in pyramid(canvas, strides)]
    cells = [int(np.prod(shape)) for shape in shapes]
    logits = rng.permutation(np.linspace(-8, 4, sum(cells))).astype(np.float32)
    objectness = [p.reshape(s) for p, s in zip(np.split(logits, np.cumsum(cells)[:-1]), shapes, strict=True)]
    deltas = [rng.normal(0, 0.4, (batch, 12, *shape[2:])).astype(np.float32) for shape in shapes]
    image_hw = np.array([canvas, (canvas[0] * 2 // 3, canvas[1] * 3 // 4)], np.float32)[:batch]
    rule: dict[str, Any] = {
        "cell_anchors": cell_anchors(levels),
        "strides": strides,
        "stride_rule": "grid",
        "box_weights": [1.0] * 4,
        "bbox_xform_clip": CLIP,
        "pre_nms_top_n": 100,
        "post_nms_top_n": 60,
        "nms_threshold": 0.7,
        "score_threshold": 0.0,
        "min_size": 1e-3,
    }
    return Case("RpnProposals", name, (image_hw, *objectness, *deltas), rule | attributes, torchvision=True)


def rpn_cases() -> Iterator[Case]:
    """Every case of `RpnProposals`."""
    for levels in range(1, 6):
        yield rpn_case(f"{levels} levels", (96, 128), levels, seed=levels)
    yield rpn_case("one picture, odd canvas", (100, 132), 3, batch=1)
    yield rpn_case("scores from 0.9", (96, 128), 3, score_threshold=0.9)
    yield dataclasses.replace(rpn_case("fixed strides", (96, 128), 5, stride_rule="fixed"), torchvision=False)
    yield rpn_case("more asked for than cells", (64, 64), 5, pre_nms_top_n=1000, post_nms_top_n=1500)
    yield rpn_case("one proposal", (64, 64), 2, pre_nms_top_n=1, post_nms_top_n=1)
    base = rpn_case("", (96, 128), 3)
    rng = np.random.default_rng(1)
    logits = base.inputs[1:4]
    yield base.with_inputs("ties", {i: np.round(x).astype(np.float32) for i, x in enumerate(logits, 1)})
    yield base.with_inputs("all scores equal", {i: np.zeros_like(x) for i, x in enumerate(logits, 1)})
    yield base.with_inputs("all logits -inf", {i: np.full_like(x, -np.inf) for i, x in enumerate(logits, 1)})
    strange = {i: _sprinkle(rng, x, (np.nan, np.inf, -np.inf)) for i, x in enumerate(base.inputs) if i > 0}
    yield base.with_inputs("NaN and infinity", strange)
    yield base.with_inputs("content of one pixel", {0: np.ones((2, 2), np.float32)})
    for canvas in ((480, 640), (800, 1344)):
        yield dataclasses.replace(big_rpn_case(canvas), gold=False)


def big_rpn_case(canvas: tuple[int, int], seed: int = 0, proposals: int = 1000) -> Case:
    """One picture, five levels, as torchvision's Mask R-CNN has them."""
    name = f"{canvas[0]}x{canvas[1]}"
    return rpn_case(name, canvas, 5, seed, batch=1, pre_nms_top_n=1000, post_nms_top_n=proposals)


def _sprinkle(rng: np.random.Generator, array: Array, values: Sequence[float], share: float = 0.03) -> Array:
    """A copy with a share of the numbers replaced."""
    chosen = rng.random(array.shape) < share
    return np.where(chosen, rng.choice(np.array(values, np.float32), array.shape), array).astype(np.float32)


# ---------------------------------------------------------------------------------------------------- PyramidRoiAlign
def roi_case(
    name: str, rois: Array, canvas: tuple[int, int] = (256, 320), levels: int = 4, channels: int = 11, **attributes: Any
) -> Case:
    """Boxes `(B, N, 4)` on maps of random numbers, strides from 4."""
    rng = np.random.default_rng(channels)
    strides = [4 * 2**level for level in range(levels)]
    maps = [rng.standard_normal((len(rois), channels, *g), np.float32) for g in pyramid(canvas, strides)]
    rule: dict[str, Any] = {
        "strides": strides,
        "output_size": 7,
        "sampling_ratio": 2,
        "aligned": 0,
        "canonical_scale": 224.0,
        "canonical_level": 4,
        "level_eps": 1e-6,
    }
    return Case("PyramidRoiAlign", name, (rois.astype(np.float32), *maps), rule | attributes, torchvision=True)


def clear_of_thresholds(rois: Array) -> Array:
    """Boxes whose area is not within rounding of where the pyramid's level changes; the others shrink a little."""
    sides = rois[..., 2:] - rois[..., :2]
    level = np.log2(np.sqrt(np.prod(sides, axis=-1)) / 224)
    near = np.abs(level - np.round(level)) < 1e-3
    rois = rois.copy()
    rois[..., 2:] -= np.where(near[..., None], 0.02 * sides, 0)
    return rois.astype(np.float32)


def roi_cases() -> Iterator[Case]:
    """Every case of `PyramidRoiAlign`."""
    rng = np.random.default_rng(0)
    canvas = (256, 320)
    boxes = clear_of_thresholds(random_boxes(rng, 74, canvas).reshape(2, 37, 4))
    for levels in range(1, 6):
        yield roi_case(f"{levels} levels", boxes, levels=levels)
    for channels in (1, 3, 8, 40):
        yield roi_case(f"{channels} channels", boxes[:, :9], channels=channels)
    yield roi_case("14x14", boxes[:, :9], output_size=14)
    yield roi_case("as many samples as cells", boxes[:, :9], sampling_ratio=0)
    aligned = roi_case("aligned", boxes, aligned=1)
    yield dataclasses.replace(aligned, torchvision=False)  # torchvision's pooler is never aligned
    yield roi_case("no boxes", boxes[:, :0])
    yield roi_case("one box", boxes[:1, :1])
    yield dataclasses.replace(roi_case("beyond the borders", boxes * 1.6 - 90), torchvision=True)
    yield dataclasses.replace(roi_case("degenerate, NaN and infinite boxes", awkward_boxes()), torchvision=False)
    for size in ((480, 640), (800, 1344)):
        yield dataclasses.replace(big_roi_case(size), gold=False)


def awkward_boxes() -> Array:
    """Boxes without an area, outside, tiny, huge, not numbers: `(1, N, 4)`."""
    inf, nan = np.inf, np.nan
    rows = [
        (0, 0, 0, 0), (10, 10, 10, 40), (40, 10, 10, 40), (10, 40, 40, 10), (-90, -90, -50, -50), (400, 400, 500, 500),
        (-1000, -1000, 2000, 2000), (5, 5, 5.001, 5.001), (319.9, 255.9, 320.1, 256.1), (nan, 0, 10, 10),
        (0, 0, nan, 10), (0, 0, inf, 10), (-inf, 0, 10, 10), (0, 0, 1e9, 1e9), (0, 0, 224, 224), (0, 0, 112, 112),
        (0, 0, 448, 448), (1e9, 1e9, 2e9, 2e9), (20, 30, 100, 90),
    ]  # fmt: skip
    return np.array([rows], np.float32)


def big_roi_case(
    canvas: tuple[int, int], seed: int = 0, rois: int = 1000, output_size: int = 7, channels: int = 256
) -> Case:
    """One picture, four levels, proposals of all sizes."""
    boxes = random_boxes(np.random.default_rng(seed), rois, canvas)[None]
    name = f"{canvas[0]}x{canvas[1]}, {rois} to {output_size}x{output_size}"
    return roi_case(name, clear_of_thresholds(boxes), canvas, 4, channels, output_size=output_size)


# ------------------------------------------------------------------------------------------------------- DetectionNms
def nms_case(name: str, proposals: int, classes: int = 5, seed: int = 0, **attributes: Any) -> Case:
    """Two pictures of 256x320, proposals within them."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 2 * proposals, (256, 320)).reshape(2, proposals, 4)
    logits = rng.normal(0, 2, (2 * proposals, classes)).astype(np.float32)
    columns = 4 if attributes.get("class_agnostic") else 4 * classes
    deltas = rng.normal(0, 1, (2 * proposals, columns)).astype(np.float32)
    image_hw = np.array([(256, 320), (200, 170)], np.float32)
    rule: dict[str, Any] = {
        "box_weights": [10.0, 10.0, 5.0, 5.0],
        "bbox_xform_clip": CLIP,
        "score_threshold": 0.05,
        "nms_threshold": 0.5,
        "min_size": 0.01,
        "detections_per_image": 20,
        "background": "first",
        "class_agnostic": 0,
    }
    return Case("DetectionNms", name, (image_hw, boxes, logits, deltas), rule | attributes, torchvision=True)


def nms_cases() -> Iterator[Case]:
    """Every case of `DetectionNms`."""
    yield nms_case("37 proposals", 37)
    yield nms_case("one proposal", 1, 2)
    yield dataclasses.replace(nms_case("no proposals", 0), torchvision=False)
    yield nms_case("91 classes", 60, 91)
    yield nms_case("more asked for than there are", 5, 3, detections_per_image=300)
    yield dataclasses.replace(nms_case("background last", 37, background="last"), torchvision=False)
    yield dataclasses.replace(nms_case("class agnostic", 37, class_agnostic=1), torchvision=False)
    yield nms_case("none above the threshold", 37, score_threshold=0.999999)
    base, rng = nms_case("", 37), np.random.default_rng(1)
    _, boxes, logits, deltas = base.inputs
    # whole rows repeat: of one multiset of logits in two orders, sums and so scores differ in the last bit
    yield base.with_inputs("ties", {2: logits[rng.integers(0, 6, len(logits))]})
    yield base.with_inputs(
        "all scores equal, all boxes too", {2: logits * 0, 1: boxes[:, :1].repeat(37, 1), 3: deltas * 0}
    )
    nan, inf = np.nan, np.inf
    strange = {2: _sprinkle(rng, logits, (nan, inf, -inf)), 3: _sprinkle(rng, deltas, (nan, inf, -inf))}
    yield base.with_inputs("NaN and infinity", strange | {1: _sprinkle(rng, boxes, (nan, inf), 0.02)})
    empty = boxes.copy()
    empty[:, ::3, 2:] = empty[:, ::3, :2]
    yield base.with_inputs("padding among the proposals", {1: empty})
    yield dataclasses.replace(big_nms_case((800, 1344)), gold=False)
    yield dataclasses.replace(big_nms_case((800, 1344), crowded=True), gold=False)


def big_nms_case(
    canvas: tuple[int, int], seed: int = 0, proposals: int = 1000, classes: int = 91, crowded: bool = False
) -> Case:
    """One picture as a trained network scores it: a tenth of the proposals lie in clusters around objects.

    Args:
        canvas: Size of the picture.
        seed: Same seed, same case.
        proposals: Number of proposals.
        classes: With the background.
        crowded: Every proposal has several classes above the threshold instead.
    """
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, proposals, canvas)
    logits = rng.normal(0, 1, (proposals, classes)).astype(np.float32)
    if crowded:
        logits *= 2.5
    else:
        objects = rng.choice(proposals, max(1, proposals // 50), replace=False)
        near = rng.permutation(proposals)[: proposals // 3]
        owner = rng.choice(objects, len(near))
        boxes[near] = boxes[owner] + rng.normal(0, 0.05, (len(near), 4)) * np.tile(_sides(boxes[owner]), 2)
        boxes = np.clip(_ordered(boxes), 0, np.array([canvas[1], canvas[0]] * 2))
        logits[:, 0] += 8
        logits[near, 1 + owner % (classes - 1)] += rng.uniform(5, 12, len(near))
    deltas = rng.normal(0, 0.5, (proposals, 4 * classes)).astype(np.float32)
    name = f"{canvas[0]}x{canvas[1]}, {proposals} proposals, {classes} classes{', crowded' if crowded else ''}"
    base = nms_case(name, 1, detections_per_image=100)
    image_hw = np.array([canvas], np.float32)
    inputs = (image_hw, boxes[None].astype(np.float32), logits.astype(np.float32), deltas)
    return dataclasses.replace(base, inputs=inputs)


def _sides(boxes: Array) -> Array:
    return boxes[:, 2:] - boxes[:, :2]


def _ordered(boxes: Array) -> Array:
    """Corners exchanged where noise turned a box inside out."""
    return np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)


CASES = {"RpnProposals": rpn_cases, "PyramidRoiAlign": roi_cases, "DetectionNms": nms_cases}
