"""Sinks: how they are found, pictures, which appear when they are whole, and windows."""

import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn import Detections, Frame
from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime import sinks
from edge_mrcnn.runtime.sinks import Sink, SinkOptions, open_sink, register_sink, window
from edge_mrcnn.runtime.sinks.pictures import FolderSink, PictureSink
from edge_mrcnn.runtime.sinks.video import VideoSink
from edge_mrcnn.runtime.sinks.window import WindowSink
from edge_mrcnn.runtime.sources.pictures import read_picture

KINDS = ("out.png", "out.jpg")
NO_ROOM = "cannot write .*(No space left on device|File too large); .*df -h"


def frame(level: int = 80, size: tuple[int, int] = (48, 64), index: int = 0, source: str = "clip.mp4") -> Frame:
    return Frame(
        np.full((*size, 3), level, np.uint8), source=source, index=index, stamp_ns=index * 40, stamp_source="file"
    )


def found(size: tuple[int, int] = (48, 64)) -> Detections:
    return Detections(np.array([[8, 8, 40.123, 40]]), np.array([0.91234]), np.array([1]), size, np.ones((1, 28, 28)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and_raise(path: Path, error: BaseException, times: int = 1) -> None:
    with open_sink(path) as sink:
        for _ in range(times):
            sink.write(frame(), found())
        raise error


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_under_their_name(tmp_path: Path, name: str) -> None:
    with open_sink(tmp_path / "new" / name) as sink:
        sink.write(frame(), found())
        assert not (tmp_path / "new" / name).exists()
    assert names(tmp_path / "new") == [name]
    sink.close()
    with pytest.raises(StreamError, match="is closed"):
        sink.write(frame(), found())


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_left_after_an_exception(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("of an earlier run")
    with pytest.raises(RuntimeError, match="elsewhere"):
        write_and_raise(tmp_path / name, RuntimeError("elsewhere"))
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "of an earlier run"


@pytest.mark.parametrize("name", KINDS)
def test_an_interrupted_run_is_finished_and_kept(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(tmp_path / name, KeyboardInterrupt())
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", KINDS)
def test_no_frames_no_file(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), open_sink(tmp_path / name):
        pass
    assert names(tmp_path) == []
    assert "no frame came" in caplog.text


@pytest.mark.parametrize("name", KINDS)
def test_unwritable(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamError, match=r"cannot write .*check the folder's permissions and free space: df -h"):
        open_sink(tmp_path / "file" / name)
    (tmp_path / name).mkdir()
    with pytest.raises(StreamError, match="a folder of this name is in the way"):
        PictureSink(tmp_path / name)


@pytest.mark.parametrize("name", KINDS)
def test_full_disk(small_disk: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    with pytest.raises(StreamError, match=NO_ROOM), open_sink(small_disk / name) as sink:
        sink.write(frame(), found(), noise)
    assert names(small_disk) == []


def test_full_disk_leaves_whole_pictures(small_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    with open_sink(f"{small_disk}/out/") as sink:
        sink.write(frame(index=1), found(), noise[:100])
        with pytest.raises(StreamError, match=NO_ROOM):
            sink.write(frame(index=2), found(), noise)
    assert names(small_disk / "out") == ["clip_000001.jpg"]
    assert read_picture(small_disk / "out" / "clip_000001.jpg").shape == (100, 2000, 3)


@pytest.mark.parametrize("uri", ["out.xyz", "kafka://host", "rtsp://user:pa55@host", "file:///tmp/out.xyz"])
def test_unknown(uri: str) -> None:
    with pytest.raises(ValueError, match=r"unknown sink .*known: out\.mkv .*window://.*ros2://") as caught:
        open_sink(uri)
    assert "pa55" not in str(caught.value)


def test_avi_is_no_more() -> None:
    with pytest.raises(ValueError, match=r"unknown sink 'out\.avi'; AVI knows no times .*take \.mkv"):
        open_sink("out.avi")


def test_kinds_are_found_by_scheme_and_suffix(tmp_path: Path) -> None:
    assert isinstance(open_sink(tmp_path / "OUT.PNG"), PictureSink)
    assert isinstance(open_sink(f"file://{tmp_path}/a%20b.MKV"), VideoSink)
    for module in {opener.partition(":")[0] for opener in sinks._OPENERS.values() if isinstance(opener, str)}:
        known = {"ros2"}  # comes last
        assert module in known or (Path(sinks.__file__).parent / f"{module}.py").exists(), module


def test_options_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, SinkOptions]] = []

    def note(path: str, options: SinkOptions) -> Sink:
        seen.append((path, options))
        return FolderSink(tmp_path)

    monkeypatch.setitem(sinks._OPENERS, ".csv", note)
    open_sink("file:///a%20b/out.csv?rle=1&segment_s=60&mask_threshold=0.4", class_names=("mug",), fps=5)
    assert seen == [("/a b/out.csv", SinkOptions(("mug",), 5, True, 0.4, None, 60))]
    for query, message in {
        "rle=yes": "expected 0 or 1",
        "color=red": "unknown option 'color'.*known: fps, segment_s",
        "fps=0": "fps of a video must be positive",
        "segment_s=0.5": "segment_s must be at least 1",
        "mask_threshold=2": "mask_threshold must be from 0 to 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            open_sink(f"file:///out.csv?{query}")


def test_others_add_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_OPENERS", dict(sinks._OPENERS))
    made = FolderSink(tmp_path)
    register_sink("MQTT", lambda uri, options: made)
    assert open_sink("mqtt://broker/topic") is made
    register_sink(".csv", lambda path, options: made)
    assert open_sink("out.csv") is made


def test_installed_packages_add_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip installs them: a folder on the path with entry points in its metadata."""
    (tmp_path / "more_sinks.py").write_text("def open_it(uri, options):\n    return [uri, options.fps]\n")
    metadata = tmp_path / "more_sinks-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: more-sinks\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[edge_mrcnn.sinks]\nkafka = more_sinks:open_it\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_sink("kafka://host/topic", fps=5) == ["kafka://host/topic", 5]
    with pytest.raises(ValueError, match=r"unknown sink 'smoke://'; known: .*ros2://, kafka"):
        open_sink("smoke://")


def test_folder(tmp_path: Path) -> None:
    with open_sink(f"{tmp_path}/out/") as sink:
        sink.write(frame(source="a/shot.png"), found())
        sink.write(frame(source="b/shot.jpg"), found())
        sink.write(frame(source="clip.mp4", index=12), found())
        sink.write(frame(source="test://64x48?seed=1", index=3), found())
        sink.write(frame(source=""), found())
    assert names(tmp_path / "out") == [
        "64x48_000003.jpg",
        "clip_000012.jpg",
        "frame_000000.jpg",
        "shot.jpg",
        "shot_2.jpg",
    ]
    assert isinstance(open_sink(tmp_path / "no_suffix"), FolderSink)
    assert isinstance(open_sink(tmp_path), FolderSink)


def test_picture(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with open_sink(tmp_path / "out.png") as sink:
        sink.write(frame(), found(), picture)
    np.testing.assert_array_equal(read_picture(tmp_path / "out.png"), picture)
    with pytest.raises(StreamError, match=r"holds one picture, but a second frame came; .*--to .*/two/"):
        write_and_raise(tmp_path / "two.png", KeyboardInterrupt(), times=2)
    assert names(tmp_path) == ["out.png"]


def test_window_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", "")
    with pytest.raises(StreamError, match=r"no screen .*--to out\.mp4"):
        open_sink("window://")
    for display in (":9173", "localhost:9173.0", "nonsense"):
        monkeypatch.setenv("DISPLAY", display)
        with pytest.raises(StreamError, match=f"no X server answers at DISPLAY={display}"):
            open_sink("window://")


class FakeWindows:
    """OpenCV's windows, as far as they are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[np.ndarray] = []
        self.key = -1
        self.visible = 1.0
        monkeypatch.setattr(window, "_check_screen", lambda: None)
        for name in ("namedWindow", "resizeWindow", "destroyAllWindows"):
            monkeypatch.setattr(cv2, name, lambda *arguments: None)
        monkeypatch.setattr(cv2, "imshow", lambda title, image: self.shown.append(image))
        monkeypatch.setattr(cv2, "waitKey", lambda delay: self.key)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda title, key: self.visible)


@pytest.mark.parametrize(("key", "visible"), [(ord("q"), 1.0), (27, 1.0), (-1, 0.0)])
def test_window(monkeypatch: pytest.MonkeyPatch, key: int, visible: float) -> None:
    windows = FakeWindows(monkeypatch)
    with open_sink("window://camera") as sink:
        assert isinstance(sink, WindowSink)
        sink.write(frame(), found(), np.full((48, 64, 3), (255, 0, 0), np.uint8))
        assert not sink.wants_stop
        assert windows.shown[0][0, 0].tolist() == [0, 0, 255]
        windows.key, windows.visible = key, visible
        sink.write(frame(), found())
        assert sink.wants_stop
    sink.close()


def test_opencv_without_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "_check_screen", lambda: None)

    def refuse(*arguments: object) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(StreamError, match="built without windows; install opencv-python"):
        open_sink("window://")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StreamError, match="Permission denied"):
        open_sink(tmp_path / "locked" / "out.mp4")
