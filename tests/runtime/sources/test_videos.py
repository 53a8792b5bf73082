"""Video files and cameras."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources import files as videos
from edge_mrcnn.runtime.sources.files import DeviceSource, VideoSource


def make_video(path: Path, frames: int = 12, codec: str = "MJPG", fps: float = 25.0) -> Path:
    """A video whose frames get brighter, with red on the left."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (64, 48))
    if not writer.isOpened():
        pytest.skip(f"OpenCV has no {codec} encoder")
    for index in range(frames):
        image = np.full((48, 64, 3), index * 10 % 256, np.uint8)
        image[:, :32] = (0, 0, 200)
        writer.write(image)
    writer.release()
    return path


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "MJPG"), (".mp4", "mp4v"), (".mkv", "mp4v")])
def test_frames(tmp_path: Path, suffix: str, codec: str) -> None:
    with VideoSource(make_video(tmp_path / f"a{suffix}", codec=codec)) as source:
        assert (source.length, source.fps, source.live, source.skipped) == (12, 25.0, False, 0)
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.stamp_source for frame in frames] == ["file"] * 12
    np.testing.assert_allclose([frame.stamp_ns for frame in frames], np.arange(12) * 40_000_000, atol=1_000_000)
    assert frames[5].image.shape == (48, 64, 3)
    red, _, blue = frames[5].image[10, 5]
    assert red > 150  # RGB
    assert blue < 100
    assert abs(int(frames[5].image[10, 60, 0]) - 50) < 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", r"empty \(0 bytes\)"),
        (b"no video at all" * 100, "damaged, or no video.*ffmpeg -i"),
    ],
)
def test_unreadable(tmp_path: Path, content: bytes | None, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a_001.mp4"  # OpenCV would take a numbered name for a sequence of pictures
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StreamError, match=message):
        VideoSource(path)
    assert capfd.readouterr().err == ""


def test_an_mp4_without_its_end_is_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", codec="mp4v")
    path.write_bytes(path.read_bytes()[:-1200])  # the index is at the end
    with pytest.raises(StreamError, match="damaged"):
        VideoSource(path)


def test_a_video_cut_short_gives_what_it_has_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "a.avi", frames=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoSource(path) as source, caplog.at_level(logging.WARNING):
        source.length = 40  # some builds of OpenCV count the frames instead of asking the header
        count = len(list(source))
    assert 5 < count < 35
    assert f"ended after {count} of 40 frames" in caplog.text


def test_closed(tmp_path: Path) -> None:
    source = VideoSource(make_video(tmp_path / "a.avi"))
    source.close()
    source.close()
    with pytest.raises(StreamError, match=r"is closed; open it again: open_source\("):
        list(source)


def test_stamps_never_stand_still() -> None:
    """Some containers give no times: then the rate has to do."""
    source = VideoSource.__new__(VideoSource)
    source.fps = 20.0

    class Capture:
        def get(self, key: int) -> float:
            return 0.0

    source._capture = Capture()
    stamps = [-1]
    for index in range(4):
        stamps.append(source._position_ns(index, stamps[-1]))
    assert stamps[1:] == [0, 50_000_000, 100_000_000, 150_000_000]


def test_missing_camera() -> None:
    with pytest.raises(StreamError, match=r"no camera /dev/video97; cameras here: "):
        DeviceSource("/dev/video97")


def test_a_file_is_no_camera(tmp_path: Path) -> None:
    path = tmp_path / "video0"
    path.write_bytes(b"")
    with pytest.raises(StreamError, match=r"cannot be opened; it may be in use \(fuser -v"):
        DeviceSource(path)


class FakeCamera:
    """Gives three pictures and then no more."""

    def __init__(self) -> None:
        self.wishes: dict[int, float] = {}
        self.left = 3

    def set(self, key: int, value: float) -> bool:
        self.wishes[key] = value
        return True

    def get(self, key: int) -> float:
        return self.wishes.get(key, 0.0)

    def read(self):
        self.left -= 1
        return (True, np.full((4, 6, 3), (255, 0, 0), np.uint8)) if self.left >= 0 else (False, None)

    def release(self) -> None: ...


def test_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = FakeCamera()
    monkeypatch.setattr(videos, "_open_device", lambda path: camera)
    with DeviceSource("/dev/video0", width=640, height=480, fps=30, fourcc="MJPG") as source:
        assert source.fps == 30
        assert source.live
        frames = []
        with pytest.raises(StreamError, match="gave no picture after 3 frames; check the cable"):
            frames.extend(source)
    assert camera.wishes[cv2.CAP_PROP_FRAME_WIDTH] == 640
    assert camera.wishes[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    assert len(frames) == 3
    assert frames[0].image[0, 0].tolist() == [0, 0, 255]
    assert frames[0].stamp_source == "host"
    with pytest.raises(StreamError, match="is closed"):
        next(iter(source))
