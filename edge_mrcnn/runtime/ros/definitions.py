"""Types of the messages: those of ROS 2 as rosbags knows them, and vision_msgs, which it does not."""

from __future__ import annotations

from functools import cache
from typing import Any

# Fields, their types and their order decide the bytes on the wire, and the type hash that ROS 2 compares.
# Source: package vision_msgs 4.1.1 (github.com/ros-perception/vision_msgs, branch ros2, msg/*.msg).
VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "BoundingBox3D": "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose",
    "Detection2D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox2D bbox\nstring id"
    ),
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
    "Detection3D": (
        "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
        "vision_msgs/BoundingBox3D bbox\nstring id"
    ),
    "Detection3DArray": "std_msgs/Header header\nvision_msgs/Detection3D[] detections",
    "VisionClass": "uint16 class_id\nstring class_name",
    "LabelInfo": "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold",
}
"""Definitions of vision_msgs by name, one field a line: those that detections need."""


@cache
def typestore() -> Any:
    """The types of ROS 2 Jazzy with vision_msgs: a `rosbags.typesys.store.Typestore`.

    The messages used here are the same in Humble, Jazzy and later.

    Raises:
        ModuleNotFoundError: rosbags is not installed; the message gives the command.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ROS messages need the package {error.name}: pip install 'edge-mrcnn[ros]'", name=error.name
        ) from error
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for name, text in VISION_MSGS.items():
        types.update(get_types_from_msg(text, f"vision_msgs/msg/{name}"))
    store.register(types)
    return store


def type_hash(type_name: str) -> str:
    """`RIHS01_...`: how ROS 2 (Iron and later) tells whether two sides mean the same type.

    Args:
        type_name: Such as `vision_msgs/msg/Detection2DArray`.

    Raises:
        ModuleNotFoundError: rosbags is not installed.
    """
    return str(typestore().hash_rihs01(type_name))


def definition(type_name: str) -> str:
    """The text of a message and of all that it holds, as bags store it under the encoding `ros2msg`.

    Args:
        type_name: Such as `vision_msgs/msg/Detection2DArray`.

    Raises:
        ModuleNotFoundError: rosbags is not installed.
    """
    text, _ = typestore().generate_msgdef(type_name, ros_version=2)
    return str(text)
