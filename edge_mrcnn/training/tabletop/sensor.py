"""What a small camera does to a picture: exposure, white balance, vignetting, blur and noise."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sensor:
    """A camera's settings; a clip keeps them for all its frames.

    Attributes:
        gain: (3,) factor for each of red, green and blue.
        target: mean grey level, 0 to 1, that automatic exposure aims at; it makes up for at most a factor of 1.9.
        gamma: exponent of the tone curve.
        vignette: loss of brightness in the corners, 0 to 1.
        blur: standard deviation of the blur, pixels; 0 for none.
        shot, read: standard deviation of the noise that grows with the signal and of the constant one, grey levels.
    """

    gain: NDArray[np.float32]
    target: float
    gamma: float
    vignette: float
    blur: float
    shot: float
    read: float


def random_sensor(rng: np.random.Generator) -> Sensor:
    """Draws the settings of a mildly imperfect camera."""
    gain = 1 + rng.normal(0, 0.035, 3)
    target = rng.uniform(0.33, 0.56)
    blur = rng.uniform(0.3, 0.95) if rng.uniform() < 0.5 else 0.0
    gamma, vignette = rng.uniform(0.85, 1.1), rng.uniform(0, 0.2)
    return Sensor(gain.astype(np.float32), target, gamma, vignette, blur, rng.uniform(0, 4), rng.uniform(0.3, 2.2))


def apply(sensor: Sensor, rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Passes an (H, W, 3) uint8 RGB picture through `sensor`; `rng` draws the noise."""
    height, width = image.shape[:2]
    pixels = (image.astype(np.float32) / 255.0) ** np.float32(sensor.gamma)
    pixels *= sensor.gain * np.float32(np.clip(sensor.target / max(float(pixels.mean()), 1e-3), 0.75, 1.9))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    pixels *= 1 - sensor.vignette * ((x * x + y * y) / 2)[..., None]
    if sensor.blur > 0:
        pixels = cv2.GaussianBlur(pixels, (0, 0), sensor.blur)
    spread = (sensor.read + sensor.shot * np.sqrt(np.clip(pixels, 0, 1))) / 255.0
    pixels += rng.standard_normal(pixels.shape, np.float32) * spread
    return np.asarray(np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


def expose(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Passes an (H, W, 3) uint8 RGB picture through a random sensor."""
    return apply(random_sensor(rng), rng, image)
