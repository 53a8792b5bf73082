"""The bytes that an op cannot avoid moving, and the time that follows from a measured copy bandwidth.

Each input byte that decides the result is counted once, each output byte once; caches and sectors are left out, so no
kernel can be faster and most cannot reach it.
"""

from __future__ import annotations

import numpy as np

from benchmarks.gpu_check.cases import Array, Case
from tests import gold


def floor_bytes(case: Case) -> int:
    """Bytes that the op has to move for this case."""
    return {"RpnProposals": _rpn, "PyramidRoiAlign": _roi, "DetectionNms": _nms}[case.op](case)


def floor_us(nbytes: int, copy_gb_s: float) -> float:
    """Microseconds for so many bytes at a copy bandwidth that counts bytes read plus bytes written."""
    return nbytes / copy_gb_s / 1e3


def _rpn(case: Case) -> int:
    """Every logit; four deltas of each candidate; the proposals."""
    levels = len(case.inputs) // 2
    logits = case.inputs[1 : levels + 1]
    batch, itemsize = len(case.inputs[0]), logits[0].itemsize
    most = case.attributes["pre_nms_top_n"]
    candidates = sum(min(most, x[0].size) for x in logits) * batch
    return sum(x.nbytes for x in logits) + candidates * 4 * itemsize + batch * case.attributes["post_nms_top_n"] * 16


def _roi(case: Case) -> int:
    """The boxes, every cell that some sample touches, the patches."""
    rois, maps = case.inputs[0], case.inputs[1:]
    channels, itemsize = maps[0].shape[1], maps[0].itemsize
    output = rois.shape[0] * rois.shape[1] * channels * case.attributes["output_size"] ** 2
    return rois.nbytes + (count_cells(case) * channels + output) * itemsize


def count_cells(case: Case) -> int:
    """Distinct cells of the pyramid that the samples of all boxes touch; boxes without an area touch none."""
    rois, maps, rule = case.inputs[0], case.inputs[1:], case.attributes
    touched = [np.zeros((len(x), *x.shape[2:]), bool) for x in maps]
    for picture, boxes in enumerate(rois):
        for roi in boxes:
            if not np.isfinite(roi).all() or gold.is_padding(roi):
                continue
            level = gold.roi_level(roi, rule)
            cells = touched[level][picture]
            x1, y1, x2, y2 = roi / np.float32(rule["strides"][level]) - (0.5 if rule["aligned"] else 0.0)
            rows = _lines(y1, y2, cells.shape[0], case)
            columns = _lines(x1, x2, cells.shape[1], case)
            cells[np.ix_(rows, columns)] = True
    return int(sum(cells.sum() for cells in touched))


def _lines(start: float, end: float, count: int, case: Case) -> Array:
    """Rows, or columns, that the samples between two coordinates touch."""
    size, length = case.attributes["output_size"], end - start
    if not case.attributes["aligned"]:
        length = max(length, 1.0)
    samples = case.attributes["sampling_ratio"] or int(np.ceil(length / size))
    places = start + (np.arange(size * samples) + 0.5) * length / (size * samples)
    places = places[(places >= -1) & (places <= count)]
    low = np.clip(places.astype(np.int64), 0, count - 1)
    return np.unique(np.concatenate([low, np.minimum(low + 1, count - 1)]))


def _nms(case: Case) -> int:
    """Every logit; the proposals; four deltas of each candidate above the threshold; the detections."""
    image_hw, proposals, logits, deltas = case.inputs
    probabilities = np.apply_along_axis(gold.softmax, 1, logits) if len(logits) else logits
    foreground = probabilities[:, 1:] if case.attributes["background"] == "first" else probabilities[:, :-1]
    above = foreground > case.attributes["score_threshold"]
    candidates = int(above.any(1).sum() if case.attributes["class_agnostic"] else above.sum())
    output = len(image_hw) * (4 + case.attributes["detections_per_image"] * 24)
    return logits.nbytes + proposals.nbytes + candidates * 4 * deltas.itemsize + output
