"""Picture files of every kind that cameras, people and full disks leave behind."""

import logging
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources.pictures import PictureSource, read_picture

RNG = np.random.default_rng(0)
IMAGE = cv2.GaussianBlur(RNG.integers(0, 256, (40, 60, 3), np.uint8), (0, 0), 3)
"""RGB."""


def save(path: Path, rgb: np.ndarray = IMAGE) -> Path:
    """Write a picture; channels are turned for OpenCV."""
    order = {2: ..., 3: [2, 1, 0], 4: [2, 1, 0, 3]}[rgb.shape[2] if rgb.ndim == 3 else 2]
    assert cv2.imwrite(str(path), rgb if rgb.ndim == 2 else np.ascontiguousarray(rgb[..., order]))
    return path


def add_exif_orientation(path: Path, orientation: int) -> None:
    """Put an EXIF block with nothing but an orientation into a JPEG."""
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 0x0112, 3, 1, orientation) + struct.pack("<I", 0)
    block = b"Exif\0\0" + tiff
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:])


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG"])
def test_lossless(tmp_path: Path, suffix: str) -> None:
    np.testing.assert_array_equal(read_picture(save(tmp_path / f"a{suffix}")), IMAGE)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy(tmp_path: Path, suffix: str) -> None:
    found = read_picture(save(tmp_path / f"a{suffix}"))
    assert np.abs(found.astype(int) - IMAGE).mean() < 8
    assert found.dtype == np.uint8


def test_grey_becomes_rgb(tmp_path: Path) -> None:
    found = read_picture(save(tmp_path / "a.png", IMAGE[..., 0]))
    np.testing.assert_array_equal(found, np.repeat(IMAGE[..., :1], 3, axis=2))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = np.dstack([IMAGE, RNG.integers(0, 256, IMAGE.shape[:2], np.uint8)])
    np.testing.assert_array_equal(read_picture(save(tmp_path / "a.png", rgba)), IMAGE)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_and_said(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / f"a{suffix}", IMAGE.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(path), IMAGE)
    assert "16 bits" in caplog.text


def test_16_bits_are_said_once_for_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [save(tmp_path / f"{number}.png", IMAGE.astype(np.uint16) * 257) for number in range(3)]
    assert len(list(PictureSource(paths, "x"))) == 3
    assert caplog.text.count("16 bits") == 1


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", IMAGE.astype(np.float32))
    with pytest.raises(StreamError, match=r"float32 pixels.*8 or 16 bits"):
        read_picture(path)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda image: image),
        (3, lambda image: image[::-1, ::-1]),
        (6, lambda image: np.rot90(image, -1)),
        (8, lambda image: np.rot90(image)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, turn) -> None:
    path = save(tmp_path / "a.jpg")
    upright = read_picture(path)
    add_exif_orientation(path, orientation)
    np.testing.assert_array_equal(read_picture(path), turn(upright))


def test_one_pixel(tmp_path: Path) -> None:
    assert read_picture(save(tmp_path / "a.png", IMAGE[:1, :1])).shape == (1, 1, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(tmp_path / f"a{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: max(4, int(len(data) * share))])
    with pytest.raises(StreamError, match=f"a{suffix}.*(cut short|damaged).*again"):
        read_picture(path)


def test_a_jpeg_with_rubbish_behind_it_is_fine(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"trailing metadata of some camera")
    assert read_picture(path).shape == IMAGE.shape


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no picture .*check the path"), (b"", r"empty \(0 bytes\)"), (b"not a picture", "damaged or no picture")],
)
def test_unreadable(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StreamError, match=message):
        read_picture(path)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="cannot read"):
        read_picture(tmp_path)


def test_nothing_of_opencv_reaches_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:500])
    (tmp_path / "b.tif").write_bytes(b"II*\0 nothing of the kind")
    for name in ("a.png", "b.tif"):
        with pytest.raises(StreamError):
            read_picture(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_frames_of_a_source(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{name}.png") for name in "ab"]
    with PictureSource(paths, str(tmp_path)) as source:
        frames = list(source)
        assert len(list(source)) == 2  # again from the start
    assert [frame.source for frame in frames] == [str(path) for path in paths]
    assert [frame.index for frame in frames] == [0, 1]
    assert frames[0].stamp_source == "file"
    assert frames[0].stamp_ns == paths[0].stat().st_mtime_ns
    assert (source.length, source.fps, source.live, source.skipped) == (2, None, False, 0)


def test_bad_ones_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [save(tmp_path / "a.png"), tmp_path / "b.png", save(tmp_path / "c.png")]
    paths[1].write_bytes(b"")
    source = PictureSource(paths, "x")
    with caplog.at_level(logging.WARNING):
        assert [frame.index for frame in source] == [0, 2]
    assert source.skipped == 1
    assert "skipped: picture" in caplog.text
    with pytest.raises(StreamError, match="empty"):
        list(PictureSource(paths, "x", strict=True))


def test_nothing_readable(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(
        StreamError, match=r"none of the 2 pictures of x can be read; the last problem: .*b\.png is empty"
    ):
        list(PictureSource(paths, "x"))
