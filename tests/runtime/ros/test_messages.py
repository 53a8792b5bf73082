"""Messages, decoded again by a library that shares no code with the one that made them."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from edge_mrcnn import Detections, Frame
from edge_mrcnn.runtime.palette import color_of
from edge_mrcnn.runtime.ros.messages import MessageOptions, _tell_no_masks, to_messages, topic_token

pytest.importorskip("rosbags", reason="needs edge-mrcnn[ros]")
mcap_ros2 = pytest.importorskip("mcap_ros2._dynamic", reason="needs mcap-ros2-support")
definitions = pytest.importorskip("edge_mrcnn.runtime.ros.definitions")

NAMES = ("background", "Schraube M4 ⌀", "cup")
STAMP_NS = 1_700_000_000_123_456_789

# What ROS 2 itself computes. Sources: for std_msgs and sensor_msgs what `ros2 topic info -v` of Jazzy shows (for String
# also docs/design.md of rmw_zenoh); for vision_msgs and visualization_msgs the C code that rosidl generated in a build
# (*__get_type_hash).
TYPE_HASHES = {
    "std_msgs/msg/String": "df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18",
    "std_msgs/msg/Header": "f49fb3ae2cf070f793645ff749683ac6b06203e41c891e17701b1cb597ce6a01",
    "sensor_msgs/msg/Image": "d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47",
    "sensor_msgs/msg/CompressedImage": "15640771531571185e2efc8a100baf923961a4d15d5569652e6cb6691e8e371a",
    "sensor_msgs/msg/CameraInfo": "b3dfd68ff46c9d56c80fd3bd4ed22c7a4ddce8c8348f2f59c299e73118e7e275",
    "vision_msgs/msg/Detection2DArray": "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
    "vision_msgs/msg/Detection3DArray": "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018",
    "vision_msgs/msg/LabelInfo": "3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
    "vision_msgs/msg/VisionClass": "1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a",
    "visualization_msgs/msg/ImageMarker": "603152491ef2331c200a5305230d31f6e8704875944b388da0f547c415d11836",
}


@pytest.mark.parametrize(("name", "expected"), TYPE_HASHES.items())
def test_type_hashes_are_those_of_ros(name: str, expected: str) -> None:
    assert definitions.type_hash(name) == f"RIHS01_{expected}"


def decode(outgoing):
    """By mcap-ros2-support, from the schema that a bag would hold."""
    kind = outgoing.type_name.replace("/msg/", "/")
    decoders = mcap_ros2.generate_dynamic(kind, definitions.definition(outgoing.type_name))
    return decoders[kind](outgoing.data)


def by_topic(messages):
    return {message.topic: message for message in messages}


def scene(image=None, **more) -> tuple[Frame, Detections]:
    """Two objects in a picture of 60 x 80, the left one with a full mask, the right one with half a mask."""
    half = np.zeros((28, 28), np.float32)
    half[:, :14] = 1
    detections = Detections(
        xyxy=[[10, 20, 30.5, 41], [50, 10, 70, 30]],
        score=[0.9, 0.5],
        class_id=[2, 1],
        image_hw=(60, 80),
        mask=np.stack([np.ones((28, 28)), half]),
        track_id=[7, 0],
    )
    picture = np.full((60, 80, 3), (200, 100, 50), np.uint8) if image is None else image
    return Frame(picture, camera="front", stamp_ns=STAMP_NS, frame_id="front_optical", **more), detections


def test_boxes_scores_classes_and_tracks() -> None:
    messages = by_topic(to_messages(*scene(), NAMES))

    array = decode(messages["/edge_mrcnn/front/detections"])

    assert (array.header.stamp.sec, array.header.stamp.nanosec) == (1_700_000_000, 123_456_789)
    assert array.header.frame_id == "front_optical"
    assert len(array.detections) == 2
    first, second = array.detections
    assert (first.bbox.center.position.x, first.bbox.center.position.y) == (20.25, 30.5)
    assert (first.bbox.size_x, first.bbox.size_y, first.bbox.center.theta) == (20.5, 21.0, 0.0)
    assert [entry.header.stamp.nanosec for entry in (first, second)] == [123_456_789] * 2
    assert first.results[0].hypothesis.class_id == "2"
    assert first.results[0].hypothesis.score == pytest.approx(0.9)
    assert first.results[0].pose.pose.orientation.w == 1.0
    assert list(first.results[0].pose.covariance) == [0.0] * 36
    assert (first.id, second.id) == ("7", "")  # 0: not confirmed yet


def test_labels_are_latched_and_the_same_for_every_frame() -> None:
    frame, detections = scene()
    labels = to_messages(frame, detections, NAMES)[0]

    assert labels.latched
    assert labels.topic == "/edge_mrcnn/front/labels"
    decoded = decode(labels)
    assert [(entry.class_id, entry.class_name) for entry in decoded.class_map] == list(enumerate(NAMES))
    assert to_messages(frame, detections[:0], NAMES)[0] is labels
    assert to_messages(frame, detections, NAMES[:2])[0].data != labels.data


def test_instance_map_counts_rows() -> None:
    frame, detections = scene()
    message = decode(by_topic(to_messages(frame, detections, NAMES))["/edge_mrcnn/front/instance_map"])

    assert (message.height, message.width, message.step) == (60, 80, 160)
    assert (message.encoding, message.is_bigendian) == ("mono16", 0)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == divmod(STAMP_NS, 10**9)
    instances = np.frombuffer(message.data, "<u2").reshape(60, 80)
    np.testing.assert_array_equal(instances, detections.instance_map())
    assert instances[30, 20] == 1
    assert instances[20, 55] == 2
    assert instances[20, 66] == 0


@pytest.mark.parametrize("pixel_format", ["rgb", "nv12"])
def test_pictures_keep_their_colours(pixel_format: str) -> None:
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:, :40], picture[:, 40:] = (200, 40, 30), (30, 60, 190)
    pixels = picture if pixel_format == "rgb" else to_nv12(picture)
    frame, detections = scene(pixels, pixel_format=pixel_format)

    raw = decode(
        by_topic(to_messages(frame, detections, NAMES, MessageOptions(image="raw")))["/edge_mrcnn/front/image"]
    )
    packed = decode(by_topic(to_messages(frame, detections, NAMES))["/edge_mrcnn/front/image/compressed"])

    assert (raw.encoding, raw.step, raw.height, raw.width) == ("rgb8", 240, 60, 80)
    np.testing.assert_allclose(np.frombuffer(raw.data, np.uint8).reshape(60, 80, 3), picture, atol=3)
    assert packed.format == "jpeg"
    decoded = cv2.imdecode(np.frombuffer(packed.data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    np.testing.assert_allclose(decoded[:, 8:32].astype(int), picture[:, 8:32].astype(int), atol=8)


def to_nv12(picture):
    planar = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420)
    height, width = picture.shape[:2]
    chroma = planar[height:].reshape(2, -1)
    return np.vstack([planar[:height], chroma.T.reshape(height // 2, width)])


def test_only_what_is_asked_for_and_known_is_sent() -> None:
    frame, detections = scene()
    without_masks = Detections(detections.xyxy, detections.score, detections.class_id, (60, 80))

    topics = set(by_topic(to_messages(frame, without_masks, NAMES, MessageOptions(image="none", prefix=""))))

    assert topics == {"/front/labels", "/front/detections"}
    few = to_messages(frame, detections, NAMES, MessageOptions(image="none", instance_map=False))
    assert {message.topic.rpartition("/")[2] for message in few} == {"labels", "detections"}


def pointed_scene() -> tuple[Frame, Detections]:
    frame, detections = scene()
    points = [[[12, 22, 0.9], [28.5, 40, 0.6]], [[55, 15, 0.7], [60, 20, 0]]]
    return frame, dataclasses.replace(detections, mask=None, keypoints=np.array(points))


POINTED = MessageOptions(image="none", keypoint_names=("rim", "handle"), skeleton=((0, 1),))


def test_keypoints_have_places_scores_numbers_and_the_index_of_their_thing() -> None:
    messages = by_topic(to_messages(*pointed_scene(), NAMES, POINTED))

    array = decode(messages["/edge_mrcnn/front/keypoints"])

    assert (array.header.stamp.sec, array.header.stamp.nanosec) == divmod(STAMP_NS, 10**9)
    read = [
        (entry.id, entry.results[0].hypothesis.class_id, entry.bbox.center.position.x, entry.bbox.center.position.y)
        for entry in array.detections
    ]
    assert read == [("0", "0", 12.0, 22.0), ("0", "1", 28.5, 40.0), ("1", "0", 55.0, 15.0)]  # the last has no handle
    assert [entry.results[0].hypothesis.score for entry in array.detections] == pytest.approx([0.9, 0.6, 0.7])
    assert {(entry.bbox.size_x, entry.bbox.size_y) for entry in array.detections} == {(0.0, 0.0)}
    names = decode(messages["/edge_mrcnn/front/keypoint_labels"])
    assert messages["/edge_mrcnn/front/keypoint_labels"].latched
    assert [(entry.class_id, entry.class_name) for entry in names.class_map] == [(0, "rim"), (1, "handle")]


def test_the_marker_of_keypoints_is_lines_of_the_colour_of_the_class() -> None:
    marker = decode(by_topic(to_messages(*pointed_scene(), NAMES, POINTED))["/edge_mrcnn/front/keypoint_marker"])

    assert (marker.type, marker.action, marker.filled, marker.ns) == (2, 0, 0, "keypoints")  # lines; add or change
    lines = np.array([(point.x, point.y) for point in marker.points]).reshape(-1, 2, 2)
    assert len(lines) == len(marker.outline_colors) == 3 * 2 + 1  # two strokes a keypoint, and one line of the skeleton
    np.testing.assert_allclose(lines[[0, 1]].mean(axis=1), [[12, 22]] * 2)
    np.testing.assert_allclose(lines[4], [[12, 22], [28.5, 40]])
    first, last = marker.outline_colors[0], marker.outline_colors[-1]
    assert (first.r, first.g, first.b, first.a) == pytest.approx((*(part / 255 for part in color_of(2)), 1))
    assert (last.r, last.g, last.b) == pytest.approx([part / 255 for part in color_of(1)])
    empty = to_messages(pointed_scene()[0], Detections.empty((60, 80), keypoint_count=2), NAMES, POINTED)
    assert decode(by_topic(empty)["/edge_mrcnn/front/keypoint_marker"]).points == []


def test_a_network_without_masks_sends_no_map_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    _tell_no_masks.cache_clear()
    for _ in range(3):
        topics = set(by_topic(to_messages(*pointed_scene(), NAMES, POINTED)))
        assert "/edge_mrcnn/front/instance_map" not in topics
    assert caplog.messages == ["/edge_mrcnn/front/instance_map is not sent: these detections have no masks"]
    caplog.clear()
    _tell_no_masks.cache_clear()
    to_messages(*pointed_scene(), NAMES, dataclasses.replace(POINTED, instance_map=False))
    assert not caplog.messages


def test_no_detections_are_messages_too() -> None:
    frame, _ = scene()
    messages = by_topic(to_messages(frame, Detections.empty((60, 80), 28), NAMES))
    assert decode(messages["/edge_mrcnn/front/detections"]).detections == []
    assert not np.frombuffer(decode(messages["/edge_mrcnn/front/instance_map"]).data, np.uint8).any()


INTRINSICS = np.array([[100.0, 0, 39.5], [0, 110.0, 29.5], [0, 0, 1]])


def test_camera_info_has_the_matrix() -> None:
    frame, detections = scene(intrinsics=INTRINSICS)
    info = decode(by_topic(to_messages(frame, detections, NAMES))["/edge_mrcnn/front/camera_info"])
    assert (info.height, info.width, info.distortion_model) == (60, 80, "plumb_bob")
    np.testing.assert_array_equal(np.reshape(info.k, (3, 3)), INTRINSICS)
    np.testing.assert_array_equal(np.reshape(info.p, (3, 4))[:, :3], INTRINSICS)
    np.testing.assert_array_equal(np.reshape(info.r, (3, 3)), np.eye(3))


def test_boxes_in_space_without_the_background_at_the_edge() -> None:
    depth = np.full((60, 80), 5.0, np.float32)
    depth[22:39, 12:29] = 2.0  # the left object, smaller than its mask: the rim sees the background
    depth[25, 15] = np.nan
    frame, detections = scene(depth_m=depth, intrinsics=INTRINSICS)

    array = decode(by_topic(to_messages(frame, detections, NAMES))["/edge_mrcnn/front/detections_3d"])

    first, second = array.detections
    center, size = first.bbox.center.position, first.bbox.size
    assert center.z == pytest.approx(2.0)
    assert size.z == pytest.approx(0.0)
    assert center.x == pytest.approx((20 - 39.5) / 100 * 2)
    assert center.y == pytest.approx((30 - 29.5) / 110 * 2)
    assert (size.x, size.y) == (pytest.approx(17 / 100 * 2), pytest.approx(17 / 110 * 2))  # whole pixels
    assert first.results[0].pose.pose.position.z == center.z
    assert (first.id, first.results[0].hypothesis.class_id) == ("7", "2")
    assert second.bbox.center.position.z == pytest.approx(5.0)
    assert second.bbox.center.position.x < (60 - 39.5) / 100 * 5  # the left half of its box alone


def test_large_masks_are_sampled_without_moving_the_box() -> None:
    depth = np.full((600, 800), 1.5, np.float32)
    matrix = np.array([[900.0, 0, 400], [0, 900.0, 300], [0, 0, 1]])
    detections = Detections([[100, 50, 700, 450]], [0.9], [1], (600, 800), mask=np.ones((1, 28, 28)))
    frame = Frame(np.zeros((600, 800, 3), np.uint8), depth_m=depth, intrinsics=matrix)

    array = decode(by_topic(to_messages(frame, detections, NAMES))["/edge_mrcnn/camera/detections_3d"])

    box = array.detections[0].bbox
    assert box.center.position.x == pytest.approx(0.0, abs=0.02)
    assert box.center.position.y == pytest.approx((250 - 300) / 900 * 1.5, abs=0.02)
    assert (box.size.x, box.size.y) == (pytest.approx(1.0, rel=0.03), pytest.approx(0.667, rel=0.03))


def test_unknown_depth_gives_no_box() -> None:
    frame, detections = scene(depth_m=np.zeros((60, 80), np.float32), intrinsics=INTRINSICS)
    array = decode(by_topic(to_messages(frame, detections, NAMES))["/edge_mrcnn/front/detections_3d"])
    assert array.detections == []


@pytest.mark.parametrize(
    ("name", "token"), [("front", "front"), ("Cam 2", "cam_2"), ("10.0.0.7", "cam_10_0_0_7"), ("", "camera")]
)
def test_topics_are_valid_ros_names(name: str, token: str) -> None:
    assert topic_token(name) == token


def test_a_camera_without_frame_id_lends_its_name() -> None:
    _, detections = scene()
    frame = Frame(np.zeros((60, 80, 3), np.uint8), camera="front", stamp_ns=40_000_000)
    header = decode(by_topic(to_messages(frame, detections, NAMES))["/edge_mrcnn/front/detections"]).header
    assert (header.frame_id, header.stamp.sec, header.stamp.nanosec) == ("front", 0, 40_000_000)


@pytest.mark.parametrize("wrong", [{"image": "png"}, {"jpeg_quality": 0}, {"prefix": "edge"}, {"prefix": "/a/"}])
def test_wrong_options_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MessageOptions(**wrong)
