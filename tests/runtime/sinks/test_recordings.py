"""Recordings: readable at any moment and kept whatever ends the run; their times, names, colours and sizes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from edge_mrcnn import Detections, Frame
from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.metrics import CameraStatus, Percentiles, RunStatus
from edge_mrcnn.runtime.sinks import SinkOptions, open_sink
from edge_mrcnn.runtime.sinks import video as recording
from edge_mrcnn.runtime.sinks.json_lines import JsonLinesSink
from edge_mrcnn.runtime.sinks.recording import RecordingName
from edge_mrcnn.runtime.sinks.video import VideoSink

NAMES = ("__background__", "mug")
VIDEOS = ("out.mkv", "out.mp4")
KINDS = (*VIDEOS, "out.jsonl")
NO_ROOM = "cannot write .*(No space left on device|File too large); .*df -h"
STEP_NS = 40_000_000


def frame(
    level: int = 80,
    size: tuple[int, int] = (48, 64),
    index: int = 0,
    camera: str = "",
    stamp_ns: int | None = None,
    stamp_source: str = "file",
    captured_ns: int = 0,
) -> Frame:
    return Frame(
        np.full((*size, 3), level, np.uint8),
        source="clip.mp4",
        index=index,
        captured_ns=captured_ns,
        stamp_ns=index * STEP_NS if stamp_ns is None else stamp_ns,
        stamp_source=stamp_source,
        camera=camera,
    )


def found(size: tuple[int, int] = (48, 64)) -> Detections:
    return Detections(np.array([[8, 8, 40.123, 40]]), np.array([0.91234]), np.array([1]), size, np.ones((1, 28, 28)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def times_s(path: Path) -> list[float]:
    """When each frame of a video is shown, read until the file ends or breaks off."""
    times: list[float] = []
    with av.open(str(path)) as container:
        try:
            for picture in container.decode(video=0):
                times.append(picture.time)
        except av.error.InvalidDataError:
            assert times
    return times


def count(path: Path) -> int:
    """Frames or lines that can be read."""
    if path.suffix != ".jsonl":
        return len(times_s(path))
    lines = path.read_text().splitlines()
    return len([json.loads(line) for line in lines])


def write_and_raise(path: Path, error: BaseException, frames: int = 5) -> None:
    with open_sink(path) as sink:
        for index in range(frames):
            sink.write(frame(index=index), found())
        raise error


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StreamError])
def test_kept_whatever_ends_the_run(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    with pytest.raises(error, match="elsewhere"):
        write_and_raise(tmp_path / name, error("elsewhere"))
    assert names(tmp_path) == [name]
    assert count(tmp_path / name) == 5


@pytest.mark.parametrize("name", KINDS)
def test_an_old_file_stays_until_the_first_frame(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / name).write_text("of an earlier run")
    with caplog.at_level(logging.WARNING), open_sink(tmp_path / name):
        pass
    assert (tmp_path / name).read_text() == "of an earlier run"
    assert "no frame came" in caplog.text
    with open_sink(tmp_path / name) as sink:
        sink.write(frame(), found())
    assert count(tmp_path / name) == 1
    sink.close()
    with pytest.raises(StreamError, match="is closed"):
        sink.write(frame(), found())


@pytest.mark.parametrize("name", KINDS)
def test_no_frames_no_file(tmp_path: Path, name: str) -> None:
    with open_sink(tmp_path / "new" / name):
        pass
    assert names(tmp_path / "new") == []


@pytest.mark.parametrize("name", KINDS)
def test_unwritable(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamError, match=r"cannot write .*check the folder's permissions and free space: df -h"):
        open_sink(tmp_path / "file" / name)
    (tmp_path / name).mkdir()
    with pytest.raises(StreamError, match="a folder of this name is in the way"):
        (JsonLinesSink if name == "out.jsonl" else VideoSink)(tmp_path / name)


@pytest.mark.parametrize("name", KINDS)
def test_readable_at_any_moment(tmp_path: Path, name: str) -> None:
    with open_sink(tmp_path / name) as sink:
        for index in range(75):
            sink.write(frame(index=index), found())
        so_far = count(tmp_path / name)
        assert so_far == 75 if name == "out.jsonl" else so_far >= 75 - 25  # all but the last second


RECORD = """
import sys, time
import numpy as np
from edge_mrcnn import Detections, Frame, open_sink
sinks = [open_sink(path, class_names=("mug",)) for path in sys.argv[1:]]
found = Detections(np.array([[8, 8, 40, 40]]), np.ones(1), np.zeros(1, int), (120, 160))
begin, index = time.monotonic(), 0
while True:
    picture = np.full((120, 160, 3), index % 200, np.uint8)
    for sink in sinks:
        sink.write(Frame(picture, index=index, camera="front"), found, picture)
    print(time.monotonic() - begin, flush=True)
    index += 1
    time.sleep(max(0, begin + index / 20 - time.monotonic()))
"""


def test_kill_9_leaves_all_but_the_last_second(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in KINDS]
    with subprocess.Popen([sys.executable, "-c", RECORD, *map(str, paths)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        elapsed_s = 0.0
        written = 0
        for line in child.stdout:
            elapsed_s, written = float(line), written + 1
            if elapsed_s > 3.2:
                break
        os.kill(child.pid, signal.SIGKILL)
        written += len(child.stdout.readlines())
    for path in paths[:2]:
        times = times_s(path)
        assert times[0] == 0
        assert times[-1] > elapsed_s - 1, path
        capture = cv2.VideoCapture(str(path))  # another reader
        read = 0
        while capture.read()[0]:
            read += 1
        assert read == len(times)
    lines = [json.loads(line) for line in paths[2].read_text().splitlines()]
    assert [line["index"] for line in lines[:written]] == list(range(written))


@pytest.mark.parametrize("name", KINDS)
def test_full_disk_leaves_what_was_recorded(small_disk: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    options = SinkOptions(NAMES, fps=25)
    many = Detections(np.zeros((3000, 4)), np.ones(3000), np.ones(3000, int), (240, 320))
    written = 0

    def fill() -> None:
        nonlocal written
        with open_sink(small_disk / name, class_names=NAMES, fps=options.fps) as sink:
            for index in range(400):
                picture = rng.integers(0, 256, (240, 320, 3), np.uint8)
                sink.write(frame(size=(240, 320), index=index), many, picture)
                written += 1

    with pytest.raises(StreamError, match=NO_ROOM):
        fill()
    assert names(small_disk) == [name]
    assert written > 10
    assert count(small_disk / name) >= written - (0 if name == "out.jsonl" else 25)


@pytest.mark.parametrize("name", VIDEOS)
def test_colours_in_every_reader(tmp_path: Path, name: str) -> None:
    """Also at 720 lines, where readers that ignore tags might take BT.709 for granted."""
    colours = [(220, 30, 60), (20, 200, 90), (30, 60, 230), (250, 250, 250), (12, 12, 12), (240, 200, 20)]
    picture = np.repeat(np.array(colours, np.uint8)[None].repeat(720, 0), 200, axis=1)
    with open_sink(tmp_path / name, fps=25) as sink:
        for index in range(3):
            sink.write(frame(index=index, size=picture.shape[:2]), Detections.empty(picture.shape[:2]), picture)
    with av.open(str(tmp_path / name)) as container:
        context = container.streams.video[0].codec_context
        assert (context.codec.name, context.color_range, context.colorspace) == ("h264", 1, 6)
        pictures = [next(container.decode(video=0)).to_ndarray(format="rgb24")]
    pictures.append(cv2.cvtColor(cv2.VideoCapture(str(tmp_path / name)).read()[1], cv2.COLOR_BGR2RGB))
    for read in pictures:
        inside = read[360, 100::200].astype(int)
        assert np.abs(inside - np.array(colours)).max() <= 6


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("fps", [25, 30, 30000 / 1001])
def test_constant_rate(tmp_path: Path, name: str, fps: float) -> None:
    with open_sink(tmp_path / name, fps=fps) as sink:
        for index in range(10):
            sink.write(frame(index=index, stamp_ns=5), found())
    assert times_s(tmp_path / name) == pytest.approx([index / fps for index in range(10)], abs=0.00051)
    capture = cv2.VideoCapture(str(tmp_path / name))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, abs=0.05)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        # a file at its own pace, and one that begins again
        ([(0, "file", 7), (40, "file", 9), (120, "file", 11), (0, "file", 13)], [0, 40, 120, 153.3]),
        # a camera, by its own clock rather than by when pictures arrive
        ([(9000, "sender", 0), (9100, "sender", 130), (9200, "sender", 195)], [0, 100, 200]),
        # the wall clock is set, forwards and back
        ([(0, "host", 0), (10**12, "host", 50), (5, "host", 110)], [0, 50, 110]),
        # the sender's clock becomes known
        ([(0, "host", 0), (90, "sender", 50), (140, "sender", 95)], [0, 50, 100]),
        # a camera was away for two minutes
        ([(0, "host", 0), (120_000, "host", 120_000)], [0, 120_000]),
    ],
)
def test_own_times(tmp_path: Path, frames: list[tuple[int, str, int]], expected: list[float]) -> None:
    with open_sink(tmp_path / "out.mkv") as sink:
        for stamp_ms, source, received_ms in frames:
            sink.write(frame(stamp_ns=stamp_ms * 10**6, stamp_source=source, captured_ns=received_ms * 10**6), found())
    assert [1e3 * at for at in times_s(tmp_path / "out.mkv")] == pytest.approx(expected, abs=1)


def test_pictures_make_one_video_without_a_pace_of_their_own(tmp_path: Path) -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    with open_sink(tmp_path / "out.mp4", status=lambda: status("a", "b", "c")) as sink:
        for index, name in enumerate("abc"):
            saved = Frame(black, source=f"{name}.png", stamp_ns=index, stamp_source="file", camera=name)
            sink.write(saved, Detections.empty((8, 8)))
    assert times_s(tmp_path / "out.mp4") == pytest.approx([0, 1 / 30, 2 / 30], abs=0.0001)


def test_key_frames_come_by_time(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.mkv", fps=5) as sink:
        for index in range(25):
            sink.write(frame(index=index), found())
    with av.open(str(tmp_path / "out.mkv")) as container:
        keys = [picture.time for picture in container.decode(video=0) if picture.key_frame]
    assert keys == [0, 2, 4]


def status(*cameras: str) -> RunStatus:
    none = Percentiles(0, 0.0, 0.0, 0.0)
    rows = tuple(CameraStatus(name, "", "live", 0, 0, 0, 0, 0, 0.0, none, {}, None, "") for name in cameras)
    return RunStatus("tiny", "cpu", 0.0, 0.0, rows, (), {}, True)


def test_one_file_a_camera(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.mkv", status=lambda: status("front", "rear")) as sink:
        for index in range(4):
            sink.write(frame(index=index, camera=("front", "rear")[index % 2]), found())
    assert names(tmp_path) == ["out.front.mkv", "out.rear.mkv"]
    assert [count(path) for path in tmp_path.iterdir()] == [2, 2]
    with open_sink(tmp_path / "one.mkv", status=lambda: status("front")) as sink:
        sink.write(frame(camera="front"), found())
    assert (tmp_path / "one.mkv").exists()


def test_another_camera_that_nobody_told_of(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.mkv") as sink:
        for camera in ("front", "rear", "front"):
            sink.write(frame(camera=camera), found())
    assert names(tmp_path) == ["out.mkv", "out.rear.mkv"]


def test_json_lines_hold_all_cameras(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.jsonl", status=lambda: status("front", "rear")) as sink:
        for camera in ("front", "rear"):
            sink.write(frame(camera=camera), found())
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["camera"] for line in lines] == ["front", "rear"]


def test_segments_of_a_video(tmp_path: Path) -> None:
    with open_sink(f"file://{tmp_path}/out.mkv?segment_s=2&fps=10") as sink:
        for index in range(45):
            sink.write(frame(index=index), found())
    paths = sorted(tmp_path.iterdir(), key=lambda path: (len(path.name), path.name))  # all within a second or two
    assert sorted(map(count, paths)) == [5, 20, 20]
    assert all(path.name.startswith(time.strftime("out_%Y%m")) for path in paths)
    assert all(times_s(path)[0] == 0 for path in paths)


def test_segments_of_json_lines(tmp_path: Path) -> None:
    with open_sink(f"file://{tmp_path}/%Y/out.jsonl?segment_s=1") as sink:
        sink.write(frame(index=0), found())
        time.sleep(1.01)  # the segment's own second
        sink.write(frame(index=1), found())
        sink.write(frame(index=2), found())
    assert sorted(map(count, (tmp_path / time.strftime("%Y")).iterdir())) == [1, 2]


def test_times_in_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = RecordingName(tmp_path / "%Y" / "rec_%H%M.mkv")
    monkeypatch.setattr(time, "strftime", lambda pattern: pattern.replace("%Y", "2031").replace("%H%M", "0230"))
    for expected in ("rec_0230.mkv", "rec_0230_2.mkv", "rec_0230_3.mkv"):  # the clock was set back
        path = name.at("")
        assert path == tmp_path / "2031" / expected
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert name.at("front").name == "rec_0230.front.mkv"
    assert RecordingName(tmp_path / "100%.mkv").at("").name == "100%.mkv"


@pytest.mark.parametrize("size", [(1, 1), (47, 63), (7, 64)])
def test_videos_of_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    with open_sink(tmp_path / "out.mp4") as sink:
        sink.write(frame(size=size), Detections.empty(size))
    with av.open(str(tmp_path / "out.mp4")) as container:
        image = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert image.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert np.abs(image.astype(int) - 80).max() < 10  # the added row and column repeat the edge


def test_frames_of_another_size_are_fitted_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), open_sink(tmp_path / "out.mkv") as sink:
        for size in ((48, 64), (96, 64), (96, 64)):
            sink.write(frame(200, size), Detections.empty(size))
    with av.open(str(tmp_path / "out.mkv")) as container:
        first, second, _ = (picture.to_ndarray(format="rgb24") for picture in container.decode(video=0))
    assert first.shape == second.shape == (48, 64, 3)
    assert second[:, :12].mean() < 20  # black on both sides
    assert second[:, 52:].mean() < 20
    assert second[:, 20:44].mean() > 180
    assert caplog.text.count("are scaled to fit into it") == 1


@pytest.mark.parametrize("name", VIDEOS)
def test_mpeg4_where_there_is_no_h264(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "ENCODERS", {"no_such_encoder": {}, "mpeg4": recording.ENCODERS["mpeg4"]})
    with open_sink(tmp_path / name) as sink:
        for index in range(10):
            sink.write(frame(index=index), found(), np.full((48, 64, 3), (220, 0, 0), np.uint8))
    assert isinstance(sink, VideoSink)
    assert sink.codec == "mpeg4"
    image = cv2.cvtColor(cv2.VideoCapture(str(tmp_path / name)).read()[1], cv2.COLOR_BGR2RGB)
    assert np.abs(image[24, 32].astype(int) - (220, 0, 0)).max() < 12
    assert count(tmp_path / name) == 10


def test_no_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "ENCODERS", {"no_such_encoder": {}})
    with (
        pytest.raises(
            StreamError, match=r"no encoder for .*tried no_such_encoder\): pip install 'edge-mrcnn\[video\]'"
        ),
        open_sink(tmp_path / "out.mp4") as sink,
    ):
        sink.write(frame(), found())
    assert names(tmp_path) == []


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(StreamError, match=r"PyAV, .*: pip install 'edge-mrcnn\[video\]'"):
        open_sink(tmp_path / "out.mkv")


def test_wrong_videos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a video ends in \.mkv, \.mp4, got 'out\.gif'"):
        VideoSink("out.gif")
    with pytest.raises(ValueError, match="fps of a video must be positive"):
        open_sink(tmp_path / "out.mp4", fps=0)


def test_videos_write_nothing_to_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_sink(tmp_path / "out.mp4") as sink:
        sink.write(frame(), found())
    assert capfd.readouterr().err == ""


def test_json_lines(tmp_path: Path) -> None:
    detections = Detections(
        **{name: getattr(found(), name) for name in ("xyxy", "score", "class_id", "image_hw", "mask")},
        keypoints=np.array([[[1.234, 2, 1]]]),
        track_id=np.array([7]),
    )
    with open_sink(tmp_path / "out.jsonl", class_names=NAMES, rle=True) as sink:
        sink.write(frame(index=3, camera="front"), detections)
        sink.write(frame(index=4), Detections.empty((48, 64)))
        assert not sink.wants_picture
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == {
        "source": "clip.mp4",
        "camera": "front",
        "index": 3,
        "stamp_ns": 3 * STEP_NS,
        "stamp_source": "file",
        "frame_id": "",
        "image_hw": [48, 64],
        "detections": [
            {
                "xyxy": [8.0, 8.0, 40.12, 40.0],
                "score": 0.9123,
                "class_id": 1,
                "class_name": "mug",
                "track_id": 7,
                "keypoints": [[1.23, 2.0, 1.0]],
                "mask": detections.rle()[0],
            }
        ],
    }
    assert second["detections"] == []


def test_json_lines_with_keypoints_that_are_there(tmp_path: Path) -> None:
    points = np.array([[[1.234, 2, 0.98761], [30, 40, 0.04], [7, 7, 0]], [[np.nan, 2, 0.5], [30, 40, 0.05], [7, 7, 1]]])
    detections = Detections(np.tile([8, 8, 40, 40], (2, 1)), [0.9, 0.8], [1, 1], (48, 64), keypoints=points)
    with open_sink(tmp_path / "out.jsonl", keypoint_names=("rim", "handle", "foot")) as sink:
        sink.write(frame(), detections)
    with open_sink(tmp_path / "all.jsonl", keypoint_threshold=0) as sink:
        sink.write(frame(), detections)
        sink.write(frame(), found())
    (line,) = (json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines())
    assert line["keypoint_names"] == ["rim", "handle", "foot"]
    assert [one["keypoints"] for one in line["detections"]] == [
        [[1.23, 2.0, 0.9876], None, None],
        [None, [30.0, 40.0, 0.05], [7.0, 7.0, 1.0]],
    ]
    every, without = (json.loads(text) for text in (tmp_path / "all.jsonl").read_text().splitlines())
    assert "keypoint_names" not in every
    assert [point is None for point in every["detections"][0]["keypoints"]] == [False, False, True]
    assert "keypoints" not in without["detections"][0]


def test_json_lines_without_masks_names_and_ids(tmp_path: Path) -> None:
    fresh = Detections(np.zeros((1, 4)), np.ones(1), np.ones(1), (48, 64), track_id=np.zeros(1))
    with open_sink(tmp_path / "out.jsonl") as sink:
        sink.write(frame(), found())
        sink.write(frame(), fresh)
    for line in (tmp_path / "out.jsonl").read_text().splitlines():
        (entry,) = json.loads(line)["detections"]
        assert set(entry) == {"xyxy", "score", "class_id", "class_name"}
        assert entry["class_name"] is None


def test_json_lines_tell_the_latency_of_cameras(tmp_path: Path) -> None:
    with open_sink(tmp_path / "out.jsonl") as sink:
        sink.write(frame(stamp_source="host", captured_ns=time.monotonic_ns() - 250_000_000), found())
    assert 250 <= json.loads((tmp_path / "out.jsonl").read_text())["latency_ms"] < 5000


def test_json_lines_into_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.jsonl")
    program = f"import json; print([json.loads(line)['index'] for line in open({str(tmp_path / 'out.jsonl')!r})])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as reader:
        with open_sink(tmp_path / "out.jsonl") as sink:
            sink.write(frame(index=1), found())
            sink.write(frame(index=2), found())
        assert reader.communicate(timeout=60)[0] == "[1, 2]\n"
