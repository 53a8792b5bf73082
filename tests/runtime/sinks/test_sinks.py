"""Sinks: what is written, and that nothing half-written ever stands under a final name."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn import Detections, Frame
from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sinks import FolderSink, JsonLinesSink, PictureSink, open_sink, window
from edge_mrcnn.runtime.sinks import video as recording
from edge_mrcnn.runtime.sinks.video import VideoSink
from edge_mrcnn.runtime.sinks.window import WindowSink
from edge_mrcnn.runtime.sources.files import VideoSource
from edge_mrcnn.runtime.sources.pictures import read_picture

NAMES = ("__background__", "mug")
KINDS = ("out.mp4", "out.mkv", "out.avi", "out.png", "out.jpg", "out.jsonl")


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
    with open_sink(tmp_path / "new" / name, class_names=NAMES) as sink:
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


@pytest.mark.parametrize("name", KINDS[:-1])
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
    kind = {"j": PictureSink, "p": PictureSink}.get(name[4], VideoSink) if name != "out.jsonl" else JsonLinesSink
    with pytest.raises(StreamError, match="a folder of this name is in the way"):
        kind(tmp_path / name)


@pytest.mark.parametrize("uri", ["out.xyz", "kafka://host", "rtsp://host"])
def test_unknown(uri: str) -> None:
    with pytest.raises(ValueError, match=r"unknown sink .*known: out\.mp4 .*window://"):
        open_sink(uri)


DISK_FULL = """
import resource, sys
import numpy as np
from edge_mrcnn import Detections, Frame, StreamError, open_sink
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
rng = np.random.default_rng(0)
found = Detections(np.zeros((50, 4)), np.ones(50), np.ones(50, int), (240, 320))
try:
    with open_sink(sys.argv[1]) as sink:
        for index in range(40):
            sink.write(Frame(rng.integers(0, 256, (240, 320, 3), np.uint8), index=index), found, lambda: rng.integers(
                0, 256, (240, 320, 3), np.uint8))
except StreamError as error:
    print(error)
"""


@pytest.mark.parametrize("name", [*KINDS, "out/"])
def test_full_disk(tmp_path: Path, name: str) -> None:
    """A limit on the size of files stands in for the full disk: the same writes fail in the same calls."""
    result = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path / name) + ("/" if name.endswith("/") else "")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "df -h" in result.stdout
    assert names(tmp_path) == (["out"] if name == "out/" else [])
    assert name != "out/" or names(tmp_path / "out") == []


def test_no_space_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr(recording.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(StreamError, match=r"no space left .*1\.0 MB free"), open_sink(tmp_path / "out.mp4") as sink:
        sink.write(frame(), found())
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.avi"])
def test_video(tmp_path: Path, name: str) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 220
    with open_sink(tmp_path / name, fps=25) as sink:
        for index in range(10):
            sink.write(frame(index=index), found(), red)
    with VideoSource(tmp_path / name) as source:
        assert source.fps == 25
        frames = list(source)
    assert len(frames) == 10
    assert np.abs(frames[4].image.astype(int) - red).mean() < 12  # RGB all the way


@pytest.mark.parametrize("size", [(1, 1), (47, 63), (7, 64)])
def test_videos_of_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    with open_sink(tmp_path / "out.mp4") as sink:
        sink.write(frame(size=size), Detections.empty(size))
    with VideoSource(tmp_path / "out.mp4") as source:
        image = next(iter(source)).image
    assert image.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert np.abs(image.astype(int) - 80).max() < 10  # the added row and column repeat the edge


def test_frames_of_another_size_are_fitted_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), open_sink(tmp_path / "out.avi") as sink:
        for size in ((48, 64), (96, 64), (96, 64)):
            sink.write(frame(200, size), Detections.empty(size))
    with VideoSource(tmp_path / "out.avi") as source:
        first, second, _ = (item.image for item in source)
    assert first.shape == second.shape == (48, 64, 3)
    assert second[:, :12].mean() < 20  # black on both sides
    assert second[:, 52:].mean() < 20
    assert second[:, 20:44].mean() > 180
    assert caplog.text.count("are scaled to fit into it") == 1


def test_video_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(recording.VIDEO_CODECS, ".mp4", ("ZZZZ",))
    with (
        pytest.raises(StreamError, match=r"has no encoder for .*tried ZZZZ\); write pictures instead"),
        open_sink(tmp_path / "out.mp4") as sink,
    ):
        sink.write(frame(), found())
    assert names(tmp_path) == []


def test_videos_write_nothing_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_sink(tmp_path / "out.mp4") as sink:
        sink.write(frame(), found())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("path", "fps"), [("out.gif", None), ("out.mp4", 0)])
def test_wrong_videos(path: str, fps: float | None) -> None:
    with pytest.raises(ValueError, match=r"a video ends in|fps must be positive"):
        VideoSink(path, fps=fps)


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


def test_json_lines(tmp_path: Path) -> None:
    detections = Detections(
        **{name: getattr(found(), name) for name in ("xyxy", "score", "class_id", "image_hw", "mask")},
        keypoints=np.array([[[1.234, 2, 1]]]),
        track_id=np.array([7]),
    )
    with open_sink(tmp_path / "out.jsonl", class_names=NAMES, rle=True) as sink:
        sink.write(frame(index=3), detections)
        sink.write(frame(index=4), Detections.empty((48, 64)))
        assert not sink.wants_picture
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == {
        "source": "clip.mp4",
        "index": 3,
        "stamp_ns": 120,
        "stamp_source": "file",
        "frame_id": "",
        "image_hw": [48, 64],
        "detections": [
            {
                "xyxy": [8.0, 8.0, 40.12, 40.0],
                "score": 0.9123,
                "class_id": 1,
                "class_name": "mug",
                "track_id": 7,
                "keypoints": [[1.23, 2.0, 1.0]],
                "mask": detections.rle()[0],
            }
        ],
    }
    assert second["detections"] == []


def test_json_lines_without_masks_and_names(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.jsonl") as sink:
        sink.write(frame(), found())
    (entry,) = json.loads((tmp_path / "out.jsonl").read_text())["detections"]
    assert set(entry) == {"xyxy", "score", "class_id", "class_name"}
    assert entry["class_name"] is None


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
