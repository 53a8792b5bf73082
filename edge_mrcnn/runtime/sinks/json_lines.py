"""Results as JSON lines: one line a frame, for programs to read."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_mrcnn.detections import Detections
from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.annotate import AnnotatedPicture
from edge_mrcnn.runtime.sinks.partial import FileSink, PartialFile, cannot_write

logger = logging.getLogger(__name__)


class JsonLinesSink(FileSink):
    """One line of JSON a frame, with source, index, stamp, size and detections.

    Attributes:
        uri: The file's path.
        wants_picture: False.
        wants_stop: False.
    """

    wants_picture = False
    wants_stop = False
    kind: Literal["view", "record"] = "record"
    main_thread = False

    def __init__(
        self,
        path: str | Path,
        *,
        class_names: tuple[str, ...] = (),
        rle: bool = False,
        mask_threshold: float = 0.5,
    ) -> None:
        """Begin a file.

        Args:
            path: Where to write.
            class_names: `class_names[class_id]`.
            rle: Write masks too, as COCO's compressed RLE.
            mask_threshold: A pixel belongs to a mask where its probability is at least this.

        Raises:
            StreamError: The place cannot be written.
        """
        self.uri = str(path)
        self._class_names = class_names
        self._rle = rle
        self._mask_threshold = mask_threshold
        self._file = PartialFile(path)
        self._stream: io.TextIOWrapper | None = self._file.part.open("w", encoding="utf-8")

    def write(self, frame: Frame, detections: Detections, annotated: AnnotatedPicture = None) -> None:
        """Add a line and flush it.

        Raises:
            StreamError: The sink is closed or the disk is full.
        """
        if self._stream is None:
            raise StreamError(f"{self.uri} is closed; open a new sink")
        try:
            self._stream.write(json.dumps(self._record(frame, detections), separators=(",", ":")) + "\n")
            self._stream.flush()
        except OSError as error:
            raise cannot_write(self._file.path, error) from error

    def _record(self, frame: Frame, detections: Detections) -> dict[str, Any]:
        masks = detections.rle(self._mask_threshold) if self._rle and detections.mask is not None else None
        return {
            "source": frame.source,
            "index": frame.index,
            "stamp_ns": frame.stamp_ns,
            "stamp_source": frame.stamp_source,
            "frame_id": frame.frame_id,
            "image_hw": list(detections.image_hw),
            "detections": [self._entry(detections, row, masks) for row in range(len(detections))],
        }

    def _entry(self, detections: Detections, row: int, masks: list[dict[str, Any]] | None) -> dict[str, Any]:
        label = int(detections.class_id[row])
        entry: dict[str, Any] = {
            "xyxy": [round(side, 2) for side in detections.xyxy[row].tolist()],
            "score": round(float(detections.score[row]), 4),
            "class_id": label,
            "class_name": self._class_names[label] if 0 <= label < len(self._class_names) else None,
        }
        if detections.track_id is not None:
            entry["track_id"] = int(detections.track_id[row])
        if detections.keypoints is not None:
            entry["keypoints"] = np.round(detections.keypoints[row].astype(np.float64), 2).tolist()
        if masks is not None:
            entry["mask"] = masks[row]
        return entry

    def close(self) -> None:
        """Give the file its name. A second call does nothing.

        Raises:
            StreamError: The last lines cannot be written.
        """
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            stream.close()
        except OSError as error:
            self._file.discard()
            raise cannot_write(self._file.path, error) from error
        self._file.commit()

    def discard(self) -> None:
        """Remove what was written so far."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            try:
                stream.close()
            except OSError as error:
                logger.debug("%s: %s", self.uri, error)
            self._file.discard()

    def __enter__(self) -> JsonLinesSink:
        return self
