"""The keypoints that networks of the zoo find."""

from __future__ import annotations

from edge_mrcnn.training.keypoint_labels import KeypointNames

COCO_PERSON = KeypointNames(
    names=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    skeleton=(
        (15, 13),
        (13, 11),
        (16, 14),
        (14, 12),
        (11, 12),
        (5, 11),
        (6, 12),
        (5, 6),
        (5, 7),
        (6, 8),
        (7, 9),
        (8, 10),
        (1, 2),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
    ),
)
"""COCO's keypoints of a person. Source: the category in `person_keypoints_val2017.json`, where pairs count from 1."""

TABLETOP_KEYPOINTS = KeypointNames(
    names=("top", "base", "handle", "head", "stalk", "spine"),
    skeleton=((0, 1), (2, 3)),
    labels=((1, 2, 3, 4), (1, 2, 3), (1, 10), (10,), (8,), (9,)),
)
"""The tabletop's keypoints; a test holds them against the generator."""


def numbered_keypoints(count: int) -> KeypointNames:
    """`keypoint_1` and so on, for a network whose keypoints have no known names."""
    return KeypointNames(tuple(f"keypoint_{number}" for number in range(1, count + 1)))
