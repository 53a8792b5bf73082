"""The live page of a whole run, from the command line to the browser's requests."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.runtime.sinks.web.client import get, wait_until


def test_a_run_shows_its_cameras_and_ends_cleanly(model: Path) -> None:
    sources = [f"test://96x64?fps=20&name={name}" for name in ("front", "left")]
    command = [sys.executable, "-m", "edge_mrcnn", "run", str(model), *sources, "--to", "mjpeg://127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            url = next(found[0] for line in lines if (found := re.search(r"http://127.0.0.1:\d+/", line)))

            def both_live() -> dict | None:
                status = json.loads(get(url, "/status.json")[2])
                return status if all(each["frames_out"] > 3 for each in status["cameras"]) else None

            status = wait_until(both_live, "frames of both cameras")
            assert [each["name"] for each in status["cameras"]] == ["front", "left"]
            assert [each["state"] for each in status["cameras"]] == ["live", "live"]
            assert status["sinks"][0]["uri"] == url.replace("http", "mjpeg").rstrip("/")
            assert status["stages_ms"]["infer"]["count"] > 0
            assert get(url, "/healthz")[0] == 200
            assert b'edge_mrcnn_frames_total{camera="left"}' in get(url, "/metrics")[2]
            for name in ("front", "left"):
                assert get(url, f"/cameras/{name}.jpg")[2][:2] == b"\xff\xd8"
        finally:
            process.send_signal(signal.SIGTERM)
            errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
