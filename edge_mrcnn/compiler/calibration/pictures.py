"""The pictures to calibrate with: from files to what the network sees, by the code of the runtime."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_mrcnn.errors import CalibrationError, StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources import Source, open_source
from edge_mrcnn.runtime.sources.files import VideoSource
from edge_mrcnn.runtime.sources.pictures import PICTURE_SUFFIXES, PictureSource

logger = logging.getLogger(__name__)

UNREADABLE = 0.05
"""Share of the pictures that may be unreadable."""


@dataclass(frozen=True)
class Shot:
    """A picture as the network sees it.

    Attributes:
        name: Where it came from, for messages.
        images: `(1, H, W, 3)` uint8 RGB, letterboxed.
        image_hw: `(1, 2)` float32, size of the content.
        video: The video that it is a frame of; None for a picture of its own.
    """

    name: str
    images: npt.NDArray[np.uint8]
    image_hw: npt.NDArray[np.float32]
    video: str | None = None

    @property
    def content(self) -> npt.NDArray[np.uint8]:
        """The picture without the letterbox's padding, `(h, w, 3)`."""
        height, width = (int(side) for side in self.image_hw[0])
        return self.images[0, :height, :width]

    def sha256(self) -> str:
        """Hash of the letterboxed pixels and the size of the content."""
        return hashlib.sha256(self.images.tobytes() + self.image_hw.tobytes()).hexdigest()


class CalibrationPictures:
    """Pictures from folders, COCO files, videos and globs, one after the other.

    Attributes:
        sources: What they are read from.
        length: Number of pictures, as far as known before they are read; None where a video does not say it.
    """

    def __init__(
        self, data: Sequence[str | Path], input_hw: tuple[int, int], *, every: int = 1, limit: int | None = None
    ) -> None:
        """Find the pictures; none is read yet.

        Args:
            data: Folders, globs, picture files, videos and COCO annotation files.
            input_hw: Canvas `(H, W)` of the network.
            every: Of videos, take every so many frames only.
            limit: Take the first so many pictures only.

        Raises:
            CalibrationError: A camera was given, a COCO file cannot be read, or there is nothing at all.
            StreamError: A source is missing, empty or unreadable.
            ValueError: A URI cannot be understood.
        """
        if not data:
            raise CalibrationError("there are no pictures: name a folder, a COCO file or a video")
        self.sources = tuple(str(item) for item in data)
        self._hw, self._every, self._limit = input_hw, every, limit
        self._opened: list[Source] = []
        try:
            for item in data:
                self._opened.append(_open(item))
        except BaseException:
            self.close()
            raise
        lengths = [_count(source, every) for source in self._opened]
        known = None if None in lengths else sum(length or 0 for length in lengths)
        self.length = known if limit is None else min(limit, known or limit)

    def __iter__(self) -> Iterator[Shot]:
        """Read and letterbox them, once.

        Raises:
            CalibrationError: There is no picture, or more than 5 % of them cannot be read.
            StreamError: A video breaks at its first frame.
        """
        taken, unreadable = 0, 0
        for source in self._opened:
            before = unreadable
            for frame in self._frames(source):
                unreadable = before + source.skipped
                if self.length is not None:
                    self._check_readable(unreadable, max(self.length, taken + unreadable))
                images, image_hw, _ = letterbox_batch([frame.image], self._hw)
                taken += 1
                video = frame.source if isinstance(source, VideoSource) else None
                yield Shot(f"frame {frame.index} of {video}" if video else frame.source, images, image_hw, video)
                if taken == self._limit:
                    return
            unreadable = before + source.skipped
        self._check_readable(unreadable, taken + unreadable)
        if not taken:
            raise CalibrationError(f"there are no pictures in {', '.join(self.sources)}; give a folder that has some")

    def _frames(self, source: Source) -> Iterator[Frame]:
        """The frames of one source; pictures of which none can be read count as skipped rather than as the end."""
        if isinstance(source, VideoSource):
            yield from (frame for frame in source if frame.index % self._every == 0)
            return
        try:
            yield from source
        except StreamError:
            if not source.skipped:
                raise

    def _check_readable(self, unreadable: int, total: int) -> None:
        if unreadable > UNREADABLE * total:
            raise CalibrationError(
                f"{unreadable} of {total} pictures cannot be read, which is more than {UNREADABLE:.0%}: what is left "
                "may be another choice than was meant. Each is named above; copy them again, or take them out"
            )

    def close(self) -> None:
        """Close what was opened. A second call does nothing."""
        for source in self._opened:
            source.close()

    def __enter__(self) -> CalibrationPictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(item: str | Path) -> Source:
    path = Path(item)
    if path.suffix.lower() == ".json" and "://" not in str(item):
        return PictureSource(read_coco_paths(path), str(item))
    if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
        return PictureSource([path], str(item))  # not strict: one damaged file among many given is skipped
    source = open_source(item)
    endless = not isinstance(source, VideoSource) and source.length is None
    if source.live or endless:
        source.close()
        raise CalibrationError(
            f"{item} has no end, and the same pictures could not be taken again; record some minutes first, such as: "
            "ffmpeg -f v4l2 -i /dev/video0 -t 300 clip.mp4"
        )
    return source


def read_coco_paths(data: Path) -> list[Path]:
    """The pictures of a COCO annotation file, each in the folder `images` beside it or else beside it.

    Nothing but the names is read: annotations, if there are any, do not matter. A picture that is missing is found out
    when it is read.

    Raises:
        CalibrationError: The file is missing, or not one in COCO's format.
    """
    try:
        names = [str(row["file_name"]) for row in json.loads(data.read_text(encoding="utf-8"))["images"]]
    except FileNotFoundError as error:
        raise CalibrationError(
            f"there is no file {data}; check the path, or give the folder with the pictures"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{data} is no COCO annotation file ({error!r}): it needs images with a file_name each; or give the folder "
            "with the pictures"
        ) from error
    if not names:
        raise CalibrationError(f"{data} lists no images; give the folder with the pictures")
    folder = data.parent
    return [path if (path := folder / "images" / name).is_file() else folder / name for name in names]


def _count(source: Source, every: int) -> int | None:
    if isinstance(source, VideoSource):
        return None if source.length is None else -(-source.length // every)
    return source.length
