"""`Detections`: validated once, filtered as a whole, full-size masks on request."""

import numpy as np
import pytest

from edge_mrcnn import Detections

HW = (60, 80)


def three(**fields: object) -> Detections:
    defaults = {
        "xyxy": [[0, 0, 20, 20], [10, 10, 50, 50], [30, 5, 70, 55]],
        "score": [0.9, 0.6, 0.3],
        "class_id": [1, 2, 1],
        "image_hw": HW,
        "mask": np.ones((3, 28, 28)),
        "keypoints": np.arange(3 * 5 * 3).reshape(3, 5, 3),
        "track_id": [7, 8, 9],
    }
    return Detections(**(defaults | fields))


def test_types_are_converted() -> None:
    found = three()
    assert (found.xyxy.dtype, found.score.dtype, found.class_id.dtype) == (np.float32, np.float32, np.int32)
    assert (found.mask.dtype, found.keypoints.dtype, found.track_id.dtype) == (np.float32, np.float32, np.int32)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"xyxy": np.zeros((2, 4))}, r"Detections\.xyxy must have shape \(3, 4\), got \(2, 4\)"),
        ({"xyxy": np.zeros((3, 5))}, r"Detections\.xyxy must have shape \(3, 4\), got \(3, 5\)"),
        ({"class_id": [1]}, r"Detections\.class_id must have shape \(3,\), got \(1,\)"),
        ({"mask": np.zeros((3, 28))}, r"Detections\.mask must have shape \(3, None, None\), got \(3, 28\)"),
        ({"keypoints": np.zeros((3, 5, 2))}, r"Detections\.keypoints must have shape"),
        ({"track_id": [1, 2]}, r"Detections\.track_id must have shape \(3,\)"),
    ],
)
def test_fields_must_agree(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        three(**fields)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(0), [0]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (np.array([True, False, True]), [0, 2]),
        (slice(0, 0), []),
        ([], []),
    ],
)
def test_indexing_filters_every_field(index, rows: list[int]) -> None:
    found = three()
    if isinstance(index, list) and not index:
        index = np.array(index, int)
    chosen = found[index]
    assert chosen.image_hw == HW
    for name in ("xyxy", "score", "class_id", "mask", "keypoints", "track_id"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(found, name)[rows])


def test_optional_fields_stay_absent() -> None:
    found = three(mask=None, keypoints=None, track_id=None)[found_mask()]
    assert found.mask is None
    assert found.keypoints is None
    assert found.track_id is None


def found_mask() -> np.ndarray:
    return np.array([True, False, False])


def test_empty() -> None:
    found = Detections.empty(HW)
    assert len(found) == 0
    assert found.mask is None
    with_masks = Detections.empty(HW, 28)
    assert with_masks.mask.shape == (0, 28, 28)
    assert with_masks.masks().shape == (0, *HW)
    assert with_masks.instance_map().shape == HW
    assert with_masks.rle() == []
    assert with_masks.polygons() == []


def test_full_size_masks() -> None:
    found = three()
    masks, instances = found.masks(), found.instance_map()
    assert masks.shape == (3, *HW)
    assert masks.dtype == np.bool_
    assert instances.dtype == np.uint16
    assert instances[15, 15] == 1  # on top of the second
    assert instances[40, 20] == 2
    assert instances[30, 60] == 3
    assert instances[58, 2] == 0
    assert [item["size"] for item in found.rle()] == [list(HW)] * 3
    assert [len(outlines) for outlines in found.polygons()] == [1, 1, 1]
    assert not found.masks(threshold=1.1).any()


@pytest.mark.parametrize("method", ["masks", "instance_map", "rle", "polygons"])
def test_without_masks(method: str) -> None:
    with pytest.raises(ValueError, match="these detections have no masks: the model gives none"):
        getattr(three(mask=None), method)()
