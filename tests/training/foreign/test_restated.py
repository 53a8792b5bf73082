"""The restatement against what the two projects publish, and the seeded state dicts against the restatement."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from tests.training.foreign import restated, restated_steps, states  # noqa: E402
from tests.training.foreign.restated_steps import Settings, Weights  # noqa: E402
from tests.training.random_models import picture  # noqa: E402

pytestmark = pytest.mark.torch

FEW = {"post_nms": 80, "detections": 40}


def test_detectron2s_anchors() -> None:
    """Source: detectron2 tests/modeling/test_anchor_generator.py, `test_default_anchor_generator`."""
    anchors = restated_steps.detectron2_anchors([32, 64], 4, torch.zeros(1, 96, 1, 2), [0.25, 1, 4])
    first = [[-32, -8, 32, 8], [-16, -16, 16, 16], [-8, -32, 8, 32]]
    expected = torch.tensor([*first, *([2 * side for side in box] for box in first)], dtype=torch.float32)
    assert torch.allclose(anchors, torch.cat([expected, expected + torch.tensor([4.0, 0, 4, 0])]))


def test_mmdetections_anchors() -> None:
    """Source: mmdetection, docstring of `AnchorGenerator`: stride 16, base size 9."""
    anchors = restated_steps.mmdetection_anchors([9 / 16], 16, torch.zeros(1, 1, 2, 2), [1.0])
    first = torch.tensor([-4.5, -4.5, 4.5, 4.5])
    shifts = [[0, 0, 0, 0], [16, 0, 16, 0], [0, 16, 0, 16], [16, 16, 16, 16]]
    assert torch.allclose(anchors, first + torch.tensor(shifts))
    ratios_outside = restated_steps.mmdetection_anchors([1, 2], 8, torch.zeros(1, 1, 1, 1), [0.25, 1.0])
    assert torch.allclose(ratios_outside[:, 2] * 2, torch.tensor([16.0, 32, 8, 16]))


def test_mmdetections_decoding() -> None:
    """Source: mmdetection, docstring of `delta2bbox`."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [5, 5, 5, 5]])
    deltas = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 2, -1], [0.7, -1.9, -0.5, 0.3]])
    found = restated_steps.clip(restated_steps.mmdetection_decode(deltas, boxes, (1, 1, 1, 1)), (32, 32))
    expected = [[0, 0, 1, 1], [0.1409, 0.1409, 2.8591, 2.8591], [0, 0.3161, 4.1945, 0.6839], [5, 5, 5, 5]]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-4)


def test_only_mmdetection_limits_shrinking() -> None:
    box, deltas = torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0.0, 0, -9, 9]])
    ours, theirs = (
        decode(deltas, box, (1, 1, 1, 1))
        for decode in (restated_steps.detectron2_decode, restated_steps.mmdetection_decode)
    )
    assert float(ours[0, 2] - ours[0, 0]) < 0.2
    assert float(theirs[0, 2] - theirs[0, 0]) == pytest.approx(16)
    assert float(theirs[0, 3] - theirs[0, 1]) == pytest.approx(62500)
    assert float(ours[0, 3] - ours[0, 1]) == pytest.approx(62500)


@pytest.mark.parametrize("levels", [restated_steps.detectron2_levels, restated_steps.mmdetection_levels])
def test_boxes_of_112_224_and_448_pixels_begin_a_level(levels: Callable[[torch.Tensor], torch.Tensor]) -> None:
    sides = torch.tensor([1.0, 111.9, 112, 223.9, 224, 447.9, 448, 4000])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], 1)
    assert levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "shapes", "settings"),
    [
        (restated.detectron2_fpn, states.detectron2_shapes(classes=6), Settings(**FEW)),
        (restated.detectron2_c4, states.detectron2_shapes(classes=6, c4=True), Settings(**FEW)),
        (restated.mmdetection, states.mmdetection_shapes(classes=6), Settings(**FEW)),
    ],
    ids=["detectron2_fpn", "detectron2_c4", "mmdetection"],
)
def test_every_tensor_is_read_and_things_are_found(run: states.Run, shapes: states.Shapes, settings: Settings) -> None:
    image = picture(100, 160, seed=1)
    weights = Weights(states.seeded_state(shapes, run, settings, image))
    found = run(weights, image, states.canvas_of(image), settings)
    assert not list(states.unread(weights))
    assert 10 <= len(found.scores) < settings.detections
    assert 0.1 < float(found.scores.max()) < 0.99
    assert found.boxes[:, 3].max() <= 100, "boxes end with the picture, not with the canvas"
    assert found.masks.shape == (len(found.scores), *[14 if run is restated.detectron2_c4 else 28] * 2)
