"""Keypoints in data sets and in training: geometry, mirrors, bad data, and a head that learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("pycocotools.mask")

from edge_mrcnn.errors import EdgeMrcnnError  # noqa: E402
from edge_mrcnn.training.augment import Augmentation, View, mirrored_order  # noqa: E402
from edge_mrcnn.training.checkpoint import load_checkpoint  # noqa: E402
from edge_mrcnn.training.dataset import CocoDataset  # noqa: E402
from edge_mrcnn.training.keypoint_labels import KeypointNames  # noqa: E402
from edge_mrcnn.training.optim import freeze_except, set_training  # noqa: E402
from edge_mrcnn.training.train import TrainOptions, train  # noqa: E402
from edge_mrcnn.training.validate import leading_figure, validate  # noqa: E402
from edge_mrcnn.training.zoo import build_model  # noqa: E402
from tests.training.shapes import annotations_of, write_shapes  # noqa: E402

pytestmark = pytest.mark.torch

CANVAS = (96, 128)
NAMES = ["left_end", "right_end", "middle"]
TINY = TrainOptions(
    epochs=2, batch_size=3, size="96x128", warmup_steps=2, workers=0, log_every=1, cache_gb=0.1, device="cpu"
)


def write_ends(folder: Path, count: int, seed: int = 0) -> Path:
    """Discs have a middle; bars have ends and a middle, each painted in a colour of its own."""
    path = write_shapes(folder, count, seed=seed)
    content = annotations_of(path)
    for category in content["categories"]:
        category.update(keypoints=NAMES, skeleton=[[1, 2]])
    pictures = {image["id"]: path.parent / "images" / image["file_name"] for image in content["images"]}
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        points = np.zeros((3, 3))
        points[2] = x + width / 2, y + height / 2, 1
        if entry["category_id"] == 70:
            points[:2] = (x + 4, y + height / 2, 2), (x + width - 4, y + height / 2, 2)
            picture = cv2.imread(str(pictures[entry["image_id"]]))
            for (px, py, _), colour in zip(points[:2].astype(int), ((0, 255, 0), (0, 255, 255)), strict=True):
                cv2.rectangle(picture, (px - 3, py - 3), (px + 3, py + 3), colour, -1)
            cv2.imwrite(str(pictures[entry["image_id"]]), picture)
        entry.update(keypoints=points.flatten().tolist(), num_keypoints=int((points[:, 2] > 0).sum()))
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ends(tmp_path_factory.mktemp("ends"), 6)


def edited(path: Path, folder: Path, change: Any) -> Path:
    content = annotations_of(path)
    change(content)
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "images").symlink_to(path.parent / "images")
    return folder / "annotations.json"


class TestReading:
    def test_names_lines_and_labels_come_from_the_file(self, ends: Path) -> None:
        found = CocoDataset(ends, CANVAS).keypoints
        # label 1 is category 3, the disc; the skeleton counts from 0
        assert found == KeypointNames(tuple(NAMES), ((0, 1),), ((2,), (2,), (1, 2)))

    def test_targets_are_in_pixels_of_the_canvas(self, ends: Path) -> None:
        data = CocoDataset(ends, CANVAS)  # 120x160 becomes 96x128: a factor of 0.8
        content = annotations_of(ends)
        rows = [entry for entry in content["annotations"] if entry["image_id"] == 1]
        expected = np.array([entry["keypoints"] for entry in rows]).reshape(-1, 3, 3)
        found = data[0][1]["keypoints"]
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found[..., :2], expected[..., :2] * 0.8, atol=1e-4)
        np.testing.assert_array_equal(found[..., 2], expected[..., 2])

    def test_data_without_keypoints_has_none_in_its_targets(self, tmp_path: Path) -> None:
        data = CocoDataset(write_shapes(tmp_path, 1), CANVAS)
        assert "keypoints" not in data[0][1]
        assert data.keypoints == KeypointNames()

    def test_objects_without_keypoints_have_zeros(self, ends: Path, tmp_path: Path) -> None:
        path = edited(ends, tmp_path, lambda content: content["annotations"][0].pop("keypoints"))
        assert not CocoDataset(path, CANVAS)[0][1]["keypoints"][0].any()

    def test_a_picture_without_objects(self, ends: Path, tmp_path: Path) -> None:
        path = edited(ends, tmp_path, lambda content: content["annotations"].pop(0) and content["annotations"].pop(0))
        assert CocoDataset(path, CANVAS)[0][1]["keypoints"].shape == (0, 3, 3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c["annotations"][0].update(keypoints=[1, 2, 2]), "has 3 numbers in keypoints: expected 9"),
            (lambda c: c["annotations"][0].update(keypoints=[float("nan")] * 9), "not finite"),
            (lambda c: c["categories"][0].update(keypoints=["a", "b", "c"]), "'bar' name different keypoints"),
            (lambda c: c["categories"][1].update(skeleton=[[0, 1]]), "an end outside 1 to 3"),
        ],
    )
    def test_bad_keypoints_are_named(self, ends: Path, tmp_path: Path, change: Any, message: str) -> None:
        with pytest.raises(EdgeMrcnnError, match=message):
            CocoDataset(edited(ends, tmp_path, change), CANVAS)


class TestGeometry:
    def test_points_outside_the_content_are_dropped(self) -> None:
        view = View(CANVAS, (50, 60), 2.0, 2.0, -10.0, 0.0)
        points = np.array([[5, 0, 2], [34.9, 24.9, 1], [4.9, 10, 2], [35, 10, 2], [10, 25, 2], [10, 10, 0]], np.float32)
        found = view.points(points[None])[0]
        np.testing.assert_allclose(found[:2], [[0, 0, 2], [59.8, 49.8, 1]], atol=1e-5)
        assert not found[2:].any()

    @pytest.mark.parametrize(
        ("names", "order"),
        [
            (["nose", "left_eye", "right_eye"], [0, 2, 1]),
            (["wrist left", "wrist right", "top"], [1, 0, 2]),
            (["top", "handle"], [0, 1]),
            (["left_only", "cleft"], [0, 1]),  # no twin; another word
            ([], []),
        ],
    )
    def test_a_mirror_swaps_left_and_right(self, names: list[str], order: list[int]) -> None:
        assert mirrored_order(names) == order

    @pytest.mark.parametrize("zoom", [0.7, 1.0, 1.4])
    def test_points_stay_on_what_they_name(self, ends: Path, zoom: float) -> None:
        """The ends' colours in the augmented picture tell which point must be where; a mirror swaps their names."""
        still = Augmentation(zoom=(zoom, zoom), light=0.0, plain=0.0)
        seen = mirrored = 0
        for seed in range(6):
            data = CocoDataset(ends, CANVAS, still, seed=seed)
            picture, target = data[0]
            bars = target["keypoints"][target["labels"] == 2]
            if not len(bars):  # cropped away
                continue
            left, right = bars[0, :2].tolist()
            for x, y, visible in (left, right):
                if visible and 2 < x < target["image_hw"][1] - 2 and 2 < y < target["image_hw"][0] - 2:
                    red, green, _ = picture[int(y), int(x)].tolist()
                    assert green > 150  # as both ends are painted
                    mirrored += red > 150 and [x, y, visible] == left  # the yellow of the right end
                    seen += 1
            if left[2] and right[2]:
                assert left[0] < right[0]
        assert seen >= 6
        assert 0 < mirrored < seen


@pytest.fixture(scope="module")
def trained(ends: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of the compact network, with keypoints and masks."""
    out = tmp_path_factory.mktemp("run")
    options = replace(TINY, out=out, epochs=10, lr=2e-3, ema=0.0, zoom=(1.0, 1.0), light=0.0, val=ends, val_every=10)
    result = train("keypointrcnn_edge", ends, options)
    assert result.chosen_by == "keypoint_ap"
    assert set(result.figures) >= {"box_ap", "mask_ap", "keypoint_ap", "keypoint_ap50"}
    return out


class TestTraining:
    def test_the_keypoint_loss_falls(self, trained: Path) -> None:
        entries = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
        losses = [entry["loss_keypoint"] for entry in entries if "loss_keypoint" in entry]
        assert losses[0] == pytest.approx(np.log(56 * 56), rel=0.1)  # a guess among all pixels of the map
        assert np.mean(losses[-3:]) < 0.75 * losses[0]

    def test_the_checkpoint_records_the_keypoints(self, trained: Path, ends: Path) -> None:
        assert load_checkpoint(trained / "last.pt").keypoints == CocoDataset(ends, CANVAS).keypoints

    def test_a_mask_network_learns_keypoints_and_nothing_else(self, ends: Path, tmp_path: Path) -> None:
        masks = tmp_path / "masks"
        train("maskrcnn_edge", ends, replace(TINY, out=masks, epochs=1))
        options = replace(TINY, out=tmp_path / "points", weights=str(masks / "last.pt"), only="roi_heads.keypoint_")
        train("keypointrcnn_edge", ends, options)
        before, after = (load_checkpoint(run / "last.pt").state_dict for run in (masks, tmp_path / "points"))
        assert before.keys() < after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_data_without_keypoints_is_refused(self, tmp_path: Path) -> None:
        data = write_shapes(tmp_path, 2)
        with pytest.raises(EdgeMrcnnError, match="names 0 keypoints, the network has"):
            train("keypointrcnn_edge", data, replace(TINY, out=tmp_path / "run"))

    def test_only_must_name_weights(self) -> None:
        model = build_model("maskrcnn_edge", 3)
        with pytest.raises(ValueError, match=r"no weight's name begins so; they begin with .*roi_heads\.mask_head"):
            freeze_except(model, "roi_heads.keypoint_")

    def test_frozen_norms_keep_their_statistics(self) -> None:
        model = build_model("keypointrcnn_edge", 3)
        freeze_except(model, "roi_heads.keypoint_")
        set_training(model)
        assert model.roi_heads.training
        assert model.roi_heads.keypoint_head.training
        assert not model.backbone.training
        assert not model.roi_heads.mask_head.training


class TestValidation:
    @pytest.mark.parametrize(
        ("name", "leading"),
        [
            ("maskrcnn_edge", "mask_ap"),
            ("keypointrcnn_edge", "keypoint_ap"),
            ("keypointrcnn_resnet50_fpn", "keypoint_ap"),
        ],
    )
    def test_the_best_is_chosen_by_what_the_network_is_for(self, name: str, leading: str) -> None:
        assert leading_figure(build_model(name, 3)) == leading

    def test_perfect_points_score_full_marks(self, ends: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The network's answers are replaced by the truth, in pixels of the canvas; the way back must be exact."""
        data, model = CocoDataset(ends, CANVAS), build_model("keypointrcnn_edge", 3, num_keypoints=3)

        def answer(_self: object, _pictures: object, targets: list[dict[str, Any]]) -> tuple[dict, list]:
            (truth,) = targets
            sides = (*truth["masks"].shape[:1], 1, 28, 28)
            names = ("boxes", "labels", "keypoints")
            found = {name: truth[name] for name in names}
            return {}, [found | {"scores": torch.ones(len(truth["labels"])), "masks": torch.ones(sides)}]

        monkeypatch.setattr("edge_mrcnn.training.validate.CanvasModel.forward", answer)
        figures = validate(model, data)
        assert figures["keypoint_ap"] == figures["box_ap"] == 100
