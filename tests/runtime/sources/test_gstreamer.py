"""Capture through GStreamer: the pipelines for a Jetson as text, and real ones in Debian's OpenCV."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.sources.gstreamer import (
    csi_pipeline,
    hardware_pipeline,
    open_csi,
    open_pipeline,
    with_appsink,
)
from edge_mrcnn.runtime.sources.gstreamer_capture import elements, require_gstreamer
from tests.faults.gstreamer_child import ROOT, run_child, start_child
from tests.faults.servers import wait_for


# ------------------------------------------------------------------------------------------------------------ pipelines
def test_the_pipeline_of_a_csi_camera() -> None:
    assert with_appsink(csi_pipeline(1, width=1920, height=1080, fps=29.97, flip=2), newest=True) == (
        "nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1920,height=1080,format=NV12,framerate=2997/100"
        " ! nvvidconv flip-method=2 ! video/x-raw,format=NV12 ! appsink drop=true max-buffers=1 sync=false"
    )


def test_the_pipeline_of_the_hardware_decoder() -> None:
    assert hardware_pipeline("rtsp://user:pass@10.0.0.7/live?channel=1") == (
        'rtspsrc location="rtsp://user:pass@10.0.0.7/live?channel=1" protocols=tcp latency=200'
        " ! application/x-rtp,media=video ! decodebin ! video/x-raw(memory:NVMM) ! nvvidconv"
    )
    assert with_appsink(hardware_pipeline('a "b" ! c.mp4'), newest=False) == (
        'filesrc location="a \\"b\\" ! c.mp4" ! decodebin ! video/x-raw(memory:NVMM)'
        " ! nvvidconv ! video/x-raw,format=NV12 ! appsink max-buffers=4 sync=false"
    )


def test_elements_of_a_pipeline() -> None:
    pipeline = with_appsink(hardware_pipeline('a "b" ! c.mp4'), newest=True)
    assert elements(pipeline) == ["filesrc", "decodebin", "nvvidconv", "appsink"]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("csi://front", "a CSI camera has a number"),
        ("csi://0?breadth=640", "unknown option 'breadth'.*known: name, frame_id, drop, timeout_s, width"),
        ("csi://0?width=0", "option width in .* cannot be '0'; expected a positive number of pixels"),
        ("csi://0?fps=inf", "option fps"),
        ("csi://0?flip=8", "option flip .*0 to 7"),
        ("gst://", "takes a pipeline"),
        ("gst://videotestsrc ! appsink", "without appsink"),
        ("gst://videotestsrc?title=front", "unknown option 'title'"),
    ],
)
def test_wrong_uris(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        (open_csi if uri.startswith("csi") else open_pipeline)(uri)


def test_an_opencv_without_gstreamer() -> None:
    if "GStreamer:                   YES" in cv2.getBuildInformation():
        require_gstreamer()
        return
    with pytest.raises(StreamError, match=r"without GStreamer.*--system-site-packages"):
        open_csi("csi://0")


# ---------------------------------------------------------------------------------------------------------- real frames
BARS = [(255, 255, 255), (255, 255, 0), (0, 255, 255), (0, 255, 0), (255, 0, 255), (255, 0, 0), (0, 0, 255)]
"""The columns of `videotestsrc pattern=smpte`."""


@pytest.mark.parametrize(
    ("size", "more"), [("642x482", ""), ("640x480", " ! jpegenc quality=100 ! jpegdec")], ids=["padded", "full range"]
)
def test_nv12_stays_nv12(size: str, more: str) -> None:
    """With rows that GStreamer pads, and from JPEG, whose luma goes from 0 to 255."""
    width, height = map(int, size.split("x"))
    code = """
        import json, sys, time
        from edge_mrcnn.runtime.sources.gstreamer import open_pipeline
        width, height = map(int, sys.argv[1].split("x"))
        pipeline = f"videotestsrc is-live=true pattern=smpte ! video/x-raw,width={width},height={height},framerate=30/1"
        pipeline += sys.argv[2]
        frames = []
        with open_pipeline(f"gst://{pipeline}?name=Front&frame_id=optical&drop=never") as source:
            before = time.monotonic_ns()
            for frame in source:
                frames.append(frame)
                if len(frames) == 21:
                    break
            row = frames[5].image[height // 3]
            print(json.dumps({
                "format": frame.pixel_format, "shape": frame.pixels.shape, "hw": frame.image_hw, "fps": source.fps,
                "bars": [row[width * number // 14].tolist() for number in range(1, 14, 2)], "camera": frame.camera,
                "frame_id": frame.frame_id, "uri": frame.source, "indices": [frame.index for frame in frames],
                "seconds": (frames[-1].captured_ns - frames[0].captured_ns) / 1e9,
                "late": [frame.captured_ns < before for frame in frames].count(True),
                "stamp": [frame.stamp_source, abs(frame.stamp_ns - time.time_ns()) < 10e9],
                "health": [source.health.state, source.health.frames >= 21, source.health.image_hw],
            }))
    """
    found, errors = run_child(code, size, more)
    assert (found["format"], found["shape"], found["hw"]) == ("nv12", [height * 3 // 2, width], [height, width])
    np.testing.assert_allclose(found["bars"], BARS, atol=3)
    assert (found["camera"], found["frame_id"], found["fps"]) == ("front", "optical", 30)
    assert found["uri"].startswith("gst://videotestsrc is-live=true")
    assert found["indices"] == list(range(21))
    assert 0.3 < found["seconds"] < 10  # at the camera's pace, or the machine's where that is busy
    assert found["late"] == 0
    assert found["stamp"] == ["host", True]
    assert found["health"] == ["live", True, [height, width]]
    assert errors == ""


def test_the_rest_of_the_csi_pipeline_runs() -> None:
    """A test pattern in place of the camera, its memory, and the converter; half a turn, so the bars come backwards."""
    code = """
        import json
        from edge_mrcnn.runtime.sources.gstreamer import csi_pipeline, with_appsink
        from edge_mrcnn.runtime.sources.gstreamer_capture import GstreamerCapture
        pipeline = with_appsink(csi_pipeline(0, width=640, height=360, fps=15, flip=2), newest=True)
        pipeline = pipeline.replace("nvarguscamerasrc sensor-id=0", "videotestsrc is-live=true")
        pipeline = pipeline.replace("(memory:NVMM)", "")
        pipeline = pipeline.replace("nvvidconv flip-method=2", "videoconvert ! videoflip method=rotate-180")
        capture = GstreamerCapture(pipeline, "csi://0", 5)
        image = capture.read().image
        print(json.dumps([capture.fps, image.shape, image[240, [40, 600]].tolist()]))
        capture.close()
    """
    found, _ = run_child(code)
    assert found[:2] == [15, [360, 640, 3]]
    np.testing.assert_allclose(found[2], [BARS[-1], BARS[0]], atol=2)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A ball that bounces for a second, in VP8, for which GStreamer's good plugins have what it takes."""
    tool = shutil.which("gst-launch-1.0")
    made, path = tmp_path / "made.mkv", tmp_path / 'a "b" ! c.mkv'
    caps = "video/x-raw,format=I420,width=320,height=240,framerate=30/1"
    steps = f"videotestsrc num-buffers=30 pattern=ball ! {caps} ! vp8enc deadline=1 ! matroskamux"
    command = [tool or "", *f"{steps} ! filesink location={made}".split()]
    if tool is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("GStreamer cannot make a video here: apt-get install gstreamer1.0-tools gstreamer1.0-plugins-good")
    return made.rename(path)


def test_a_video_file_in_nv12(clip: Path) -> None:
    """By whatever decoder GStreamer finds here in place of a Jetson's, beside FFmpeg's; positions are the file's."""
    code = """
        import json, sys
        from urllib.parse import quote
        from edge_mrcnn.runtime.sources import gstreamer, open_source
        pipeline = gstreamer.hardware_pipeline(sys.argv[1]).replace("(memory:NVMM)", "")
        gstreamer.hardware_pipeline = lambda path: pipeline.replace("nvvidconv", "videoconvert")
        with open_source(sys.argv[1]) as source:
            wanted = list(source)
        with open_source(f"file://{quote(sys.argv[1])}?decode=hardware&name=clip&frame_id=optical") as source:
            frames = list(source)
        print(json.dumps({
            "first": [frames[0].pixel_format, frames[0].camera, frames[0].frame_id, frames[0].stamp_source],
            "count": [len(frames), source.length, source.health.state],
            "apart": [float(abs(a.image.astype(float) - b.image).mean()) for a, b in zip(frames, wanted)],
            "stamps": [(a.stamp_ns - b.stamp_ns) / 1e6 for a, b in zip(frames, wanted)],
        }))
    """
    found, _ = run_child(code, str(clip))
    assert found["first"] == ["nv12", "clip", "optical", "file"]
    assert found["count"] in ([30, 30, "ended"], [30, None, "ended"])  # not every OpenCV tells the length
    assert max(found["apart"]) < 3
    np.testing.assert_allclose(found["stamps"], 0, atol=1)


UNOPENED = {
    f"file://{ROOT}/samples/tabletop/clip.mp4?decode=hardware": "no element nvvidconv, which .*clip.mp4 takes",
    "csi://0": "no element nvarguscamerasrc, nvvidconv, which csi://0 takes; it comes with JetPack",
    "gst://nosuchsrc ! queue": "no element nosuchsrc.*apt-get install gstreamer1.0-plugins",
    "gst://v4l2src device=/dev/video99": r"cannot start gst://.*: v4l2src0 says: Cannot identify device",
    "gst://videotestsrc num-buffers=0": "gave no picture|has ended|cannot start",
    "gst://videotestsrc ! video/x-raw,width=641,height=481": "641 x 481, but NV12 needs even.*width=640,height=480",
    "gst://videotestsrc ! video/x-raw,width=640,height=483": "640 x 483, but .*width=640,height=482",
    "gst://rtspsrc location=rtsp://me:hunter2@127.0.0.1:9/x user-pw=hunter2 ! decodebin": (
        r"gst://rtspsrc location=rtsp://127.0.0.1:9/x user-pw=\*\*\* ! decodebin"
    ),
}


def test_what_cannot_be_opened() -> None:
    code = """
        import json, logging, sys
        from edge_mrcnn.errors import StreamError
        from edge_mrcnn.runtime.sources import open_source
        logging.basicConfig(level=logging.INFO)
        said = {}
        for uri in sys.argv[1:]:
            try:
                with open_source(uri) as source:
                    source._capture.read()
            except StreamError as error:
                said[uri] = str(error)
        print(json.dumps(said))
    """
    found, errors = run_child(code, *UNOPENED)
    for uri, message in UNOPENED.items():
        assert re.search(message, found[uri]), found[uri]
    assert "hunter2" not in "".join(found.values()) + errors


def test_a_pipeline_that_ends_is_started_again() -> None:
    code = """
        import json
        from edge_mrcnn.runtime.sources.gstreamer import open_pipeline
        with open_pipeline("gst://videotestsrc num-buffers=5 ! video/x-raw,width=64,height=48?drop=never") as source:
            indices = []
            for frame in source:
                indices.append(frame.index)
                if len(indices) == 8:
                    break
            print(json.dumps([indices, source.health.reconnects, source.health.error]))
    """
    found, _ = run_child(code)
    assert found[:2] == [list(range(8)), 1]
    assert found[2].startswith("the pipeline of gst://videotestsrc num-buffers=5")


def test_a_stall_counts_as_lost_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Raw video through a pipe that dries up: OpenCV waits inside GStreamer for ever, so its process has to go."""
    code = """
        import json, os, sys
        from edge_mrcnn.runtime.sources import gstreamer_capture, live, open_source
        from edge_mrcnn.runtime.sources.lane import Lane
        live.FIRST_RETRY_S = live.LAST_RETRY_S = 0.1
        def children():
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                return len(file.read().split())
        pipeline = f"filesrc location={sys.argv[1]} ! rawvideoparse format=nv12 width=64 height=48"
        with open_source(f"gst://{pipeline}?timeout_s=0.5&drop=never") as source:
            gstreamer_capture._OPEN_S = 5  # a pipeline that gets no data does not start
            lane = Lane(source)
            lane.start()
            while sys.stdin.readline():
                lane.take()
                now = source.health
                print(json.dumps([now.state, now.frames, now.error, now.reconnects, children()]), flush=True)
            lane.stop(10)
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    picture = np.full((72, 64), 128, np.uint8).tobytes()
    feeding = threading.Event()
    over = threading.Event()

    def feed() -> None:
        while not over.wait(0.02):
            if feeding.is_set():
                with contextlib.suppress(BlockingIOError):
                    os.write(writer, picture)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    feeding.set()
    with watch(code, str(fifo)) as ask:
        wait_for(lambda: ask()[1] > 5)
        feeding.clear()
        said = []
        wait_for(lambda: said.append(ask()) or "did not start" in said[-1][2])
        assert any("gave no picture for 0.5 s" in error for _, _, error, _, _ in said)
        assert {"live", "lost"} == {state for state, *_ in said}
        feeding.set()
        wait_for(lambda: said.append(ask()) or (said[-1][0] == "live" and said[-1][3] >= 1))
        assert max(children for *_, children in said) <= 1
    over.set()
    feeder.join()
    os.close(writer)


@contextlib.contextmanager
def watch(code: str, *arguments: str) -> Iterator[Callable[[], Any]]:
    """A child that says in one line of JSON how it is doing whenever it is asked."""
    process = start_child(code, *arguments, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None

    def ask() -> Any:
        process.stdin.write("\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        yield ask
        process.stdin.close()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("how", ["killed", "left"])
def test_no_process_outlives_its_program(how: str) -> None:
    code = """
        import json, os, sys
        from edge_mrcnn.runtime.sources import open_source
        source = open_source("gst://videotestsrc is-live=true ! video/x-raw,width=64,height=48")
        while sys.stdin.readline():
            print(source._capture._process.pid, flush=True)
    """
    process = start_child(code, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    child = int(process.stdout.readline())
    os.kill(child, 0)
    if how == "killed":
        process.kill()
    process.communicate()
    wait_for(lambda: is_gone(child))


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even where nobody asks how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
