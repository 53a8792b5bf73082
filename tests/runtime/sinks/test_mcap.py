"""MCAP files, read back by mcap-ros2-support and by rosbags."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn import Detections, Frame, StreamError
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sinks.mcap import McapSink
from edge_mrcnn.runtime.sources import open_source

mcap = pytest.importorskip("mcap.reader", reason="needs edge-mrcnn[ros]")
mcap_ros2 = pytest.importorskip("mcap_ros2.decoder", reason="needs mcap-ros2-support")
rosbags = pytest.importorskip("rosbags.highlevel", reason="needs edge-mrcnn[ros]")

OPTIONS = SinkOptions(class_names=("background", "bolt", "cup"))
TOPICS = ("labels", "detections", "instance_map", "image/compressed")


def frame_of(index: int, camera: str = "front", **more) -> Frame:
    picture = np.full((48, 64, 3), (index % 200, 100, 50), np.uint8)
    stamp = 1_700_000_000_000_000_000 + index * 33_333_333
    return Frame(picture, index=index, camera=camera, **{"stamp_ns": stamp, "stamp_source": "device"} | more)


def detections_of(index: int) -> Detections:
    left = float(index % 20)
    box = [[left, 10, left + 20, 30], [30, 5, 60, 40]]
    mask = np.ones((2, 28, 28), np.float32)
    return Detections(box, [0.9, 0.6], [2, 1], (48, 64), mask=mask, track_id=[5, 0])


def record(path: Path, count: int = 5, cameras: tuple[str, ...] = ("front",), **options) -> None:
    with McapSink(str(path), SinkOptions(class_names=OPTIONS.class_names, **options)) as sink:
        for index in range(count):
            for camera in cameras:
                sink.write(frame_of(index, camera), detections_of(index))


def read_all(path: Path) -> list:
    with path.open("rb") as stream:
        return list(mcap.make_reader(stream, decoder_factories=[mcap_ros2.DecoderFactory()]).iter_decoded_messages())


def test_every_camera_has_its_topics_and_every_frame_its_messages(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.mcap"
    record(path, 5, ("front", "rear"))

    messages = read_all(path)

    counts: dict[str, int] = {}
    for _, channel, _, _ in messages:
        counts[channel.topic] = counts.get(channel.topic, 0) + 1
    expected = {
        f"/edge_mrcnn/{camera}/{topic}": 1 if topic == "labels" else 5
        for camera in ("front", "rear")
        for topic in TOPICS
    }
    assert counts == expected


def test_a_different_library_decodes_what_was_detected(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    record(path)

    by_topic: dict[str, list] = {}
    for schema, channel, message, decoded in read_all(path):
        by_topic.setdefault(channel.topic.removeprefix("/edge_mrcnn/front/"), []).append((schema, message, decoded))

    for index, (schema, message, array) in enumerate(by_topic["detections"]):
        stamp_ns = frame_of(index).stamp_ns
        assert (schema.name, schema.encoding) == ("vision_msgs/msg/Detection2DArray", "ros2msg")
        assert message.publish_time == stamp_ns
        assert message.sequence == index
        assert array.header.stamp.sec * 10**9 + array.header.stamp.nanosec == stamp_ns
        first = array.detections[0]
        assert first.bbox.center.position.x == index + 10
        assert (first.id, first.results[0].hypothesis.class_id) == ("5", "2")
    for index, (_, _, image) in enumerate(by_topic["instance_map"]):
        stored = np.frombuffer(image.data, "<u2").reshape(48, 64)
        np.testing.assert_array_equal(stored, detections_of(index).instance_map())
    labels = by_topic["labels"][0][2]
    assert [entry.class_name for entry in labels.class_map] == ["background", "bolt", "cup"]


def test_rosbags_reads_it_too_with_qos_and_hashes(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    record(path)

    with rosbags.AnyReader([path]) as reader:
        assert reader.message_count == 1 + 3 * 5
        qos = {connection.topic: connection.ext.offered_qos_profiles[0] for connection in reader.connections}
        labels, detections = qos["/edge_mrcnn/front/labels"], qos["/edge_mrcnn/front/detections"]
        assert (labels.durability.name, labels.reliability.name, labels.depth) == ("TRANSIENT_LOCAL", "RELIABLE", 1)
        assert (detections.durability.name, detections.history.name) == ("VOLATILE", "KEEP_LAST")
        connections = [one for one in reader.connections if one.topic.endswith("/detections")]
        _, _, raw = next(iter(reader.messages(connections)))
        decoded = reader.deserialize(raw, connections[0].msgtype)
        assert decoded.detections[1].bbox.size_x == 30


def test_profile_and_type_hashes_are_as_rosbag2_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    record(path)
    with path.open("rb") as stream:
        reader = mcap.make_reader(stream)
        assert reader.get_header().profile == "ros2"
        channels = reader.get_summary().channels.values()
    hashes = {channel.topic: channel.metadata["topic_type_hash"] for channel in channels}
    assert hashes["/edge_mrcnn/front/detections"].startswith("RIHS01_214274120007f4a6")


@pytest.mark.parametrize(
    ("image", "topics"),
    [("none", TOPICS[:3]), ("compressed", TOPICS), ("raw", (*TOPICS[:3], "image"))],
)
def test_pictures_are_written_as_the_uri_says(tmp_path: Path, image: str, topics: tuple[str, ...]) -> None:
    path = tmp_path / "out file.mcap"
    with McapSink(f"mcap://{tmp_path}/out%20file.mcap?image={image}", OPTIONS) as sink:
        sink.write(frame_of(0), detections_of(0))
    assert {channel.topic for _, channel, _, _ in read_all(path)} == {f"/edge_mrcnn/front/{topic}" for topic in topics}


@pytest.mark.parametrize(
    ("query", "named"), [("?image=png", "png"), ("?picture=raw", "picture"), ("?segment_s=0", "segment_s")]
)
def test_unknown_options_are_refused(tmp_path: Path, query: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        McapSink(f"mcap://{tmp_path}/out.mcap{query}", OPTIONS)


def test_files_play_at_their_own_pace_and_cameras_at_that_of_their_arrival(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    before = time.time_ns()
    with McapSink(str(path), OPTIONS) as sink:
        for index in range(3):
            sink.write(frame_of(index, "clip", stamp_ns=index * 10**9, stamp_source="file"), detections_of(index))
        late = frame_of(0, captured_ns=time.monotonic_ns() - 2 * 10**9)  # waited for two seconds inside the run
        sink.write(late, detections_of(0))
    after = time.time_ns()

    times: dict[str, list[int]] = {}
    for _, channel, message, _ in read_all(path):
        if channel.topic.endswith("/detections"):
            times.setdefault(channel.topic.split("/")[2], []).append(message.log_time)

    assert np.diff(times["clip"]).tolist() == [10**9, 10**9]
    assert before <= times["clip"][0] <= after
    assert before - 2 * 10**9 <= times["front"][0] <= after - 2 * 10**9


def test_an_old_file_is_left_alone_until_the_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    path.write_bytes(b"an old recording")
    with McapSink(str(path), OPTIONS):
        pass
    assert path.read_bytes() == b"an old recording"


def test_what_was_recorded_is_kept_when_a_run_fails(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    sink = McapSink(str(path), OPTIONS)
    sink.write(frame_of(0), detections_of(0))
    sink.__exit__(RuntimeError, RuntimeError("elsewhere"), None)
    assert len(read_all(path)) == len(TOPICS)


def test_a_new_file_is_begun_for_every_segment(tmp_path: Path) -> None:
    with McapSink(f"mcap://{tmp_path}/out.mcap?segment_s=1", OPTIONS) as sink:
        sink.write(frame_of(0), detections_of(0))
        sink._file._begin_s -= 1.0  # an hour is not waited for either
        sink.write(frame_of(1), detections_of(1))

    files = sorted(tmp_path.glob("out_*.mcap"))

    assert len(files) == 2
    for path in files:  # each stands for itself, labels and all
        assert {channel.topic for _, channel, _, _ in read_all(path)} == {
            f"/edge_mrcnn/front/{name}" for name in TOPICS
        }


CHILD = """
import sys, time
sys.path[:0] = sys.argv[2:]
from test_mcap import McapSink, OPTIONS, detections_of, frame_of
with McapSink(sys.argv[1], OPTIONS) as sink:
    for index in range(10**6):
        sink.write(frame_of(index), detections_of(index))
        print(index, time.monotonic(), flush=True)
        time.sleep(0.005)
"""


def test_kill_9_leaves_all_but_the_last_second(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    folders = [str(Path(__file__).parent), *filter(None, sys.path)]
    written: dict[int, float] = {}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), *folders], stdout=subprocess.PIPE, text=True
    ) as child:
        for line in child.stdout:
            index, now_s = line.split()
            written[int(index)] = float(now_s)
            if written[int(index)] - written[0] > 2.5:
                os.kill(child.pid, signal.SIGKILL)
                break
    last = max(written)

    kept = [message.sequence for _, channel, message, _ in salvage(path) if channel.topic.endswith("/detections")]

    assert kept == list(range(len(kept)))
    assert written[last] - written[len(kept) - 1] < 1.2
    with open_source(path) as source:  # and we read it as it is
        assert [frame.stamp_ns for frame in source] == [frame_of(index).stamp_ns for index in kept]


def salvage(path: Path) -> list:
    """Read from the front as far as it goes, as `mcap recover` does."""
    found = []
    with path.open("rb") as stream:
        messages = mcap.NonSeekingReader(stream, decoder_factories=[mcap_ros2.DecoderFactory()])
        try:
            for item in messages.iter_decoded_messages(log_time_order=False):
                found.append(item)
        except (mcap.McapError, struct.error):
            return found
    pytest.fail("this file has an end")


def test_a_full_disk_is_an_error_and_keeps_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "out.mcap"
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    sink = McapSink(f"mcap://{path}?image=raw", OPTIONS)

    def fill() -> None:
        for index in range(100):
            sink.write(Frame(noise, index=index, camera="front"), Detections.empty((480, 640), 28))

    # The kernel refuses to write beyond, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, hard))
    try:
        with pytest.raises(StreamError, match=r"cannot write .*out\.mcap.*df -h"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(StreamError, match="closed"):
        sink.write(frame_of(0), detections_of(0))
    sink.close()

    pictures = [message for _, channel, message, _ in salvage(path) if channel.topic.endswith("/image")]

    assert len(pictures) > 10  # of 0.9 MB each


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "out.mcap").mkdir()
    with pytest.raises(StreamError, match="folder of this name"):
        McapSink(str(tmp_path / "out.mcap"), OPTIONS)


def test_a_closed_sink_is_closed(tmp_path: Path) -> None:
    sink = McapSink(str(tmp_path / "out.mcap"), OPTIONS)
    sink.close()
    sink.close()
    with pytest.raises(StreamError, match="closed"):
        sink.write(frame_of(0), detections_of(0))
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    frame, nothing = Frame(noise, camera="front"), Detections.empty((480, 640), 28)
    with McapSink(f"mcap://{tmp_path}/out.mcap?image=raw", OPTIONS) as sink:
        for _ in range(10):
            sink.write(frame, nothing)
        tracemalloc.start()
        try:
            for _ in range(60):  # 92 MB
                sink.write(frame, nothing)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 50e6
    assert (tmp_path / "out.mcap").stat().st_size > 60e6
