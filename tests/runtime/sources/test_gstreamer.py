"""Capture through GStreamer: the pipelines for a Jetson as text, and real ones in Debian's OpenCV."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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


@pytest.mark.parametrize("size", ["640x480", "642x482"])
def test_nv12_stays_nv12(size: str) -> None:
    """Sides that GStreamer pads its rows for, too."""
    width, height = map(int, size.split("x"))
    code = """
        import json, sys, time
        from edge_mrcnn.runtime.sources.gstreamer import open_pipeline
        width, height = map(int, sys.argv[1].split("x"))
        pipeline = f"videotestsrc is-live=true pattern=smpte ! video/x-raw,width={width},height={height},framerate=30/1"
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
    found, errors = run_child(code, size)
    assert (found["format"], found["shape"], found["hw"]) == ("nv12", [height * 3 // 2, width], [height, width])
    np.testing.assert_allclose(found["bars"], BARS, atol=2)
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
        capture.open()
        image = capture.read().image
        print(json.dumps([capture.fps, image.shape, image[240, [40, 600]].tolist()]))
        capture.close()
    """
    found, _ = run_child(code)
    assert found[:2] == [15, [360, 640, 3]]
    np.testing.assert_allclose(found[2], [BARS[-1], BARS[0]], atol=2)


@pytest.fixture
def h264(tmp_path: Path) -> Path:
    """A ball that bounces for a second."""
    tool = shutil.which("gst-launch-1.0")
    made, path = tmp_path / "made.mp4", tmp_path / 'a "b" ! c.mp4'
    caps = "video/x-raw,format=I420,width=320,height=240,framerate=30/1"
    steps = (
        f"videotestsrc num-buffers=30 pattern=ball ! {caps} ! x264enc tune=zerolatency ! video/x-h264,profile=baseline"
    )
    command = [tool or "", *steps.split(), *f"! mp4mux ! filesink location={made}".split()]
    if tool is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("GStreamer cannot encode H.264 here: apt-get install gstreamer1.0-tools gstreamer1.0-plugins-ugly")
    return made.rename(path)


def test_a_video_file_in_nv12(h264: Path) -> None:
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
    found, _ = run_child(code, str(h264))
    assert found["first"] == ["nv12", "clip", "optical", "file"]
    assert found["count"] in ([30, 30, "ended"], [30, None, "ended"])  # not every OpenCV tells the length
    assert max(found["apart"]) < 3
    np.testing.assert_allclose(found["stamps"], 0, atol=1)


UNOPENED = {
    f"file://{ROOT}/samples/tabletop/clip.mp4?decode=hardware": "no element nvvidconv, which .*clip.mp4 takes",
    "csi://0": "no element nvarguscamerasrc, nvvidconv, which csi://0 takes; it comes with JetPack",
    "gst://nosuchsrc ! queue": "no element nosuchsrc.*apt-get install gstreamer1.0-plugins",
    "gst://v4l2src device=/dev/video99": "there is no such camera",
    "gst://videotestsrc num-buffers=0": "gave no picture|has ended|cannot start",
    "gst://videotestsrc ! video/x-raw,width=641,height=481": "641 x 481, but NV12 needs even.*width=640,height=480",
    "gst://videotestsrc ! video/x-raw,width=640,height=483": "640 x 483, but .*width=640,height=482",
    "gst://rtspsrc location=rtsp://me:hunter2@127.0.0.1:9/x user-pw=hunter2 ! decodebin": (
        "cannot start gst://rtspsrc location=rtsp://127.0.0.1:9/x user"
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


class Feeder:
    """Feeds raw pictures into a pipeline that reads the process's stdin."""

    def __init__(self, pipe: IO[str]) -> None:
        self.pipe = pipe
        self.picture = np.full((72, 64), 128, np.uint8).tobytes()

    def give(self, count: int) -> None:
        for _ in range(count):
            self.pipe.buffer.write(self.picture)  # type: ignore[attr-defined]
            self.pipe.buffer.flush()  # type: ignore[attr-defined]


def lines_of(process: subprocess.Popen[str]) -> Iterator[Any]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def test_a_stall_counts_as_lost_and_leaves_few_threads_behind() -> None:
    """Raw video through a pipe that dries up: OpenCV waits inside GStreamer, the source does not."""
    code = """
        import json, logging, sys, threading
        from edge_mrcnn.runtime.sources import gstreamer_capture, live
        from edge_mrcnn.runtime.sources.gstreamer import open_pipeline
        live.FIRST_RETRY_S = live.LAST_RETRY_S = 0.2
        gstreamer_capture._CLOSE_S = 0.2
        logging.basicConfig(level=logging.INFO)
        pipeline = "fdsrc fd=0 ! rawvideoparse format=nv12 width=64 height=48"
        stop = threading.Event()
        with open_pipeline(f"gst://{pipeline}?timeout_s=0.5&drop=never") as source:
            gstreamer_capture.OPEN_S = 0.3  # a pipeline that gets no data does not start
            def say():
                while not stop.wait(0.2):
                    threads = sum(thread.name == "edge-mrcnn-gstreamer" for thread in threading.enumerate())
                    health = source.health
                    said = [health.state, health.frames, health.error, threads]
                    print(json.dumps(said), flush=True)
            threading.Thread(target=say, daemon=True).start()
            for frame in source:
                if frame.index >= 40:
                    break
            stop.set()
    """
    process = start_child(code, stdin=subprocess.PIPE)
    assert process.stdin is not None
    feeder, said, deadline = Feeder(process.stdin), lines_of(process), time.monotonic() + 40
    feeder.give(8)
    seen: list[Any] = []
    for line in said:
        assert time.monotonic() < deadline, seen
        seen.append(line)
        if "still hangs" in line[2]:
            break
    assert "gave no picture for 0.5 s" in " ".join(line[2] for line in seen)
    assert max(line[3] for line in seen) == 3
    stuck = seen[-1][1]
    with contextlib.suppress(BrokenPipeError):
        while process.poll() is None:
            assert time.monotonic() < deadline
            feeder.give(1)
            time.sleep(0.02)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    assert process.wait(20) == 0
    assert stuck <= 8
