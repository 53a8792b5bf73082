"""Picture files: read whatever cameras and people save, as RGB bytes, and say clearly what cannot be read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.errors import StreamError
from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.opencv import quiet
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth
from edge_mrcnn.runtime.uri import camera_name

logger = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]
"""`(H, W, 3)` uint8, RGB."""

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
"""Files with these suffixes count as pictures."""

_NUMBER = re.compile(r"%(0\d)?d")

_AGAIN = "copy or save it again"


def read_picture(path: str | Path) -> Picture:
    """Read a picture file.

    Grey becomes RGB, transparency is dropped (the colours under it stay), 16 bits are scaled to 8, and the orientation
    in a photo's EXIF data is applied.

    Args:
        path: A JPEG, PNG, BMP, TIFF or WebP file.

    Returns:
        `(H, W, 3)` uint8, RGB.

    Raises:
        StreamError: The file is missing, empty, cut short or no picture; the message names it.
    """
    image, deep = _decode(Path(path))
    if deep:
        logger.warning("%s has 16 bits a channel; scaled to 8, which is what networks take", path)
    return image


class PictureSource:
    """Picture files one after the other, as frames.

    Pictures that cannot be read are skipped with a warning and counted, unless `strict`.

    Attributes:
        uri: What was opened.
        fps: None: pictures have no rate.
        length: Number of files.
        live: False.
        skipped: Files skipped so far.
        name: Of the camera: by the folder's or the file's name.
        drop: `auto`: pictures wait.
        health: How it is doing.
    """

    fps: float | None = None
    live = False
    drop: Drop = "auto"

    def __init__(
        self,
        paths: Sequence[str | Path],
        uri: str,
        strict: bool = False,
        *,
        name: str | None = None,
        frame_id: str = "",
    ) -> None:
        """Take the files in the order given.

        Args:
            paths: Picture files.
            uri: What they came from, for messages.
            strict: Raise at the first picture that cannot be read.
            name: Of the camera; made from the first file's folder, or from the only file, when not given.
            frame_id: Name of its coordinate frame.
        """
        self.paths = tuple(Path(path) for path in paths)
        self.uri = uri
        self.length: int | None = len(self.paths)
        self.skipped = 0
        self.name = name or _name(self.paths)
        self.health = SourceHealth()
        self._frame_id = frame_id
        self._strict = strict
        self._warned = False

    def __iter__(self) -> Iterator[Frame]:
        """Read the files; `Frame.source` is each file's own path.

        Raises:
            StreamError: A picture cannot be read and the source is strict, or none of them can.
        """
        self.skipped = 0
        last: StreamError | None = None
        for index, path in enumerate(self.paths):
            try:
                image, deep = _decode(path)
                stamp_ns = path.stat().st_mtime_ns
            except StreamError as error:
                if self._strict:
                    raise
                logger.warning("skipped: %s", error)
                self.skipped += 1
                last = error
                continue
            if deep and not self._warned:
                self._warned = True
                logger.warning("%s has 16 bits a channel; scaled to 8 (said once for %s)", path, self.uri)
            found = index + 1 - self.skipped
            self.health = SourceHealth("live", frames=found, damaged=self.skipped, image_hw=image.shape[:2])
            yield Frame(
                image,
                source=str(path),
                index=index,
                stamp_ns=stamp_ns,
                stamp_source="file",
                frame_id=self._frame_id,
                camera=self.name,
            )
        self.health = replace(self.health, state="ended", damaged=self.skipped)
        if self.paths and self.skipped == len(self.paths):
            raise StreamError(
                f"none of the {len(self.paths)} pictures of {self.uri} can be read; the last problem: {last}"
            )

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> PictureSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_sequence(pattern: str) -> list[Path]:
    """Files of a numbered sequence, in the order of their numbers, whatever the first one is.

    Where numbers are missing a warning says how many; the rest is taken, since a recorder that lost pictures goes on.

    Args:
        pattern: A path whose last part holds `%d` or, for numbers with leading zeros, such as `%04d`.

    Returns:
        The files, none where there is no such file.

    Example:
        >>> find_sequence("nowhere/frames_%04d.png")
        []
    """
    folder, name = Path(pattern).parent, Path(pattern).name
    place = _NUMBER.search(name)
    if place is None or not folder.is_dir():
        return []
    found = {}
    shape = re.compile(re.escape(name[: place.start()]) + r"(\d+)" + re.escape(name[place.end() :]))
    for path in folder.iterdir():
        match = shape.fullmatch(path.name)
        if match and place[0] % int(match[1]) == match[1]:
            found[int(match[1])] = path
    numbers = sorted(found)
    missing = numbers[-1] - numbers[0] + 1 - len(numbers) if numbers else 0
    if missing:
        logger.warning("%s: of the numbers %d to %d, %d are missing", pattern, numbers[0], numbers[-1], missing)
    return [found[number] for number in numbers]


def _name(paths: Sequence[Path]) -> str:
    first = paths[0].absolute() if paths else Path("pictures")
    try:
        return camera_name(first.stem if len(paths) == 1 else first.parent.name)
    except ValueError:  # such as a folder `/` or a name in another script
        return "pictures"


def _decode(path: Path) -> tuple[Picture, bool]:
    """The picture, and whether it had 16 bits a channel."""
    data = _read_bytes(path)
    missing = _cut_short(data)
    if missing:
        raise StreamError(f"picture {path} is cut short: {missing}; {_AGAIN}")
    # Colour and any depth: applies EXIF, turns grey to colour and drops alpha, all of which IMREAD_UNCHANGED does not.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    try:
        with quiet():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise StreamError(f"picture {path} cannot be decoded ({error.err}); {_AGAIN}, as PNG or JPEG") from error
    if image is None or image.size == 0:
        raise StreamError(
            f"{path} is damaged or no picture ({len(data)} bytes); {_AGAIN}, as one of {' '.join(PICTURE_SUFFIXES)}"
        )
    deep = image.dtype == np.uint16
    if deep:
        image = cv2.convertScaleAbs(image, alpha=255 / 65535)
    if image.dtype != np.uint8:
        raise StreamError(
            f"picture {path} has {image.dtype} pixels, whose range is unknown; save it with 8 or 16 bits a channel"
        )
    rgb: Picture = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[assignment]
    return rgb, deep


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise StreamError(f"there is no picture {path}; check the path") from error
    except OSError as error:
        raise StreamError(f"cannot read {path} ({error.strerror}); check that it is a file you may read") from error
    if not data:
        raise StreamError(f"picture {path} is empty (0 bytes); {_AGAIN}")
    return data


def jpeg_has_end(data: bytes) -> bool:
    """Whether a JPEG is there to its end: most decoders fill up what is missing with grey and do not say so."""
    # Bytes FF D9 cannot occur in compressed data, but do in thumbnails, which stand before the last scan.
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def _cut_short(data: bytes) -> str:
    """What is missing at the end of a picture file; empty when nothing is.

    Some builds of OpenCV decode half a JPEG without a word, the rest in grey, and libpng writes to stderr.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "" if jpeg_has_end(data) else "its JPEG data has no end mark"
    if data.startswith(b"\x89PNG"):
        return "" if b"IEND" in data else "its PNG data has no end mark"
    return ""
