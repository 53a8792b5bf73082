"""Video files, written through PyAV: Matroska or fragmented MP4, which play at any moment, also after `kill -9`."""

from __future__ import annotations

import contextlib
import io
import logging
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture, annotated_picture
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sinks.partial import cannot_write
from edge_mrcnn.runtime.sinks.recording import RecordingName, make_folder
from edge_mrcnn.runtime.sources.pictures import PICTURE_SUFFIXES

logger = logging.getLogger(__name__)

ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"},
    "mpeg4": {"flags": "+qscale", "global_quality": "472"},
}
"""Encoders and their options, best first: H.264 in a third of the time of the preset `veryfast`, with a third more
bytes and no frame held back; MPEG-4 at quality 4 where FFmpeg was built without x264."""

CONTAINERS = {
    ".mkv": ("matroska", {"cluster_time_limit": "500", "flush_packets": "1"}),
    ".mp4": (
        "mp4",
        {
            "movflags": "frag_keyframe+empty_moov+default_base_moof",
            "frag_duration": "500000",
            "flush_packets": "1",
        },
    ),
}
"""By suffix, FFmpeg's muxer and what it is told: no more than half a second waits in memory."""

DEFAULT_FPS = 30.0
"""Of frames that carry no time, as those of a folder."""

KEY_FRAME_S = 2.0
"""Players can jump to a key frame every so many seconds."""

_TICKS = 60_000
"""Time stamps in a video are in these parts of a second; whole for the usual rates. Matroska rounds to
milliseconds, and MPEG-4 takes no finer ones."""

_LONGEST_STEP_NS = 60_000_000_000
"""The wall clock may be set while a camera runs: stamps that jump by more than this are not believed."""

_BT709, _BT601, _LIMITED = 1, 6, 1
"""FFmpeg's numbers. Primaries and transfer are those of sRGB, near enough; the matrix is that of `COLOR_RGB2YUV_I420`,
which OpenCV also assumes when it reads, whatever a file says."""


class VideoSink:
    """Writes annotated frames into a video; with several cameras, one file each.

    The first frame sets the size, rounded up to even sides; frames of another size are scaled to fit into it whole, on
    black, with a warning. Each frame is shown at its own time, unless a rate is given.

    Attributes:
        uri: The file's path.
        wants_picture: True.
        wants_stop: False.
        codec: FFmpeg's name of the encoder in use, empty before the first frame.
    """

    wants_picture = True
    wants_stop = False
    kind: Literal["view", "record"] = "record"
    main_thread = False

    def __init__(self, path: str | Path, options: SinkOptions | None = None) -> None:
        """Choose the file; it is made when the first frame comes.

        Args:
            path: Ends in `.mkv` or `.mp4`; may hold the time, as `strftime` writes it.
            options: `class_names`, `fps`, `segment_s` and `status` matter.

        Raises:
            StreamError: The place cannot be written, or PyAV is missing.
            ValueError: Another suffix.
        """
        self.uri = str(path)
        if Path(path).suffix.lower() not in CONTAINERS:
            raise ValueError(f"a video ends in {', '.join(CONTAINERS)}, got {str(path)!r}")
        import_av()
        self.codec = ""
        self._options = options or SinkOptions()
        self._name = RecordingName(path, segments=self._options.segment_s is not None)
        self._tracks: dict[str, _Track] = {}
        self._closed = False

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Add a frame.

        Args:
            frame: The frame.
            detections: Its detections.
            annotated: Its annotated picture, or what draws it; drawn here when None.

        Raises:
            StreamError: The sink is closed, no encoder works or the disk is full; what was recorded stays readable.
        """
        if self._closed:
            raise StreamError(f"the video {self.uri} is closed; open a new sink")
        camera = "" if _is_picture(frame) else frame.camera  # each picture given may count as a camera
        track = self._tracks.get(camera)
        if track is None:
            label = camera if self._tracks or self._has_many_cameras() else ""
            track = self._tracks[camera] = _Track(self._name, label, self._options)
        chosen = self._options
        track.add(frame, annotated_picture(frame, detections, annotated, chosen.class_names, chosen.look))
        self.codec = track.codec

    def _has_many_cameras(self) -> bool:
        return self._options.status is not None and len(self._options.status().cameras) > 1

    def close(self) -> None:
        """Finish the files. A second call does nothing.

        Raises:
            StreamError: The end cannot be written; what was recorded before stays readable.
        """
        if self._closed:
            return
        self._closed = True
        if not self._tracks:
            logger.warning("no frame came, so there is no video %s", self.uri)
        with contextlib.ExitStack() as stack:
            for track in self._tracks.values():
                stack.callback(track.close)

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Track:
    """The video of one camera: one file, or one after the other."""

    def __init__(self, name: RecordingName, label: str, options: SinkOptions) -> None:
        self.codec = ""
        self._name = name
        self._label = label
        self._fps = options.fps
        self._segment_s = options.segment_s
        self._clock = _Clock(options.fps)
        self._file: _VideoFile | None = None
        self._begin_s = 0.0

    def add(self, frame: Frame, picture: npt.NDArray[np.uint8]) -> None:
        at_s = self._clock.read(frame)
        if self._file is not None and self._segment_s is not None and at_s - self._begin_s >= self._segment_s:
            self.close()
        if self._file is None:
            self._begin_s = at_s
            self._file = _VideoFile(self._name.at(self._label), picture.shape[:2], self._fps)
            self.codec = self._file.codec
        self._file.add(picture, at_s - self._begin_s)

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class _Clock:
    """When each frame is shown, in seconds from the first; it always moves forward."""

    def __init__(self, fps: float | None) -> None:
        self._fps = fps
        self._count = -1
        self._now_ns = 0
        self._last: Frame | None = None

    def read(self, frame: Frame) -> float:
        self._count += 1
        if self._fps is not None:
            return self._count / self._fps
        last, self._last = self._last, frame
        if last is not None:
            self._now_ns += self._step_ns(last, frame)
        return self._now_ns / 1e9

    def _step_ns(self, last: Frame, frame: Frame) -> int:
        """From the stamps where these can be; else, of a live camera, from the time of receipt."""
        default_ns = round(1e9 / DEFAULT_FPS)
        if _is_picture(frame):  # their stamps say when the files were saved
            return default_ns
        step_ns = frame.stamp_ns - last.stamp_ns
        received_ns = frame.captured_ns - last.captured_ns
        if frame.stamp_source == last.stamp_source and 0 < step_ns < max(_LONGEST_STEP_NS, 2 * received_ns):
            return step_ns
        return default_ns if frame.stamp_source == "file" else max(received_ns, 1_000_000)


def _is_picture(frame: Frame) -> bool:
    return Path(frame.source).suffix.lower() in PICTURE_SUFFIXES


class _File(io.FileIO):
    """Where FFmpeg writes, so that it is closed whatever happens: FFmpeg's own stays open after a full disk.

    Attributes:
        error: What went wrong; FFmpeg may only say that something did.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it, or raise: FFmpeg takes a part for the whole."""
        view = memoryview(data)
        try:
            while view:
                view = view[super().write(view) :]
        except OSError as error:
            self.error = error
            raise
        return len(data)


class _VideoFile:
    """One video file."""

    def __init__(self, path: Path, image_hw: tuple[int, ...], fps: float | None) -> None:
        self._av = import_av()
        self._path = path
        height, width = (side + side % 2 for side in image_hw)
        self._size = (width, height)
        self._last_tick = -_TICKS
        self._next_key_s = 0.0
        self._warned = self._broken = False
        make_folder(path)
        self._file: _File
        self._container, self._stream = self._open(fps)
        self.codec: str = self._stream.codec_context.name

    def add(self, picture: npt.NDArray[np.uint8], at_s: float) -> None:
        """Encode a picture, shown `at_s` seconds after the beginning.

        Raises:
            StreamError: The disk is full.
        """
        planes = cv2.cvtColor(self._fit(picture), cv2.COLOR_RGB2YUV_I420)
        frame = self._av.VideoFrame.from_ndarray(planes, format="yuv420p")
        self._last_tick = frame.pts = max(round(at_s * _TICKS), self._last_tick + _TICKS // 1000)
        frame.time_base = Fraction(1, _TICKS)
        if at_s >= self._next_key_s:
            frame.pict_type = self._av.video.frame.PictureType.I
            self._next_key_s = at_s + KEY_FRAME_S
        self._mux(frame)

    def close(self) -> None:
        """Write what is left and the index.

        Raises:
            StreamError: There is no room for it; what was written before can be read all the same.
        """
        try:
            if not self._broken:
                self._mux(None)
            self._container.close()
        except (OSError, self._av.error.FFmpegError) as error:
            if not self._broken:  # else that was told when it happened
                raise cannot_write(self._path, self._file.error or error) from error
        finally:
            self._file.close()

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (OSError, self._av.error.FFmpegError) as error:
            self._broken = True
            raise cannot_write(self._path, self._file.error or error) from error

    def _open(self, fps: float | None) -> tuple[Any, Any]:
        """A file with the best encoder that works here."""
        for codec in ENCODERS:
            try:
                return self._try(codec, fps)
            except (ValueError, self._av.error.FFmpegError) as error:
                if isinstance(error, OSError) and error.filename == str(self._path):
                    raise cannot_write(self._path, error) from error
                logger.debug("%s: no %s: %s", self._path, codec, error)
        raise StreamError(
            f"this FFmpeg has no encoder for {self._path} ({self._size[0]}x{self._size[1]}, tried "
            f"{', '.join(ENCODERS)}): pip install 'edge-mrcnn[video]' brings one; or write pictures: --to FOLDER/"
        )

    def _try(self, codec: str, fps: float | None) -> tuple[Any, Any]:
        self._av.codec.Codec(codec, "w")  # raises before a file is made
        form, options = CONTAINERS[self._path.suffix.lower()]
        self._file = _File(self._path, "w")
        with contextlib.ExitStack() as undo:
            undo.callback(self._file.close)
            container = self._av.open(self._file, "w", format=form, options=options)
            stream = self._add_stream(container, codec, fps)
            undo.pop_all()
        logger.debug("%s: %s, %dx%d", self._path, codec, *self._size)
        return container, stream

    def _add_stream(self, container: Any, codec: str, fps: float | None) -> Any:
        stream = container.add_stream(codec)
        stream.width, stream.height = self._size
        context = stream.codec_context
        context.pix_fmt = "yuv420p"
        context.time_base = Fraction(1, _TICKS)
        context.framerate = Fraction(fps).limit_denominator(1001) if fps else Fraction(0, 1)  # 0: each at its own time
        context.options = ENCODERS[codec]
        context.gop_size = 10_000  # key frames come by time
        context.thread_count = 1  # the network needs the others more
        context.color_range, context.colorspace = _LIMITED, _BT601
        context.color_primaries = context.color_trc = _BT709
        context.open()
        return stream

    def _fit(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The picture in the size of the video."""
        width, height = self._size
        if picture.shape[:2] == (height, width):
            return picture
        scale = min(height / picture.shape[0], width / picture.shape[1])
        if max(height - picture.shape[0], width - picture.shape[1]) <= 1 and scale >= 1:
            pad = (0, height - picture.shape[0], 0, width - picture.shape[1])
            return np.asarray(cv2.copyMakeBorder(picture, *pad, cv2.BORDER_REPLICATE), np.uint8)
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s is %dx%d; frames of another size, such as %dx%d, are scaled to fit into it",
                *(self._path, width, height, picture.shape[1], picture.shape[0]),
            )
        new_height, new_width = (max(1, round(side * scale)) for side in picture.shape[:2])
        y, x = (height - new_height) // 2, (width - new_width) // 2
        shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[y : y + new_height, x : x + new_width] = cv2.resize(
            picture, (new_width, new_height), interpolation=shrink
        )
        return canvas


def import_av() -> ModuleType:
    """PyAV.

    Raises:
        StreamError: It is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise StreamError("PyAV, which writes videos, is not installed: pip install 'edge-mrcnn[video]'") from error
    av.logging.set_level(av.logging.FATAL)  # what matters is raised
    return av  # type: ignore[no-any-return]
