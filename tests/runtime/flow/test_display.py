"""What is seen of a run: one line that fits, JSON that parses, a bar, or nothing."""

import dataclasses
import json
import logging
import sys
import threading
from pathlib import Path

import pytest

from edge_mrcnn.runtime.flow.display import status_line
from edge_mrcnn.runtime.metrics import CameraStatus, Percentiles, RunStatus, SinkStatus
from edge_mrcnn.runtime.pipeline import RunOptions, run_pipeline
from tests.runtime.flow.cameras import Camera
from tests.runtime.flow.sinks import SinkOfTest

LATENCY = Percentiles(50, 40.0, 41.4, 62.8)
CAMERA = CameraStatus("front", "rtsp://x", "live", 9, 8, 1, 0, 0, 9.96, LATENCY, {}, (8, 8), "")
STATUS = RunStatus("net", "cpu", 3671.4, 79.64, (CAMERA,), (), {"total": LATENCY}, True)


def cameras(*states: str) -> tuple[CameraStatus, ...]:
    return tuple(
        dataclasses.replace(CAMERA, name=f"workshop_{number}", state=state) for number, state in enumerate(states)
    )


def test_one_camera() -> None:
    assert status_line(STATUS) == "1:01:11  79.6 fps  41/63 ms  1 dropped"


def test_cameras_with_their_rates() -> None:
    status = dataclasses.replace(STATUS, cameras=cameras("live", "lost"))
    assert status_line(status) == "1:01:11  79.6 fps  41/63 ms  2 dropped  |  workshop_0 10.0  workshop_1 LOST"


@pytest.mark.parametrize("lost", [0, 1, 2, 8])
def test_many_cameras_fit(lost: int) -> None:
    status = dataclasses.replace(STATUS, cameras=cameras(*["lost"] * lost, *["live"] * (8 - lost)))
    line = status_line(status)
    assert len(line) <= 100
    assert f"{8 - lost}/8 live" in line
    assert line.count("LOST") == min(lost, 3) or lost == 8
    for columns in (20, 50, 80):
        assert len(status_line(status, columns)) <= columns


def test_a_failed_sink_is_named() -> None:
    sink = SinkStatus("out.mkv", "record", 5, 0, "the disk is full")
    assert "TROUBLE out.mkv" in status_line(dataclasses.replace(STATUS, sinks=(sink,)))


def run_camera(model: Path, status: str, seconds: float = 1.3) -> None:
    """A run of a little more than a second."""
    camera = Camera("front", fps=50)
    with camera.source:
        sink = SinkOfTest(stops_at=round(seconds * 50))
        run_pipeline(model, [camera.source], [sink], RunOptions(status=status, threads=1))


def test_cameras_without_a_terminal_tell_json(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_camera(model, "auto")
    found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert found
    assert found[0]["cameras"][0]["state"] == "live"
    assert 0 < found[0]["cameras"][0]["fps"] < 60
    assert found[0]["cameras"][0]["frames_in"] >= found[0]["cameras"][0]["frames_out"] > 0
    assert found[0]["stages_ms"]["total"]["p95"] > 0


def test_a_line_on_a_terminal_and_logs_above_it(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stderr)])
    threading.Timer(0.3, lambda: logging.getLogger("edge_mrcnn").warning("during the run")).start()
    run_camera(model, "auto")
    logging.getLogger("edge_mrcnn").warning("after the run")
    shown = capsys.readouterr().err
    assert "\r\x1b[Kduring the run\n" in shown
    assert "\r\x1b[K0:00:01  " in shown
    assert shown.endswith(("dropped\nafter the run\n", "ms\nafter the run\n"))
    assert shown.count("\n") == 3
    assert "\x1b[Kafter" not in shown


def test_off_is_silent_and_lines_can_be_had_anywhere(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_camera(model, "off", 0.2)
    assert capsys.readouterr().err == ""
    run_camera(model, "line")
    assert capsys.readouterr().err.startswith("0:00:01  ")


def test_files_are_quiet_unless_asked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_pipeline(model, ["test://8x8?frames=3"])
    assert capsys.readouterr().err == ""
    run_pipeline(model, ["test://8x8?frames=70"], [SinkOfTest(pause_s=0.02)], RunOptions(status="json"))
    assert json.loads(capsys.readouterr().err.splitlines()[0])["cameras"][0]["name"] == "test"
