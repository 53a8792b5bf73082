"""The node: pictures in, detections out. Needs ROS 2 (Humble or later); everything but rclpy is in `translation`."""

from __future__ import annotations

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rosidl_runtime_py.utilities import get_message
from sensor_msgs.msg import CameraInfo, Image

from edge_mrcnn import Detector, Tracker
from edge_mrcnn.runtime.ros.messages import MessageOptions
from edge_mrcnn.runtime.ros.outgoing import DEPTH, Outgoing

from .translation import Translator

PARAMETERS = {
    "model": "model.onnx",
    "camera": "camera",
    "frame_id": "",
    "threshold": 0.5,
    "threads": 0,
    "track": True,
    "image": "none",
    "instance_map": True,
    "reliable": False,
}
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Of pictures: while the network runs, the newest one waits."""


class DetectorNode(Node):
    """Subscribes to `image`, and to `depth` and `camera_info` where somebody publishes them."""

    def __init__(self) -> None:
        super().__init__("edge_mrcnn")
        for name, default in PARAMETERS.items():
            self.declare_parameter(name, default)
        value = {name: self.get_parameter(name).value for name in PARAMETERS}
        self._detector = Detector(value["model"], threshold=value["threshold"], threads=value["threads"])
        self._tracker = Tracker() if value["track"] else None
        self._reliable = value["reliable"]
        prefix = f"{self.get_namespace().rstrip('/')}/edge_mrcnn"
        spec = self._detector.spec
        options = MessageOptions(
            image=value["image"],
            instance_map=value["instance_map"],
            prefix=prefix,
            keypoint_names=spec.keypoint_names,
            skeleton=spec.skeleton,
        )
        names = self._detector.class_names
        self._translator = Translator(names, value["camera"], value["frame_id"], options)
        self._to: dict[str, Publisher] = {}
        # Serialised, so that nothing is copied field by field.
        self.create_subscription(Image, "image", self._find, NEWEST, raw=True)
        self.create_subscription(Image, "depth", self._translator.take_depth, qos_profile_sensor_data, raw=True)
        self.create_subscription(CameraInfo, "camera_info", self._translator.take_lens, NEWEST, raw=True)
        self.get_logger().info(f"{self._detector} publishes {prefix}/{value['camera']}/...")

    def _find(self, data: bytes) -> None:
        try:
            frame = self._translator.frame(data)
        except ValueError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        found = self._detector(frame)
        if self._tracker is not None:
            found = self._tracker.update(found, frame.stamp_ns)
        for message in self._translator.messages(frame, found):
            self._publisher(message).publish(message.data)

    def _publisher(self, message: Outgoing) -> Publisher:
        if message.topic not in self._to:
            reliable = self._reliable or message.latched
            qos = QoSProfile(
                depth=1 if message.latched else DEPTH,
                reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
                durability=DurabilityPolicy.TRANSIENT_LOCAL if message.latched else DurabilityPolicy.VOLATILE,
            )
            self._to[message.topic] = self.create_publisher(get_message(message.type_name), message.topic, qos)
        return self._to[message.topic]

    def destroy_node(self) -> None:
        """Give the network back too."""
        self._detector.close()
        super().destroy_node()


def main() -> None:
    """What `ros2 run edge_mrcnn_ros detector` calls."""
    rclpy.init()
    node = DetectorNode()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
