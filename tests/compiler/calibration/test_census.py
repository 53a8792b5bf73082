"""Warnings about the choice of pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_mrcnn.compiler.calibration.census import ALIKE_BITS, Census, fingerprint
from edge_mrcnn.compiler.calibration.pictures import Shot
from edge_mrcnn.runtime.preprocess import letterbox_batch
from edge_mrcnn.runtime.sources import open_source
from tests.compiler.calibration.conftest import blobs

ROOT = Path(__file__).parents[3]


def shot(picture: np.ndarray, name: str = "picture", video: str | None = None) -> Shot:
    images, image_hw, _ = letterbox_batch([picture], (64, 96))
    return Shot(name, images, image_hw, video)


def warn(*shots: Shot, detections: int = 1) -> tuple[str, ...]:
    census = Census()
    for each in shots:
        census.add(each, detections)
    return census.warnings(0.05)


def different(count: int = 8) -> list[Shot]:
    return [shot(blobs(seed), f"picture {seed}") for seed in range(count)]


def bits_apart(first: np.ndarray, second: np.ndarray) -> int:
    prints = [fingerprint(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)) for picture in (first, second)]
    return int(np.unpackbits(prints[0] ^ prints[1]).sum())


def test_nothing_to_say_of_a_good_choice() -> None:
    assert warn(*different()) == ()


def test_near_duplicates() -> None:
    """The same picture a little brighter, smaller and compressed is the same picture."""
    again = cv2.resize(blobs(2), (64, 38), interpolation=cv2.INTER_AREA)
    again = cv2.imdecode(cv2.imencode(".jpg", np.minimum(again, 245) + 10)[1], cv2.IMREAD_COLOR)
    (warning,) = warn(*different(), shot(again, "again"))
    assert warning.startswith("1 of 9 pictures nearly repeat another one, such as again and picture 2;")
    assert "count as 8 different ones" in warning


def test_frames_of_a_clip_and_separate_scenes() -> None:
    """What the limit was chosen by: neighbouring frames of the bundled clip, and scenes drawn one by one."""
    frames = [frame.image for frame in open_source(ROOT / "samples" / "tabletop" / "clip.mp4")]
    neighbours = [bits_apart(*frames[index : index + 2]) for index in range(0, 140, 7)]
    assert np.quantile(neighbours, 0.75) <= ALIKE_BITS
    scenes = [frame.image for frame in open_source(str(ROOT / "calibration" / "tabletop" / "images" / "*0.jpg"))]
    apart = [bits_apart(first, second) for i, first in enumerate(scenes) for second in scenes[:i]]
    assert min(apart) > 2 * ALIKE_BITS


def test_a_video_that_hardly_moves() -> None:
    shots = [shot(blobs(0), f"frame {index}", "clip.mp4") for index in range(4)]
    alike, one_video = warn(*shots)
    assert "3 of 4 pictures nearly repeat" in alike
    assert "--every 15" in alike
    assert "all pictures are of one video, clip.mp4" in one_video


def test_two_videos_are_not_one() -> None:
    shots = [shot(blobs(index), f"frame {index}", f"{index % 2}.mp4") for index in range(8)]
    assert warn(*shots) == ()


@pytest.mark.parametrize(
    ("scale", "shift", "word", "other"), [(0.1, 0, "dark", "brighter"), (0.1, 228, "bright", "darker")]
)
def test_all_dark_or_all_bright(scale: float, shift: int, word: str, other: str) -> None:
    shots = [shot((blobs(seed) * scale + shift).astype(np.uint8)) for seed in range(10)]
    (warning,) = warn(*shots)
    assert f"10 of 10 pictures are very {word}: in {other} light" in warning
    assert warn(*shots[:5], *different(10)[5:]) == ()


def test_the_letterbox_is_not_dark() -> None:
    """Padding is no part of the picture: a bright one that is narrow stays bright."""
    narrow = [shot(np.full((64, 8, 3), 120, np.uint8) + blobs(seed, (64, 8)) // 4) for seed in range(8)]
    assert not any("dark" in warning for warning in warn(*narrow))


def test_no_detections() -> None:
    (warning,) = warn(*different(), detections=0)
    assert "8 of 8 pictures show nothing that the network detects (score above 0.05)" in warning
