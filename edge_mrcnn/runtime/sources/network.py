"""Network cameras: RTSP, Motion JPEG and other streams over HTTP, through PyAV."""

from __future__ import annotations

import logging
import struct
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.live import LIVE_OPTIONS, TIMEOUT_S, Capture, LiveSource
from edge_mrcnn.runtime.sources.pictures import jpeg_has_end
from edge_mrcnn.runtime.uri import as_one_of, camera_name, host_of, redact, scrub, take_options

logger = logging.getLogger(__name__)

_LOOK_AT_US = 500_000
"""How much of a stream is looked at before frames come. FFmpeg's own 5 s made 2 s of what takes 0.6 s like this."""

_JITTER_US = 200_000
"""How long a packet over UDP may be late, by which packets in wrong order are sorted."""

_KEY_FRAME_S = 30.0
"""How long to wait for the first key frame while packets come: cameras that save bandwidth send few."""

_CLOCK_OFF_NS = 60_000_000_000
"""A camera whose clock is further off than this was never set: what it says is worth nothing."""

_OF_LATE = 64
"""Packets whose times are remembered until their frames come out of the decoder."""


def open_network(uri: str) -> LiveSource:
    """Open a network camera.

    Args:
        uri: `rtsp://`, `rtsps://`, `http://` or `https://`, with what the server wants to know. Our options are taken
            out of its query, the rest stays: `name`, `frame_id`, `drop`, `timeout_s`, and for RTSP `transport=tcp|udp`
            and `decode=software|hardware`, where hardware is a Jetson's.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        StreamError: There is no such camera, it refuses the password, or it gives no video.
        ValueError: There is no host, or a value of an option cannot be converted.
    """
    kinds: dict[str, Any] = dict(LIVE_OPTIONS)
    if uri.lower().startswith("rtsp"):
        kinds |= {"transport": as_one_of("tcp", "udp"), "decode": as_one_of("software", "hardware")}
    address, options = take_options(uri, kinds, foreign=True)
    timeout_s = options.pop("timeout_s", TIMEOUT_S)
    transport = options.pop("transport", "tcp")
    host = host_of(address)
    if not host:
        raise ValueError(f"{redact(uri)!r} names no host; it should look like rtsp://10.0.0.7:554/live")
    name = options.pop("name", None) or camera_name(host)

    def connect() -> Capture:
        return NetworkCapture(address, timeout_s, transport)

    if options.pop("decode", "software") == "hardware":
        from edge_mrcnn.runtime.sources.gstreamer import hardware_captures

        connect = hardware_captures(address, timeout_s, newest=options.get("drop") != "never")
    return LiveSource(uri, connect, name=name, **options)


class NetworkCapture:
    """One connection to a network camera.

    Frames carry the sender's time where RTCP's reports give it, else the host's. Packets and frames that are damaged
    are counted and passed over; the camera may change its resolution.

    Attributes:
        fps: Frames per second as the stream says, None where it does not.
        damaged: Packets and frames that could not be decoded.
    """

    def __init__(self, uri: str, timeout_s: float = TIMEOUT_S, transport: str = "tcp") -> None:
        """Connect.

        Args:
            uri: With the credentials that the server wants; errors are without.
            timeout_s: How long to wait for the server, and for each frame.
            transport: Of RTSP: `tcp`, where nothing gets lost, or `udp`, where what comes late does not hold up the
                rest.

        Raises:
            ModuleNotFoundError: PyAV is not installed.
            StreamError: There is no such camera, it refuses the password, or it gives no video.
        """
        self.damaged = 0
        self._uri = uri
        self._shown = redact(uri)
        self._timeout_s = timeout_s
        self._times: deque[_Times] = deque(maxlen=_OF_LATE)
        self._ready: deque[Frame] = deque()
        self._warned = self._writes_ends = False
        self._undecodable_until = time.monotonic() + _KEY_FRAME_S
        self._container: Any = _connect(uri, timeout_s, transport)
        if not self._container.streams.video:
            self.close()
            raise StreamError(f"{self._shown} gives no video; check the path: a server may have several streams")
        stream = self._container.streams.video[0]
        stream.thread_type = "SLICE"  # frame by frame: threads that each take a frame would hold frames back
        stream.codec_context.thread_count = 1  # cameras have a thread each
        stream.codec_context.flags |= _av().codec.context.Flags.low_delay
        rate = stream.average_rate  # what FFmpeg guesses where there is none is 25 for everything
        self.fps = float(rate) if rate else None
        self._packets: Iterator[Any] = self._container.demux(stream)

    def read(self) -> Frame:
        """The next frame that is whole.

        Raises:
            StreamError: The connection is lost or closed, or no whole frame came in time.
        """
        end = time.monotonic() + self._timeout_s
        while not self._ready:
            packet = self._next_packet()
            # FFmpeg's parser gives out what it had in hand when a read times out: that is no sign of life.
            if packet is None or time.monotonic() >= end:
                raise StreamError(f"no whole picture came for {self._timeout_s:g} s")
            self._decode(packet)
            if time.monotonic() < self._undecodable_until:
                end = time.monotonic() + self._timeout_s
        self._undecodable_until = 0.0
        return self._ready.popleft()

    def close(self) -> None:
        """Disconnect. A second call does nothing."""
        container, self._container = self._container, None
        self._ready.clear()
        if container is not None:
            container.close()

    def _next_packet(self) -> Any:
        """The next packet; None when none came in time."""
        if self._container is None:
            raise StreamError(f"{self._shown} is closed; open it again")
        av = _av()
        try:
            packet = next(self._packets, None)
        except av.error.ExitError:
            return None
        except (av.error.FFmpegError, OSError) as error:
            raise StreamError(f"the connection broke off: {_reason(error, self._uri)}") from None
        if packet is None:
            raise StreamError("the server has closed the stream")
        return packet  # the last is empty, and makes the decoder give out what it has in hand

    def _decode(self, packet: Any) -> None:
        captured_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        self._times.append(_Times(packet.pts, captured_ns, wall_ns, _sender_ns(packet)))
        if packet.is_corrupt or self._is_cut(packet):
            self.damaged += 1
            return
        try:
            frames = packet.decode()
        except (_av().error.FFmpegError, OSError, ValueError):
            self.damaged += 1
            return
        for frame in frames:
            if frame.is_corrupt:
                self.damaged += 1
            else:
                self._ready.append(self._as_frame(frame))

    def _is_cut(self, packet: Any) -> bool:
        """Whether a JPEG lacks its end; of a camera that writes one: some never do."""
        if packet.stream.codec_context.name != "mjpeg":
            return False
        has_end = jpeg_has_end(bytes(packet))
        self._writes_ends = self._writes_ends or has_end
        return self._writes_ends and not has_end

    def _as_frame(self, frame: Any) -> Frame:
        times = next((times for times in reversed(self._times) if times.pts == frame.pts), self._times[-1])
        pixels = frame.to_ndarray(format="rgb24")
        sender_ns = times.sender_ns
        if sender_ns is None or not self._is_plausible(sender_ns, times.wall_ns):
            return Frame(pixels, captured_ns=times.captured_ns, stamp_ns=times.wall_ns)
        return Frame(pixels, captured_ns=times.captured_ns, stamp_ns=sender_ns, stamp_source="sender")

    def _is_plausible(self, sender_ns: int, wall_ns: int) -> bool:
        if abs(sender_ns - wall_ns) <= _CLOCK_OFF_NS:
            return True
        if not self._warned:
            self._warned = True
            off_s = (sender_ns - wall_ns) / 1e9
            logger.warning(
                "the clock of %s is off by %.0f s: frames are stamped on arrival; set it, best by NTP",
                self._shown,
                off_s,
            )
        return False


class _Times(NamedTuple):
    """When a packet came, and when its sender says that it was taken."""

    pts: int | None
    captured_ns: int
    wall_ns: int
    sender_ns: int | None


def _sender_ns(packet: Any) -> int | None:
    """The sender's wall clock, which FFmpeg works out from RTCP's sender reports; None before the first."""
    for data in packet.iter_sidedata():
        if data.data_type == "prft":  # AVProducerReferenceTime: microseconds, then flags
            microseconds: int = struct.unpack_from("=q", bytes(data))[0]
            return microseconds * 1000
    return None


def _connect(uri: str, timeout_s: float, transport: str) -> Any:
    av = _av()
    # Not `nobuffer`: it throws away what was looked at, and with it the key frame that the first pictures need.
    options = {"analyzeduration": str(_LOOK_AT_US)}
    if uri.lower().startswith("rtsp"):
        options |= {"rtsp_transport": transport, "max_delay": str(_JITTER_US)}
    try:
        return av.open(uri, options=options, timeout=timeout_s)
    except av.error.HTTPUnauthorizedError:
        raise StreamError(
            f"{redact(uri)} refuses the user or the password, which stand before the host; "
            "in them write %40 for @, %3A for :, %2F for / and %25 for %"
        ) from None
    except av.error.ExitError:
        raise StreamError(f"{redact(uri)} did not answer within {timeout_s:g} s; {_remedy(uri)}") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise StreamError(f"{redact(uri)} cannot be opened: {_reason(error, uri)}; {_remedy(uri)}") from None


def _reason(error: Exception, uri: str) -> str:
    return scrub(str(getattr(error, "strerror", "") or error), uri)


def _remedy(uri: str) -> str:
    return f"check that the camera is on (ping {host_of(uri)}), and its port and path (ffprobe '{redact(uri)}')"


def _av() -> Any:
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "network cameras need PyAV, which is not installed: pip install 'edge-mrcnn[video]'", name="av"
        ) from error
    return av
