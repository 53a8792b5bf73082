"""Video files."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources.files import VideoSource


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
    assert (source.health.frames, source.health.damaged, source.health.state) == (count, 40 - count, "ended")
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
    source.fps, source._by_rate = 20.0, False

    class Capture:
        def get(self, key: int) -> float:
            return 0.0

    source._capture = Capture()
    stamps = [-1]
    for index in range(4):
        stamps.append(source._position_ns(index, stamps[-1]))
    assert stamps[1:] == [0, 50_000_000, 100_000_000, 150_000_000]
