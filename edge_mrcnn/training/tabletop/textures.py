"""Small procedural textures, all (H, W, 3) uint8 RGB: grain, noise, checkers, patterns, labels, covers."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.uint8]
Colour = tuple[float, float, float]

_LETTERS = "ABCDEFGHIKLMNOPRSTUVZ"
_WORDS = (
    "MILK",
    "TEA",
    "COLA",
    "SOUP",
    "OATS",
    "RICE",
    "BEANS",
    "SODA",
    "JUICE",
    "CORN",
    "PEAS",
    "FRESH",
    "GOLD",
    "ORA",
)


def colour(rng: np.random.Generator, saturation: tuple[float, float] = (0.3, 0.95), value: float = 0.35) -> Colour:
    """A random colour, each channel 0 to 1, with at least `value` brightness."""
    # Household colours: reds to yellows and blues are common, magentas rare, and few things are fully saturated.
    hue = float(rng.choice([rng.uniform(-0.06, 0.16), rng.uniform(0.5, 0.68), rng.uniform()], p=[0.4, 0.25, 0.35]))
    low, high = saturation
    strength = low + (high - low) * rng.beta(1.6, 1.6)
    return colorsys.hsv_to_rgb(hue % 1.0, strength, rng.uniform(value, 1.0 - 0.15 * strength))


def contrasting(rng: np.random.Generator, base: Colour) -> Colour:
    """A random colour that differs clearly from `base`, or white or near-black."""
    candidates = [colour(rng) for _ in range(3)] + [(0.97, 0.96, 0.92), (0.08, 0.08, 0.1)]
    distances = [float(np.abs(np.subtract(c, base)).sum()) for c in candidates]
    order = np.argsort(distances)[::-1]
    return candidates[int(order[rng.integers(2)])]


def to_bytes(pixels: NDArray[np.floating]) -> Image:
    """Pixels of 0 to 1 as uint8; what lies outside is clipped."""
    return np.asarray(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def _paint(fraction: NDArray[np.floating], low: ArrayLike, high: ArrayLike) -> Image:
    """Blends two colours by `fraction` (H, W) in 0 to 1."""
    mix = np.asarray(low) + fraction[..., None] * (np.asarray(high) - np.asarray(low))
    return to_bytes(mix)


def fractal(
    rng: np.random.Generator, height: int, width: int, stretch: float = 1.0, octaves: int = 4
) -> NDArray[np.float32]:
    """Smooth noise (H, W) float in 0 to 1; `stretch` above 1 draws it out along the columns' direction."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = 3 * 2**octave
        grid = rng.random((max(2, int(cells / stretch)), cells)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return np.asarray((total - total.min()) / max(float(np.ptp(total)), 1e-6), np.float32)


def plain(rng: np.random.Generator, base: Colour, grain: float = 0.06, size: int = 64) -> Image:
    """One colour with a faint grain."""
    shade = 1.0 + grain * (fractal(rng, size, size) - 0.5)
    return to_bytes(np.asarray(base) * shade[..., None])


def wood(rng: np.random.Generator, size: int = 128) -> Image:
    """Planks or boards with grain, from pale birch to dark walnut."""
    tone = rng.uniform(0.3, 0.95)
    light = np.array([0.95, 0.75, 0.52]) * tone + rng.normal(0, 0.03, 3)
    field = fractal(rng, size, size, stretch=rng.uniform(4, 9), octaves=4)
    rings = 0.5 + 0.5 * np.sin(field * rng.uniform(8, 30))
    pixels = _paint(0.65 * rings + 0.35 * fractal(rng, size, size, stretch=8), light * rng.uniform(0.55, 0.85), light)
    for x in np.linspace(0, size, rng.integers(1, 5), endpoint=False)[1:]:
        pixels[:, int(x)] = pixels[:, int(x)] // 2
    return pixels


def noise(rng: np.random.Generator, size: int = 128) -> Image:
    """Marble, cloth or concrete: two colours mixed by smooth noise, with fine speckles."""
    base = colour(rng, (0.0, 0.5), 0.25)
    other = np.clip(np.asarray(base) * rng.uniform(0.5, 0.9), 0, 1)
    field = fractal(rng, size, size, octaves=5) + rng.normal(0, rng.uniform(0.0, 0.12), (size, size))
    return _paint(np.clip(field, 0, 1), tuple(other), base)


def checkers(rng: np.random.Generator, size: int = 128) -> Image:
    """A chequered or tiled surface."""
    cells = int(rng.integers(2, 8))
    index = np.arange(size) * cells // size
    base = colour(rng, (0.0, 0.6), 0.3)
    pixels = _paint(((index[:, None] + index[None]) % 2).astype(float), base, contrasting(rng, base))
    # Tone the contrast down most of the time: a loud tablecloth in each picture would be a world of its own.
    keep = rng.uniform(0.25, 1.0)
    return (pixels * keep + np.asarray(base) * 255 * (1 - keep)).astype(np.uint8)


def stripes(rng: np.random.Generator, size: int = 128) -> Image:
    """Cloth stripes or a woven check."""
    base = colour(rng, (0.0, 0.7), 0.3)
    wave = (np.arange(size) * rng.integers(2, 9) // (size // 2)) % 2 * 1.0
    field = np.tile(wave, (size, 1))
    field = 0.5 * (field + field.T) if rng.uniform() < 0.5 else field
    return _paint(field * rng.uniform(0.2, 1.0), base, contrasting(rng, base))


def gradient(rng: np.random.Generator, size: int = 128) -> Image:
    """A slow change from one colour to another."""
    field = np.tile(np.linspace(0, 1, size), (size, 1))
    return _paint(np.rot90(field, int(rng.integers(4))), colour(rng, (0.0, 0.5)), colour(rng, (0.0, 0.5)))


def surface(rng: np.random.Generator, size: int = 128) -> Image:
    """A random texture for a table, floor or wall."""
    makers: list[Callable[[np.random.Generator, int], Image]] = [wood, noise, checkers, stripes, gradient]
    if rng.uniform() < 0.15:
        return plain(rng, colour(rng, (0.0, 0.4), 0.3), 0.1)
    return makers[int(rng.choice(5, p=[0.42, 0.24, 0.12, 0.1, 0.12]))](rng, size)


def pattern(rng: np.random.Generator, base: Colour, size: int = 128) -> Image:
    """Glazed pottery and balls: plain, bands, dots or patches on `base`."""
    accent = [int(255 * c) for c in contrasting(rng, base)]
    pixels = np.full((size, size, 3), [int(255 * c) for c in base], np.uint8)
    kind = rng.integers(5)
    if kind == 1:
        for _ in range(rng.integers(1, 4)):
            low = int(rng.integers(size))
            pixels[low : low + int(rng.integers(4, 20))] = accent
    elif kind == 2:
        count = int(rng.integers(3, 7))
        for y, x in np.ndindex(count, 2 * count):
            place = (int((x + 0.5 * (y % 2)) * size / (2 * count)), int((y + 0.5) * size / count))
            cv2.ellipse(pixels, place, (size // (6 * count), size // (4 * count)), 0, 0, 360, accent, -1)
    elif kind == 3:
        columns = np.arange(size) * int(rng.choice([4, 6, 8, 12])) // size % 2 == 1
        pixels[:, columns] = accent
    elif kind == 4:
        pixels[fractal(rng, size, size) > 0.55] = accent
    return pixels


def _word(rng: np.random.Generator) -> str:
    if rng.uniform() < 0.6:
        return str(rng.choice(_WORDS))
    return "".join(rng.choice(list(_LETTERS), rng.integers(3, 6)))


def _write(
    rng: np.random.Generator, pixels: Image, text: str, ink: Sequence[int], top: float, left: float = 0.5
) -> None:
    """Writes `text` centred at the fraction (top, left) of the picture."""
    height, width = pixels.shape[:2]
    scale = height / 100.0 * rng.uniform(0.6, 1.0)
    face = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX]))
    (w, h), _ = cv2.getTextSize(text, face, scale, 2)
    scale *= min(1.0, 0.42 * width / w) if left != 0.5 else min(1.0, 0.9 * width / w)
    (w, h), _ = cv2.getTextSize(text, face, scale, 2)
    origin = (int(left * width - w / 2), int(top * height + h / 2))
    cv2.putText(pixels, text, origin, face, scale, tuple(int(c) for c in ink), 2, cv2.LINE_AA)


def label(rng: np.random.Generator, base: Colour, height: int = 128, width: int = 256) -> Image:
    """A printed label that goes around a can or bottle: bands, an emblem, and a word on each half."""
    ground = [int(255 * c) for c in base]
    ink = [int(255 * c) for c in contrasting(rng, base)]
    third = [int(255 * c) for c in colour(rng)]
    pixels = np.full((height, width, 3), ground, np.uint8)
    if rng.uniform() < 0.35:
        wave = (0.6 + 0.15 * np.sin(np.arange(width) * 2 * np.pi / width * rng.integers(1, 4))) * height
        pixels[np.arange(height)[:, None] > wave[None]] = third
    for edge in (0, height - int(rng.integers(4, 12))):
        pixels[edge : edge + int(rng.integers(4, 14))] = ink if rng.uniform() < 0.6 else third
    text = _word(rng)
    for centre in (0.25, 0.75):
        if rng.uniform() < 0.5:
            place = (int(centre * width), int(rng.uniform(0.55, 0.75) * height))
            cv2.circle(pixels, place, int(height * rng.uniform(0.1, 0.24)), third, -1, cv2.LINE_AA)
        _write(rng, pixels, text, ink, rng.uniform(0.25, 0.45), centre)
    return pixels


def carton(rng: np.random.Generator, base: Colour, cell: int = 80) -> Image:
    """The six faces of a printed carton as an atlas of 3x2 cells (see `meshes.box`)."""
    pixels = np.full((2 * cell, 3 * cell, 3), [int(255 * c) for c in base], np.uint8)
    accent = [int(255 * c) for c in contrasting(rng, base)]
    other = [int(255 * c) for c in colour(rng)]
    text, top, side = _word(rng), rng.uniform(0.15, 0.8), rng.uniform(0.05, 0.3)
    for k in range(6):
        face = np.ascontiguousarray(pixels[k // 3 * cell : (k // 3 + 1) * cell, k % 3 * cell : (k % 3 + 1) * cell])
        if k % 3 == 2:
            face[:, cell // 2 - 3 : cell // 2 + 3] = accent if rng.uniform() < 0.5 else other
        else:
            face[int(top * cell) : int((top + side) * cell)] = other
            _write(rng, face, text, accent, 0.3 if k % 3 == 0 else 0.5)
        if k % 3 == 0:
            cv2.circle(face, (cell // 2, int(0.68 * cell)), int(rng.uniform(0.1, 0.24) * cell), accent, -1, cv2.LINE_AA)
        pixels[k // 3 * cell : (k // 3 + 1) * cell, k % 3 * cell : (k % 3 + 1) * cell] = face
    return pixels


def cover(rng: np.random.Generator, base: Colour, height: int = 128, width: int = 96) -> Image:
    """The cover of a book: a frame, a title, lines of text, an emblem."""
    pixels = np.full((height, width, 3), [int(255 * c) for c in base], np.uint8)
    ink = [int(255 * c) for c in contrasting(rng, base)]
    if rng.uniform() < 0.6:
        cv2.rectangle(pixels, (6, 6), (width - 7, height - 7), ink, int(rng.integers(1, 4)))
    if rng.uniform() < 0.4:
        pixels[int(0.55 * height) :] = [int(255 * c) for c in colour(rng)]
    _write(rng, pixels, _word(rng), ink, 0.25)
    if rng.uniform() < 0.7:
        cv2.circle(pixels, (width // 2, int(0.65 * height)), int(rng.integers(8, 24)), ink, -1, cv2.LINE_AA)
    for y in np.linspace(0.38, 0.46, rng.integers(1, 3)):
        cv2.line(pixels, (width // 4, int(y * height)), (3 * width // 4, int(y * height)), ink, 2)
    return pixels


def pages(rng: np.random.Generator, size: int = 64) -> Image:
    """The cut edges of paper: thin lines along the rows."""
    shade = rng.uniform(0.86, 1.0, size)[:, None, None] * np.array([0.98, 0.95, 0.87])
    return (np.tile(shade, (1, size, 1)) * 255).astype(np.uint8)


def peel(rng: np.random.Generator, size: int = 64) -> Image:
    """Banana skin: yellow to greenish, brown at both ends (first and last rows), freckled."""
    ripe = rng.uniform()
    base = (0.93, 0.83 - 0.08 * ripe, 0.2) if ripe > 0.2 else (0.76, 0.82, 0.24)
    pixels = plain(rng, base, 0.15, size).astype(float)
    spots = fractal(rng, size, size, octaves=5) > rng.uniform(0.78, 1.0)
    pixels[spots] *= (0.6, 0.5, 0.5)
    end = np.clip(np.abs(np.linspace(-1, 1, size)) * 6 - 5, 0, 1)[:, None, None]
    return np.asarray(pixels * (1 - end) + np.array([70, 52, 28]) * end, np.uint8)
