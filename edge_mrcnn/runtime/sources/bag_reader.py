"""Messages of ROS 1 bags, ROS 2 bags and MCAP files, read one after the other in the same way."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.ros.definitions import typestore

logger = logging.getLogger(__name__)

_MAX_RECORD = 1 << 30
"""A record of an MCAP file that is said to be longer is damaged: reading it would fill the memory."""


class RawMessage(NamedTuple):
    """One message, still serialised.

    Attributes:
        topic: Where it was published.
        log_ns: When it was recorded, wall clock of the recorder, nanoseconds.
        data: In the encoding of the bag.
    """

    topic: str
    log_ns: int
    data: bytes


class BagReader(Protocol):
    """An open bag.

    Attributes:
        types: Type of each topic, such as `sensor_msgs/msg/Image`.
        counts: Messages of each topic.
        span_ns: From the first message to the last; 0 where it is not known.
        damaged: Parts that could not be read so far; each may hold many messages.
    """

    types: dict[str, str]
    counts: dict[str, int]
    span_ns: int
    damaged: int

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """Messages of some topics from the first, in the order of recording; damaged parts are skipped and counted."""

    def decode(self, message: RawMessage) -> Any:
        """A message as an object of rosbags; raises what rosbags raises where it is damaged."""

    def close(self) -> None:
        """Close the files. A second call does nothing."""


def open_reader(path: Path) -> BagReader:
    """Open a bag.

    Args:
        path: An MCAP file, a `.db3`, a ROS 1 `.bag`, or the folder of a ROS 2 bag.

    Raises:
        ModuleNotFoundError: rosbags or mcap is not installed.
        StreamError: It is missing or cannot be read.
    """
    typestore()  # says what to install
    if not path.exists():
        raise StreamError(f"there is no bag {path}; check the path")
    try:
        return _McapReader(path) if path.suffix.lower() == ".mcap" else _RosbagsReader(path)
    except (ModuleNotFoundError, StreamError):
        raise
    except Exception as error:  # a damaged file makes its parser raise anything
        raise StreamError(f"{path} cannot be read as a ROS bag: {error}; {_remedy(path)}") from error


def first_message(reader: BagReader, topic: str) -> Any:
    """The first message of a topic that can be decoded; None where there is none."""
    for message in reader.messages([topic]):
        try:
            return reader.decode(message)
        except Exception:  # damaged: the next one will do
            continue
    return None


def _remedy(path: Path) -> str:
    if path.suffix.lower() == ".bag":
        return f"make its index anew: rosbag reindex {path}"
    if path.is_dir():
        return f"make its index anew: ros2 bag reindex {path}; or open the files in it one by one"
    return "copy it again, or see what is left of it: mcap doctor, sqlite3 .recover"


class _McapReader:
    """An MCAP file, by `mcap`, from the front to the end.

    Without the index, so that a file whose recorder was killed is read like any other up to where it ends, and a
    damaged chunk costs that chunk alone.
    """

    def __init__(self, path: Path) -> None:
        from mcap.reader import make_reader

        self.damaged = 0
        self._path = path
        self._stream: Any = path.open("rb")
        self._channels: dict[int, Any] = {}
        self._finished = True
        self.types: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.span_ns = 0
        try:
            self._read_front()
            try:
                summary = make_reader(self._stream).get_summary()
            except Exception:  # the end is not there, or is none
                logger.warning("%s was not finished: its recorder was killed, or the file is cut off", path)
                self._finished, summary = False, None
            self._take_summary(summary)
        except BaseException:
            self._stream.close()
            raise

    def _read_front(self) -> None:
        if self._stream.read(8) != b"\x89MCAP0\r\n":
            raise StreamError(f"{self._path} is no MCAP file; check the path")
        self._stream.seek(0)

    def _take_summary(self, summary: Any) -> None:
        if summary is None or summary.statistics is None:
            self._scan()
            return
        for channel in summary.channels.values():
            self._add_channel(channel, summary.schemas)
            self.counts[channel.topic] += summary.statistics.channel_message_counts.get(channel.id, 0)
        self.span_ns = summary.statistics.message_end_time - summary.statistics.message_start_time

    def _add_channel(self, channel: Any, schemas: dict[int, Any]) -> None:
        schema = schemas.get(channel.schema_id)
        self._channels[channel.id] = channel
        self.types[channel.topic] = schema.name if schema is not None and channel.message_encoding == "cdr" else ""
        self.counts.setdefault(channel.topic, 0)

    def _scan(self) -> None:
        """Learn topics and counts from the messages themselves."""
        from mcap.records import Channel, Message, Schema

        schemas: dict[int, Any] = {}
        first = last = None
        for record in self._records():
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel) and record.id not in self._channels:
                self._add_channel(record, schemas)
            elif isinstance(record, Message) and record.channel_id in self._channels:
                self.counts[self._channels[record.channel_id].topic] += 1
                first, last = first or record.log_time, record.log_time
        self.span_ns = (last or 0) - (first or 0)
        self.damaged = 0  # counted again when frames are read

    def _records(self) -> Iterator[Any]:
        """Every record up to the end or to where the file is cut off, chunks taken apart."""
        from mcap.records import Chunk
        from mcap.stream_reader import StreamReader, breakup_chunk

        self._stream.seek(0)
        records = StreamReader(self._stream, emit_chunks=True, record_size_limit=_MAX_RECORD).records
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # whatever damaged bytes make its parser raise
                if self._finished:
                    self.damaged += 1
                    logger.warning("%s is damaged, the rest cannot be read: %s", self._path, error)
                return
            if not isinstance(record, Chunk):
                yield record
                continue
            try:
                inside = breakup_chunk(record, validate_crc=True)
            except Exception as error:  # whatever a decompressor raises
                self.damaged += 1
                logger.warning(
                    "%s: a chunk of %d bytes is damaged and skipped: %s", self._path, len(record.data), error
                )
                continue
            yield from inside

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        from mcap.records import Message

        wanted = {number: channel.topic for number, channel in self._channels.items() if channel.topic in topics}
        for record in self._records():
            if isinstance(record, Message) and record.channel_id in wanted:
                yield RawMessage(wanted[record.channel_id], record.log_time, record.data)

    def decode(self, message: RawMessage) -> Any:
        return typestore().deserialize_cdr(message.data, self.types[message.topic])

    def close(self) -> None:
        self._stream.close()


class _RosbagsReader:
    """Everything else, by rosbags."""

    def __init__(self, path: Path) -> None:
        from rosbags.highlevel import AnyReader

        self.damaged = 0
        self._path = path
        self._reader: Any = AnyReader([path], default_typestore=typestore())
        self._reader.open()
        self._open = True
        topics = self._reader.topics
        self.types = {topic: info.msgtype or "" for topic, info in topics.items()}
        self.counts = {topic: info.msgcount for topic, info in topics.items()}
        self.span_ns = self._reader.duration if self._reader.message_count else 0

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        connections = [connection for connection in self._reader.connections if connection.topic in topics]
        messages = self._reader.messages(connections) if connections else iter(())
        while True:
            try:
                connection, log_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:  # what it raises depends on the storage
                self.damaged += 1
                logger.warning("%s is damaged, the rest cannot be read: %s", self._path, error)
                return
            yield RawMessage(connection.topic, log_ns, data)

    def decode(self, message: RawMessage) -> Any:
        return self._reader.deserialize(message.data, self.types[message.topic])

    def close(self) -> None:
        if self._open:
            self._open = False
            self._reader.close()
