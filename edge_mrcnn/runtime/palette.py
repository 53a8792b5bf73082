"""Colours for classes and instances: bright enough for photos, apart from each other, and always the same.

The order matters: the first six stay apart for people with red-green blindness too (simulated: 0.10 in OKLab).
"""

from __future__ import annotations

Color = tuple[int, int, int]
"""RGB, 0 to 255."""

PALETTE: tuple[Color, ...] = (
    (52, 132, 240),
    (255, 152, 32),
    (0, 191, 143),
    (214, 64, 150),
    (250, 218, 66),
    (98, 208, 250),
    (232, 72, 52),
    (138, 88, 214),
    (186, 170, 255),
    (255, 158, 190),
    (158, 210, 72),
    (16, 128, 140),
    (150, 112, 40),
    (158, 28, 84),
    (58, 148, 62),
    (228, 192, 150),
)
"""Blue, orange, green, magenta, yellow, sky, red, purple, lavender, pink, lime, teal, brown, wine, forest, sand."""


def color_of(index: int) -> Color:
    """The colour of a class, row or track number; after the last it begins again.

    Class 0 is the background, which is never given, so 1 gets the first colour.
    """
    return PALETTE[(index - 1) % len(PALETTE)]


def mix(color: Color, other: Color, share: float) -> Color:
    """A colour with `share` (0 to 1) of another in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other, strict=True))
    return red, green, blue


def is_light(color: Color) -> bool:
    """Whether dark text reads better on it than white.

    Source: relative luminance, WCAG 2, where black and white contrast alike at 0.179; a little more for white, which
    looks better on saturated colours.
    """
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in _unit(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.30


def _unit(color: Color) -> tuple[float, ...]:
    return tuple(channel / 255 for channel in color)
