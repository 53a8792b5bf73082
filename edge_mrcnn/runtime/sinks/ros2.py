"""Results as ROS 2 messages on the network, live and without a ROS install."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Protocol

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture
from edge_mrcnn.runtime.ros.dds import DdsNetwork
from edge_mrcnn.runtime.ros.messages import MessageOptions, to_messages
from edge_mrcnn.runtime.ros.outgoing import Outgoing
from edge_mrcnn.runtime.ros.zenoh_network import ZenohNetwork
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.uri import as_flag, as_one_of, take_options


class Ros2Network(Protocol):
    """What carries messages to ROS 2 nodes."""

    def publish(self, message: Outgoing) -> None:
        """Send one message.

        Raises:
            StreamError: It cannot be sent.
        """

    def close(self) -> None:
        """Leave the network. A second call does nothing."""


class Ros2Sink:
    """Boxes, masks, keypoints, labels, pictures and, where there is depth, boxes in space: topics of every camera.

    Attributes:
        uri: What was opened.
        wants_picture: False: viewers draw the boxes themselves.
        wants_stop: False.
        kind: `view`: a network that is too slow misses frames.
        main_thread: False.
    """

    wants_picture = False
    wants_stop = False
    kind: Literal["view", "record"] = "view"
    main_thread = False

    def __init__(self, uri: str = "ros2://", options: SinkOptions | None = None) -> None:
        """Join the network.

        Args:
            uri: `ros2://` with options in the query: `rmw` (`dds` or `zenoh`), `domain` (`ROS_DOMAIN_ID` of the
                environment when not given, else 0), `qos` (`reliable` or `sensor_data`), `image` (`compressed`, `raw`
                or `none`), `instance_map` (0 or 1), `prefix` (of the topics), `connect` (Zenoh's router).
            options: The names, the skeleton and the thresholds matter.

        Raises:
            ModuleNotFoundError: What the network needs is not installed.
            StreamError: The network cannot be joined.
            ValueError: An option in the URI is unknown or cannot be so.
        """
        chosen = options or SinkOptions()
        self.uri = uri
        self._class_names = chosen.class_names
        _, taken = take_options(uri, _OPTIONS)
        network = {name: taken.pop(name) for name in _NETWORK_OPTIONS if name in taken}
        self._messages = MessageOptions(
            mask_threshold=chosen.mask_threshold,
            keypoint_names=chosen.keypoint_names,
            skeleton=chosen.skeleton,
            keypoint_threshold=chosen.keypoint_threshold,
            **taken,
        )
        self._network: Ros2Network | None = _join(network)
        self._latched: dict[str, bytes] = {}

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Publish a frame's messages; latched ones only when they are new.

        Raises:
            StreamError: The sink is closed, or a message cannot be sent.
        """
        if self._network is None:
            raise StreamError(f"{self.uri} is closed; open a new sink")
        for message in to_messages(frame, detections, self._class_names, self._messages):
            if message.latched:
                if self._latched.get(message.topic) == message.data:
                    continue
                self._latched[message.topic] = message.data
            self._network.publish(message)

    def close(self) -> None:
        """Leave the network. A second call does nothing."""
        network, self._network = self._network, None
        if network is not None:
            network.close()

    def __enter__(self) -> Ros2Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _join(taken: dict[str, Any]) -> Ros2Network:
    domain = taken["domain"] if "domain" in taken else _own_domain()
    reliable = taken.get("qos", "reliable") == "reliable"
    if taken.get("rmw", "dds") == "zenoh":
        return ZenohNetwork(domain, reliable=reliable, connect=taken.get("connect"))
    if "connect" in taken:
        raise ValueError("connect= is for Zenoh: ros2://?rmw=zenoh&connect=...; DDS takes CYCLONEDDS_URI")
    return DdsNetwork(domain, reliable=reliable)


def _own_domain() -> int:
    text = os.environ.get("ROS_DOMAIN_ID") or "0"
    if not text.isdigit():
        raise ValueError(f"ROS_DOMAIN_ID must be a number, got {text!r}")
    return int(text)


_NETWORK_OPTIONS = ("rmw", "domain", "qos", "connect")
_OPTIONS: dict[str, Callable[[str], Any]] = {
    "rmw": as_one_of("dds", "zenoh"),
    "domain": int,
    "qos": as_one_of("reliable", "sensor_data"),
    "connect": str,
    "image": as_one_of("compressed", "raw", "none"),
    "instance_map": as_flag,
    "jpeg_quality": int,
    "prefix": str,
}
