"""Results as ROS 2 messages in an MCAP file, for Foxglove, rviz and `ros2 bag`."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture
from edge_mrcnn.runtime.ros.definitions import definition, type_hash, typestore
from edge_mrcnn.runtime.ros.messages import MessageOptions, PictureMessage, to_messages
from edge_mrcnn.runtime.ros.outgoing import Outgoing
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sinks.partial import cannot_write
from edge_mrcnn.runtime.sinks.recording import RecordingName, make_folder
from edge_mrcnn.runtime.uri import as_one_of, take_options

_FLUSH_S = 1.0
"""A chunk is closed and handed to the system this often; that much a killed run loses."""

_CHUNK_BYTES = 8 << 20
"""A chunk is closed when it is this large, which bounds the memory."""

_QOS = """\
- history: 1
  depth: {depth}
  reliability: 1
  durability: {durability}
  deadline:
    sec: 9223372036
    nsec: 854775807
  lifespan:
    sec: 9223372036
    nsec: 854775807
  liveliness: 1
  liveliness_lease_duration:
    sec: 9223372036
    nsec: 854775807
  avoid_ros_namespace_conventions: false
"""
"""What `ros2 bag play` offers: keep last, reliable. That suits subscribers of either reliability; best effort would be
nothing to those that want reliable, as rviz does by default. The numbers are rmw's; all releases of rosbag2 read them.
"""
_TRANSIENT_LOCAL, _VOLATILE = 1, 2


class McapSink:
    """Boxes, masks, keypoints, labels, pictures and, where there is depth, boxes in space, for every camera.

    The file can be read up to the last second at any moment and whatever ends the run. Messages carry the frame's
    stamp, which is also their publish time. Their log time, by which players play, is when the frame was received; for
    files it goes by the position in the file, so that a slow run plays at the right pace.

    Attributes:
        uri: What was opened.
        wants_picture: False: viewers draw the boxes themselves.
        wants_stop: False.
        kind: `record`.
        main_thread: False.
    """

    wants_picture = False
    wants_stop = False
    kind: Literal["view", "record"] = "record"
    main_thread = False

    def __init__(self, uri: str | Path, options: SinkOptions | None = None) -> None:
        """Choose the file; it is made when the first frame comes.

        Args:
            uri: A path, which may hold the time as `strftime` writes it, or `mcap:///path/out.mcap?image=raw`. Options:
                `image` (`none`, `compressed` or `raw`), `segment_s`, `mask_threshold`.
            options: The names, the skeleton, the thresholds and `segment_s` matter.

        Raises:
            ModuleNotFoundError: mcap or rosbags is not installed.
            StreamError: The place cannot be written.
            ValueError: An option in the URI is unknown or cannot be so.
        """
        _import_writer()
        typestore()
        self.uri = str(uri)
        path, image, chosen = _split(self.uri, options or SinkOptions())
        self._class_names = chosen.class_names
        self._segment_s = chosen.segment_s
        self._messages = MessageOptions(
            image=image,
            mask_threshold=chosen.mask_threshold,
            keypoint_names=chosen.keypoint_names,
            skeleton=chosen.skeleton,
            keypoint_threshold=chosen.keypoint_threshold,
        )
        self._name = RecordingName(path, segments=chosen.segment_s is not None)
        self._file: _McapFile | None = None
        self._starts: dict[str, int] = {}
        self._closed = False

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Add a frame's messages.

        Raises:
            StreamError: The sink is closed, or the disk is full: what was written before is kept, and nothing more is
                written.
        """
        if self._closed:
            raise StreamError(f"{self.uri} is closed; open a new sink")
        messages = to_messages(frame, detections, self._class_names, self._messages)
        if self._file is not None and self._segment_s is not None and self._file.age_s >= self._segment_s:
            self._finish()
        if self._file is None:
            self._file = _McapFile(self._name.at(""))
        try:
            self._file.add(messages, self._log_ns(frame))
        except OSError as error:
            self._closed = True
            self._file.abandon()
            raise cannot_write(self._file.path, error) from error

    def _log_ns(self, frame: Frame) -> int:
        if frame.stamp_source == "file":
            start = self._starts.setdefault(frame.camera, time.time_ns() - frame.stamp_ns)
            return start + frame.stamp_ns
        return time.time_ns() - (time.monotonic_ns() - frame.captured_ns)

    def close(self) -> None:
        """Write the index. A second call does nothing.

        Raises:
            StreamError: It cannot be written; the messages are there all the same.
        """
        if not self._closed:
            self._closed = True
            self._finish()

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.finish()
        except OSError as error:
            file.abandon()
            raise cannot_write(file.path, error) from error

    def __enter__(self) -> McapSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _McapFile:
    """One MCAP file being written."""

    def __init__(self, path: Path) -> None:
        writer, compression = _import_writer()
        make_folder(path)
        try:
            self._stream: BinaryIO = path.open("wb")
        except OSError as error:
            raise cannot_write(path, error) from error
        self.path = path
        # LZ4 shrinks an instance map of 20 objects seventyfold in half a millisecond; JPEG it leaves as it is.
        self._writer: Any = writer(self._stream, chunk_size=_CHUNK_BYTES, compression=compression.LZ4)
        self._writer.start(profile="ros2", library="edge-mrcnn")
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._sent: dict[str, bytes] = {}
        self._sequence = 0
        self._begin_s = self._flushed_s = time.monotonic()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._begin_s

    def add(self, messages: list[Outgoing], log_ns: int) -> None:
        for message in messages:
            if message.latched:
                if self._sent.get(message.topic) == message.data:
                    continue
                self._sent[message.topic] = message.data
            self._writer.add_message(
                channel_id=self._channels.get(message.topic) or self._register(message),
                log_time=log_ns,
                publish_time=message.stamp_ns,
                sequence=self._sequence,
                data=message.data,
            )
        self._sequence += 1
        if time.monotonic() - self._flushed_s >= _FLUSH_S:
            self._writer.flush()
            self._flushed_s = time.monotonic()

    def _register(self, message: Outgoing) -> int:
        name = message.type_name
        if name not in self._schemas:
            self._schemas[name] = self._writer.register_schema(name, "ros2msg", definition(name).encode())
        durability = _TRANSIENT_LOCAL if message.latched else _VOLATILE
        metadata = {
            "offered_qos_profiles": _QOS.format(depth=1 if message.latched else 10, durability=durability),
            "topic_type_hash": type_hash(name),
        }
        channel: int = self._writer.register_channel(message.topic, "cdr", self._schemas[name], metadata)
        self._channels[message.topic] = channel
        return channel

    def finish(self) -> None:
        self._writer.finish()
        self._stream.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # what is buffered cannot be written either
            self._stream.close()


def _import_writer() -> tuple[Any, Any]:
    try:
        from mcap.writer import CompressionType, Writer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"MCAP files need the package {error.name}: pip install 'edge-mrcnn[ros]'", name=error.name
        ) from error
    return Writer, CompressionType


def _split(uri: str, options: SinkOptions) -> tuple[Path, PictureMessage, SinkOptions]:
    """The path, how pictures are written, and the options with those of the URI."""
    if not uri.startswith("mcap://"):
        return Path(uri), "compressed", options
    bare, taken = take_options(
        uri, {"image": as_one_of("none", "compressed", "raw"), "segment_s": float, "mask_threshold": float}
    )
    image = taken.pop("image", "compressed")
    return Path(unquote(bare.removeprefix("mcap://"))), image, replace(options, **taken)
