"""A real network with keypoints, with masks and without, through every verb that runs it, and against torchvision."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from edge_mrcnn import Detections, Detector
from edge_mrcnn.class_names import complete_class_names
from edge_mrcnn.cli import main
from edge_mrcnn.detections import KEYPOINT_SCORE
from edge_mrcnn.evaluation.compare import compare_precisions
from edge_mrcnn.evaluation.compare_options import CompareOptions
from edge_mrcnn.evaluation.keypoints import result_numbers
from edge_mrcnn.training.export import trace_model
from edge_mrcnn.training.keypoint_labels import KeypointNames
from tests.training.random_models import Reference, fix_pools, letterboxed, picture, seeded_model

pytestmark = [pytest.mark.torch, pytest.mark.slow]

CANVAS = (192, 256)
NAMES = ("top", "base", "handle", "head", "stalk", "spine")
CLASSES = complete_class_names(None, 7)
KEYPOINTS = KeypointNames(NAMES, ((0, 1), (2, 3)), ((1, 2, 3, 4, 5, 6),) * 4 + ((1, 2),) * 2)
PICTURES = 3


@pytest.fixture(scope="module")
def seeded():
    """The compact network with seeded weights; torchvision's modules, so that they can be asked themselves."""
    model = seeded_model("keypointrcnn_edge", rois=60)
    model.rpn._post_nms_top_n["testing"] = 100
    model.roi_heads.detections_per_img = 20
    model.roi_heads.score_thresh = 0.05
    fix_pools(model, CANVAS)
    return model


@pytest.fixture(scope="module", params=["with masks", "without masks"])
def network(request: pytest.FixtureRequest, seeded):
    model = copy.deepcopy(seeded)
    if request.param == "without masks":
        heads = model.roi_heads
        heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None
    return model


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    proto, spec = trace_model(network, "keypointrcnn_edge", CANVAS, CLASSES, KEYPOINTS)
    assert bool(spec.mask_size) == network.roi_heads.has_mask()
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def data(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose truth is what the network finds in them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    categories = [{"id": label, "name": name, "keypoints": [*NAMES]} for label, name in enumerate(CLASSES) if label]
    content: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
    with Detector(exported, threshold=0.2, threads=1) as detector:
        for number in range(PICTURES):
            image = picture(240, 300, seed=40 + number)
            cv2.imwrite(str(folder / "images" / f"{number}.png"), image[:, :, ::-1])
            content["images"].append({"id": number, "file_name": f"{number}.png", "height": 240, "width": 300})
            content["annotations"] += annotations(detector(image), number, len(content["annotations"]))
    assert len(content["annotations"]) >= 5
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def annotations(found: Detections, image_id: int, first: int) -> list[dict]:
    rows = []
    for row, (x0, y0, x1, y1) in enumerate(found.xyxy.tolist()):
        assert found.keypoints is not None
        numbers = result_numbers(found.keypoints[row])
        outline = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        rows.append(
            {
                "id": first + row,
                "image_id": image_id,
                "category_id": int(found.class_id[row]),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "segmentation": outline,
                "keypoints": numbers,
                "num_keypoints": sum(visible > 0 for visible in numbers[2::3]),
            }
        )
    return rows


def test_the_detector_finds_what_torchvision_finds(network, exported: Path) -> None:
    images, image_hw = letterboxed(CANVAS, [(192, 200), (150, 256)], seed=7)
    expected = Reference(network, images, image_hw).detect()
    off, count = [], 0
    with Detector(exported, threshold=None, threads=1) as detector:
        for image, (height, width), want in zip(images, image_hw.astype(int), expected, strict=True):
            found = detector(image[:height, :width])
            assert (found.mask is not None) == network.roi_heads.has_mask()
            for box, label, points in zip(want["boxes"], want["labels"], want["keypoints"], strict=True):
                same = np.abs(found.xyxy - box.numpy()).max(axis=1) < 0.1
                rows = np.flatnonzero(same & (found.class_id == int(label)))
                count += 1
                if len(rows):
                    ours = found.keypoints[rows[0]]
                    off.append(np.hypot(*(ours[:, axis] - points[:, axis].numpy() for axis in (0, 1))))
                    has = [int(label) in labels for labels in KEYPOINTS.labels]
                    assert ((ours[:, 2] > 0) == has).all()
    assert count >= 10
    assert len(off) >= 0.9 * count
    assert (np.concatenate(off) < 0.5).mean() >= 0.99


def test_eval_of_its_own_detections_is_perfect(
    network, exported: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(exported), str(data), "--threads", "1", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["box"]["ap"] > 95
    assert found["keypoint"]["ap"] > 95
    assert (found["mask"] is not None) == network.roi_heads.has_mask()


def test_run_draws_and_records_keypoints(
    network, exported: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sinks = [str(tmp_path / name) for name in ("out.jsonl", "pictures/", "out.mkv")]
    ros = []
    if all(map(importable, ("mcap", "rosbags"))):
        ros = [str(tmp_path / "out.mcap")]
    arguments = ["--to", *sinks, *ros, "--threshold", "0.2", "--rle", "--track", "True", "--threads", "1"]
    assert main(["run", str(exported), str(data.parent / "images"), *arguments]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == PICTURES
    assert all(line["keypoint_names"] == [*NAMES] for line in lines)
    things = [thing for line in lines for thing in line["detections"]]
    assert things
    shown = [point for thing in things for point in thing["keypoints"] if point is not None]
    assert all(len(thing["keypoints"]) == len(NAMES) for thing in things)
    assert all(score >= KEYPOINT_SCORE for _, _, score in shown)
    assert all(("mask" in thing) == network.roi_heads.has_mask() for thing in things)
    assert len(list((tmp_path / "pictures").iterdir())) == PICTURES
    if ros:
        from mcap.reader import make_reader

        with Path(ros[0]).open("rb") as stream:
            topics = {channel.topic.rpartition("/")[2] for _, channel, _ in make_reader(stream).iter_messages()}
        assert {"keypoints", "keypoint_labels", "keypoint_marker", "detections"} <= topics
        assert ("instance_map" in topics) == network.roi_heads.has_mask()
        assert network.roi_heads.has_mask() or "instance_map is not sent" in capsys.readouterr().err


def importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_compare_tells_what_float16_does_to_keypoints(network, exported: Path, data: Path, tmp_path: Path) -> None:
    options = CompareOptions(("fp32", "fp16"), threads=1, runs=0, resamples=50)
    found = compare_precisions(exported, data=data, options=options)
    exact, rounded = found.results
    assert 0.1 < rounded.agreement.keypoint_close < 1  # seeded maps have no clear peaks
    assert 0 < rounded.agreement.keypoint_shift < 0.3
    assert rounded.drop.keypoint.low > 0
    assert rounded.drop.keypoint.value == pytest.approx(
        exact.accuracy.keypoint.ap - rounded.accuracy.keypoint.ap, abs=2e-3
    )
    assert (rounded.drop.mask is not None) == network.roi_heads.has_mask()
    report = tmp_path / "report.html"
    from edge_mrcnn.evaluation.report import comparison_lines, write_report

    write_report(found, report)
    assert "Keypoint AP lost" in report.read_text()
    assert "keypoint AP" in "\n".join(comparison_lines(found))


def test_bench_and_overhead(exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from edge_mrcnn.evaluation import overhead

    monkeypatch.setattr(overhead, "FRAMES", 5)
    assert main(["bench", str(exported), "--runs", "2", "--warmup", "0", "--threads", "1"]) == 0
    assert "keypoints" in capsys.readouterr().out
    assert main(["bench", str(exported), "--overhead"]) == 0
