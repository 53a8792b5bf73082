"""A ROS 2 subscriber over DDS in a process of its own: types written by hand, decoded by Cyclone DDS, printed as JSON.

python subscriber.py DOMAIN SECONDS
"""

import json
import sys
import time
from dataclasses import dataclass

from cyclonedds.core import Policy, Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import array, float32, float64, int32, sequence, uint8, uint16, uint32
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@dataclass
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
class Point(IdlStruct, typename="geometry_msgs::msg::dds_::Point_"):
    x: float64
    y: float64
    z: float64


@dataclass
class Quaternion(IdlStruct, typename="geometry_msgs::msg::dds_::Quaternion_"):
    x: float64
    y: float64
    z: float64
    w: float64


@dataclass
class Pose(IdlStruct, typename="geometry_msgs::msg::dds_::Pose_"):
    position: Point
    orientation: Quaternion


@dataclass
class PoseWithCovariance(IdlStruct, typename="geometry_msgs::msg::dds_::PoseWithCovariance_"):
    pose: Pose
    covariance: array[float64, 36]


@dataclass
class ObjectHypothesis(IdlStruct, typename="vision_msgs::msg::dds_::ObjectHypothesis_"):
    class_id: str
    score: float64


@dataclass
class ObjectHypothesisWithPose(IdlStruct, typename="vision_msgs::msg::dds_::ObjectHypothesisWithPose_"):
    hypothesis: ObjectHypothesis
    pose: PoseWithCovariance


@dataclass
class Point2D(IdlStruct, typename="vision_msgs::msg::dds_::Point2D_"):
    x: float64
    y: float64


@dataclass
class Pose2D(IdlStruct, typename="vision_msgs::msg::dds_::Pose2D_"):
    position: Point2D
    theta: float64


@dataclass
class BoundingBox2D(IdlStruct, typename="vision_msgs::msg::dds_::BoundingBox2D_"):
    center: Pose2D
    size_x: float64
    size_y: float64


@dataclass
class Detection2D(IdlStruct, typename="vision_msgs::msg::dds_::Detection2D_"):
    header: Header
    results: sequence[ObjectHypothesisWithPose]
    bbox: BoundingBox2D
    id: str


@dataclass
class Detection2DArray(IdlStruct, typename="vision_msgs::msg::dds_::Detection2DArray_"):
    header: Header
    detections: sequence[Detection2D]


@dataclass
class VisionClass(IdlStruct, typename="vision_msgs::msg::dds_::VisionClass_"):
    class_id: uint16
    class_name: str


@dataclass
class LabelInfo(IdlStruct, typename="vision_msgs::msg::dds_::LabelInfo_"):
    header: Header
    class_map: sequence[VisionClass]
    threshold: float32


def show(sample: object) -> dict:
    """What a test wants to see of a message."""
    if isinstance(sample, Image):
        values = bytes(sample.data)
        return {
            "stamp": [sample.header.stamp.sec, sample.header.stamp.nanosec],
            "encoding": sample.encoding,
            "size": [sample.height, sample.width, sample.step, len(values)],
            "values": sorted(set(values)),
        }
    if isinstance(sample, LabelInfo):
        return {"classes": {one.class_id: one.class_name for one in sample.class_map}}
    assert isinstance(sample, Detection2DArray)
    boxes = [
        [one.bbox.center.position.x, one.bbox.center.position.y, one.bbox.size_x, one.bbox.size_y]
        for one in sample.detections
    ]
    best = [one.results[0].hypothesis for one in sample.detections]
    return {
        "stamp": [sample.header.stamp.sec, sample.header.stamp.nanosec],
        "frame_id": sample.header.frame_id,
        "boxes": boxes,
        "classes": [one.class_id for one in best],
        "scores": [round(one.score, 4) for one in best],
        "ids": [one.id for one in sample.detections],
    }


def main(domain: int, seconds: float) -> None:
    participant = DomainParticipant(domain)
    root = "rt/edge_mrcnn/front"
    reliable, best_effort = Policy.Reliability.Reliable(0), Policy.Reliability.BestEffort
    wanted = {
        "labels": (LabelInfo, Qos(reliable, Policy.Durability.TransientLocal, Policy.History.KeepLast(1))),
        "detections": (Detection2DArray, Qos(best_effort, Policy.History.KeepLast(5))),
        "instance_map": (Image, Qos(reliable, Policy.History.KeepLast(5))),
    }
    readers = {
        name: DataReader(participant, Topic(participant, f"{root}/{name}", kind), qos=qos)
        for name, (kind, qos) in wanted.items()
    }
    missing = set(readers)
    deadline = time.monotonic() + seconds
    while missing and time.monotonic() < deadline:
        for name in sorted(missing):
            for sample in readers[name].take(10):
                if type(sample).__name__ != "InvalidSample" and name in missing:
                    missing.remove(name)
                    print(json.dumps({name: show(sample)}), flush=True)  # noqa: T201
        time.sleep(0.02)
    sys.exit(1 if missing else 0)


main(int(sys.argv[1]), float(sys.argv[2]))
