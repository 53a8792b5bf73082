"""`open_source`: which URI opens what, and what is said about those that open nothing."""

import itertools
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime import sources
from edge_mrcnn.runtime.sources import known_schemes, open_source, register_source
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


def test_numbered_sequence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By number rather than by name, from wherever it begins, past what a recorder lost."""
    for number in (7, 8, 9, 10, 99_999, 100_000):
        save(tmp_path / f"left_{number:04d}.png")
        save(tmp_path / f"shot{number}.png")
    for other in ("left_11.png", "left_0012.jpg", "left_x.png", "left_00013.png", "shot011.png"):
        save(tmp_path / other)
    wanted = [7, 8, 9, 10, 99_999, 100_000]
    assert names(f"{tmp_path}/left_%04d.png") == [f"left_{number:04d}.png" for number in wanted]
    assert names(f"{tmp_path}/shot%d.png") == [f"shot{number}.png" for number in wanted]
    assert names(f"file://{tmp_path}/left_%04d.png") == [f"left_{number:04d}.png" for number in wanted]
    assert "left_%04d.png: of the numbers 7 to 100000, 99988 are missing" in caplog.text


def test_a_file_called_like_a_sequence(tmp_path: Path) -> None:
    assert names(save(tmp_path / "a_%04d.png")) == ["a_%04d.png"]


def test_options_of_files(folder: Path) -> None:
    video = make_video(folder / "front door.mp4", frames=3, codec="mp4v")
    for uri, name, count in (
        (str(video), "front_door", 3),
        (f"file://{folder}/front%20door.mp4?name=Back&frame_id=optical", "back", 3),
        (f"file://{folder}?name=photos&frame_id=optical", "photos", 3),
        (f"file://{folder}/*.png?name=some&frame_id=optical", "some", 1),
    ):
        with open_source(uri) as source:
            frames = list(source)
            assert (source.name, source.live, source.drop, source.health.state) == (name, False, "auto", "ended")
        expected = (name, "optical" if "frame_id" in uri else "")
        assert [(frame.camera, frame.frame_id) for frame in frames] == [expected] * count


def test_a_video_as_a_camera(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", frames=6, codec="mp4v")
    with open_source(f"file://{video}?live=1&name=front") as source:
        assert (source.live, source.length, source.fps) == (True, 6, 25)
        frames = list(source)
        assert source.health.state == "ended"
    assert [(frame.stamp_source, frame.camera) for frame in frames] == [("host", "front")] * 6
    assert frames[-1].captured_ns - frames[0].captured_ns >= 0.1e9
    with open_source(f"file://{video}?loop=1&drop=never") as source:
        assert (source.live, source.length, source.drop) == (True, None, "never")
        frames = list(itertools.islice(source, 14))
    assert [frame.index for frame in frames] == list(range(14))
    np.testing.assert_array_equal(frames[0].image, frames[12].image)


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
        ("rtmp://host/x", r"unknown scheme rtmp:// in 'rtmp://host/x'; known: bag://, csi://.*file://, gst://, http"),
        ("test://640x480?speed=2", "unknown option 'speed'.*known: frames, fps, seed, name"),
        ("test://640x480?frames=many", "option frames .* cannot be 'many'; expected int"),
        ("test://640", "size '640' in 'test://640' is not WIDTHxHEIGHT"),
        ("file:///tmp?live=1", "live in 'file://.*.live=1' is for videos"),
        (
            "file:///x.mp4?drop=oldest&speed=2",
            "unknown option 'speed'.*known: name, frame_id, live, loop, drop, decode",
        ),
        ("file:///x.mp4?decode=magic", "option decode .* cannot be 'magic'; expected one of software, hardware"),
        ("test://0x0", "needs a positive size"),
        ("test://9x9?fps=0", "needs a positive size, fps"),
    ],
)
def test_wrong_uris(uri: str, message: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(uri.replace("file:///tmp", f"file://{folder}"))


def test_files_never_drop(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", frames=2, codec="mp4v")
    with pytest.raises(ValueError, match=r"drop=oldest in .*: files never drop frames; with live=1"):
        open_source(f"file://{video}?drop=oldest")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "{}/nothing.jpg",
            r"there is no source '.*nothing\.jpg'; check the path. Besides files there are bag://, csi://",
        ),
        ("{}/*.zzz", r"no picture .* matches '.*\*\.zzz'$"),
        ("{}/*.txt", "matches 1 other files"),
        ("{}/empty", "holds no pictures .*subfolders are not searched"),
        ("{}/notes.txt", "damaged, or no video"),
        ("{}/zero.mp4", r"empty \(0 bytes\)"),
        ("/dev/video97", "there is no camera /dev/video97"),
        ("/dev/v4l/by-id/usb-x", "there is no camera /dev/v4l/by-id/usb-x"),
        ("file:///dev/video97", "there is no camera /dev/video97"),
        ("{}/shot_%04d.png", r"there is no source '.*/shot_%04d\.png'"),
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


def test_schemes_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_SCHEMES", dict(sources._SCHEMES))
    register_source("one", lambda uri: open_source("test://8x8?frames=1&name=" + uri.partition("://")[2]))
    register_source("two", "edge_mrcnn.runtime.sources.pattern:open_pattern")
    assert open_source("one://front").name == "front"
    assert open_source("two://8x8?name=rear").name == "rear"

    point = EntryPoint("three", "edge_mrcnn.runtime.sources.pattern:open_pattern", sources.ENTRY_POINTS)
    monkeypatch.setattr(sources.metadata, "entry_points", lambda group: [point] * (group == "edge_mrcnn.sources"))
    assert open_source("three://8x8?name=left").name == "left"
    assert {"one", "two", "three", "file", "rtsp"} <= set(known_schemes())


def test_unknown_schemes_are_told_without_credentials() -> None:
    with pytest.raises(ValueError, match=r"unknown scheme rtmp:// in 'rtmp://\*\*\*@cam/x'; known: bag://, csi://"):
        open_source("rtmp://jane:pa55@cam/x")
