"""Keypoints as ROS 2 messages: an array for programs, a marker for viewers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_mrcnn.detections import Detections
from edge_mrcnn.runtime.palette import color_of
from edge_mrcnn.runtime.ros.definitions import typestore
from edge_mrcnn.runtime.skeletons import shown_keypoints

_LINE_LIST, _ADD = 2, 0
"""`visualization_msgs/msg/ImageMarker`: pairs of points, each a line; drawn or changed."""

_CROSS_SHARE = 0.006
"""Arm of the cross that marks a keypoint, of the picture's shorter side."""

_LINE_SHARE = 1 / 300
"""Width of a line, likewise."""

_UNKNOWN_COVARIANCE = np.zeros(36)


def keypoint_array(detections: Detections, threshold: float, header: Any) -> Any:
    """Keypoints for programs: a `vision_msgs/msg/Detection2DArray` with an entry each.

    The centre of an entry's box is the point, the box has no size, `class_id` is the number of the keypoint and `id`
    the index of the thing in the array of detections of the same stamp.

    Args:
        detections: With keypoints.
        threshold: Keypoints with a lower score are left out.
        header: The message's and each entry's.
    """
    kind = typestore().types
    assert detections.keypoints is not None
    entries = []
    for row, number in np.argwhere(shown_keypoints(detections.keypoints, threshold)).tolist():
        x, y, score = detections.keypoints[row, number].tolist()
        center = kind["vision_msgs/msg/Pose2D"](kind["vision_msgs/msg/Point2D"](x, y), 0.0)
        box = kind["vision_msgs/msg/BoundingBox2D"](center, 0.0, 0.0)
        result = kind["vision_msgs/msg/ObjectHypothesisWithPose"](
            kind["vision_msgs/msg/ObjectHypothesis"](str(number), score),
            kind["geometry_msgs/msg/PoseWithCovariance"](_nowhere(), _UNKNOWN_COVARIANCE),
        )
        entries.append(kind["vision_msgs/msg/Detection2D"](header, [result], box, str(row)))
    return kind["vision_msgs/msg/Detection2DArray"](header, entries)


def keypoint_marker(detections: Detections, threshold: float, skeleton: Sequence[tuple[int, int]], header: Any) -> Any:
    """Keypoints for viewers: one `visualization_msgs/msg/ImageMarker` of lines over the picture.

    A cross marks each keypoint, lines are those of the skeleton, and each thing has the colour of its class.

    Args:
        detections: With keypoints.
        threshold: Keypoints with a lower score are left out.
        skeleton: Pairs of keypoints to draw a line between; those of numbers that there are not are left out.
        header: The message's.
    """
    kind = typestore().types
    assert detections.keypoints is not None
    side = min(detections.image_hw)
    arm = max(1.5, _CROSS_SHARE * side)
    points, colors = [], []
    every_shown = shown_keypoints(detections.keypoints, threshold)
    for places, shown, label in zip(detections.keypoints.tolist(), every_shown, detections.class_id, strict=True):
        lines = _crosses([place for place, one in zip(places, shown, strict=True) if one], arm)
        lines += [(places[a], places[b]) for a, b in skeleton if max(a, b) < len(shown) and shown[a] and shown[b]]
        points += [kind["geometry_msgs/msg/Point"](end[0], end[1], 0.0) for line in lines for end in line]
        colors += [_color(int(label))] * len(lines)
    zero = kind["geometry_msgs/msg/Point"](0.0, 0.0, 0.0)
    return kind["visualization_msgs/msg/ImageMarker"](
        header=header,
        ns="keypoints",
        id=0,
        type=_LINE_LIST,
        action=_ADD,
        position=zero,
        scale=max(1.0, _LINE_SHARE * side),
        outline_color=_color(1),
        filled=0,
        fill_color=_color(1),
        lifetime=kind["builtin_interfaces/msg/Duration"](0, 0),
        points=points,
        outline_colors=colors,
    )


def _crosses(places: Sequence[Sequence[float]], arm: float) -> list[tuple[Sequence[float], Sequence[float]]]:
    """Two strokes through each place."""
    return [((x - arm, y - sign * arm), (x + arm, y + sign * arm)) for x, y, _ in places for sign in (1, -1)]


def _color(label: int) -> Any:
    red, green, blue = color_of(label)
    return typestore().types["std_msgs/msg/ColorRGBA"](red / 255, green / 255, blue / 255, 1.0)


def _nowhere() -> Any:
    kind = typestore().types
    return kind["geometry_msgs/msg/Pose"](
        kind["geometry_msgs/msg/Point"](0.0, 0.0, 0.0), kind["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
    )
