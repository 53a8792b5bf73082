"""A Jetson's CSI cameras and hardware decoder, and cameras by a GStreamer pipeline of one's own.

Frames stay NV12, as this hardware gives them: half the bytes of RGB, and the GPU letterboxes them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from edge_mrcnn.runtime.sources.gstreamer_capture import GstreamerCapture
from edge_mrcnn.runtime.sources.live import LIVE_OPTIONS, TIMEOUT_S, Capture, LiveSource
from edge_mrcnn.runtime.uri import HIDDEN, redact, take_options

_SECRET_PROPERTY = re.compile(r"(\b[\w-]*(?:user|pw|pass|secret|token|key)[\w-]*=)(\"[^\"]*\"|\S+)", re.IGNORECASE)


def csi_pipeline(sensor: int, *, width: int = 1280, height: int = 720, fps: float = 30.0, flip: int = 0) -> str:
    """The pipeline of a Jetson's CSI camera, up to raw video in the CPU's memory.

    Args:
        sensor: Number of the camera.
        width: In pixels; the camera gives the sizes and rates that its driver lists.
        height: In pixels.
        fps: Frames per second.
        flip: `flip-method` of `nvvidconv`, such as 2 for half a turn.

    Example:
        >>> csi_pipeline(0, width=1920, height=1080).split(" ! ")[1]
        'video/x-raw(memory:NVMM),width=1920,height=1080,format=NV12,framerate=30/1'
    """
    rate = Fraction(fps).limit_denominator(1001)
    size = f"width={width},height={height},format=NV12,framerate={rate.numerator}/{rate.denominator}"
    return f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),{size} ! nvvidconv flip-method={flip}"


def hardware_pipeline(location: str) -> str:
    """The pipeline that decodes an RTSP stream or a video file on a Jetson's decoder, up to raw video.

    GStreamer finds the decoder of the codec by itself. Only the hardware's puts its pictures into NVMM memory, so where
    it cannot be used the pipeline does not start, rather than decode on the CPU unseen.

    Example:
        >>> hardware_pipeline("clip.mp4")
        'filesrc location="clip.mp4" ! decodebin ! video/x-raw(memory:NVMM) ! nvvidconv'
    """
    quoted = location.replace("\\", "\\\\").replace('"', '\\"')
    if location.partition("://")[0].lower() in ("rtsp", "rtsps"):
        # TCP: lost packets would show as smears. The stream's audio is not asked for.
        source = f'rtspsrc location="{quoted}" protocols=tcp latency=200 ! application/x-rtp,media=video'
    else:
        source = f'filesrc location="{quoted}"'
    return f"{source} ! decodebin ! video/x-raw(memory:NVMM) ! nvvidconv"


def with_appsink(pipeline: str, *, newest: bool, caps: str = "video/x-raw,format=NV12") -> str:
    """A pipeline with an end where OpenCV takes frames in NV12.

    Args:
        pipeline: Up to raw video. Its last element is no caps filter: OpenCV cannot open two of them in a row.
        newest: A new frame takes the place of one that nobody took; else the pipeline waits.
        caps: What the last element must give.
    """
    room = "drop=true max-buffers=1" if newest else "max-buffers=4"
    return f"{pipeline} ! {caps} ! appsink {room} sync=false"


def open_csi(uri: str) -> LiveSource:
    """Open a CSI camera of a Jetson.

    Args:
        uri: `csi://0?width=1280&height=720&fps=30&flip=0`.

    Raises:
        StreamError: The camera gives no picture, or this is no Jetson.
        ValueError: The camera's number or an option is wrong.
    """
    kinds = {**LIVE_OPTIONS, "width": _positive, "height": _positive, "fps": _rate, "flip": _flip}
    rest, options = take_options(uri, kinds)
    number = rest.partition("://")[2] or "0"
    if not number.isdecimal():
        raise ValueError(f"a CSI camera has a number, such as csi://0, got {uri!r}")
    live = {key: options.pop(key) for key in LIVE_OPTIONS if key in options}
    newest = live.get("drop") != "never"
    pipeline = with_appsink(csi_pipeline(int(number), **options), newest=newest)
    return _open_live(uri, pipeline, {"name": f"csi{number}", **live})


def open_pipeline(uri: str) -> LiveSource:
    """Open a camera by a pipeline of one's own; `videoconvert` and an appsink are added to it.

    It counts as a camera: when it ends it is started again, and it should give frames at its own pace.

    Args:
        uri: `gst://PIPELINE?name=front`, the pipeline up to raw video in the CPU's memory.

    Raises:
        StreamError: The pipeline cannot be started or gives no picture.
        ValueError: There is no pipeline, it has an appsink already, or an option is unknown.
    """
    before, mark, query = uri.rpartition("?")
    options: dict[str, Any] = {}
    if mark and not re.search(r"[\s!]", query):  # else the question mark belongs to an element
        uri, options = before, take_options(f"gst://?{query}", LIVE_OPTIONS)[1]
    pipeline = uri.partition("://")[2].strip(" !")
    if not pipeline or re.search(r"\bappsink\b", pipeline):
        raise ValueError(
            f"gst:// takes a pipeline up to raw video, without appsink, such as 'gst://v4l2src device=/dev/video0', "
            f"got {_hide_secrets(uri)!r}"
        )
    # Of JPEG, for one, the range would stay full, which NV12 of a `Frame` is not.
    caps = "video/x-raw,format=NV12,colorimetry=bt601"
    whole = with_appsink(f"{pipeline} ! videoconvert", newest=options.get("drop") != "never", caps=caps)
    return _open_live(_hide_secrets(uri), whole, {"name": "gst", **options})


def hardware_captures(uri: str, timeout_s: float, *, newest: bool) -> Callable[[], Capture]:
    """What connects to an RTSP server and decodes on a Jetson's decoder, for `LiveSource`.

    Args:
        uri: With the credentials that the server wants.
        timeout_s: A stall this long counts as lost.
        newest: A new frame takes the place of one that nobody took.
    """
    pipeline = with_appsink(hardware_pipeline(uri), newest=newest)
    return lambda: GstreamerCapture(pipeline, redact(uri), timeout_s)


def _open_live(uri: str, pipeline: str, options: dict[str, Any]) -> LiveSource:
    timeout_s = options.pop("timeout_s", TIMEOUT_S)
    return LiveSource(uri, lambda: GstreamerCapture(pipeline, redact(uri), timeout_s), **options)


def _hide_secrets(uri: str) -> str:
    """A `gst://` URI that may be shown: beside what `redact` hides, properties such as `user-pw` are secret."""
    return redact(_SECRET_PROPERTY.sub(rf"\g<1>{HIDDEN}", uri)).replace(f"{HIDDEN}@", "")


def _positive(text: str) -> int:
    """A positive number of pixels."""
    number = int(text)
    if number < 1:
        raise ValueError(f"a size must be positive, got {text!r}")
    return number


def _rate(text: str) -> float:
    """A positive number of frames per second."""
    rate = float(text)
    if not 0 < rate < float("inf"):
        raise ValueError(f"a rate must be positive, got {text!r}")
    return rate


def _flip(text: str) -> int:
    """0 to 7: 0 none, 1 a quarter turn anticlockwise, 2 half a turn, 3 a quarter clockwise, 4 mirrored."""
    if text not in tuple("01234567"):
        raise ValueError(f"there are ways to flip from 0 to 7, got {text!r}")
    return int(text)
