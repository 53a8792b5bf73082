"""What the plans of `RpnProposals` and `DetectionNms` share: box coder, room to sort in, parts of a workspace."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from edge_mrcnn.gpu.launches import ALIGNMENT, round_up

DIGITS = 4096
"""`kDigits` of plugins/common/select.cuh."""

SHARED_KEYS = DIGITS // 2
"""`kSharedKeys` of plugins/common/select.cuh: keys that are sorted in shared memory."""

KEY_BYTES, BOX_BYTES, FLOAT_BYTES = 8, 16, 4


class BoxCoder(ctypes.Structure):
    """`edge_mrcnn::BoxCoder` of plugins/common/box_coder.cuh."""

    _fields_ = (("weights", ctypes.c_float * 4), ("clip", ctypes.c_float), ("min_size", ctypes.c_float))

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> BoxCoder:
        """Of a node's attributes."""
        weights = (ctypes.c_float * 4)(*attributes["box_weights"])
        return cls(weights, attributes["bbox_xform_clip"], attributes["min_size"])


def room_to_sort(keys: int) -> int:
    """Keys that the memory to sort that many in has room for."""
    return SHARED_KEYS if keys <= SHARED_KEYS else 1 << (keys - 1).bit_length()


def global_bytes_to_sort(room: int) -> int:
    """Bytes of workspace for sorting; none where shared memory has the room."""
    return KEY_BYTES * room if room > SHARED_KEYS else 0


def total_bytes(*parts: int) -> int:
    """Bytes of a workspace with parts of these sizes."""
    return sum(round_up(part, ALIGNMENT) for part in parts)
