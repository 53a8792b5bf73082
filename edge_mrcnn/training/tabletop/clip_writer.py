"""Writes a clip: frames, video, depth, cameras and COCO annotations with track ids."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edge_mrcnn.errors import EdgeMrcnnError

from .clip import ClipFrame, render_clip
from .render import DEFAULT_SIZE
from .writer import Record, new_folder, picture_record, write_annotations, write_image

log = logging.getLogger(__name__)

_CODECS = ("avc1", "mp4v")
_MAX_DEPTH_MM = 65535


def open_video(path: Path, fps: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """Opens an MP4 file for writing: H.264 where OpenCV has an encoder for it, otherwise MPEG-4 part 2.

    Raises:
        EdgeMrcnnError: neither can be written.
    """
    # FFmpeg complains at length about each encoder that a machine does not have.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        for codec in _CODECS:
            video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, (size[1], size[0]))
            if video.isOpened():
                return video
    finally:
        cv2.utils.logging.setLogLevel(level)
    raise EdgeMrcnnError(
        f"OpenCV can write no MP4 file at {path}. Install an OpenCV with FFmpeg: pip install opencv-python"
    )


def check_video(path: Path, frames: int) -> None:
    """Plays `path` through.

    Raises:
        EdgeMrcnnError: it does not hold `frames` readable frames.
    """
    video = cv2.VideoCapture(str(path))
    try:
        count = 0
        while video.read()[0]:
            count += 1
    finally:
        video.release()
    if count != frames:
        raise EdgeMrcnnError(f"{path.name} plays {count} frames of {frames}. Check that the disk has room.")


def depth_in_millimetres(depth_m: NDArray[np.float32]) -> NDArray[np.uint16]:
    """(H, W) metres to (H, W) uint16 millimetres; what is farther than 65.535 m becomes 65535."""
    return np.asarray(np.clip(np.rint(depth_m * 1000.0), 0, _MAX_DEPTH_MM), np.uint16)


def _camera_entry(name: str, frame: ClipFrame) -> dict[str, Any]:
    return {
        "file_name": name,
        "time_s": round(frame.time_s, 6),
        "intrinsics": frame.picture.intrinsics.round(6).tolist(),
        "camera_from_world": frame.picture.camera_from_world.round(8).tolist(),
    }


def _record(name: str, frame: ClipFrame) -> Record:
    record = picture_record(frame.picture, name)
    record.image.update(frame_index=frame.picture.index, time_s=round(frame.time_s, 6))
    for fields, instance in zip(record.annotations, frame.picture.instances, strict=True):
        fields["track_id"] = instance.track_id
        fields["world_from_object"] = [round(float(value), 5) for value in frame.poses[instance.track_id]]
    return record


def _write_frames(
    folder: Path, frames: Iterable[ClipFrame], video: cv2.VideoWriter, cameras: list[dict[str, Any]], quality: int
) -> Iterator[Record]:
    """Writes each frame's picture, depth and video frame, appends its camera to `cameras`, and yields its record."""
    for frame in frames:
        stem = f"{frame.picture.index:06d}"
        write_image(folder / "images" / f"{stem}.jpg", frame.picture.image, quality)
        depth = folder / "depth" / f"{stem}.png"
        if not cv2.imwrite(str(depth), depth_in_millimetres(frame.depth_m)):
            raise EdgeMrcnnError(f"{depth} cannot be written. Check that the disk has room.")
        video.write(cv2.cvtColor(frame.picture.image, cv2.COLOR_RGB2BGR))
        cameras.append(_camera_entry(f"{stem}.jpg", frame))
        yield _record(f"{stem}.jpg", frame)


def write_clip(
    out: Path,
    seed: int,
    duration_s: float,
    fps: float = 15.0,
    size: tuple[int, int] = DEFAULT_SIZE,
    quality: int = 90,
) -> None:
    """Writes a clip and its ground truth.

    `out` then holds clip.mp4, images/, depth/ (16-bit PNG, millimetres along the optical axis, same file stems),
    cameras.json (intrinsics and camera_from_world of each frame; x right, y down, z forward, metres) and
    annotations.json (COCO; each annotation has a `track_id` and its object's pose `world_from_object`: x, y, z in
    metres and the quaternion w, x, y, z).

    Args:
        out: a folder that does not exist or is empty.
        seed: names the clip.
        duration_s: length, seconds.
        fps: frames per second.
        size: height and width, pixels.
        quality: of the JPEG files, 0 to 100.

    Raises:
        OutputExistsError: `out` is not empty.
        EdgeMrcnnError: this machine cannot render, or a file cannot be written.
    """
    count = max(1, round(duration_s * fps))
    frames = tqdm(render_clip(seed, duration_s, fps, size), total=count, desc=str(out), unit="frame", disable=None)
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        (folder / "depth").mkdir()
        video = open_video(folder / "clip.mp4", fps, size)
        cameras: list[dict[str, Any]] = []
        try:
            records = _write_frames(folder, frames, video, cameras, quality)
            total = write_annotations(folder / "annotations.json", records, seed)
        finally:
            video.release()
        check_video(folder / "clip.mp4", count)
        document = {"width": size[1], "height": size[0], "fps": fps, "frames": cameras}
        (folder / "cameras.json").write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    log.info("wrote %d frames with %d objects to %s", count, total, out)
