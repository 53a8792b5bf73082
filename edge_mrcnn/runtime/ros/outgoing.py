"""What a ROS 2 network or file takes: bytes with a topic and a type."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = 5
"""Messages of a topic that wait for a slow subscriber, as in ROS 2's sensor-data QoS."""


@dataclass(frozen=True)
class Outgoing:
    """One message, serialised.

    Attributes:
        topic: Absolute, such as `/edge_mrcnn/front/detections`.
        type_name: Such as `vision_msgs/msg/Detection2DArray`.
        data: CDR, little endian, with its 4-byte header: what rmw sends and MCAP stores.
        stamp_ns: Of the frame, nanoseconds; the same as in the message's header.
        latched: Late subscribers get the last one: QoS transient local, depth 1. The others are volatile.
    """

    topic: str
    type_name: str
    data: bytes
    stamp_ns: int
    latched: bool = False
