"""`open_source`: which URI opens what, and what is said about those that open nothing."""

from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources import open_source
from edge_mrcnn.runtime.sources.files import VideoSource
from edge_mrcnn.runtime.sources.pattern import PatternSource
from edge_mrcnn.runtime.sources.pictures import PictureSource
from tests.runtime.sources.test_pictures import save
from tests.runtime.sources.test_videos import make_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "C.BMP", "sub/d.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        save(path)
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def names(uri: str | Path) -> list[str]:
    with open_source(uri) as source:
        return [Path(frame.source).name for frame in source]


def test_folder(folder: Path) -> None:
    assert names(folder) == ["C.BMP", "a.jpg", "b.png"]
    assert names(f"{folder}/") == ["C.BMP", "a.jpg", "b.png"]
    assert names(f"file://{folder}") == ["C.BMP", "a.jpg", "b.png"]


def test_glob(folder: Path) -> None:
    assert names(f"{folder}/*.png") == ["b.png"]
    assert names(f"{folder}/**/*.png") == ["b.png", "d.png"]
    assert names(f"{folder}/*") == ["C.BMP", "a.jpg", "b.png"]


def test_a_name_with_brackets_is_a_file_where_there_is_one(tmp_path: Path) -> None:
    assert names(save(tmp_path / "shot [1].png")) == ["shot [1].png"]


def test_files(tmp_path: Path) -> None:
    assert isinstance(open_source(save(tmp_path / "a.png")), PictureSource)
    save(tmp_path / "b.png").rename(tmp_path / "b.unknown")
    assert isinstance(open_source(tmp_path / "b.unknown"), PictureSource)
    with open_source(make_video(tmp_path / "c.avi")) as source:
        assert isinstance(source, VideoSource)


def test_pattern() -> None:
    with open_source("test://320x200?frames=3&fps=10&seed=4") as source:
        assert isinstance(source, PatternSource)
        assert (source.fps, source.length) == (10, 3)
        frames = list(source)
    assert [frame.image.shape for frame in frames] == [(200, 320, 3)] * 3
    with open_source("test://") as source:
        assert source.length is None
        assert next(iter(source)).image.shape == (480, 640, 3)


def test_strict(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"")
    with open_source(folder) as source:
        assert len(list(source)) == 2
        assert source.skipped == 1
    with open_source(folder, strict=True) as source, pytest.raises(StreamError, match=r"b\.png is empty"):
        list(source)


def test_a_single_picture_is_never_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"rubbish")
    with open_source(tmp_path / "a.png") as source, pytest.raises(StreamError, match=r"a\.png is damaged"):
        list(source)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("rtmp://host/x", r"unknown scheme rtmp:// in 'rtmp://host/x'; known: csi://, file://, gst://, http"),
        ("test://640x480?speed=2", "unknown option 'speed'.*known: frames, fps, seed, name"),
        ("test://640x480?frames=many", "option frames .* cannot be 'many'; expected int"),
        ("test://640", "size '640' in 'test://640' is not WIDTHxHEIGHT"),
        ("test://0x0", "needs a positive size"),
        ("test://9x9?fps=0", "needs a positive size, fps"),
    ],
)
def test_wrong_uris(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("{}/nothing.jpg", r"there is no source '.*nothing\.jpg'; check the path. Besides files there are csi://"),
        ("{}/*.zzz", r"no picture .* matches '.*\*\.zzz'$"),
        ("{}/*.txt", "matches 1 other files"),
        ("{}/empty", "holds no pictures .*subfolders are not searched"),
        ("{}/notes.txt", "damaged, or no video"),
        ("{}/zero.mp4", r"empty \(0 bytes\)"),
        ("/dev/video97", "there is no camera /dev/video97"),
        ("v4l2:///dev/video97", "there is no camera /dev/video97"),
    ],
)
def test_what_cannot_be_read(folder: Path, uri: str, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "zero.mp4").write_bytes(b"")
    with pytest.raises(StreamError, match=message):
        open_source(uri.format(folder))


def test_pattern_is_the_same_for_the_same_seed_and_moves() -> None:
    first, again, other = (list(PatternSource((160, 120), frames=20, seed=seed)) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
    assert (first[0].image != first[1].image).any()
    assert (first[0].image != other[0].image).any()
    assert [frame.stamp_ns for frame in first[:3]] == [0, 33_333_333, 66_666_667]


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (1920, 1080)])
def test_pattern_of_any_size(size: tuple[int, int]) -> None:
    assert PatternSource(size).draw(10**6).shape == (size[1], size[0], 3)
