"""The comparison on the bundled model: what is equal costs nothing, what is spoilt costs, and how sure that is."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="pycocotools is not installed")

from edge_mrcnn.errors import StreamError
from edge_mrcnn.evaluation.coco import EvalOptions, evaluate
from edge_mrcnn.evaluation.compare import compare_precisions
from edge_mrcnn.evaluation.compare_options import CompareOptions
from edge_mrcnn.evaluation.comparison import PrecisionComparison
from edge_mrcnn.runtime.detector import Detector
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources.pictures import read_picture
from tests.compiler.ranges import BUNDLED, TABLETOP
from tests.evaluation.tabletop import CLIP, VAL, make_ranges, save_spoilt

PICTURES = 6


def options(*precisions: str, **more) -> CompareOptions:
    return CompareOptions(
        precisions or ("fp32",), **{"threads": 1, "limit": PICTURES, "runs": 0, "resamples": 200} | more
    )


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_spoilt(tmp_path_factory.mktemp("spoilt") / "spoilt.onnx", 0.25)


@pytest.fixture(scope="module")
def planted(spoilt: Path) -> PrecisionComparison:
    """The model beside itself with noise on its weights."""
    return compare_precisions(BUNDLED, data=VAL, others=[spoilt], options=options(runs=2))


def test_a_planted_degradation_is_found_with_the_right_sign(planted: PrecisionComparison) -> None:
    reference, worse = planted.results
    assert (reference.label, reference.drop, reference.agreement) == ("fp32", None, None)
    for kind in ("box", "mask"):
        drop = getattr(worse.drop, kind)
        before, after = (getattr(one.accuracy, kind).ap for one in (reference, worse))
        assert drop.value == pytest.approx(before - after, abs=2e-3)
        assert 3 < drop.low <= drop.value <= drop.high
    assert worse.agreement.missed > 0
    assert worse.agreement.matched_share < 1
    assert worse.agreement.box_iou < 0.97


def test_the_figures_are_those_of_eval(planted: PrecisionComparison) -> None:
    with Detector(BUNDLED, threshold=None, threads=1) as detector:
        expected = evaluate(detector, VAL, EvalOptions(limit=PICTURES))
    assert planted.results[0].accuracy.box == expected.box
    assert planted.results[0].accuracy.mask == expected.mask


def test_the_other_way_round_it_is_a_gain(spoilt: Path, planted: PrecisionComparison) -> None:
    found = compare_precisions(BUNDLED, data=VAL, reference=spoilt, options=options())
    assert [one.label for one in found.results] == ["spoilt.onnx", "fp32"]
    before, after = planted.results[1].drop.box, found.results[1].drop.box
    assert (after.value, after.low, after.high) == pytest.approx((-before.value, -before.high, -before.low))


def test_what_was_compared_is_on_record(planted: PrecisionComparison, spoilt: Path) -> None:
    assert (planted.pictures, planted.labelled, planted.bootstrap, planted.threshold) == (PICTURES, True, 200, 0.5)
    assert (planted.model, planted.data) == (str(BUNDLED), str(VAL))
    assert planted.warnings == ()
    assert [one.backend for one in planted.results] == ["onnxruntime-cpu"] * 2
    assert planted.results[1].label == "spoilt.onnx"
    assert planted.results[1].size_bytes == spoilt.stat().st_size
    assert all(0 < one.latency.p50_ms <= one.latency.p95_ms for one in planted.results)
    assert planted.created.endswith("+00:00")
    read = json.loads(planted.to_json())
    assert read["results"][1]["drop"]["box"]["value"] > 0
    assert read["disagreements"][0]["jpeg"] == {}


def test_the_pictures_shown_name_and_show_the_difference(planted: PrecisionComparison) -> None:
    shown = planted.disagreements
    assert 1 <= len(shown) <= PICTURES
    assert [one.disagreement for one in shown] == sorted((one.disagreement for one in shown), reverse=True)
    assert shown[0].name.endswith(".jpg")
    assert shown[0].what.startswith("spoilt.onnx ")
    assert list(shown[0].jpeg) == ["fp32", "spoilt.onnx"]
    before, after = (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in shown[0].jpeg.values())
    assert before.shape == after.shape == (360, 480, 3)
    assert np.abs(before.astype(int) - after).max() > 50


def test_a_copy_of_the_model_agrees_in_everything(tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    shutil.copy(BUNDLED, copy)
    found = compare_precisions(BUNDLED, data=VAL, others=[copy], options=options(limit=3))
    same = found.results[1]
    for drop in (same.drop.box, same.drop.mask):
        assert (drop.value, drop.low, drop.high) == (0, 0, 0)
    assert (same.agreement.matched_share, same.agreement.extra, same.agreement.box_iou) == (1, 0, 1)
    assert same.agreement.score_shift_abs == 0
    assert found.disagreements == ()


@pytest.mark.slow
def test_emulated_precisions_have_neither_size_nor_speed(tmp_path: Path) -> None:
    make_ranges(warnings=("all pictures are dark",)).save(tmp_path / "ranges.json")
    told = options("fp32,int8,int8-cpu", ranges=tmp_path / "ranges.json", limit=4, runs=1)
    found = compare_precisions(BUNDLED, data=VAL, options=told)
    float32, emulated, integer = found.results
    assert (emulated.emulated, emulated.size_bytes, emulated.latency) == (True, None, None)
    assert emulated.backend == "onnxruntime-cpu, int8 emulated"
    assert integer.latency.p50_ms > 0
    assert integer.size_bytes < 0.35 * float32.size_bytes
    assert all(0.8 < one.agreement.matched_share <= 1 for one in (emulated, integer))
    assert all(one.agreement.score_shift_abs > 0 for one in (emulated, integer))
    assert found.warnings == (f"{tmp_path / 'ranges.json'}: all pictures are dark",)
    again = compare_precisions(BUNDLED, data=VAL, options=told)
    untimed = [[dataclasses.replace(one, latency=None) for one in each.results] for each in (found, again)]
    assert untimed[0] == untimed[1]
    assert found.disagreements == again.disagreements


@pytest.mark.slow
def test_ranges_of_the_pictures_compared_are_told(tmp_path: Path) -> None:
    images, image_hw, _ = letterbox_batch([read_picture(TABLETOP / "val" / "images" / "000001.jpg")], (320, 416))
    known = hashlib.sha256(images.tobytes() + image_hw.tobytes()).hexdigest()
    make_ranges(pictures=[known, "0" * 64]).save(tmp_path / "ranges.json")
    told = options("int8-cpu", ranges=tmp_path / "ranges.json", limit=3)
    (warning,) = compare_precisions(BUNDLED, data=VAL, options=told).warnings
    assert warning.startswith("1 of the 3 pictures are among those that")
    assert "calibration never saw" in warning


def test_without_labels_agreement_speaks(spoilt: Path) -> None:
    found = compare_precisions(BUNDLED, frames=CLIP, others=[spoilt], options=options(every=9, limit=4, worst=2))
    assert (found.pictures, found.labelled, found.bootstrap, found.data) == (4, False, 0, str(CLIP))
    reference, worse = found.results
    assert worse.accuracy is worse.drop is reference.accuracy is None
    assert worse.agreement.expected > 8
    assert worse.agreement.matched_share < 1
    assert len(found.disagreements) == 2
    assert found.disagreements[0].name in [f"clip.mp4, frame {index}" for index in (0, 9, 18, 27)]


def test_folders_leave_out_what_cannot_be_read(tmp_path: Path, spoilt: Path) -> None:
    shutil.copy(TABLETOP / "val" / "images" / "000001.jpg", tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    found = compare_precisions(BUNDLED, frames=tmp_path, others=[spoilt], options=options(limit=None))
    assert found.pictures == 1
    assert found.warnings == ("1 pictures could not be read and were left out",)
    assert found.disagreements[0].name == "a.jpg"


def test_what_cannot_be_compared_on_is_refused(tmp_path: Path, spoilt: Path) -> None:
    both = {"data": VAL, "frames": CLIP}
    with pytest.raises(ValueError, match=r"got both: --data val\.json or --frames clip\.mp4"):
        compare_precisions(BUNDLED, **both)
    with pytest.raises(ValueError, match="got neither"):
        compare_precisions(BUNDLED)
    with pytest.raises(ValueError, match="--every is for --frames, got 2 with --data"):
        compare_precisions(BUNDLED, data=VAL, options=options(every=2))
    with pytest.raises(ValueError, match=r"test://64x64 has no end: .* --limit 300"):
        compare_precisions(BUNDLED, frames="test://64x64", others=[spoilt], options=options(limit=None))
    with pytest.raises(StreamError, match="there is no annotation file"):
        compare_precisions(BUNDLED, data=tmp_path / "no.json", others=[spoilt], options=options())
    content = json.loads(VAL.read_text())
    content["images"].insert(0, content["images"][0] | {"id": 10**6})
    (tmp_path / "images").symlink_to(VAL.parent / "images")
    (tmp_path / "empty.json").write_text(json.dumps(content))
    with pytest.raises(StreamError, match=r"none of the 1 pictures taken of .* has an annotation"):
        compare_precisions(BUNDLED, data=tmp_path / "empty.json", others=[spoilt], options=options(limit=1))
