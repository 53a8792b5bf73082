"""Where calibration pictures come from and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.compiler.calibration.pictures import CalibrationPictures, Shot, read_coco_paths
from edge_mrcnn.errors import CalibrationError, StreamError
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources.pictures import read_picture
from tests.compiler.calibration.conftest import MakePictures, blobs

HW = (64, 96)
CLIP = Path(__file__).parents[3] / "samples" / "tabletop" / "clip.mp4"


def take(*data: str | Path, **options: int | None) -> list[Shot]:
    with CalibrationPictures(data, HW, **options) as pictures:
        return list(pictures)


def coco(folder: Path, *names: str) -> Path:
    path = folder.parent / "annotations.json"
    path.write_text(json.dumps({"images": [{"id": i, "file_name": name} for i, name in enumerate(names)]}))
    return path


def test_a_picture_is_what_the_runtime_makes_of_it(pictures: MakePictures) -> None:
    folder = pictures(1)
    (shot,) = take(folder)
    images, image_hw, _ = letterbox_batch([read_picture(folder / "000.png")], HW)
    np.testing.assert_array_equal(shot.images, images)
    np.testing.assert_array_equal(shot.image_hw, image_hw)
    assert shot.content.shape == (57, 96, 3)
    assert shot.name.endswith("000.png")


@pytest.mark.parametrize(
    ("data", "count"),
    [
        pytest.param(lambda folder: [folder], 6, id="folder"),
        pytest.param(lambda folder: [str(folder / "*1.png")], 1, id="glob"),
        pytest.param(lambda folder: [folder / "000.png", folder / "002.png"], 2, id="files"),
        pytest.param(lambda folder: [coco(folder, "pictures/000.png", "pictures/003.png")], 2, id="coco"),
        pytest.param(lambda folder: [folder, "test://96x64?frames=4"], 10, id="several"),
    ],
)
def test_kinds_of_data(pictures: MakePictures, data: Callable[[Path], list], count: int) -> None:
    chosen = data(pictures())
    with CalibrationPictures(chosen, HW) as found:
        assert found.length == count
        assert found.sources == tuple(map(str, chosen))
        assert len(list(found)) == count


def test_coco_takes_its_own_pictures_in_its_order(pictures: MakePictures) -> None:
    folder = pictures(name="images")
    shots = take(coco(folder, "004.png", "001.png"))
    assert [Path(shot.name).name for shot in shots] == ["004.png", "001.png"]


def test_frames_of_a_video() -> None:
    shots = take(CLIP, every=40)
    assert [shot.name.split()[1] for shot in shots] == ["0", "40", "80", "120"]
    assert {shot.video for shot in shots} == {str(CLIP)}
    with CalibrationPictures([CLIP], HW, every=40) as pictures:
        assert pictures.length == 4


def test_limit(pictures: MakePictures) -> None:
    folder = pictures()
    assert [shot.sha256() for shot in take(folder, limit=2)] == [shot.sha256() for shot in take(folder)][:2]
    with CalibrationPictures([folder], HW, limit=2) as found:
        assert found.length == 2


def test_hashes_are_of_pixels(pictures: MakePictures, tmp_path: Path) -> None:
    folder = pictures(3)
    hashes = [shot.sha256() for shot in take(folder)]
    assert len(set(hashes)) == 3
    cv2.imwrite(str(tmp_path / "other name.bmp"), blobs(1))
    assert take(tmp_path / "other name.bmp")[0].sha256() == hashes[1]


def test_a_few_unreadable_pictures_are_skipped(pictures: MakePictures, caplog: pytest.LogCaptureFixture) -> None:
    assert len(take(pictures(20, damaged=1))) == 20
    assert "damaged0.jpg" in caplog.text


@pytest.mark.parametrize("limit", [None, 19])
def test_more_than_5_percent_unreadable(pictures: MakePictures, limit: int | None) -> None:
    folder = pictures(18, damaged=1)
    with pytest.raises(
        CalibrationError, match=r"1 of 19 pictures cannot be read, which is more than 5%.*take them out"
    ):
        take(folder, limit=limit)


def test_a_damaged_file_among_files_counts_as_unreadable(pictures: MakePictures) -> None:
    folder = pictures(20, damaged=1)
    files = sorted(folder.iterdir())
    assert len(take(*files)) == 20
    with pytest.raises(CalibrationError, match="1 of 3 pictures cannot be read"):
        take(*files[-1:], *files[:2])


def test_nothing_but_unreadable_pictures(pictures: MakePictures) -> None:
    with pytest.raises(CalibrationError, match="2 of 2 pictures cannot be read"):
        take(pictures(0, damaged=2))


def test_missing_pictures_of_a_coco_file_are_unreadable(pictures: MakePictures) -> None:
    with pytest.raises(CalibrationError, match="1 of 2 pictures cannot be read"):
        take(coco(pictures(name="images"), "000.png", "gone.png"))


def test_no_data() -> None:
    with pytest.raises(CalibrationError, match="name a folder, a COCO file or a video"):
        take()


def test_a_source_without_end() -> None:
    with pytest.raises(CalibrationError, match=r"test://96x64 has no end.*record some minutes first"):
        take("test://96x64")


@pytest.mark.parametrize("data", ["missing/", "missing.mp4", "missing.jpg"])
def test_missing_sources(data: str) -> None:
    with pytest.raises(StreamError, match="missing"):
        take(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("no json", "is no COCO annotation file"),
        ("[1]", "is no COCO annotation file"),
        ('{"images": [{"id": 1}]}', "it needs images with a file_name each"),
        ('{"images": []}', "lists no images"),
    ],
)
def test_what_is_no_coco_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "data.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        read_coco_paths(path)
