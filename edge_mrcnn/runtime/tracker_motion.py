"""Where tracked boxes are going: a Kalman filter of constant velocity, for all tracks at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MOTION = [("place", np.float64, 4), ("speed", np.float64, 4), ("variance", np.float64, (3, 4))]
"""Fields of a track: centre x, y, width, height in pixels; the same a second; and of each of the four the variance of
the place, its covariance with the speed, and the variance of the speed."""

_MEASURED = 0.05
"""Standard deviation of a detector's boxes, in sizes of the thing."""

_RESTLESS = np.array([2.0, 2.0, 0.6, 0.6])
"""How far the speed strays in a second, in sizes a second."""

_FIRST_SPEED = np.array([2.0, 2.0, 0.5, 0.5])
"""Standard deviation of the speed of what has been seen once, in sizes a second."""


def to_place(xyxy: Array) -> Array:
    """`(N, 4)` boxes to centre x, y, width, height."""
    low, high = xyxy[:, :2], xyxy[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1)


def to_xyxy(place: Array) -> Array:
    """The reverse; a predicted side is at least a pixel."""
    half = np.maximum(place[:, 2:], 1.0) / 2
    return np.concatenate([place[:, :2] - half, place[:, :2] + half], axis=1)


def sizes(place: Array) -> Array:
    """`(N, 1)`: the geometric mean of width and height, pixels."""
    sides = np.maximum(place[:, 2:], 1.0)
    return np.asarray(np.sqrt(sides[:, :1] * sides[:, 1:]))


def start(tracks: npt.NDArray[np.void], place: Array) -> None:
    """Begin tracks at `place`, standing still as far as is known."""
    size = sizes(place)
    tracks["place"], tracks["speed"] = place, 0.0
    tracks["variance"][:, 0] = (_MEASURED * size) ** 2
    tracks["variance"][:, 1] = 0.0
    tracks["variance"][:, 2] = (_FIRST_SPEED * size) ** 2


def predict(tracks: npt.NDArray[np.void], seconds: float) -> None:
    """Move tracks on by `seconds`, in place."""
    variance, noise = tracks["variance"], (_RESTLESS * sizes(tracks["place"])) ** 2
    tracks["place"] += seconds * tracks["speed"]
    variance[:, 0] += seconds * (2 * variance[:, 1] + seconds * (variance[:, 2] + noise * seconds / 3))
    variance[:, 1] += seconds * (variance[:, 2] + noise * seconds / 2)
    variance[:, 2] += seconds * noise


def hold_sizes(tracks: npt.NDArray[np.void], hidden: npt.NDArray[np.bool_]) -> None:
    """Let the sides of hidden things stay as they are, in place: what something slides over only seems to shrink."""
    tracks["speed"][hidden, 2:] = 0.0


def correct(tracks: npt.NDArray[np.void], place: Array) -> None:
    """Bring tracks to where they were seen, in place."""
    variance = tracks["variance"]
    total = variance[:, 0] + (_MEASURED * sizes(place)) ** 2
    gain, speed_gain = variance[:, 0] / total, variance[:, 1] / total
    surprise = place - tracks["place"]
    tracks["place"] += gain * surprise
    tracks["speed"] += speed_gain * surprise
    variance[:, 2] -= speed_gain * variance[:, 1]
    variance[:, 1] *= 1 - gain
    variance[:, 0] *= 1 - gain
