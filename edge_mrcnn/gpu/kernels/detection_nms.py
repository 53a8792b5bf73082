"""What `DetectionNms` launches: scores, classes, best (plugins/detection_nms/detection_nms.cuh)."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.kernels.ranking import (
    BOX_BYTES,
    FLOAT_BYTES,
    KEY_BYTES,
    BoxCoder,
    global_bytes_to_sort,
    room_to_sort,
    total_bytes,
)
from edge_mrcnn.gpu.launches import Launch, Tensor, ceil_div, round_up

SOURCE = "detection_nms/detection_nms.cuh"

# As in the source:
WARP_PROPOSALS = 8
SCORE_THREADS, SCORE_PROPOSALS = 128, 32
MANY_CLASSES, SMALL_CLASS_THREADS, LARGE_CLASS_THREADS = 8, 256, 1024
BEST_THREADS = 512


class Args(ctypes.Structure):
    """`edge_mrcnn::DetectionNmsArgs` of plugins/detection_nms/args.cuh."""

    _fields_ = (
        ("image_hw", ctypes.c_void_p),
        ("proposal_boxes", ctypes.c_void_p),
        ("class_logits", ctypes.c_void_p),
        ("box_deltas", ctypes.c_void_p),
        ("num_detections", ctypes.c_void_p),
        ("boxes", ctypes.c_void_p),
        ("scores", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("coder", BoxCoder),
        ("score_threshold", ctypes.c_float),
        ("nms_threshold", ctypes.c_float),
        ("batch", ctypes.c_int),
        ("proposals", ctypes.c_int),
        ("classes", ctypes.c_int),
        ("detections", ctypes.c_int),
        ("first_class", ctypes.c_int),
        ("class_agnostic", ctypes.c_int),
    )


def workspace_bytes(attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes of workspace for tensors of these shapes; never more for smaller ones.

    Raises:
        PluginError: They, or the attributes, are out of the kernels' range.
    """
    _check(attributes, inputs)
    batch, proposals, _ = inputs[1].shape
    most = attributes["detections_per_image"]
    slots, kept = batch * (inputs[2].shape[1] - 1), min(most, proposals)
    return total_bytes(
        batch * 4,
        slots * round_up(proposals, WARP_PROPOSALS) * FLOAT_BYTES,
        slots * global_bytes_to_sort(room_to_sort(proposals)),
        slots * kept * BOX_BYTES,
        slots * kept * KEY_BYTES,
        batch * global_bytes_to_sort(room_to_sort(most)),
    )


def launches(
    attributes: Mapping[str, Any], inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int
) -> list[Launch]:
    """The launches in order; none for an empty batch.

    Args:
        attributes: Of the node.
        inputs: image_hw `(B, 2)`, proposals `(B, P, 4)`, class logits `(B*P, K)`, deltas `(B*P, 4*K)` or `(B*P, 4)`.
        outputs: num_detections `(B,)`, boxes `(B, D, 4)`, scores `(B, D)`, labels `(B, D)`.
        workspace: Address of `workspace_bytes`.

    Raises:
        PluginError: As `workspace_bytes`.
    """
    _check(attributes, inputs)
    batch, proposals, _ = inputs[1].shape
    classes = inputs[2].shape[1]
    if batch == 0:
        return []
    args = Args(
        *(tensor.address for tensor in (*inputs, *outputs)),
        workspace,
        BoxCoder.of(attributes),
        attributes["score_threshold"],
        attributes["nms_threshold"],
        batch,
        proposals,
        classes,
        attributes["detections_per_image"],
        int(attributes["background"] == "first"),
        attributes["class_agnostic"],
    )
    suffix = "f16" if inputs[2].dtype == "float16" else "f32"
    groups = max(1, ceil_div(proposals, SCORE_PROPOSALS))  # without proposals too: it sets the lists' lengths to zero
    class_threads = SMALL_CLASS_THREADS if classes - 1 > MANY_CLASSES else LARGE_CLASS_THREADS
    return [
        Launch(SOURCE, f"detection_nms_{kernel}_{suffix}", grid, threads, args)
        for kernel, grid, threads in (
            ("scores", (groups, batch, 1), SCORE_THREADS),
            ("classes", (classes - 1, batch, 1), class_threads),
            ("best", (batch, 1, 1), BEST_THREADS),
        )
        if grid[0] > 0
    ]


def _check(attributes: Mapping[str, Any], inputs: Sequence[Tensor]) -> None:
    classes, deltas = inputs[2].shape[1], inputs[3].shape[1]
    agnostic, background = attributes["class_agnostic"], attributes["background"]
    most = attributes["detections_per_image"]
    if background not in ("first", "last") or agnostic not in (0, 1):
        raise PluginError(
            "DetectionNms.background must be first or last and class_agnostic 0 or 1, got "
            f"{background!r} and {agnostic!r}; export the model again"
        )
    if classes < 1 or deltas != (4 if agnostic else 4 * classes):
        raise PluginError(
            f"DetectionNms has {classes} classes, so it needs {4 if agnostic else 4 * classes} deltas of a proposal, "
            f"got {deltas}; export the model again"
        )
    if most < 1:
        raise PluginError(f"DetectionNms.detections_per_image must be at least 1, got {most}; edit the node")
