"""Results as JSON lines: one line a frame, for programs to read."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture
from edge_mrcnn.runtime.sinks import SinkOptions
from edge_mrcnn.runtime.sinks.partial import cannot_write
from edge_mrcnn.runtime.sinks.recording import RecordingName, make_folder
from edge_mrcnn.runtime.skeletons import shown_keypoints

logger = logging.getLogger(__name__)


class JsonLinesSink:
    """One line of JSON a frame, written as soon as the frame comes; one file for all cameras.

    A line holds `source`, `camera`, `index`, `stamp_ns`, `stamp_source`, `frame_id`, `image_hw`, `latency_ms` (from
    receipt by the host to this line; not of files) and `detections`, each with `xyxy`, `score`, `class_id`,
    `class_name` and, where it is there, `track_id` (from 1), `keypoints` and `mask` (COCO's compressed RLE). Keypoints
    are in the order of the line's `keypoint_names`: x, y and score of each, null for one that the thing does not have
    or whose score is too low.

    Attributes:
        uri: The file's path.
        wants_picture: False.
        wants_stop: False.
    """

    wants_picture = False
    wants_stop = False
    kind: Literal["view", "record"] = "record"
    main_thread = False

    def __init__(self, path: str | Path, options: SinkOptions | None = None) -> None:
        """Choose the file; it is made when the first frame comes.

        Args:
            path: Where to write; may hold the time, as `strftime` writes it.
            options: `class_names`, `keypoint_names`, `rle`, the thresholds and `segment_s` matter.

        Raises:
            StreamError: The place cannot be written.
        """
        self.uri = str(path)
        self._options = options or SinkOptions()
        self._name = RecordingName(path, segments=self._options.segment_s is not None)
        self._stream: io.FileIO | None = None
        self._size = 0
        self._begin_s = 0.0
        self._closed = False

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Add a line.

        Raises:
            StreamError: The sink is closed or the disk is full; the lines before stay whole.
        """
        if self._closed:
            raise StreamError(f"{self.uri} is closed; open a new sink")
        line = json.dumps(self._record(frame, detections), separators=(",", ":")) + "\n"
        self._append(self._open(), line.encode())

    def _open(self) -> io.FileIO:
        """The file for the next line."""
        now_s, segment_s = time.monotonic(), self._options.segment_s
        if self._stream is not None and segment_s is not None and now_s - self._begin_s >= segment_s:
            self._stream.close()
            self._stream = None
        if self._stream is None:
            path = self._name.at("")
            make_folder(path)
            try:
                self._stream = io.FileIO(path, "w")
            except OSError as error:
                raise cannot_write(path, error) from error
            self._begin_s, self._size = now_s, 0
        return self._stream

    def _append(self, stream: io.FileIO, data: bytes) -> None:
        """Write a line as a whole or not at all: a full disk takes as much as fits."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[stream.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a pipe cannot be cut
                stream.truncate(self._size)
                stream.seek(self._size)
            raise cannot_write(Path(str(stream.name)), error) from error
        self._size += len(data)

    def _record(self, frame: Frame, detections: Detections) -> dict[str, Any]:
        with_masks = self._options.rle and detections.mask is not None
        masks = detections.rle(self._options.mask_threshold) if with_masks else None
        record: dict[str, Any] = {
            "source": frame.source,
            "camera": frame.camera,
            "index": frame.index,
            "stamp_ns": frame.stamp_ns,
            "stamp_source": frame.stamp_source,
            "frame_id": frame.frame_id,
            "image_hw": list(detections.image_hw),
        }
        if frame.stamp_source != "file":
            record["latency_ms"] = round((time.monotonic_ns() - frame.captured_ns) / 1e6, 1)
        if detections.keypoints is not None and self._options.keypoint_names:
            record["keypoint_names"] = list(self._options.keypoint_names)
        record["detections"] = [self._entry(detections, row, masks) for row in range(len(detections))]
        return record

    def _entry(self, detections: Detections, row: int, masks: list[dict[str, Any]] | None) -> dict[str, Any]:
        label, names = int(detections.class_id[row]), self._options.class_names
        entry: dict[str, Any] = {
            "xyxy": [round(side, 2) for side in detections.xyxy[row].tolist()],
            "score": round(float(detections.score[row]), 4),
            "class_id": label,
            "class_name": names[label] if 0 <= label < len(names) else None,
        }
        if detections.track_id is not None and detections.track_id[row] > 0:
            entry["track_id"] = int(detections.track_id[row])
        if detections.keypoints is not None:
            entry["keypoints"] = self._points(detections.keypoints[row])
        if masks is not None:
            entry["mask"] = masks[row]
        return entry

    def _points(self, keypoints: npt.NDArray[np.float32]) -> list[list[float] | None]:
        shown = shown_keypoints(keypoints, self._options.keypoint_threshold)
        return [
            [round(x, 2), round(y, 2), round(score, 4)] if one else None
            for (x, y, score), one in zip(keypoints.tolist(), shown, strict=True)
        ]

    def close(self) -> None:
        """Close the file. A second call does nothing.

        Raises:
            StreamError: The file system tells only now that a line could not be written.
        """
        if self._closed:
            return
        self._closed = True
        if self._stream is None:
            logger.warning("no frame came, so there are no JSON lines %s", self.uri)
            return
        try:
            self._stream.close()
        except OSError as error:
            raise cannot_write(Path(str(self._stream.name)), error) from error

    def __enter__(self) -> JsonLinesSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
