"""ROS 2 over DDS, which stock ROS 2 speaks, by way of Eclipse Cyclone DDS and without a ROS install."""

from __future__ import annotations

import types
from functools import cache
from typing import Any

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.ros.definitions import type_hash, typestore
from edge_mrcnn.runtime.ros.outgoing import DEPTH, Outgoing

_BLOCK_NS = 100_000_000
"""How long a write waits for a reliable subscriber that is behind."""


class DdsNetwork:
    """Publishes serialised messages in a DDS domain, each topic as ROS 2 names and types it.

    Which network interfaces are used is Cyclone's to say, by the variable `CYCLONEDDS_URI` as everywhere.

    Example:
        >>> network = DdsNetwork(domain=0)  # doctest: +SKIP
        >>> for message in to_messages(frame, detections, class_names):  # doctest: +SKIP
        ...     network.publish(message)
    """

    def __init__(self, domain: int = 0, *, reliable: bool = True) -> None:
        """Join a domain.

        Args:
            domain: `ROS_DOMAIN_ID` of the robot, 0 to 232.
            reliable: Offer reliable delivery, which suits subscribers of either kind; else best effort, ROS 2's
                sensor-data QoS. Latched topics are always reliable.

        Raises:
            ModuleNotFoundError: cyclonedds or rosbags is not installed.
            StreamError: The domain cannot be joined.
            ValueError: The number of the domain is out of range.
        """
        if not 0 <= domain <= 232:
            raise ValueError(f"a ROS 2 domain is a number from 0 to 232, got {domain}")
        typestore()
        dds = _import_dds()
        self._reliable = reliable
        self._writers: dict[str, Any] = {}
        try:
            self._participant: Any = dds.domain.DomainParticipant(domain)
        except dds.core.DDSException as error:
            raise StreamError(
                f"cannot join DDS domain {domain} ({error.msg}); check the network, and CYCLONEDDS_URI where it is set"
            ) from error

    def publish(self, message: Outgoing) -> None:
        """Send one message.

        Raises:
            StreamError: The network is closed, or DDS refuses the message.
        """
        if self._participant is None:
            raise StreamError("the DDS network is closed; open a new one")
        dds = _import_dds()
        try:
            writer = self._writers.get(message.topic)
            if writer is None:
                writer = self._writers[message.topic] = self._make_writer(message)
            sample = writer.data_type.__new__(writer.data_type)
            sample.data = message.data
            writer.write(sample)
        except dds.core.DDSException as error:
            if error.code != error.DDS_RETCODE_TIMEOUT:  # a reliable subscriber that is behind misses this one
                raise StreamError(f"cannot publish {message.topic} ({error.msg})") from error

    def close(self) -> None:
        """Leave the domain. A second call does nothing."""
        self._writers.clear()
        self._participant = None

    def _make_writer(self, message: Outgoing) -> Any:
        dds = _import_dds()
        policy = dds.core.Policy
        qos = dds.core.Qos(
            policy.Reliability.Reliable(_BLOCK_NS)
            if self._reliable or message.latched
            else policy.Reliability.BestEffort,
            policy.Durability.TransientLocal if message.latched else policy.Durability.Volatile,
            policy.History.KeepLast(1 if message.latched else DEPTH),
            policy.DataRepresentation(use_cdrv0_representation=True, use_xcdrv2_representation=False),
            # How ROS 2 since Iron tells other nodes which definition of the type is meant.
            policy.Userdata(f"typehash={type_hash(message.type_name)};".encode()),
        )
        topic = dds.topic.Topic(self._participant, f"rt{message.topic}", _sample_type(message.type_name))
        return dds.pub.DataWriter(self._participant, topic, qos=qos)


@cache
def _sample_type(type_name: str) -> Any:
    """A type that DDS knows as ROS 2's, whose samples are bytes already: they carry `data`, CDR with its header."""
    idl = _import_dds().idl
    package, _, name = type_name.split("/")
    fields = {field: _field_type(*kind) for field, kind in typestore().fielddefs[type_name][1]}

    def fill(namespace: dict[str, Any]) -> None:
        namespace["__annotations__"].update(fields)
        namespace["serialize"] = lambda self, **_: self.data

    return types.new_class(f"{name}_", (idl.IdlStruct,), {"typename": f"{package}::msg::dds_::{name}_"}, fill)


def _field_type(kind: Any, details: Any) -> Any:
    """The type of a field, as Cyclone's Python has it."""
    idl = _import_dds().idl
    if kind.name == "BASE":
        return {"bool": bool, "string": str, "octet": idl.types.byte}.get(details[0]) or getattr(idl.types, details[0])
    if kind.name == "NAME":
        return _sample_type(details)
    inner = _field_type(*details[0])
    return idl.types.array[inner, details[1]] if kind.name == "ARRAY" else idl.types.sequence[inner]


def _import_dds() -> Any:
    """The package `cyclonedds` with the modules that are used of it."""
    try:
        import cyclonedds.core
        import cyclonedds.domain
        import cyclonedds.idl.types
        import cyclonedds.pub
        import cyclonedds.topic
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ROS 2 over DDS needs the package {error.name}: pip install 'edge-mrcnn[dds]'", name=error.name
        ) from error
    return cyclonedds
