"""Bags of ROS 1 and ROS 2 and MCAP files as sources; made by rosbags, or by our own recordings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mrcnn import Detections, StreamError
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sources import open_source

pytest.importorskip("mcap", reason="needs edge-mrcnn[ros]")
rosbag1 = pytest.importorskip("rosbags.rosbag1", reason="needs edge-mrcnn[ros]")
rosbag2 = pytest.importorskip("rosbags.rosbag2", reason="needs edge-mrcnn[ros]")
typesys = pytest.importorskip("rosbags.typesys", reason="needs edge-mrcnn[ros]")

ROS1 = typesys.get_typestore(typesys.Stores.ROS1_NOETIC)
ROS2 = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
START_NS = 1_600_000_000_000_000_000
PERIOD_NS = 50_000_000
PICTURE = np.random.default_rng(3).integers(0, 255, (6, 4, 3), np.uint8).repeat(8, 0).repeat(16, 1)  # (48, 64, 3)
HEIGHT, WIDTH = PICTURE.shape[:2]
MATRIX = np.array([[60.0, 0, 32], [0, 61.0, 24], [0, 0, 1]])


class Bag:
    """Collects messages and writes them as a bag of any kind."""

    def __init__(self, ros1: bool = False) -> None:
        self.store = ROS1 if ros1 else ROS2
        self.ros1 = ros1
        self.messages: list[tuple[str, str, int, bytes]] = []

    def add(
        self, topic: str, kind: str, index: int, *, delay_ns: int = 0, stamp_ns: int | None = None, **values: Any
    ) -> None:
        types = self.store.types
        stamp = START_NS + index * PERIOD_NS if stamp_ns is None else stamp_ns
        time = types["builtin_interfaces/msg/Time"](*divmod(stamp, 10**9))
        counter = {"seq": index} if self.ros1 else {}
        header = types["std_msgs/msg/Header"](**counter, stamp=time, frame_id="optical")
        name = f"sensor_msgs/msg/{kind}"
        message = types[name](header=header, **values)
        data = self.store.serialize_ros1(message, name) if self.ros1 else self.store.serialize_cdr(message, name)
        self.messages.append((topic, name, START_NS + index * PERIOD_NS + delay_ns, bytes(data)))

    def image(
        self, topic: str, index: int, pixels: Any = PICTURE, encoding: str = "rgb8", pad: int = 0, **more: Any
    ) -> None:
        pixels = np.asarray(pixels)
        rows = pixels.reshape(pixels.shape[0], -1).view(np.uint8)
        padded = np.pad(rows, ((0, 0), (0, pad)), constant_values=77)
        height = pixels.shape[0] * 2 // 3 if encoding == "nv12" else pixels.shape[0]
        values = {"height": height, "width": pixels.shape[1], "encoding": encoding, "step": padded.shape[1]}
        self.add(topic, "Image", index, **values, **{"is_bigendian": 0} | more, data=padded.reshape(-1))

    def info(self, topic: str, index: int, d: Any = (), size: tuple[int, int] = (HEIGHT, WIDTH), **more: Any) -> None:
        projection = np.hstack([MATRIX + np.diag([1.0, 1.0, 0]), np.zeros((3, 1))])
        lens = {
            "d": np.array(d, float),
            "k": MATRIX.reshape(-1),
            "r": np.eye(3).reshape(-1),
            "p": projection.reshape(-1),
        }
        lens = {name.upper() if self.ros1 else name: value for name, value in lens.items()}
        roi = self.store.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        values = {"height": size[0], "width": size[1], "distortion_model": "plumb_bob", "binning_x": 0, "binning_y": 0}
        self.add(topic, "CameraInfo", index, **values, **lens, roi=roi, **more)

    def write(self, path: Path, storage: str = "MCAP") -> Path:
        if self.ros1:
            writer = rosbag1.Writer(path)
        else:
            writer = rosbag2.Writer(path, version=8, storage_plugin=rosbag2.StoragePlugin[storage])
        with writer:
            known = {}
            for topic, name, log_ns, data in sorted(self.messages, key=lambda message: message[2]):
                if topic not in known:
                    known[topic] = writer.add_connection(topic, name, typestore=self.store)
                writer.write(known[topic], log_ns, data)
        return path


@pytest.fixture(params=["ros1", "sqlite3", "mcap folder", "mcap file"])
def any_bag(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Bag, Any]:
    """A bag and what writes it, for each kind of bag."""
    bag = Bag(ros1=request.param == "ros1")

    def write() -> Path:
        if request.param == "ros1":
            return bag.write(tmp_path / "drive.bag")
        folder = bag.write(tmp_path / "drive", "SQLITE3" if request.param == "sqlite3" else "MCAP")
        return next(folder.glob("*.mcap")) if request.param == "mcap file" else folder

    return bag, write


def test_every_kind_of_bag_gives_pictures_stamps_and_intrinsics(any_bag: tuple[Bag, Any]) -> None:
    bag, write = any_bag
    for index in range(4):
        bag.image("/front/image_rect", index, np.roll(PICTURE, index, 1))
        bag.info("/front/camera_info", index, d=[0.1, 0, 0, 0, 0])

    with open_source(write()) as source:
        assert (source.length, source.live, source.name) == (4, False, "front")
        assert source.fps == pytest.approx(20, rel=0.01)
        frames = list(source)
        assert source.health.state == "ended"
        assert (source.health.frames, source.skipped) == (4, 0)

    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, np.roll(PICTURE, index, 1))
        assert (frame.stamp_ns, frame.stamp_source) == (START_NS + index * PERIOD_NS, "sender")
        assert (frame.index, frame.frame_id, frame.camera) == (index, "optical", "front")
        np.testing.assert_array_equal(frame.intrinsics, MATRIX + np.diag([1.0, 1.0, 0]))  # P: the picture is rectified


def test_a_second_loop_begins_again(any_bag: tuple[Bag, Any]) -> None:
    bag, write = any_bag
    for index in range(3):
        bag.image("/front/image_raw", index)
    with open_source(write()) as source:
        assert [frame.index for frame in source] == [0, 1, 2]
        assert [frame.index for frame in source] == [0, 1, 2]


def as_is(code: int) -> Any:
    return lambda picture: cv2.cvtColor(picture, code)


def nv12(picture: Any) -> Any:
    planar = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
    return np.vstack([planar[:HEIGHT], planar[HEIGHT:].reshape(2, -1).T.reshape(HEIGHT // 2, WIDTH)])


def packed_422(luma_first: bool) -> Any:
    """Two bytes a pixel: luma, and U and V in turn."""

    def convert(picture: Any) -> Any:
        luma, u, v = (plane[:, :] for plane in np.moveaxis(nv12_planes(picture), 2, 0))
        chroma = np.where(np.arange(WIDTH) % 2 == 0, u, v)
        return np.stack([luma, chroma] if luma_first else [chroma, luma], axis=2)

    return convert


def nv12_planes(picture: Any) -> Any:
    planar = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
    u, v = planar[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
    return np.stack([planar[:HEIGHT], u.repeat(2, 0).repeat(2, 1), v.repeat(2, 0).repeat(2, 1)], axis=2)


def bayer(first: str) -> Any:
    """Every pixel keeps the channel that its filter lets through."""

    def convert(picture: Any) -> Any:
        out = np.empty((HEIGHT, WIDTH), np.uint8)
        for place, channel in enumerate(first):
            row, column = divmod(place, 2)
            out[row::2, column::2] = picture[row::2, column::2, "rgb".index(channel)]
        return out

    return convert


@pytest.mark.parametrize("pad", [0, 12])
@pytest.mark.parametrize(
    ("encoding", "convert"),
    [
        ("rgb8", lambda picture: picture),
        ("bgr8", as_is(cv2.COLOR_RGB2BGR)),
        ("8UC3", as_is(cv2.COLOR_RGB2BGR)),
        ("rgba8", as_is(cv2.COLOR_RGB2RGBA)),
        ("bgra8", as_is(cv2.COLOR_RGB2BGRA)),
        ("nv12", nv12),
        ("yuv422", packed_422(luma_first=False)),
        ("yuv422_yuy2", packed_422(luma_first=True)),
        ("bayer_rggb8", bayer("rggb")),
        ("bayer_bggr8", bayer("bggr")),
        ("bayer_gbrg8", bayer("gbrg")),
        ("bayer_grbg8", bayer("grbg")),
    ],
)
def test_colours_of_every_encoding(tmp_path: Path, encoding: str, convert: Any, pad: int) -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, : WIDTH // 2], picture[:, WIDTH // 2 :] = (200, 90, 40), (30, 70, 180)
    bag = Bag()
    bag.image("/front/image_raw", 0, convert(picture), encoding, pad)

    (frame,) = open_source(bag.write(tmp_path / "bag"))

    assert frame.image_hw == (HEIGHT, WIDTH)
    assert frame.pixel_format == ("nv12" if encoding == "nv12" else "rgb")
    inner = frame.image[4:-4, 4 : WIDTH // 2 - 4].astype(int)
    np.testing.assert_allclose(inner, np.broadcast_to((200, 90, 40), inner.shape), atol=4)
    inner = frame.image[4:-4, WIDTH // 2 + 4 : -4].astype(int)
    np.testing.assert_allclose(inner, np.broadcast_to((30, 70, 180), inner.shape), atol=4)


@pytest.mark.parametrize("big", [0, 1])
def test_grey_of_8_and_16_bits(tmp_path: Path, big: int) -> None:
    grey = PICTURE[:, :, 0]
    deep = (grey.astype(np.uint16) << 8 | 0x5A).astype(">u2" if big else "<u2")
    bag = Bag()
    bag.image("/a/image", 0, grey, "mono8")
    bag.image("/b/image", 0, deep, "mono16", is_bigendian=big)
    path = bag.write(tmp_path / "bag")
    for topic in ("/a/image", "/b/image"):
        (frame,) = open_source(f"bag://{path}?topic={topic}")
        np.testing.assert_array_equal(frame.image, grey[:, :, None].repeat(3, 2))


@pytest.mark.parametrize(("suffix", "tolerance"), [(".jpg", 40), (".png", 0)])
def test_compressed_pictures(tmp_path: Path, suffix: str, tolerance: int) -> None:
    bag = Bag()
    _, data = cv2.imencode(suffix, PICTURE[:, :, ::-1])
    bag.add(
        "/front/image_raw/compressed", "CompressedImage", 0, format="rgb8; jpeg compressed bgr8", data=data.reshape(-1)
    )
    (frame,) = open_source(bag.write(tmp_path / "bag"))
    assert frame.camera == "front"
    assert np.abs(frame.image.astype(int) - PICTURE.astype(int)).mean() <= tolerance / 4


@pytest.mark.parametrize("depth_first", [True, False])
@pytest.mark.parametrize(("encoding", "unit"), [("16UC1", 1000), ("32FC1", 1)])
def test_depth_of_the_same_moment_comes_with_the_picture(
    tmp_path: Path, encoding: str, unit: int, depth_first: bool
) -> None:
    bag = Bag()
    for index in range(5):
        bag.image("/front/image_raw", index, delay_ns=1000)
        if index != 2:  # a depth picture is missing
            depth = np.full((HEIGHT, WIDTH), (1.5 + index) * unit, np.uint16 if unit == 1000 else np.float32)
            delay = 0 if depth_first else 30_000_000
            bag.image(
                "/front/depth", index, depth, encoding, delay_ns=delay, stamp_ns=START_NS + index * PERIOD_NS + 4000
            )
        bag.info("/front/camera_info", index, delay_ns=2000)

    frames = list(open_source(f"bag://{bag.write(tmp_path / 'bag')}?topic=/front/image_raw&depth=/front/depth"))

    assert [frame.index for frame in frames] == list(range(5))
    assert [None if frame.depth_m is None else float(frame.depth_m[0, 0]) for frame in frames] == [
        1.5,
        2.5,
        None,
        4.5,
        5.5,
    ]
    assert all(frame.intrinsics is not None for frame in frames)


def test_depth_and_matrix_of_another_size_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bag = Bag()
    for index in range(3):
        bag.image("/front/image_raw", index)
        bag.image("/front/depth", index, np.ones((HEIGHT // 2, WIDTH // 2), np.float32), "32FC1")
        bag.info("/front/camera_info", index, size=(2 * HEIGHT, 2 * WIDTH))
    path = bag.write(tmp_path / "bag")

    with caplog.at_level(logging.WARNING):
        frames = list(open_source(f"bag://{path}?topic=/front/image_raw&depth=/front/depth"))

    assert [(frame.depth_m, frame.intrinsics) for frame in frames] == [(None, None)] * 3
    assert len([record for record in caplog.records if "said once" in record.message]) == 2


def test_the_matrix_of_pictures_that_are_not_rectified_is_k(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bag = Bag()
    bag.image("/front/image_raw", 0)
    bag.info("/front/camera_info", 1, d=[0.2, 0, 0, 0, 0])  # recorded after the picture
    (frame,) = open_source(bag.write(tmp_path / "bag"))
    np.testing.assert_array_equal(frame.intrinsics, MATRIX)
    assert "not rectified" in caplog.text


def test_several_cameras_have_to_be_chosen_from(tmp_path: Path) -> None:
    bag = Bag()
    for camera in ("front", "rear"):
        bag.image(f"/{camera}/image_raw", 0)
    bag.image("/front/depth/image_raw", 0, np.ones((HEIGHT, WIDTH), np.float32), "32FC1")
    path = bag.write(tmp_path / "bag")

    with pytest.raises(StreamError, match=r"2 cameras; choose one: bag://.*topic=/front/image_raw .*/rear/image_raw"):
        open_source(path)
    with open_source(f"bag://{path}?topic=/rear/image_raw&name=Back&frame_id=back_optical") as source:
        (frame,) = source
    assert (frame.camera, frame.frame_id) == ("back", "back_optical")


def test_the_raw_picture_is_taken_where_both_are_there(tmp_path: Path) -> None:
    bag = Bag()
    _, data = cv2.imencode(".jpg", PICTURE[:, :, ::-1])
    bag.add("/front/image_raw/compressed", "CompressedImage", 0, format="jpeg", data=data.reshape(-1))
    bag.image("/front/image_raw", 0)
    (frame,) = open_source(bag.write(tmp_path / "bag"))
    np.testing.assert_array_equal(frame.image, PICTURE)


def test_a_bag_without_pictures_lists_its_topics(tmp_path: Path) -> None:
    bag = Bag()
    bag.info("/front/camera_info", 0)
    path = bag.write(tmp_path / "bag")
    with pytest.raises(
        StreamError, match=r"no pictures; its topics: /front/camera_info \(sensor_msgs/msg/CameraInfo\)"
    ):
        open_source(path)
    with pytest.raises(StreamError, match=r"no topic /front/image of .*its topics: /front/camera_info"):
        open_source(f"bag://{path}?topic=/front/image")


def test_damaged_messages_are_skipped_and_counted(any_bag: tuple[Bag, Any], caplog: pytest.LogCaptureFixture) -> None:
    bag, write = any_bag
    for index in range(4):
        bag.image("/front/image_raw", index)
    topic, name, log_ns, data = bag.messages[1]
    bag.messages[1] = (topic, name, log_ns, data[: len(data) // 2])
    bag.image("/front/image_raw", 4, encoding="h265")

    with open_source(write()) as source:
        stamps = [frame.stamp_ns for frame in source]
        assert (source.skipped, source.health.damaged, source.health.frames) == (2, 2, 3)

    assert stamps == [START_NS + index * PERIOD_NS for index in (0, 2, 3)]
    assert "'h265' are not known" in caplog.text


def test_a_bag_of_damaged_pictures_is_an_error(tmp_path: Path) -> None:
    bag = Bag()
    bag.image("/front/image_raw", 0, encoding="rgb8")
    topic, name, log_ns, data = bag.messages[0]
    bag.messages[0] = (topic, name, log_ns, data[:100])
    path = bag.write(tmp_path / "bag")
    with (
        open_source(f"bag://{path}?topic=/front/image_raw") as source,
        pytest.raises(StreamError, match="not one picture"),
    ):
        list(source)


def mcap_of(path: Path, count: int = 40) -> Path:
    """An MCAP file of several chunks, with their checksums."""
    from mcap.writer import CompressionType, Writer

    bag = Bag()
    noise = np.random.default_rng(1).integers(0, 255, (120, 160, 3), np.uint8)
    for index in range(count):
        bag.image("/front/image_raw", index, np.roll(noise, index, 1))
    writer = Writer(str(path), chunk_size=200_000, compression=CompressionType.LZ4)
    writer.start("ros2")
    schema = writer.register_schema("sensor_msgs/msg/Image", "ros2msg", b"")
    channel = writer.register_channel("/front/image_raw", "cdr", schema)
    for _, _, log_ns, data in bag.messages:
        writer.add_message(channel, log_ns, data, log_ns)
    writer.finish()
    return path


def test_a_file_that_was_cut_off_is_read_up_to_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = mcap_of(tmp_path / "drive.mcap")
    whole = len(list(open_source(path)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])

    with open_source(path) as source:
        indices = [frame.index for frame in source]
        assert source.health.damaged == 0

    assert whole == 40
    assert indices == list(range(len(indices)))
    assert 10 <= len(indices) < 40
    assert "was not finished" in caplog.text


def test_a_damaged_chunk_costs_that_chunk_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = mcap_of(tmp_path / "drive.mcap")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(data)

    with open_source(path) as source:
        stamps = [frame.stamp_ns for frame in source]
        assert source.skipped == 1

    assert 10 <= len(stamps) < 40
    assert stamps[-1] == START_NS + 39 * PERIOD_NS  # what comes after it is there
    assert "chunk" in caplog.text


@pytest.mark.parametrize("name", ["drive.mcap", "drive.bag", "drive.db3"])
def test_other_files_under_such_a_name_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"something else" * 100)
    with pytest.raises(StreamError, match=name.replace(".", r"\.")):
        open_source(path)
    with pytest.raises(StreamError, match="there is no"):
        open_source(tmp_path / f"missing_{name}")


def test_a_bag_played_live_keeps_its_pace(tmp_path: Path) -> None:
    bag = Bag()
    for index in range(4):
        bag.image("/front/image_raw", index)
    with open_source(f"bag://{bag.write(tmp_path / 'bag')}?live=1&drop=never") as source:
        assert source.live
        received = [frame.captured_ns for frame in source]
    assert received[-1] - received[0] >= 0.9 * 3 * PERIOD_NS


def test_what_we_record_is_a_source_again(tmp_path: Path) -> None:
    from edge_mrcnn.runtime.sinks.mcap import McapSink

    path = tmp_path / "out.mcap"
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    with open_source(f"test://{WIDTH}x{HEIGHT}?frames=6&name=front") as frames:
        originals = list(frames)
    with McapSink(f"mcap://{path}?image=raw", SinkOptions()) as sink:
        for frame in originals:
            known = type(frame)(**{**frame.__dict__, "intrinsics": MATRIX, "depth_m": depth})
            sink.write(known, Detections.empty((HEIGHT, WIDTH), 28))

    with open_source(path) as source:
        again = list(source)

    assert [frame.camera for frame in again] == ["front"] * 6
    for frame, original in zip(again[1:], originals[1:], strict=True):
        np.testing.assert_array_equal(frame.image, original.image)
        np.testing.assert_array_equal(frame.intrinsics, MATRIX)
        assert frame.stamp_ns == original.stamp_ns


def test_a_closed_bag_is_closed(tmp_path: Path) -> None:
    bag = Bag()
    bag.image("/front/image_raw", 0)
    source = open_source(bag.write(tmp_path / "bag"))
    source.close()
    source.close()
    with pytest.raises(StreamError, match="closed"):
        next(iter(source))
