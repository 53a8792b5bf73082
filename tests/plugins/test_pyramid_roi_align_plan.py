"""The plan of PyramidRoiAlign: what it refuses, and how it divides the work."""

from __future__ import annotations

from typing import Any

import pytest

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.kernels import pyramid_roi_align as plan
from edge_mrcnn.gpu.launches import Launch, Layout, Tensor
from tests.training.op_cases import roi_attributes

Faces = tuple[str, Layout, Layout]
"""Type of the features, their layout, the output's."""

LINEAR: Faces = ("float32", "linear", "linear")
HALF: Faces = ("float16", "linear", "linear")
TO_LINEAR: Faces = ("float16", "hwc8", "linear")
HWC8: Faces = ("float16", "hwc8", "hwc8")


def plan_tensors(face: Faces = LINEAR, levels: int = 2, channels: int = 8) -> tuple[list[Tensor], list[Tensor]]:
    maps = [Tensor(64, (1, channels, 64 >> i, 64 >> i), face[0], face[1]) for i in range(levels)]
    return [Tensor(64, (1, 10, 4), "float32"), *maps], [Tensor(64, (10, channels, 7, 7), face[0], face[2])]


def plan_launches(face: Faces = LINEAR, channels: int = 8, **changes: Any) -> list[Launch]:
    inputs, outputs = plan_tensors(face, channels=channels)
    return plan.launches(roi_attributes(2, **changes), inputs, outputs, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_size": 0}, "output_size 1 to 128"),
        ({"output_size": 129}, "output_size 1 to 128"),
        ({"sampling_ratio": -1}, "sampling_ratio 0 or more"),
        ({"aligned": 2}, "aligned 0 or 1"),
        ({"strides": [4, 12]}, "powers of two"),
        ({"strides": [0, 8]}, "powers of two"),
        ({"strides": [4, 8, 16]}, "one for each of 2 levels"),
    ],
    ids=str,
)
def test_attributes_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        plan_launches(**changes)


def test_tensors_out_of_range_are_refused() -> None:
    for face in (("float32", "hwc8", "linear"), ("float32", "linear", "hwc8"), ("int8", "linear", "linear")):
        with pytest.raises(PluginError, match=r"float32 \(linear\) or float16 \(linear or hwc8\)"):
            plan_launches(face)  # type: ignore[arg-type]
    inputs, outputs = plan_tensors()
    inputs[2] = Tensor(64, (1, 8, 32, 32), "float16")
    with pytest.raises(PluginError, match="one type and layout"):
        plan.workspace_bytes(roi_attributes(2), inputs, outputs)


def test_blocks_are_as_the_model_needs_them() -> None:
    """7 or 14 bins of 256 channels: whole cells, and full warps where the output is channels last."""
    assert plan_launches(HWC8, 256)[0].block == 224
    assert plan_launches(HWC8, 256, output_size=14)[0].grid == (10, 1, 2)
    assert plan_launches(TO_LINEAR, 256)[0].grid == (10, 1, 1)
    assert plan_launches(TO_LINEAR, 256, output_size=14)[0].grid == (10, 4, 1)
    assert plan_launches(HALF, 256, output_size=14)[0].grid == (10, 4, 2)
