"""ROS 2 on the network: what other programs receive over DDS and over Zenoh, on the loopback interface."""

import importlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_mrcnn import Detections, Frame, StreamError
from edge_mrcnn.runtime.sinks import open_sink

pytest.importorskip("rosbags", reason="rosbags is not installed")

CLASSES = ("__background__", "mug", "bottle")
STAMP_NS = 1_700_000_000_123_456_789
PATIENCE_S = 30.0
LOOPBACK = """<CycloneDDS xmlns="https://cdds.io/config"><Domain id="any">
<General><Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces><AllowMulticast>false</AllowMulticast>
</General><Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>32</MaxAutoParticipantIndex>
<Peers><Peer address="localhost"/></Peers></Discovery></Domain></CycloneDDS>"""


def frame() -> Frame:
    return Frame(np.zeros((48, 64, 3), np.uint8), camera="front", frame_id="front_optical", stamp_ns=STAMP_NS)


def found() -> Detections:
    return Detections(
        xyxy=np.array([[10, 8, 30, 28], [40, 0, 64, 48]], np.float32),
        score=np.array([0.9, 0.6], np.float32),
        class_id=np.array([1, 2], np.int32),
        image_hw=(48, 64),
        mask=np.ones((2, 28, 28), np.float32),
        track_id=np.array([7, 0], np.int32),
    )


class Publishing:
    """Writes a frame into a sink again and again, as a run does."""

    def __init__(self, sink) -> None:
        self._sink, self._over = sink, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._over.is_set():
            self._sink.write(frame(), found())
            time.sleep(0.05)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """DDS on the loopback interface alone, in a domain that no other test uses."""
    pytest.importorskip("cyclonedds", reason="cyclonedds is not installed")
    if sys.platform != "linux":
        pytest.skip("the loopback interface is called lo on Linux only")
    (tmp_path / "cyclonedds.xml").write_text(LOOPBACK)
    monkeypatch.setenv("CYCLONEDDS_URI", f"file://{tmp_path}/cyclonedds.xml")
    return 100 + os.getpid() % 100


@pytest.mark.parametrize("qos", ["reliable", "sensor_data"])
def test_dds_reaches_another_process(loopback: int, qos: str) -> None:
    uri = f"ros2://?domain={loopback}&qos={qos}&image=none"
    with open_sink(uri, class_names=CLASSES) as sink:
        sink.write(frame(), found())  # before anybody listens: the labels are latched
        program = Path(__file__).with_name("subscriber.py")
        command = [sys.executable, str(program), str(loopback), str(PATIENCE_S if qos == "reliable" else 5)]
        with Publishing(sink):
            done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    received = {name: value for line in done.stdout.splitlines() for name, value in json.loads(line).items()}
    assert received["labels"] == {"classes": {"0": "__background__", "1": "mug", "2": "bottle"}}, done.stderr
    stamp = [1_700_000_000, 123_456_789]
    assert received["detections"] == {
        "stamp": stamp,
        "frame_id": "front_optical",
        "boxes": [[20, 18, 20, 20], [52, 24, 24, 48]],
        "classes": ["1", "2"],
        "scores": [0.9, 0.6],
        "ids": ["7", ""],
    }
    if qos == "reliable":
        image = received["instance_map"]
        assert (image["stamp"], image["encoding"]) == (stamp, "mono16")
        assert (image["size"], image["values"]) == ([48, 64, 128, 48 * 64 * 2], [0, 1, 2])
    else:  # a subscriber that wants reliable delivery gets nothing of a publisher that does not offer it
        assert "instance_map" not in received


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_zenoh_as_rmw_zenoh_wants_it() -> None:
    zenoh = pytest.importorskip("zenoh", reason="eclipse-zenoh is not installed")
    extensions = importlib.import_module("zenoh.ext")
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    config = zenoh.Config()
    config.insert_json5("mode", '"router"')
    config.insert_json5("listen/endpoints", f'["{endpoint}"]')
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("timestamping/enabled", "true")
    with (
        zenoh.open(config) as router,
        open_sink(f"ros2://?rmw=zenoh&domain=3&connect={endpoint}&image=none", class_names=CLASSES) as sink,
    ):
        sink.write(frame(), found())  # before anybody listens: the labels are latched
        seen: dict[str, list] = {}
        listening = [
            router.declare_subscriber("3/edge_mrcnn/front/detections/**", lambda one: note(seen, one)),
            extensions.declare_advanced_subscriber(
                router,
                "3/edge_mrcnn/front/labels/**",
                lambda one: note(seen, one),
                history=extensions.HistoryConfig(detect_late_publishers=True),
            ),
        ]
        with Publishing(sink):
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline and not (
                len(seen.get("detections", [])) >= 3 and "labels" in seen and len(tokens(zenoh, router)) >= 4
            ):
                time.sleep(0.02)
        graph = tokens(zenoh, router)
        assert len(listening) == 2
    (key, payload, attachment), (_, _, following) = seen["detections"][:2]
    from edge_mrcnn.runtime.ros.definitions import type_hash, typestore

    kind = "vision_msgs/msg/Detection2DArray"
    assert key == f"3/edge_mrcnn/front/detections/vision_msgs::msg::dds_::Detection2DArray_/{type_hash(kind)}"
    message = typestore().deserialize_cdr(payload, kind)
    assert [one.id for one in message.detections] == ["7", ""]
    assert len(attachment) == 33
    sequence, sent_ns, length = struct.unpack("<qqB", attachment[:17])
    assert length == 16
    assert abs(time.time_ns() - sent_ns) < 60e9
    assert struct.unpack("<q", following[:8]) == (sequence + 1,)
    assert following[17:] == attachment[17:]
    labels = typestore().deserialize_cdr(seen["labels"][0][1], "vision_msgs/msg/LabelInfo")
    assert [one.class_name for one in labels.class_map] == list(CLASSES)
    names = {tuple(token.split("/")[5:]) for token in graph}
    assert ("NN", "%", "%", "edge_mrcnn") in names
    qos = {parts[4].rpartition("%")[2]: parts[-1] for parts in names if parts[0] == "MP"}
    assert qos == {"labels": ":1:,1:,:,:,,", "detections": "::,5:,:,:,,", "instance_map": "::,5:,:,:,,"}


def note(seen: dict[str, list], sample) -> None:
    key = str(sample.key_expr)
    name = key.split("/")[3]
    attachment = bytes(sample.attachment) if sample.attachment is not None else b""
    seen.setdefault(name, []).append((key, bytes(sample.payload), attachment))


def tokens(zenoh, session) -> set[str]:
    """What `ros2 topic list` asks for."""
    return {str(reply.ok.key_expr) for reply in session.liveliness().get("@ros2_lv/3/**") if reply.ok is not None}


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ros2://?rmw=fastdds", "one of dds, zenoh"),
        ("ros2://?domain=one", "domain"),
        ("ros2://?domain=233", "0 to 232"),
        ("ros2://?rmw=zenoh&domain=-1", "from 0"),
        ("ros2://?image=png", "one of compressed, raw, none"),
        ("ros2://?instance_map=yes", "0 or 1"),
        ("ros2://?connect=tcp/robot:7447", "rmw=zenoh"),
        ("ros2://?topic=x", "unknown option 'topic'"),
    ],
)
def test_wrong_options(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_sink(uri)


def test_domain_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "robot")
    with pytest.raises(ValueError, match="ROS_DOMAIN_ID must be a number, got 'robot'"):
        open_sink("ros2://")


def test_closed(loopback: int) -> None:
    with open_sink(f"ros2://?domain={loopback}") as sink:
        pass
    sink.close()
    with pytest.raises(StreamError, match="is closed"):
        sink.write(frame(), found())
