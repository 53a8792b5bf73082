"""The ROS 2 package: messages in, messages out, and that it installs. rclpy is not here: the node itself is not run."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="rosbags is not installed")

from edge_mrcnn import Detections
from edge_mrcnn.runtime.ros.definitions import typestore
from edge_mrcnn.runtime.ros.messages import MessageOptions

PACKAGE = Path(__file__).parents[1] / "samples" / "ros2"
STAMP_NS = 1_700_000_000_500_000_000


def load() -> ModuleType:
    path = PACKAGE / "edge_mrcnn_ros" / "translation.py"
    spec = importlib.util.spec_from_file_location("edge_mrcnn_ros_translation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def header(stamp_ns: int) -> Any:
    types = typestore().types
    stamp = types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, 10**9))
    return types["std_msgs/msg/Header"](stamp, "front_optical")


def image(pixels: np.ndarray, encoding: str, stamp_ns: int = STAMP_NS) -> bytes:
    height, width = pixels.shape[:2]
    message = typestore().types["sensor_msgs/msg/Image"](
        header(stamp_ns), height, width, encoding, 0, pixels.nbytes // height, pixels.reshape(-1).view(np.uint8)
    )
    return bytes(typestore().serialize_cdr(message, "sensor_msgs/msg/Image"))


def camera_info(matrix: np.ndarray, image_hw: tuple[int, int]) -> bytes:
    types = typestore().types
    message = types["sensor_msgs/msg/CameraInfo"](
        header=header(STAMP_NS),
        height=image_hw[0],
        width=image_hw[1],
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=matrix.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=np.hstack([matrix, np.zeros((3, 1))]).reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
    )
    return bytes(typestore().serialize_cdr(message, "sensor_msgs/msg/CameraInfo"))


def found() -> Detections:
    box, mask = np.array([[10, 8, 30, 28]], np.float32), np.ones((1, 28, 28), np.float32)
    return Detections(box, np.array([0.9]), np.array([1]), (48, 64), mask, track_id=np.array([5]))


@pytest.fixture
def translator() -> Any:
    return load().Translator(("__background__", "mug"), "front", options=MessageOptions(image="none"))


def test_pictures_in_detections_out(translator: Any) -> None:
    bgr = np.zeros((48, 64, 3), np.uint8)
    bgr[..., 0] = 200
    frame = translator.frame(image(bgr, "bgr8"))
    assert (frame.image == (0, 0, 200)).all()
    assert (frame.stamp_ns, frame.stamp_source, frame.frame_id) == (STAMP_NS, "sender", "front_optical")
    sent = {message.topic: message for message in translator.messages(frame, found())}
    assert set(sent) == {f"/edge_mrcnn/front/{name}" for name in ("labels", "detections", "instance_map")}
    message = sent["/edge_mrcnn/front/detections"]
    array = typestore().deserialize_cdr(message.data, message.type_name)
    assert (array.header.stamp.sec, array.header.stamp.nanosec) == divmod(STAMP_NS, 10**9)
    assert array.header.frame_id == "front_optical"
    assert [(one.id, one.results[0].hypothesis.class_id) for one in array.detections] == [("5", "1")]
    again = {message.topic for message in translator.messages(frame, found())}
    assert again == {f"/edge_mrcnn/front/{name}" for name in ("detections", "instance_map")}  # labels are latched


def test_depth_makes_boxes_in_space(translator: Any) -> None:
    matrix = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    translator.take_lens(camera_info(matrix, (48, 64)))
    translator.take_depth(image(np.full((48, 64), 800, np.uint16), "16UC1", STAMP_NS - 20_000_000))
    frame = translator.frame(image(np.zeros((48, 64, 3), np.uint8), "rgb8"))
    assert frame.depth_m is not None
    assert frame.depth_m[0, 0] == pytest.approx(0.8)
    sent = {message.topic: message for message in translator.messages(frame, found())}
    message = sent["/edge_mrcnn/front/detections_3d"]
    box = typestore().deserialize_cdr(message.data, message.type_name).detections[0].bbox
    assert box.center.position.z == pytest.approx(0.8, abs=0.01)
    assert box.center.position.x == pytest.approx((20 - 32) / 50 * 0.8, abs=0.02)


def test_depth_that_does_not_belong_is_left_out(translator: Any) -> None:
    picture = image(np.zeros((48, 64, 3), np.uint8), "rgb8")
    translator.take_depth(image(np.full((48, 64), 800, np.uint16), "16UC1", STAMP_NS - 80_000_000))
    assert translator.frame(picture).depth_m is None  # too old
    translator.take_depth(image(np.full((24, 32), 800, np.uint16), "16UC1"))
    assert translator.frame(picture).depth_m is None  # of another size
    translator.take_lens(camera_info(np.eye(3), (24, 32)))
    assert translator.frame(picture).intrinsics is None


def test_what_cannot_be_read(translator: Any) -> None:
    with pytest.raises(ValueError, match="bayer_rggb16"):
        translator.frame(image(np.zeros((48, 64), np.uint16), "bayer_rggb16"))


def test_own_frame_id() -> None:
    named = load().Translator(("__background__", "mug"), "front", "robot/camera")
    assert named.frame(image(np.zeros((48, 64, 3), np.uint8), "rgb8")).frame_id == "robot/camera"


def test_the_package_installs(tmp_path: Path) -> None:
    """As colcon does: setuptools, the data where ament looks for it."""
    source = tmp_path / "edge_mrcnn_ros"
    subprocess.run(["cp", "-r", str(PACKAGE), str(source)], check=True)
    command = [sys.executable, "setup.py", "-q", "build", "install_data", "--install-dir", str(tmp_path / "installed")]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    share = tmp_path / "installed" / "share"
    assert (share / "ament_index" / "resource_index" / "packages" / "edge_mrcnn_ros").exists()
    names = {path.name for path in (share / "edge_mrcnn_ros").rglob("*") if path.is_file()}
    assert names == {"package.xml", "detector.launch.py", "detector.yaml"}
    assert (source / "build" / "lib" / "edge_mrcnn_ros" / "detector_node.py").exists()


def test_parameters_are_those_of_the_configuration() -> None:
    tree = ast.parse((PACKAGE / "edge_mrcnn_ros" / "detector_node.py").read_text())
    assigned = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    parameters = ast.literal_eval(assigned["PARAMETERS"])
    lines = (PACKAGE / "config" / "detector.yaml").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == list(parameters)


def test_the_manifest_names_what_is_imported() -> None:
    root = ElementTree.parse(PACKAGE / "package.xml").getroot()
    needs = {one.text for one in root.findall("exec_depend")}
    imported = set()
    for path in [*PACKAGE.glob("edge_mrcnn_ros/*.py"), *PACKAGE.glob("launch/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {name.partition(".")[0] for name in names if name}
    assert imported - {"__future__", "dataclasses", "typing", "edge_mrcnn"} <= needs
