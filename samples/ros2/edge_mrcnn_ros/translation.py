"""Between serialised ROS 2 messages and edge_mrcnn, without rclpy: what the node does that can be tested anywhere."""

from __future__ import annotations

from typing import Any

from edge_mrcnn import Detections, Frame
from edge_mrcnn.runtime.ros.definitions import typestore
from edge_mrcnn.runtime.ros.messages import MessageOptions, to_messages
from edge_mrcnn.runtime.ros.outgoing import Outgoing
from edge_mrcnn.runtime.sources.bag_pictures import Lens, depth_metres, image_pixels, read_lens

DEPTH_LATE_NS = 50_000_000
"""Depth belongs to a picture whose stamp is this near."""


class Translator:
    """Makes frames of messages, and messages of detections."""

    def __init__(
        self,
        class_names: tuple[str, ...],
        camera: str = "camera",
        frame_id: str = "",
        options: MessageOptions | None = None,
    ) -> None:
        """Nothing is known of depth and lens yet.

        Args:
            class_names: Of the model.
            camera: Name of the camera, a part of the topics.
            frame_id: Coordinate frame of the camera; the picture's own where empty.
            options: What is sent.
        """
        self.class_names = class_names
        self.camera = camera
        self.frame_id = frame_id
        self.options = options
        self._count = 0
        self._lens: Lens | None = None
        self._depth: tuple[int, Any] | None = None
        self._labels: Outgoing | None = None

    def take_lens(self, data: bytes) -> None:
        """Remember a serialised `sensor_msgs/CameraInfo` for the frames to come."""
        self._lens = read_lens(typestore().deserialize_cdr(data, "sensor_msgs/msg/CameraInfo"), rectified=False)

    def take_depth(self, data: bytes) -> None:
        """Remember a serialised depth picture, `sensor_msgs/Image` in `16UC1` or `32FC1`.

        Raises:
            ValueError: It is in another encoding.
        """
        message = typestore().deserialize_cdr(data, "sensor_msgs/msg/Image")
        self._depth = (_stamp_ns(message), depth_metres(message))

    def frame(self, data: bytes) -> Frame:
        """The frame of a serialised `sensor_msgs/Image`, with depth and camera matrix where they fit it.

        Raises:
            ValueError: The encoding is unknown.
        """
        message = typestore().deserialize_cdr(data, "sensor_msgs/msg/Image")
        pixels, pixel_format = image_pixels(message)
        stamp_ns, image_hw = _stamp_ns(message), (message.height, message.width)
        depth = None
        if self._depth is not None and abs(self._depth[0] - stamp_ns) <= DEPTH_LATE_NS:
            depth = self._depth[1] if self._depth[1].shape == image_hw else None
        lens = self._lens if self._lens is not None and self._lens.image_hw == image_hw else None
        self._count += 1
        return Frame(
            pixels,
            source=f"ros2://{self.camera}",
            index=self._count - 1,
            stamp_ns=stamp_ns,
            stamp_source="sender",
            frame_id=self.frame_id or message.header.frame_id,
            camera=self.camera,
            pixel_format=pixel_format,
            depth_m=depth,
            intrinsics=None if lens is None else lens.matrix,
        )

    def messages(self, frame: Frame, detections: Detections) -> list[Outgoing]:
        """What is to be published; the latched labels only when they are new."""
        made = to_messages(frame, detections, self.class_names, self.options)
        fresh = [message for message in made if not message.latched or message != self._labels]
        self._labels = next((message for message in made if message.latched), self._labels)
        return fresh


def _stamp_ns(message: Any) -> int:
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
