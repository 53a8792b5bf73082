"""`test://`: a moving picture that needs no camera and no file, the same for the same seed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.frame import Frame
from edge_mrcnn.runtime.sources.live import Drop, SourceHealth, as_drop
from edge_mrcnn.runtime.sources.replay import Replay, take_drop
from edge_mrcnn.runtime.uri import as_flag, camera_name, take_options

_FRACTION_BITS = 4
"""OpenCV draws at sixteenths of a pixel, so that slow shapes glide rather than jump."""

_TEXT = (236, 232, 224)
_SMALLEST_TEXT = 0.25
"""Scale of the text below which nobody can read it."""

_COLORS = ((214, 84, 72), (66, 135, 180), (235, 180, 70), (92, 160, 108), (150, 104, 170), (240, 236, 228))


def open_pattern(uri: str) -> PatternSource | Replay:
    """Open `test://640x480?fps=30&seed=0&name=test`, which is a camera, or with `&frames=30` a video of that length.

    `live=1` and `live=0` say which of the two it is, whatever `frames` says. A camera gives its frames at its rate,
    stamped by the host, and drops what nobody takes; a video gives them as fast as they are taken.

    Raises:
        ValueError: The size, an option or its value is wrong.
    """
    rest, options = take_options(uri, _OPTIONS)
    place = rest.partition("://")[2]
    size = re.fullmatch(r"(\d+)x(\d+)", place or "640x480")
    if not size:
        raise ValueError(f"size {place!r} in {uri!r} is not WIDTHxHEIGHT, such as test://640x480")
    live = options.pop("live", "frames" not in options)
    drop = take_drop(uri, options, live)
    source = PatternSource((int(size[1]), int(size[2])), **options)
    return Replay(lambda: source, drop=drop) if live else source


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "frames": int,
    "fps": float,
    "seed": int,
    "name": camera_name,
    "frame_id": str,
    "live": as_flag,
    "drop": as_drop,
}


@dataclass(frozen=True)
class _Shape:
    """A shape on its way: it bounces between the picture's edges."""

    kind: int
    radius: float
    start: tuple[float, float]
    speed: tuple[float, float]
    spin: float
    color: tuple[int, int, int]

    def outline(self, index: int, size_wh: tuple[int, int]) -> npt.NDArray[np.float64]:
        """Corners `(V, 2)` in pixels at frame `index`."""
        room = [max(side - 2 * self.radius, 1.0) for side in size_wh]
        travelled = [
            start * span + speed * index for start, span, speed in zip(self.start, room, self.speed, strict=True)
        ]
        center = [self.radius + span - abs(way % (2 * span) - span) for way, span in zip(travelled, room, strict=True)]
        corners = self.kind if self.kind > 2 else 48
        angle = np.arange(corners) * (2 * np.pi / corners) + self.spin * index
        return np.array(center) + self.radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


class PatternSource:
    """Coloured shapes that move over a soft background, and a clock; frame `n` of a seed is always the same.

    Attributes:
        uri: What was opened.
        fps: Frames per second of the stamps; frames come as fast as they are taken.
        length: Number of frames, None for no end.
        live: False; `Replay` makes a camera of it.
        skipped: 0.
        name: Of the camera.
        drop: `auto`: frames wait.
        health: How it is doing.

    Example:
        >>> frames = list(PatternSource((64, 48), frames=2))
        >>> frames[1].image.shape, frames[1].stamp_ns
        ((48, 64, 3), 33333333)
    """

    live = False
    skipped = 0
    drop: Drop = "auto"

    def __init__(
        self,
        size_wh: tuple[int, int] = (640, 480),
        *,
        frames: int | None = None,
        fps: float = 30.0,
        seed: int = 0,
        name: str = "test",
        frame_id: str = "",
    ) -> None:
        """Choose the shapes.

        Args:
            size_wh: Width and height in pixels.
            frames: Number of frames; None for no end.
            fps: Frames per second of the stamps.
            seed: Chooses the shapes and their ways.
            name: Of the camera.
            frame_id: Name of its coordinate frame.

        Raises:
            ValueError: A size or a number is not positive.
        """
        if min(size_wh) < 1 or fps <= 0 or (frames is not None and frames < 1):
            raise ValueError(
                f"test:// needs a positive size, fps and number of frames, got "
                f"{size_wh[0]}x{size_wh[1]}, {fps}, {frames}"
            )
        self.uri = f"test://{size_wh[0]}x{size_wh[1]}?seed={seed}"
        self.fps: float | None = fps
        self.length = frames
        self.name = name
        self.health = SourceHealth()
        self._frame_id = frame_id
        self._rate = fps
        self._size = size_wh
        self._shapes = _make_shapes(size_wh, seed)
        self._background = _make_background(size_wh)

    def __iter__(self) -> Iterator[Frame]:
        """Draw frame after frame, from the first."""
        for index in itertools.count() if self.length is None else range(self.length):
            stamp_ns = round(index * 1e9 / self._rate)
            image = self.draw(index)
            self.health = SourceHealth("live", frames=index + 1, image_hw=image.shape[:2])
            yield Frame(
                image,
                source=self.uri,
                index=index,
                stamp_ns=stamp_ns,
                stamp_source="file",
                frame_id=self._frame_id,
                camera=self.name,
            )
        self.health = replace(self.health, state="ended")

    def draw(self, index: int) -> npt.NDArray[np.uint8]:
        """Frame `index`, `(H, W, 3)` uint8 RGB."""
        image: npt.NDArray[np.uint8] = self._background.copy()
        for shape in self._shapes:
            corners: Any = np.round(shape.outline(index, self._size) * (1 << _FRACTION_BITS)).astype(np.int32)
            cv2.fillPoly(image, [corners], shape.color, cv2.LINE_AA, _FRACTION_BITS)
        self._draw_clock(image, index)
        return image

    def _draw_clock(self, image: npt.NDArray[np.uint8], index: int) -> None:
        """Time and number of the frame: what a page shows late, and what it leaves out, can be read off."""
        scale = min(self._size) / 800
        if scale < _SMALLEST_TEXT:
            return
        minutes, hundredths = divmod(round(index * 100 / self._rate), 6000)
        place = round(20 * scale), self._size[1] - round(24 * scale)
        text = f"{minutes:02}:{hundredths / 100:05.2f}  {index}"
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, _TEXT, max(round(2 * scale), 1), cv2.LINE_AA)

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> PatternSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_shapes(size_wh: tuple[int, int], seed: int) -> list[_Shape]:
    rng = np.random.default_rng(seed)
    side = min(size_wh)
    shapes = []
    for number in range(6):
        velocity = rng.uniform(0.004, 0.012, 2) * side * rng.choice((-1, 1), 2)
        shapes.append(
            _Shape(
                kind=(0, 4, 3, 6, 0, 5)[number],
                radius=float(rng.uniform(0.07, 0.17) * side),
                start=(float(rng.uniform()), float(rng.uniform())),
                speed=(float(velocity[0]), float(velocity[1])),
                spin=float(rng.uniform(-0.05, 0.05)),
                color=_COLORS[number % len(_COLORS)],
            )
        )
    return shapes


def _make_background(size_wh: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A soft vertical gradient with a grid, so that scale and motion can be judged."""
    width, height = size_wh
    shade = np.linspace(0, 1, height)[:, None, None]
    image = np.array([[(58, 64, 74)]]) * (1 - shade) + np.array([[(112, 104, 96)]]) * shade
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:] = image
    step = max(min(size_wh) // 8, 4)
    picture[::step] = picture[::step] * 0.85
    picture[:, ::step] = picture[:, ::step] * 0.85
    return picture
