"""What the live page's server serves, and that it gives everything back."""

import gc
import http.client
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_mrcnn import Frame
from edge_mrcnn.errors import StreamError
from edge_mrcnn.runtime.metrics import RunStatus, SinkStatus
from edge_mrcnn.runtime.sinks import open_sink, web_status, web_streams
from edge_mrcnn.runtime.sinks.web import WebSink
from tests.runtime.sinks.web.client import (
    NAMES,
    Stream,
    ask,
    camera,
    descriptors,
    found,
    frame,
    get,
    open_page,
    read_status,
    run_of,
    wait_for_camera,
    wait_until,
)


def decode(jpeg: bytes) -> np.ndarray[Any, Any]:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def test_the_page_and_its_files(page: WebSink) -> None:
    code, headers, body = get(page.url, "/")
    assert code == 200
    assert headers["content-type"].startswith("text/html")
    assert b"page/page.js" in body
    for name, kind in (("page.js", "javascript"), ("page.css", "text/css"), ("icon.svg", "image/svg+xml")):
        code, headers, body = get(page.url, f"/page/{name}")
        assert (code, bool(body)) == (200, True)
        assert kind in headers["content-type"]
    assert get(page.url, "/page/..%2fweb.py")[0] == 404
    assert get(page.url, "/page/nothing")[0] == 404


def test_the_files_are_packaged() -> None:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11 or newer")
    root = Path(__file__).parents[4]
    package_data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "edge_mrcnn"
    ]
    packaged = {path for pattern in package_data for path in (root / "edge_mrcnn").glob(pattern)}
    assert set((root / "edge_mrcnn" / "runtime" / "sinks" / "page").iterdir()) <= packaged


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/status.json", "/metrics", "/cameras/front.jpg", "/nothing"])
def test_every_answer_forbids_what_the_page_does_not_need(page: WebSink, path: str) -> None:
    _, headers, _ = get(page.url, path)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["server"] == "edge-mrcnn"


def test_the_page_needs_nothing_from_elsewhere(page: WebSink) -> None:
    for path in ("/", "/page/page.js", "/page/page.css", "/page/login.html", "/page/icon.svg"):
        text = get(page.url, path)[2].decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "style=" not in text  # the policy would ignore it
        assert "onclick=" not in text


def test_a_still_is_the_newest_picture(page: WebSink) -> None:
    page.write(frame(200), found(labels=()))
    code, headers, body = get(page.url, "/cameras/front.jpg")
    assert (code, headers["content-type"]) == (200, "image/jpeg")
    picture = decode(body)
    assert picture.shape == (48, 64, 3)
    assert abs(float(picture.mean()) - 200) < 3


def test_the_picture_given_is_shown_in_its_colours(page: WebSink) -> None:
    red = np.zeros((48, 64, 3), np.uint8)
    red[:] = (255, 0, 0)
    page.write(frame(), found(), red)
    blue, green, red_part = decode(get(page.url, "/cameras/front.jpg")[2]).reshape(-1, 3).mean(axis=0)
    assert red_part > 240
    assert max(blue, green) < 15


def test_wide_pictures_are_made_smaller() -> None:
    with open_page("?width=32&quality=50") as sink:
        sink.write(frame(), found())
        wait_for_camera(sink)
        assert decode(get(sink.url, "/cameras/front.jpg")[2]).shape == (24, 32, 3)


def test_an_unknown_camera_is_named(page: WebSink) -> None:
    for path in ("/cameras/left.jpg", "/cameras/left.mjpeg"):
        code, _, body = get(page.url, path)
        assert code == 404
        assert b"'left'; there are: front" in body


def test_a_camera_without_pictures_answers_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_streams, "_STILL_TIMEOUT_S", 0.1)
    with open_page(status=lambda: run_of(camera("front", "connecting"))) as sink:
        code, _, body = get(sink.url, "/cameras/front.jpg")
    assert code == 503
    assert b"no picture yet" in body


def test_a_stream_has_the_newest_pictures(page: WebSink) -> None:
    with Stream(page.url) as stream:
        stream.read()
        for level in (20, 120, 220):
            page.write(frame(level), found(labels=()))
            assert abs(float(decode(stream.read()).mean()) - level) < 3


def test_the_last_picture_is_repeated(page: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_streams, "_REPEAT_S", 0.05)
    with Stream(page.url) as stream:
        assert stream.read() == stream.read()


def test_nothing_is_drawn_for_nobody_and_once_for_all(page: WebSink) -> None:
    drawn = []

    def draw(level: int) -> np.ndarray[Any, Any]:
        drawn.append(level)
        return np.full((48, 64, 3), level, np.uint8)

    assert not page.wants_picture
    page.write(frame(), found(), lambda: draw(10))
    with Stream(page.url) as first, Stream(page.url) as second:
        first.read(), second.read()
        assert page.wants_picture
        assert drawn == [10]
        page.write(frame(), found(), lambda: draw(20))
        assert first.read() == second.read()
        assert drawn == [10, 20]
    wait_until(lambda: not page.wants_picture, "viewers to have left")
    for level in range(30, 40):
        page.write(frame(), found(), lambda level=level: draw(level))
    assert drawn == [10, 20]
    get(page.url, "/cameras/front.jpg")
    assert drawn == [10, 20, 39]


def test_a_picture_that_cannot_be_drawn_is_left_out(page: WebSink, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> np.ndarray[Any, Any]:
        raise RuntimeError("no picture today")

    with Stream(page.url) as stream:
        stream.read()
        page.write(frame(), found(), fail)
        wait_until(lambda: "cannot be made" in caplog.text, "the warning")
        page.write(frame(), found(), fail)
        page.write(frame(150), found(labels=()))
        assert abs(float(decode(stream.read()).mean()) - 150) < 3
    assert sum("cannot be made" in record.message for record in caplog.records) == 1


# Status


def test_without_a_run_the_sink_tells_what_it_sees(page: WebSink) -> None:
    for index in range(5):
        page.write(frame(index=index), found(labels=(1, 1, 2)))
        page.write(frame(camera="left", size=(24, 32)), found((24, 32), labels=(7,)))
    status = wait_for_camera(page, 2)
    status = wait_until(lambda: (now := read_status(page))["cameras"][0]["frames_in"] == 6 and now, "six frames")
    front, left = status["cameras"]
    assert (front["name"], front["state"], front["counts"]) == ("front", "live", {"mug": 2, "bowl": 1})
    assert (left["name"], left["image_hw"], left["counts"]) == ("left", [24, 32], {"class 7": 1})
    assert front["latency_ms"]["count"] > 0
    assert status["healthy"] is True
    assert set(status["colors"]) == set(NAMES)


def test_without_a_run_silence_is_a_lost_camera(page: WebSink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_status, "_WINDOW_S", 0.2)
    wait_until(lambda: read_status(page)["cameras"][0]["state"] == "lost", "the camera to be lost")
    code, _, body = get(page.url, "/healthz")
    assert code == 503
    assert "camera front is lost" in json.loads(body)["problems"][0]
    page.write(frame(), found())
    wait_until(lambda: get(page.url, "/healthz")[0] == 200, "the camera to be back")


class ChangingRun:
    """A status that the test changes."""

    def __init__(self, now: RunStatus) -> None:
        self.now = now

    def __call__(self) -> RunStatus:
        return self.now


def test_a_lost_camera_and_a_failed_sink_make_the_health_bad() -> None:
    run = ChangingRun(run_of(camera("front"), camera("left", "ended")))
    with open_page(status=run) as sink:
        assert get(sink.url, "/healthz")[0] == 200
        full = SinkStatus("out.mkv", "record", 100, 0, "No space left on device")
        run.now = run_of(camera("front", "lost", "no packet for 5 s"), sinks=(full,))
        wait_until(lambda: get(sink.url, "/healthz")[0] == 503, "bad health")
        answer = json.loads(get(sink.url, "/healthz")[2])
    assert answer["healthy"] is False
    assert answer["problems"][0].startswith("camera front is lost for 0 s: no packet for 5 s")
    assert answer["problems"][1] == "sink out.mkv failed: No space left on device"


def test_the_status_tells_since_when_and_the_past() -> None:
    run = ChangingRun(run_of(camera("front")))
    with open_page(status=run) as sink:
        wait_until(lambda: read_status(sink)["cameras"][0]["since_s"] > 0.5, "half a second")
        before = read_status(sink)["cameras"][0]
        begin, run.now = time.monotonic(), run_of(camera("front", "lost"))
        wait_until(lambda: read_status(sink)["cameras"][0]["state"] == "lost", "the loss to show")
        after = read_status(sink)["cameras"][0]
        passed = time.monotonic() - begin
    assert set(before["history"]["fps"]) == {12.5}
    assert set(before["history"]["latency_ms"]) == {40.0}
    assert len(before["history"]["fps"]) > 3
    assert after["since_s"] < passed + 0.1


def test_a_status_that_raises_leaves_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def status() -> RunStatus:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("no status today")
        return run_of(camera("front"))

    with open_page(status=status) as sink:
        wait_until(lambda: len(calls) > 4, "a few looks")
        assert read_status(sink)["cameras"][0]["name"] == "front"
    assert sum("does not tell its status" in record.message for record in caplog.records) == 1


def test_prometheus_reads_the_metrics() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    status = run_of(
        camera("front", counts={"mug": 2}),
        camera("left", "lost"),
        sinks=(
            SinkStatus("out.mkv", "record", 100, 0, ""),
            SinkStatus("mjpeg://127.0.0.1:1", "view", 90, 10, "broken"),
        ),
    )
    with open_page(status=lambda: status) as sink:
        code, headers, body = get(sink.url, "/metrics")
    assert code == 200
    assert headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["edge_mrcnn_frames_total", "front"] == 100
    assert samples["edge_mrcnn_frames_received_total", "front"] == 110
    assert samples["edge_mrcnn_frames_dropped_total", "front"] == 7
    assert samples["edge_mrcnn_frames_damaged_total", "front"] == 2
    assert samples["edge_mrcnn_reconnects_total", "front"] == 3
    assert samples["edge_mrcnn_camera_state", "left", "lost"] == 1
    assert samples["edge_mrcnn_camera_state", "left", "live"] == 0
    assert samples["edge_mrcnn_latency_seconds", "0.95", "front"] == 0.06
    assert samples["edge_mrcnn_stage_seconds", "0.5", "infer"] == 0.03
    assert ("edge_mrcnn_stage_seconds", "0.5", "track") not in samples  # nothing was measured
    assert samples["edge_mrcnn_detections", "front", "mug"] == 2
    assert samples["edge_mrcnn_sink_frames_dropped_total", "mjpeg://127.0.0.1:1", "view"] == 10
    assert samples["edge_mrcnn_sink_failed", "mjpeg://127.0.0.1:1", "view"] == 1
    assert samples["edge_mrcnn_sink_failed", "out.mkv", "record"] == 0
    assert samples["edge_mrcnn_healthy",] == 0
    assert samples["edge_mrcnn_info", "onnxruntime-cpu", "tabletop"] == 1
    assert samples["process_resident_memory_bytes",] > 1e6


def test_close_gives_everything_back() -> None:
    with open_page() as warm:  # what is imported and opened once for all
        warm.write(frame(), found())
        wait_for_camera(warm)
        get(warm.url, "/cameras/front.jpg")
    threads, opened = set(threading.enumerate()), descriptors()
    sink = open_page()
    sink.write(frame(), found())
    wait_for_camera(sink)
    stream, stuck = Stream(sink.url), ask(sink)
    stream.read()
    begin = time.monotonic()
    sink.close()
    assert time.monotonic() - begin < 3
    sink.close()
    assert set(threading.enumerate()) == threads
    with pytest.raises(http.client.IncompleteRead):
        stream.response.read()
    stream.close()
    stuck.close()
    assert descriptors() == opened
    with pytest.raises(OSError, match="refused"):
        get(sink.url, "/")
    with pytest.raises(StreamError, match="is closed; open a new sink"):
        sink.write(frame(), found())
    with WebSink(sink.uri) as again:  # the port is free at once
        assert again.uri == sink.uri


def test_close_cuts_off_who_does_not_read() -> None:
    opened = descriptors()
    sink = open_page("?width=1920&quality=100")
    noise = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    sink.write(frame(), found())
    wait_for_camera(sink)
    stuck = ask(sink)
    try:
        for index in range(3):  # more than the system takes for a client that does not read
            sink.write(Frame(noise, source="test://", index=index, camera="front"), found((1080, 1920)))
            time.sleep(0.3)
        gc.disable()  # a socket that waits for Python to collect it is not closed
        sink.close()
        stuck.close()
        assert descriptors() == opened
    finally:
        gc.enable()


def test_close_waits_for_a_picture_being_drawn(caplog: pytest.LogCaptureFixture) -> None:
    begun, drawn = threading.Event(), []

    def draw() -> np.ndarray[Any, Any]:
        begun.set()
        time.sleep(0.3)
        drawn.append(1)
        return np.zeros((48, 64, 3), np.uint8)

    sink = open_page()
    sink.write(frame(), found(), draw)
    wait_for_camera(sink)
    with Stream(sink.url):
        assert begun.wait(10)
        sink.close()
    assert drawn == [1]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_it_is_a_view_that_uris_open() -> None:
    with open_sink("mjpeg://127.0.0.1:0", class_names=NAMES) as sink:
        assert isinstance(sink, WebSink)
        assert (sink.kind, sink.main_thread, sink.wants_stop, sink.wants_picture) == ("view", False, False, False)


def test_the_address_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), open_page() as sink:
        assert sink.url in caplog.text
        assert sink.uri == sink.url.replace("http", "mjpeg").rstrip("/")
