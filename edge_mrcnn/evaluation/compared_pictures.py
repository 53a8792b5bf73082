"""The pictures that precisions are compared on, with labels or without."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_mrcnn.errors import StreamError
from edge_mrcnn.evaluation.dataset import LabelledSet
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources import Source, open_source
from edge_mrcnn.runtime.sources.files import VideoSource
from edge_mrcnn.runtime.sources.pictures import PictureSource


@dataclass(frozen=True)
class ComparedPicture:
    """A picture that every candidate sees.

    Attributes:
        frame: The picture.
        name: File name, or video and frame number.
        image_id: Its id in the data; None without labels.
    """

    frame: Frame
    name: str
    image_id: Any = None


class LabelledPictures:
    """Pictures of a COCO-format set."""

    skipped = 0

    def __init__(self, labelled: LabelledSet) -> None:
        """Take a set that has been read.

        Raises:
            StreamError: Nothing on its pictures is labelled.
        """
        if not labelled.truth["annotations"]:
            raise StreamError(
                f"none of the {len(labelled.paths)} pictures taken of {labelled.data} has an annotation of the "
                "classes compared, so there is no accuracy to measure; take more pictures, or compare without labels: "
                "--frames"
            )
        self._labelled = labelled

    def __iter__(self) -> Iterator[ComparedPicture]:
        """Read the pictures.

        Raises:
            StreamError: One cannot be read, or has another size than the file says.
        """
        for image, frame in self._labelled.frames():
            yield ComparedPicture(frame, str(image["file_name"]), image["id"])


class UnlabelledPictures:
    """Frames of a source.

    Attributes:
        skipped: Pictures that could not be read so far.
    """

    def __init__(self, uri: str, every: int = 1, limit: int | None = None) -> None:
        """Say what to read.

        Args:
            uri: What `open_source` takes.
            every: Take every so many-th frame.
            limit: Take the first so many of these only.
        """
        self._uri, self._every, self._limit = uri, every, limit
        self.skipped = 0

    def __iter__(self) -> Iterator[ComparedPicture]:
        """Read the frames; a bar on a terminal.

        Raises:
            StreamError: The source cannot be read.
            ValueError: It has no end, and there is no limit.
        """
        from tqdm import tqdm

        with open_source(self._uri) as source:
            endless = source.length is None and not isinstance(source, VideoSource)
            if endless and self._limit is None:
                raise ValueError(f"{self._uri} has no end: say how many frames to compare on, such as --limit 300")
            frames = itertools.islice(source, 0, None, self._every)
            total = None if source.length is None else -(-source.length // self._every)
            total = self._limit if total is None else min(total, self._limit or total)
            bar = tqdm(itertools.islice(frames, self._limit), "comparing", total, unit=" pictures", disable=None)
            for frame in bar:
                yield ComparedPicture(frame, _name(frame, source))
            self.skipped = source.skipped


def _name(frame: Frame, source: Source) -> str:
    """A picture has a file of its own; a frame of a video or a camera has its number in it."""
    name = Path(frame.source).name
    return name if isinstance(source, PictureSource) else f"{name}, frame {frame.index}"
