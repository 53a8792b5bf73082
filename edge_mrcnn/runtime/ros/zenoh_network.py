"""ROS 2 over Zenoh, as rmw_zenoh speaks it, without a ROS install.

Source: design.md and rmw_zenoh_cpp/src/detail of github.com/ros2/rmw_zenoh, branch jazzy and later: key expressions,
liveliness tokens and attachments.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from dataclasses import dataclass
from typing import Any

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.ros.definitions import type_hash, typestore
from edge_mrcnn.runtime.ros.outgoing import DEPTH, Outgoing

ROUTER = "tcp/localhost:7447"
"""Where `ros2 run rmw_zenoh_cpp rmw_zenohd` listens: nodes find each other by way of this router."""

_NODE = "edge_mrcnn"
_NODE_ID = 0
_BEST_EFFORT, _TRANSIENT_LOCAL = 2, 1
"""As rmw numbers them; what is reliable or volatile, rmw_zenoh's defaults, is left out of a token."""


class ZenohNetwork:
    """Publishes serialised messages in a Zenoh session, as a node `edge_mrcnn` that `ros2 topic list` shows.

    The router may come later, and go and come back: Zenoh connects by itself.
    """

    def __init__(self, domain: int = 0, *, reliable: bool = True, connect: str | None = None) -> None:
        """Open a session.

        Args:
            domain: `ROS_DOMAIN_ID` of the robot.
            reliable: Offer reliable delivery, else best effort.
            connect: Endpoint of the router, such as `tcp/robot:7447`; when not given, that of the file named by
                `ZENOH_SESSION_CONFIG_URI`, and the router of this machine where that is not set either.

        Raises:
            ModuleNotFoundError: eclipse-zenoh or rosbags is not installed.
            StreamError: The session cannot be opened.
            ValueError: The number of the domain is negative.
        """
        if domain < 0:
            raise ValueError(f"a ROS 2 domain is a number from 0, got {domain}")
        typestore()
        self._domain = domain
        self._reliable = reliable
        self._publishers: dict[str, _Publisher] = {}
        zenoh = _import_zenoh()
        try:
            self._session: Any = zenoh.open(_configure(zenoh, connect))
        except zenoh.ZError as error:
            raise StreamError(
                f"cannot open a Zenoh session ({error}); check connect={connect or ROUTER}, and "
                "ZENOH_SESSION_CONFIG_URI where it is set"
            ) from error
        root = f"@ros2_lv/{domain}/{self._session.info.zid()}/{_NODE_ID}"
        self._token_root = root
        self._token = self._session.liveliness().declare_token(f"{root}/{_NODE_ID}/NN/%/%/{_NODE}")

    def publish(self, message: Outgoing) -> None:
        """Send one message.

        Raises:
            StreamError: The network is closed, or Zenoh refuses the message.
        """
        if self._session is None:
            raise StreamError("the Zenoh session is closed; open a new one")
        zenoh = _import_zenoh()
        try:
            publisher = self._publishers.get(message.topic)
            if publisher is None:
                publisher = self._publishers[message.topic] = self._declare(message)
            publisher.sequence += 1
            attachment = struct.pack("<qqB", publisher.sequence, time.time_ns(), len(publisher.gid)) + publisher.gid
            publisher.publisher.put(message.data, attachment=attachment)
        except zenoh.ZError as error:
            raise StreamError(f"cannot publish {message.topic} ({error})") from error

    def close(self) -> None:
        """Close the session. A second call does nothing."""
        self._publishers.clear()
        if self._session is not None:
            self._session.close()
            self._session = None

    def _declare(self, message: Outgoing) -> _Publisher:
        """A publisher with the token by which the ROS graph knows it."""
        zenoh = _import_zenoh()
        package, _, name = message.type_name.split("/")
        kind = f"{package}::msg::dds_::{name}_/{type_hash(message.type_name)}"
        key = f"{self._domain}/{message.topic.strip('/')}/{kind}"
        reliable = self._reliable or message.latched
        options = {
            "congestion_control": zenoh.CongestionControl.DROP,
            "reliability": zenoh.Reliability.RELIABLE if reliable else zenoh.Reliability.BEST_EFFORT,
        }
        if message.latched:
            publisher = zenoh.ext.declare_advanced_publisher(
                self._session, key, cache=zenoh.ext.CacheConfig(max_samples=1), publisher_detection=True, **options
            )
        else:
            publisher = self._session.declare_publisher(key, **options)
        number = len(self._publishers) + 1
        topic = message.topic.replace("/", "%")
        qos = _describe_qos(reliable, message.latched)
        token = f"{self._token_root}/{number}/MP/%/%/{_NODE}/{topic}/{kind}/{qos}"
        declared = self._session.liveliness().declare_token(token)
        # rmw_zenoh hashes the token as well, by XXH3; all that others need of it is that no two are the same.
        gid = hashlib.blake2b(token.encode(), digest_size=16).digest()
        return _Publisher(publisher, declared, gid)


@dataclass
class _Publisher:
    """A topic's publisher; the token lives as long as this."""

    publisher: Any
    token: Any
    gid: bytes
    sequence: int = 0


def _describe_qos(reliable: bool, latched: bool) -> str:
    """Reliability, durability, history and depth, deadline, lifespan, liveliness; empty where it is the default."""
    durability = _TRANSIENT_LOCAL if latched else ""
    return f"{'' if reliable else _BEST_EFFORT}:{durability}:,{1 if latched else DEPTH}:,:,:,,"


def _configure(zenoh: Any, connect: str | None) -> Any:
    """The configuration of a session: what rmw_zenoh has by default, or the user's file."""
    path = os.environ.get("ZENOH_SESSION_CONFIG_URI")
    config = zenoh.Config.from_file(path) if path else zenoh.Config()
    if connect or not path:
        config.insert_json5("mode", '"peer"')
        config.insert_json5("connect/endpoints", f'["{connect or ROUTER}"]')
        config.insert_json5("scouting/multicast/enabled", "false")
        config.insert_json5("timestamping/enabled", "true")  # latching needs it
    return config


def _import_zenoh() -> Any:
    """The package `zenoh` with its extensions."""
    try:
        import zenoh
        import zenoh.ext
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ROS 2 over Zenoh needs the package {error.name}: pip install 'edge-mrcnn[zenoh]'", name=error.name
        ) from error
    return zenoh
