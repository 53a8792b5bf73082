"""`Detector`: frames in, detections in pixels of each frame out."""

from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn import Detections, Detector, EngineError, Frame
from edge_mrcnn.runtime.runners import OrtRunner
from tests.runtime.tiny_detector import (
    CANVAS,
    CLASSES,
    KEYPOINT_SHARES,
    LABELS,
    SECOND_SCORE,
    SHARES,
    disc,
    save_detector,
)


def picture(height: int, width: int, level: int = 0) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def expected_boxes(height: int, width: int) -> np.ndarray:
    return np.clip(SHARES[:2] * (width, height, width, height), 0, (width, height, width, height))


@pytest.mark.parametrize("size", [(64, 96), (480, 640), (1080, 1920), (100, 33), (1, 1), (3, 500)])
def test_boxes_are_in_pixels_of_the_picture(model: Path, size: tuple[int, int]) -> None:
    with Detector(model, threshold=None) as detector:
        found = detector(picture(*size))
    assert isinstance(found, Detections)
    assert found.image_hw == size
    np.testing.assert_allclose(found.xyxy, expected_boxes(*size), rtol=1e-5, atol=1e-3)
    assert found.class_id.tolist() == LABELS[:2].tolist()
    assert found.score == pytest.approx([0.5, SECOND_SCORE])
    np.testing.assert_allclose(found.mask[1], disc(), rtol=1e-6)


@pytest.mark.parametrize("size", [(64, 96), (480, 640), (1080, 1920), (100, 33)])
def test_keypoints_are_in_pixels_of_the_picture(keypoint_model: Path, size: tuple[int, int]) -> None:
    with Detector(keypoint_model, threshold=None) as detector:
        found = detector(picture(*size))
    assert found.mask is None
    assert found.keypoints.shape == (2, 2, 3)
    # The second box reaches out of the picture: the heatmap is stretched over all of it.
    corner, extent = SHARES[:2, None, :2], SHARES[:2, None, 2:] - SHARES[:2, None, :2]
    wanted = (corner + KEYPOINT_SHARES[:2] * extent) * (size[1], size[0])
    scale = min(CANVAS[0] / size[0], CANVAS[1] / size[1])
    np.testing.assert_allclose(found.keypoints[..., :2], wanted, atol=0.8 / scale + 1e-3)
    assert (found.keypoints[:, 0, 2] > 0.01).all()
    assert found.keypoints[0, 1, 2] > 0.01
    assert found.keypoints[1, 1, 2] == 0  # a bottle has no handle
    assert found.class_id.tolist() == LABELS[:2].tolist()


def test_keypoints_of_what_is_kept_only(keypoint_model: Path) -> None:
    with Detector(keypoint_model, threshold=0.4) as detector:
        assert detector(picture(64, 96)).keypoints.shape == (1, 2, 3)
    with Detector(keypoint_model, threshold=0.9) as detector:
        assert detector(picture(64, 96)).keypoints.shape == (0, 2, 3)


@pytest.mark.parametrize(("threshold", "count"), [(None, 2), (0.0, 2), (0.3, 2), (0.4, 1), (0.5, 1), (0.9, 0)])
def test_threshold(model: Path, threshold: float | None, count: int) -> None:
    with Detector(model, threshold=threshold) as detector:
        found = detector(picture(64, 96))
    assert len(found) == count
    assert found.mask.shape == (count, 28, 28)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_each_frame_gets_its_own_detections(model: Path, batch: int) -> None:
    """Sizes and brightness differ, so anything mixed up or left over in the canvas shows."""
    sizes = [(64, 96), (640, 480), (96, 96), (50, 400), (64, 96)]
    levels = [0, 255, 128, 64, 200]
    frames = [Frame(picture(*size, level)) for size, level in zip(sizes, levels, strict=True)]
    with Detector(model, threshold=None, batch=batch) as detector:
        found = detector(frames)
        again = [detector(frame) for frame in frames]
    for size, level, detections, alone in zip(sizes, levels, found, again, strict=True):
        np.testing.assert_allclose(detections.xyxy, expected_boxes(*size), rtol=1e-5, atol=1e-3)
        scale = min(CANVAS[0] / size[0], CANVAS[1] / size[1])
        share = int(size[0] * scale + 1e-9) * int(size[1] * scale + 1e-9) / (CANVAS[0] * CANVAS[1])
        assert detections.score[0] == pytest.approx(0.5 + 0.5 * level / 255 * share, abs=1e-3)
        np.testing.assert_allclose(alone.score, detections.score, rtol=1e-6)


def test_one_gives_one_and_a_list_gives_a_list(model: Path) -> None:
    image = picture(64, 96)
    with Detector(model) as detector:
        assert isinstance(detector(image), Detections)
        assert isinstance(detector(Frame(image)), Detections)
        assert [len(item) for item in detector([image])] == [1]
        assert [len(item) for item in detector((image, Frame(image)))] == [1, 1]
        assert [len(item) for item in detector(np.stack([image, image]))] == [1, 1]
        assert detector([]) == []


def test_timings(model: Path) -> None:
    with Detector(model, batch=2) as detector:
        found, timings = detector.detect_timed([picture(64, 96)] * 3)
    assert len(found) == timings.frames == 3
    assert min(timings.pre_ns, timings.infer_ns, timings.post_ns) > 0
    assert timings.total_ns == timings.pre_ns + timings.infer_ns + timings.post_ns


def test_properties(model: Path) -> None:
    with Detector(model) as detector:
        assert detector.class_names == CLASSES
        assert detector.spec.input_hw == CANVAS
        assert detector.backend == "onnxruntime-cpu"
        assert "tiny_detector" in repr(detector)


def test_closing(model: Path) -> None:
    detector = Detector(model)
    detector.close()
    detector.close()
    with pytest.raises(EngineError, match="closed"):
        detector(picture(5, 5))
    with OrtRunner(model) as runner:
        with Detector(runner) as borrowed:
            borrowed(picture(5, 5))
        runner.infer({"images": np.zeros((1, *CANVAS, 3), np.uint8), "image_hw": np.ones((1, 2), np.float32)})


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((5, 5, 3), np.float32), TypeError, "uint8"),
        (np.zeros((5, 5, 4), np.uint8), ValueError, r"\(5, 5, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, "at least one pixel"),
    ],
)
def test_wrong_pictures(model: Path, image: np.ndarray, error: type[Exception], message: str) -> None:
    with Detector(model) as detector, pytest.raises(error, match=message):
        detector(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"threshold": 1.5}, "threshold must be None or from 0 to 1"), ({"batch": 0}, "batch must be at least 1")],
)
def test_wrong_options(model: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detector(model, **options)


def test_batch_beyond_the_model(tmp_path: Path) -> None:
    path = save_detector(tmp_path / "model.onnx", batch=1)
    with pytest.raises(ValueError, match="batch must be at most 1"):
        Detector(path, batch=2)


class BrokenRunner(OrtRunner):
    """Gives what a network with damaged weights gives."""

    def infer(self, feeds, outputs=None):
        results = super().infer(feeds)
        results["scores"] = np.array([[np.nan, 0.9, 0]], np.float32)
        results["boxes"] = results["boxes"].copy()
        return results


def test_scores_and_boxes_that_are_no_numbers_are_dropped(model: Path) -> None:
    with BrokenRunner(model) as runner:
        assert Detector(runner, threshold=None)(picture(5, 5)).class_id.tolist() == [2]


class ForeignRunner(OrtRunner):
    """Gives outputs of other names."""

    def infer(self, feeds, outputs=None):
        return {"dets": np.zeros((1, 5))}


def test_foreign_outputs(model: Path) -> None:
    with ForeignRunner(model) as runner, pytest.raises(EngineError, match="no output 'num_detections'"):
        Detector(runner)(picture(5, 5))
