"""Frames and detections as ROS 2 messages, without a ROS install.

| topic under `/edge_mrcnn/<camera>` | type | what |
|---|---|---|
| `/labels` | `vision_msgs/msg/LabelInfo` | names of the classes; latched |
| `/detections` | `vision_msgs/msg/Detection2DArray` | boxes, classes, scores, track ids |
| `/instance_map` | `sensor_msgs/msg/Image`, `mono16` | masks: 1 + the index of the detection at each pixel, 0: none |
| `/keypoint_labels` | `vision_msgs/msg/LabelInfo` | names of the keypoints; latched |
| `/keypoints` | `vision_msgs/msg/Detection2DArray` | a keypoint each; `id`: the index of its detection |
| `/keypoint_marker` | `visualization_msgs/msg/ImageMarker` | the same for viewers, with the lines between them |
| `/image/compressed`, or `/image` | `sensor_msgs/msg/CompressedImage`, or `Image` in `rgb8` | the picture |
| `/camera_info` | `sensor_msgs/msg/CameraInfo` | where the camera matrix is known |
| `/detections_3d` | `vision_msgs/msg/Detection3DArray` | where depth and the camera matrix are known |

What a network does not give is not sent. All but the latched ones carry the frame's stamp and frame id, so that they
can be matched.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import cv2
import numpy as np

from edge_mrcnn.detections import KEYPOINT_SCORE, Detections
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.ros.boxes3d import Box3D, boxes_3d
from edge_mrcnn.runtime.ros.definitions import typestore
from edge_mrcnn.runtime.ros.keypoints import keypoint_array, keypoint_marker
from edge_mrcnn.runtime.ros.outgoing import Outgoing
from edge_mrcnn.runtime.uri import camera_name

logger = logging.getLogger(__name__)

PictureMessage = Literal["none", "compressed", "raw"]
"""How the picture is sent: not at all, as JPEG, or as `rgb8`."""

_NO_BYTES = np.zeros(0, np.uint8)
_UNKNOWN_COVARIANCE = np.zeros(36)


@dataclass(frozen=True)
class MessageOptions:
    """What is sent.

    Attributes:
        image: `none`, `compressed` (JPEG) or `raw` (`rgb8`, 6 MB a frame at 1080p).
        instance_map: Send masks as a `mono16` picture (4 MB a frame at 1080p), where the network gives masks.
        jpeg_quality: 1 to 100.
        mask_threshold: A pixel belongs to a mask where its probability is at least this.
        prefix: What topics begin with, before the camera's name.
        keypoint_names: Name of each keypoint.
        skeleton: Pairs of keypoints to draw a line between.
        keypoint_threshold: Keypoints with a lower score are not sent.
    """

    image: PictureMessage = "compressed"
    instance_map: bool = True
    jpeg_quality: int = 85
    mask_threshold: float = 0.5
    prefix: str = "/edge_mrcnn"
    keypoint_names: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    keypoint_threshold: float = KEYPOINT_SCORE

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is none of those allowed, or the prefix is no absolute ROS name.
        """
        if self.image not in ("none", "compressed", "raw"):
            raise ValueError(f"image must be none, compressed or raw, got {self.image!r}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must be 1 to 100, got {self.jpeg_quality}")
        if not re.fullmatch(r"(/[A-Za-z_][A-Za-z0-9_]*)*", self.prefix):
            raise ValueError(f"prefix must be empty or an absolute ROS name such as /edge_mrcnn, got {self.prefix!r}")


def to_messages(
    frame: Frame, detections: Detections, class_names: tuple[str, ...], options: MessageOptions | None = None
) -> list[Outgoing]:
    """One frame's messages, serialised.

    `class_id` is the number that `LabelInfo` gives a name, `id` the track id (empty where there is none yet), and
    boxes are in pixels, the first of which reaches from 0 to 1. Frames of files are stamped from 0: whoever plays
    them must not compare their stamps with a clock.

    Args:
        frame: The frame. Its `camera` names the topics, `camera` where it is empty; without a `frame_id` the
            camera's name is used.
        detections: Its detections.
        class_names: `class_names[class_id]`.
        options: What is sent; the defaults where None.

    Returns:
        The latched messages first; they are the same objects for every frame, to be sent when they are new.

    Raises:
        ModuleNotFoundError: rosbags is not installed.
    """
    chosen = options or MessageOptions()
    camera = topic_token(frame.camera)
    frame_id = frame.frame_id or camera
    writer = _Writer(f"{chosen.prefix}/{camera}", frame_id, frame.stamp_ns)
    messages = [_labels(f"{writer.root}/labels", frame_id, tuple(class_names))]
    if detections.keypoints is not None:
        messages += writer.keypoints(detections, chosen)
    messages.append(writer.detections_2d(detections))
    if chosen.instance_map and detections.mask is None:
        _tell_no_masks(writer.root)
    elif chosen.instance_map:
        messages.append(writer.image("/instance_map", detections.instance_map(chosen.mask_threshold), "mono16"))
    if chosen.image == "raw":
        messages.append(writer.image("/image", frame.image, "rgb8"))
    elif chosen.image == "compressed":
        messages.append(writer.jpeg("/image/compressed", frame, chosen.jpeg_quality))
    if frame.intrinsics is not None:
        messages.append(writer.camera_info(frame))
        if frame.depth_m is not None and detections.mask is not None:
            boxes = boxes_3d(detections, frame.depth_m, frame.intrinsics, chosen.mask_threshold)
            messages.append(writer.detections_3d(detections, boxes))
    return messages


def topic_token(camera: str) -> str:
    """A camera's name as a part of a topic; `camera` where it has none.

    Example:
        >>> topic_token("front_left"), topic_token("10.0.0.7"), topic_token("")
        ('front_left', 'cam_10_0_0_7', 'camera')
    """
    try:
        return camera_name(camera)
    except ValueError:
        return "camera"


@dataclass(frozen=True)
class _Writer:
    """Serialises the messages of one frame, under `root`."""

    root: str
    frame_id: str
    stamp_ns: int

    def detections_2d(self, detections: Detections) -> Outgoing:
        kind = typestore().types
        header = self._header()
        nowhere = _pose((0.0, 0.0, 0.0))
        entries = []
        for row, (left, top, right, bottom) in enumerate(detections.xyxy.tolist()):
            center = kind["vision_msgs/msg/Point2D"]((left + right) / 2, (top + bottom) / 2)
            box = kind["vision_msgs/msg/BoundingBox2D"](
                kind["vision_msgs/msg/Pose2D"](center, 0.0), right - left, bottom - top
            )
            results = [_hypothesis(detections, row, nowhere)]
            entries.append(kind["vision_msgs/msg/Detection2D"](header, results, box, _track(detections, row)))
        array = kind["vision_msgs/msg/Detection2DArray"](header, entries)
        return self._outgoing("/detections", array)

    def detections_3d(self, detections: Detections, boxes: list[Box3D]) -> Outgoing:
        kind = typestore().types
        header = self._header()
        entries = []
        for row, center, size in boxes:
            pose = _pose(tuple(center.tolist()))
            box = kind["vision_msgs/msg/BoundingBox3D"](pose, kind["geometry_msgs/msg/Vector3"](*size.tolist()))
            results = [_hypothesis(detections, row, pose)]
            entries.append(kind["vision_msgs/msg/Detection3D"](header, results, box, _track(detections, row)))
        array = kind["vision_msgs/msg/Detection3DArray"](header, entries)
        return self._outgoing("/detections_3d", array)

    def keypoints(self, detections: Detections, options: MessageOptions) -> list[Outgoing]:
        header, threshold = self._header(), options.keypoint_threshold
        return [
            _labels(f"{self.root}/keypoint_labels", self.frame_id, options.keypoint_names),
            self._outgoing("/keypoints", keypoint_array(detections, threshold, header)),
            self._outgoing("/keypoint_marker", keypoint_marker(detections, threshold, options.skeleton, header)),
        ]

    def image(self, topic: str, pixels: Any, encoding: str) -> Outgoing:
        height, width = pixels.shape[:2]
        step = pixels.nbytes // height
        image = typestore().types["sensor_msgs/msg/Image"](self._header(), height, width, encoding, 0, step, _NO_BYTES)
        return self._with_bytes(topic, image, np.ascontiguousarray(pixels))

    def jpeg(self, topic: str, frame: Frame, quality: int) -> Outgoing:
        # Straight from NV12: one conversion less than by way of RGB.
        code = cv2.COLOR_YUV2BGR_NV12 if frame.pixel_format == "nv12" else cv2.COLOR_RGB2BGR
        _, data = cv2.imencode(".jpg", cv2.cvtColor(frame.pixels, code), [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = typestore().types["sensor_msgs/msg/CompressedImage"](self._header(), "jpeg", _NO_BYTES)
        return self._with_bytes(topic, image, data)

    def camera_info(self, frame: Frame) -> Outgoing:
        kind = typestore().types
        height, width = frame.image_hw
        matrix = np.asarray(frame.intrinsics, np.float64)
        info = kind["sensor_msgs/msg/CameraInfo"](
            header=self._header(),
            height=height,
            width=width,
            distortion_model="plumb_bob",  # of no distortion: the picture is a rectified one
            d=np.zeros(5),
            k=matrix.reshape(-1),
            r=np.eye(3).reshape(-1),
            p=np.hstack([matrix, np.zeros((3, 1))]).reshape(-1),
            binning_x=0,
            binning_y=0,
            roi=kind["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
        )
        return self._outgoing("/camera_info", info)

    def _header(self) -> Any:
        return _header(self.stamp_ns, self.frame_id)

    def _outgoing(self, topic: str, message: Any) -> Outgoing:
        name: str = message.__msgtype__
        data = typestore().serialize_cdr(message, name, little_endian=True)
        return Outgoing(self.root + topic, name, bytes(data), self.stamp_ns)

    def _with_bytes(self, topic: str, message: Any, data: Any) -> Outgoing:
        """A message whose last field is a `uint8[]`, serialised with that empty; joined with its bytes in one copy."""
        start = typestore().serialize_cdr(message, message.__msgtype__, little_endian=True)
        whole = b"".join((start[:-4], data.nbytes.to_bytes(4, "little"), data.reshape(-1).view(np.uint8).data))
        return Outgoing(self.root + topic, message.__msgtype__, whole, self.stamp_ns)


@lru_cache(maxsize=64)
def _labels(topic: str, frame_id: str, names: tuple[str, ...]) -> Outgoing:
    """What numbers mean. It holds at any time, so the stamp is 0 and the bytes are made once."""
    kind = typestore().types
    classes = [kind["vision_msgs/msg/VisionClass"](number, name) for number, name in enumerate(names)]
    info = kind["vision_msgs/msg/LabelInfo"](_header(0, frame_id), classes, 0.0)
    data = typestore().serialize_cdr(info, info.__msgtype__, little_endian=True)
    return Outgoing(topic, info.__msgtype__, bytes(data), 0, latched=True)


@lru_cache(maxsize=64)
def _tell_no_masks(root: str) -> None:
    """Once for each camera: a robot that waits for the topic should find out why."""
    logger.warning("%s/instance_map is not sent: these detections have no masks", root)


def _header(stamp_ns: int, frame_id: str) -> Any:
    kind = typestore().types
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    return kind["std_msgs/msg/Header"](kind["builtin_interfaces/msg/Time"](seconds, nanoseconds), frame_id)


def _hypothesis(detections: Detections, row: int, pose: Any) -> Any:
    kind = typestore().types
    hypothesis = kind["vision_msgs/msg/ObjectHypothesis"](str(detections.class_id[row]), float(detections.score[row]))
    return kind["vision_msgs/msg/ObjectHypothesisWithPose"](
        hypothesis, kind["geometry_msgs/msg/PoseWithCovariance"](pose, _UNKNOWN_COVARIANCE)
    )


def _pose(position: tuple[float, ...]) -> Any:
    kind = typestore().types
    return kind["geometry_msgs/msg/Pose"](
        kind["geometry_msgs/msg/Point"](*position), kind["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
    )


def _track(detections: Detections, row: int) -> str:
    """The track id, empty for none and for one that is not confirmed yet."""
    track = 0 if detections.track_id is None else int(detections.track_id[row])
    return str(track) if track else ""
