"""What is wrong with a choice of pictures: too much of the same, or of one kind only."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.compiler.calibration.pictures import Shot

ALIKE_BITS = 5
"""Fingerprints of 64 bits that differ in no more are near-duplicates.

Measured: of 128 separately drawn scenes of one table the nearest two differ in 16 bits; three quarters of the frames of
a 30 fps clip differ from the frame before in at most 4.
"""

DARK, BRIGHT = 40.0, 215.0
"""Mean grey, of 255, below or above which a picture is dark or bright."""

MOST = 0.9
"""Share of the pictures that makes the set one-sided in brightness."""

EMPTY = 0.5
"""Share of the pictures without a detection from which on the set is one-sided."""

_MEMORY = 4096
"""Pictures compared with each new one: the latest. Bounds the time for a long video."""


class Census:
    """Counts what the pictures are like while they pass by."""

    def __init__(self) -> None:
        self.pictures = self.dark = self.bright = self.empty = self.alike = 0
        self._pair: tuple[str, str] | None = None
        self._names: list[str] = []
        self._prints = np.zeros((_MEMORY, 8), np.uint8)
        self._videos: set[str] = set()
        self._stills = 0

    def add(self, shot: Shot, detections: int) -> None:
        """Count a picture.

        Args:
            shot: The picture.
            detections: How many the network gives by its own threshold.
        """
        grey = cv2.cvtColor(shot.content, cv2.COLOR_RGB2GRAY)
        mean = float(grey.mean())
        self.dark += mean < DARK
        self.bright += mean > BRIGHT
        self.empty += detections == 0
        if shot.video is None:
            self._stills += 1
        else:
            self._videos.add(shot.video)
        self._compare(shot.name, fingerprint(grey))
        self.pictures += 1

    def _compare(self, name: str, own: npt.NDArray[np.uint8]) -> None:
        known = self._prints[: min(self.pictures, _MEMORY)]
        differing = np.unpackbits(known ^ own, axis=1).sum(axis=1)
        near = np.flatnonzero(differing <= ALIKE_BITS)
        if near.size:
            self.alike += 1
            if self._pair is None:
                self._pair = self._names[int(near[0])], name
        row = self.pictures % _MEMORY
        self._prints[row] = own
        self._names[row : row + 1] = [name]

    def warnings(self, threshold: float) -> tuple[str, ...]:
        """What a person should know about the pictures.

        Args:
            threshold: The network's own score threshold.
        """
        return tuple(self._alike_warning() + self._brightness_warnings() + self._content_warnings(threshold))

    def _alike_warning(self) -> list[str]:
        if self._pair is None:
            return []
        first, second = self._pair
        remedy = "take fewer frames of the video: --every 15" if self._videos else "take one of each kind"
        return [
            f"{self.alike} of {self.pictures} pictures nearly repeat another one, such as {second} and {first}; they "
            f"count as {self.pictures - self.alike} different ones: {remedy}"
        ]

    def _brightness_warnings(self) -> list[str]:
        found = []
        for name, count, other in (("dark", self.dark, "brighter"), ("bright", self.bright, "darker")):
            if count >= MOST * self.pictures:
                found.append(
                    f"{count} of {self.pictures} pictures are very {name}: in {other} light the ranges may not fit; "
                    "add pictures of all hours that the camera works at"
                )
        return found

    def _content_warnings(self, threshold: float) -> list[str]:
        found = []
        if self.empty >= EMPTY * self.pictures:
            found.append(
                f"{self.empty} of {self.pictures} pictures show nothing that the network detects (score above "
                f"{threshold:g}), so the heads were measured on background; add pictures with objects"
            )
        if len(self._videos) == 1 and not self._stills:
            found.append(
                f"all pictures are of one video, {next(iter(self._videos))}: one place and one light; add others"
            )
        return found


def fingerprint(grey: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """64 bits that stay nearly the same when a picture is scaled, brightened or compressed: `(8,)` uint8.

    Each bit says whether brightness rises from one cell of a coarse grid to its right neighbour.

    Args:
        grey: `(h, w)` uint8.

    Source: N. Krawetz, "Kind of Like That" (2013), the difference hash.
    """
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(cells[:, 1:] > cells[:, :-1])
