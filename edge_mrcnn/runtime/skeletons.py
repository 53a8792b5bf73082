"""Keypoints in a picture: dots, joined by the lines of a skeleton, that stay readable on anything."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edge_mrcnn.runtime.palette import Color, mix

_FRACTION_BITS = 4
"""OpenCV draws at sixteenths of a pixel."""

_FAR = 1e5
"""Points further away than any picture, in pixels, are drawn there: OpenCV's coordinates are of 32 bits."""

_MANY = 5
_ROOM = 6.0
"""From so many keypoints on each wants so many widths of a line; in a smaller thing all is drawn finer."""

_DARK: Color = (18, 20, 24)
_WHITE: Color = (255, 255, 255)

Skeleton = Sequence[tuple[int, int]]
"""Pairs of keypoints to draw a line between."""


def draw_keypoints(
    canvas: npt.NDArray[np.uint8],
    keypoints: npt.NDArray[np.float32],
    colors: Sequence[Color],
    skeleton: Skeleton = (),
    threshold: float = 0.0,
    line: float = 2.0,
) -> None:
    """Draw the keypoints of things into a picture, the first thing on top.

    Args:
        canvas: `(H, W, 3)` uint8 RGB, drawn into.
        keypoints: `(N, K, 3)` x, y in pixels and score.
        colors: Of each thing.
        skeleton: Lines are drawn where both ends are shown.
        threshold: Keypoints with a lower score, or with 0, are not shown.
        line: Width of the lines in pixels.

    Raises:
        ValueError: The skeleton names a keypoint that there is not.
    """
    count = keypoints.shape[1]
    if any(not 0 <= end < count for pair in skeleton for end in pair):
        raise ValueError(f"skeleton must name keypoints from 0 to {count - 1}, got {tuple(skeleton)}")
    for points, color in reversed(list(zip(keypoints, colors, strict=True))):
        _draw_thing(canvas, points, color, skeleton, threshold, line)


def shown_keypoints(keypoints: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.bool_]:
    """Which keypoints are shown and sent: those that their class has, with enough of a score and a sound place.

    Args:
        keypoints: `(..., 3)`.
        threshold: Least score.
    """
    score = keypoints[..., 2]
    return np.asarray((score >= threshold) & (score > 0) & np.isfinite(keypoints).all(axis=-1))


def _draw_thing(
    canvas: npt.NDArray[np.uint8],
    points: npt.NDArray[np.float32],
    color: Color,
    skeleton: Skeleton,
    threshold: float,
    line: float,
) -> None:
    shown = shown_keypoints(points, threshold)
    places = [_place(x, y) for x, y in np.clip(np.nan_to_num(points[:, :2]), -_FAR, _FAR).tolist()]
    bones = [(places[a], places[b]) for a, b in skeleton if shown[a] and shown[b]]
    dots = [place for place, one in zip(places, shown, strict=True) if one]
    line *= _crowding(dots, line)
    edge, width, radius = mix(color, _DARK, 0.8), max(1, round(line)), 1.7 * line + 0.6
    rim = max(1.0, 0.5 * line)
    # All edges first: where lines of one thing meet, none cuts another.
    for begin, end in bones:
        cv2.line(canvas, begin, end, edge, width + 2 * max(1, round(rim)), cv2.LINE_AA, _FRACTION_BITS)
    for place in dots:
        _dot(canvas, place, radius + rim, edge)
    for begin, end in bones:
        cv2.line(canvas, begin, end, color, width, cv2.LINE_AA, _FRACTION_BITS)
    for place in dots:
        _dot(canvas, place, radius, mix(color, _WHITE, 0.45))


def _crowding(dots: Sequence[tuple[int, int]], line: float) -> float:
    """How much finer to draw a thing whose keypoints lie close together: 0.5 to 1."""
    if len(dots) < _MANY:
        return 1.0
    extent = float(np.ptp(np.array(dots), axis=0).max()) / (1 << _FRACTION_BITS)
    return min(max(extent / (len(dots) * _ROOM * line), 0.5), 1.0)


def _place(x: float, y: float) -> tuple[int, int]:
    """A point in pixels, whose first pixel reaches from 0 to 1, as OpenCV wants it, whose first pixel is around 0."""
    return round((x - 0.5) * (1 << _FRACTION_BITS)), round((y - 0.5) * (1 << _FRACTION_BITS))


def _dot(canvas: npt.NDArray[np.uint8], place: tuple[int, int], radius: float, color: Color) -> None:
    cv2.circle(canvas, place, round(radius * (1 << _FRACTION_BITS)), color, -1, cv2.LINE_AA, _FRACTION_BITS)
