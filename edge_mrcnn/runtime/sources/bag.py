"""`clip.mcap`, `drive.bag` or the folder of a ROS 2 bag: a recorded camera as a source."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.bag_pictures import (
    Lens,
    compressed_pixels,
    depth_metres,
    image_pixels,
    is_picture,
    read_lens,
)
from edge_mrcnn.runtime.sources.bag_reader import BagReader, RawMessage, first_message, open_reader
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth, as_drop
from edge_mrcnn.runtime.sources.replay import Replay, take_drop
from edge_mrcnn.runtime.uri import as_flag, camera_name, take_options

logger = logging.getLogger(__name__)

_IMAGE, _COMPRESSED, _INFO = (f"sensor_msgs/msg/{name}" for name in ("Image", "CompressedImage", "CameraInfo"))
_COMMON_NAMES = {"image", "image_raw", "image_rect", "image_color", "image_rect_color", "compressed", "edge_mrcnn"}
"""Parts of topics that do not tell one camera from another."""

_SAME_TIME_NS = 10_000_000
"""A picture and a depth picture whose stamps are this close are of the same moment."""

_MOST_WAITING = 8
"""So many pictures wait for their depth, in whose order the two were recorded nobody knows."""


def is_bag(path: Path) -> bool:
    """Whether a path is a bag by its suffix, or the folder of a ROS 2 bag."""
    return path.suffix.lower() in (".mcap", ".bag", ".db3") or (path / "metadata.yaml").is_file()


def open_bag(uri: str | Path) -> BagSource | Replay:
    """Open one camera of a bag.

    Args:
        uri: A path, or `bag:///path?topic=/camera/image_raw`, of any scheme. Options: `topic`, `depth` (topic of depth
            pictures aligned to the pictures), `name`, `frame_id`; `live=1` plays it at its own pace like a camera,
            stamped by the host, `loop=1` so again and again, `drop` as of cameras.

    Raises:
        ModuleNotFoundError: rosbags or mcap is not installed.
        StreamError: It cannot be read, or holds no pictures, or those of several cameras and no topic is chosen; the
            message lists the topics.
        ValueError: An option is unknown or its value is wrong.
    """
    text = str(uri)
    if "://" not in text:
        return BagSource(Path(text))
    kinds: dict[str, Callable[[str], Any]] = {"topic": str, "depth": str, "name": camera_name, "frame_id": str}
    bare, options = take_options(text, {**kinds, "live": as_flag, "loop": as_flag, "drop": as_drop})
    loop = options.pop("loop", False)
    live = options.pop("live", loop) or loop
    drop = take_drop(text, options, live)
    path = Path(unquote(bare.partition("://")[2]))
    if live:
        return Replay(lambda: BagSource(path, **options), loop=loop, drop=drop)
    return BagSource(path, **options)


class BagSource:
    """The pictures of one camera, with depth and camera matrix where they are there, stamped as they were recorded.

    Messages that cannot be decoded are skipped and counted. The camera matrix is that of `camera_info` beside the
    pictures' topic.

    Attributes:
        uri: The path.
        fps: Frames per second on average, None where it is not known.
        length: Number of pictures.
        live: False.
        skipped: Messages and parts of the file that could not be read so far.
        name: Of the camera: made from the topic, or from the file's name where that tells nothing.
        drop: `never`.
        health: How it is doing.
    """

    live = False
    drop: Drop = "never"

    def __init__(
        self, path: str | Path, *, topic: str = "", depth: str = "", name: str = "", frame_id: str = ""
    ) -> None:
        """Open a bag.

        Args:
            path: An MCAP file, a `.db3`, a ROS 1 `.bag`, or the folder of a ROS 2 bag.
            topic: Of the pictures; may be left out where there is one camera.
            depth: Topic of depth pictures, aligned to the pictures; none when empty.
            name: Of the camera; made from the topic when empty.
            frame_id: Name of its coordinate frame; the messages' when empty.

        Raises:
            ModuleNotFoundError: rosbags or mcap is not installed.
            StreamError: It cannot be read, or the topics are not there.
        """
        self.uri = str(path)
        self._reader = open_reader(Path(path))
        try:
            self._topic = topic or _only_camera(self._reader, self.uri)
            self._depth = depth
            _check_topic(self._reader, self.uri, self._topic, (_IMAGE, _COMPRESSED))
            if depth:
                _check_topic(self._reader, self.uri, depth, (_IMAGE,))
        except BaseException:
            self._reader.close()
            raise
        base = self._topic.removesuffix("/compressed")
        self._rectified = "rect" in base.rpartition("/")[2]
        info = f"{base.rpartition('/')[0]}/camera_info"
        self._info = info if self._reader.types.get(info) == _INFO and self._reader.counts[info] else ""
        self._frame_id = frame_id
        self.name = name or _name(base, Path(path))
        self.length: int | None = self._reader.counts[self._topic]
        span_s = self._reader.span_ns / 1e9
        self.fps = (self.length - 1) / span_s if self.length > 1 and span_s > 0 else None
        self.health = SourceHealth()
        self._closed = False
        self._warned: set[str] = set()

    @property
    def skipped(self) -> int:
        """Messages and parts of the file that could not be read so far."""
        return self.health.damaged

    def __iter__(self) -> Iterator[Frame]:
        """Read from the first picture to the last.

        Raises:
            StreamError: The source is closed, or not one picture can be decoded.
        """
        if self._closed:
            raise StreamError(f"the bag {self.uri} is closed; open it again: open_source({self.uri!r})")
        self.health = SourceHealth()
        pairs, last = _Pairs(bool(self._depth)), ""
        lens = self._lens(first_message(self._reader, self._info)) if self._info else None
        already = self._reader.damaged
        for message in self._reader.messages({self._topic, self._depth, self._info} - {""}):
            self._count(self._reader.damaged - already)
            already = self._reader.damaged
            try:
                decoded = self._reader.decode(message)
                if message.topic == self._info:
                    lens = self._lens(decoded)
                elif message.topic == self._depth:
                    pairs.add_depth(_stamp_ns(decoded), depth_metres(decoded))
                else:
                    pairs.add(self._frame(message, decoded, lens))
            except Exception as error:  # a damaged message makes its decoder raise anything
                last = str(error)
                logger.warning("%s: skipped a message of %s: %s", self.uri, message.topic, last)
                self._count(1)
            yield from self._numbered(pairs.ready())
        self._count(self._reader.damaged - already)
        yield from self._numbered(pairs.rest())
        if not self.health.frames:
            why = f"the last problem: {last}" if last else "there are none"
            raise StreamError(f"not one picture of {self._topic} in {self.uri} can be read; {why}")
        self.health = replace(self.health, state="ended")

    def _count(self, damaged: int) -> None:
        if damaged:
            self.health = replace(self.health, damaged=self.health.damaged + damaged)

    def _numbered(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if frame.depth_m is None and self._depth:
                self._warn("depth", f"some pictures have no depth on {self._depth} at their time and of their size")
            index = self.health.frames
            self.health = replace(self.health, state="live", frames=index + 1, image_hw=frame.image_hw)
            yield replace(frame, index=index)

    def _frame(self, message: RawMessage, decoded: Any, lens: Lens | None) -> Frame:
        compressed = self._reader.types[self._topic] == _COMPRESSED
        pixels, pixel_format = compressed_pixels(decoded) if compressed else image_pixels(decoded)
        stamp_ns = _stamp_ns(decoded)
        frame = Frame(
            pixels,
            source=self.uri,
            stamp_ns=stamp_ns or message.log_ns,
            stamp_source="sender" if stamp_ns else "host",
            frame_id=self._frame_id or decoded.header.frame_id,
            camera=self.name,
            pixel_format=pixel_format,
        )
        if lens is None:
            return frame
        if lens.image_hw != frame.image_hw:
            self._warn("size", f"{self._info} is for pictures of {lens.image_hw}, they are {frame.image_hw} (H, W)")
            return frame
        return replace(frame, intrinsics=lens.matrix)

    def _lens(self, decoded: Any) -> Lens | None:
        lens = None if decoded is None else read_lens(decoded, self._rectified)
        if lens is not None and lens.distorted:
            self._warn("lens", "pictures are not rectified: points in space are off towards the edges")
        return lens

    def _warn(self, about: str, text: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            logger.warning("%s: %s (said once)", self.uri, text)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._closed = True
        self._reader.close()

    def __enter__(self) -> BagSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _only_camera(reader: BagReader, uri: str) -> str:
    """The topic of the pictures of the only camera there is."""
    cameras: dict[str, str] = {}
    for topic in sorted(reader.types):  # a picture's own topic comes before its compressed one
        if _shows_pictures(reader, topic):
            cameras.setdefault(topic.removesuffix("/compressed"), topic)
    topics = list(cameras.values())
    if not topics:
        raise StreamError(f"{uri} holds no pictures; its topics: {_listed(reader)}")
    if len(topics) > 1:
        example = f"bag://{Path(uri).absolute()}?topic={topics[0]}"
        raise StreamError(f"{uri} holds {len(topics)} cameras; choose one: {example} ({', '.join(topics)})")
    return topics[0]


def _shows_pictures(reader: BagReader, topic: str) -> bool:
    """Whether there is a picture to look at, by its first message: maps of depth and of objects are images too."""
    kind = reader.types[topic]
    if kind not in (_IMAGE, _COMPRESSED) or not reader.counts[topic]:
        return False
    first = first_message(reader, topic)
    if first is None:
        return False
    return is_picture(first.encoding) if kind == _IMAGE else "compressedDepth" not in first.format


def _check_topic(reader: BagReader, uri: str, topic: str, types: tuple[str, ...]) -> None:
    if reader.types.get(topic) not in types:
        raise StreamError(f"{uri} has no topic {topic} of {' or '.join(types)}; its topics: {_listed(reader)}")


def _listed(reader: BagReader) -> str:
    return ", ".join(f"{topic} ({kind or 'unknown'})" for topic, kind in sorted(reader.types.items())) or "none"


class _Pairs:
    """Brings pictures and depth pictures of the same moment together, in the order of the pictures."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._waiting: deque[Frame] = deque()
        self._depths: deque[tuple[int, npt.NDArray[np.float32]]] = deque(maxlen=_MOST_WAITING)

    def add(self, frame: Frame) -> None:
        self._waiting.append(frame)

    def add_depth(self, stamp_ns: int, depth_m: npt.NDArray[np.float32]) -> None:
        self._depths.append((stamp_ns, depth_m))

    def ready(self) -> Iterator[Frame]:
        """Frames that have their depth, or will not get it any more."""
        while self._waiting:
            frame = self._waiting[0]
            depth_m = self._match(frame)
            passed = bool(self._depths) and self._depths[-1][0] > frame.stamp_ns + _SAME_TIME_NS
            if self._wanted and depth_m is None and not passed and len(self._waiting) < _MOST_WAITING:
                return
            yield self._with_depth(self._waiting.popleft(), depth_m)

    def rest(self) -> Iterator[Frame]:
        """What is left at the end."""
        while self._waiting:
            frame = self._waiting.popleft()
            yield self._with_depth(frame, self._match(frame))

    def _match(self, frame: Frame) -> npt.NDArray[np.float32] | None:
        near = [(abs(stamp_ns - frame.stamp_ns), depth_m) for stamp_ns, depth_m in self._depths]
        away_ns, depth_m = min(near, key=lambda entry: entry[0], default=(_SAME_TIME_NS + 1, None))
        return depth_m if away_ns <= _SAME_TIME_NS else None

    @staticmethod
    def _with_depth(frame: Frame, depth_m: npt.NDArray[np.float32] | None) -> Frame:
        aligned = depth_m is not None and depth_m.shape == frame.image_hw
        return replace(frame, depth_m=depth_m) if aligned else frame


def _stamp_ns(decoded: Any) -> int:
    stamp = decoded.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def _name(topic: str, path: Path) -> str:
    telling = [part for part in topic.split("/") if part and part not in _COMMON_NAMES]
    try:
        return camera_name("_".join(telling) or path.stem)
    except ValueError:
        return "bag"
