"""The newest picture of each camera, made into a JPEG when somebody wants to see it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from edge_mrcnn.runtime.annotate import Picture

logger = logging.getLogger(__name__)


@dataclass
class _Shot:
    """One picture of a camera: what draws it until the first viewer asks, its JPEG from then on."""

    number: int
    draw: Callable[[], Picture] | None
    jpeg: asyncio.Future[bytes | None] | None = None


class Pictures:
    """Holds one picture a camera, whatever the viewers do, and encodes each at most once for all of them.

    Viewers pull: nothing is drawn or encoded before one asks for the next picture, and one that is slow gets the newest
    when it asks again. `put` belongs to the run's thread, everything else to the event loop's.
    """

    def __init__(self, width: int, quality: int) -> None:
        """Nothing yet.

        Args:
            width: Wider pictures are made this wide.
            quality: Of the JPEGs, 1 to 100.
        """
        self._width = width
        self._quality = quality
        self._newest: dict[str, _Shot] = {}
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._encoder = ThreadPoolExecutor(1, "edge-mrcnn-web-jpeg")
        self._watching = 0
        self._failed = False

    @property
    def watched(self) -> bool:
        """Whether anybody is watching any camera."""
        return self._watching > 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Somebody watches while this lasts."""
        self._watching += 1
        try:
            yield
        finally:
            self._watching -= 1

    def put(self, camera: str, draw: Callable[[], Picture]) -> None:
        """Replace a camera's picture by what `draw` draws, should anybody ask."""
        previous = self._newest.get(camera)
        self._newest[camera] = _Shot(previous.number + 1 if previous else 1, draw)
        if self._loop is not None and self._waiters.get(camera):
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                self._loop.call_soon_threadsafe(self._wake, camera)

    async def newer(self, camera: str, number: int = 0) -> tuple[int, bytes]:
        """A camera's newest picture, as soon as there is one after picture `number`.

        Returns:
            Its number and its JPEG.
        """
        self._loop = asyncio.get_running_loop()
        waiters = self._waiters.setdefault(camera, set())
        while True:
            waiter = self._loop.create_future()
            waiters.add(waiter)  # before looking: what comes between looking and waiting must wake us
            try:
                shot = self._newest.get(camera)
                if shot is not None and shot.number > number:
                    number = shot.number
                    jpeg = await self._encoded(shot)
                    if jpeg is not None:
                        return number, jpeg
                else:
                    await waiter
            finally:
                waiters.discard(waiter)

    async def _encoded(self, shot: _Shot) -> bytes | None:
        if shot.jpeg is None:
            shot.jpeg = asyncio.get_running_loop().run_in_executor(self._encoder, self._encode, shot)
        return await asyncio.shield(shot.jpeg)  # a viewer that leaves must not take it from the others

    def _encode(self, shot: _Shot) -> bytes | None:
        """The JPEG; None where none can be made: one bad picture must not end the streams of all."""
        draw, shot.draw = shot.draw, None  # frees the frame afterwards
        try:
            return self._to_jpeg(draw() if draw else None)
        except Exception:
            if not self._failed:
                logger.exception(
                    "a picture for the live page cannot be made; it is left out, as will be all others like it"
                )
            self._failed = True
            return None

    def _to_jpeg(self, picture: Any) -> bytes:
        height, width = picture.shape[:2]
        if width > self._width:
            size = (self._width, max(1, round(height * self._width / width)))
            picture = cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self._quality])
        return bytes(data.tobytes())

    def _wake(self, camera: str) -> None:
        for waiter in self._waiters[camera]:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Drop the pictures and end the encoder."""
        self._encoder.shutdown(wait=True, cancel_futures=True)
        self._newest.clear()
