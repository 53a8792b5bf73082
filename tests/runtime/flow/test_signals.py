"""SIGINT and SIGTERM end a run as the end of its files does; the second one ends the process at once."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_mrcnn.runtime.flow.signals import catch_signals
from edge_mrcnn.runtime.sources.files import VideoSource
from tests.runtime.flow.cameras import wait_for

CASES = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen]]:
    """Processes that are ended with the test."""
    begun: list[subprocess.Popen] = []
    yield begun
    for process in begun:
        process.kill()
        process.communicate()


def start(processes: list[subprocess.Popen], *arguments: object) -> subprocess.Popen:
    command = [sys.executable, *map(str, arguments)]
    processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return processes[-1]


@CASES
def test_the_verb_finishes_its_files(
    model: Path, tmp_path: Path, processes: list[subprocess.Popen], number: signal.Signals
) -> None:
    records, video = tmp_path / "out.jsonl", tmp_path / "out.mkv"
    process = start(processes, "-m", "edge_mrcnn", "run", model, "test://64x48", "--to", records, video, "--json", "-")
    wait_for(lambda: records.exists() and records.stat().st_size > 2000, 60)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"ending ({number.name}; once more to leave at once)" in errors
    summary = json.loads(output)
    assert summary["interrupted"] is True
    written = [json.loads(line)["index"] for line in records.read_text().splitlines()]
    assert written == sorted(set(written))
    assert len(written) == summary["frames"] > 0
    with VideoSource(video) as found:
        assert len(list(found)) == summary["frames"]


BLOCKED = """
import sys, threading
from edge_mrcnn.runtime.pipeline import RunOptions, run_pipeline
class Blocked:
    uri, kind, wants_picture, wants_stop, main_thread = "blocked://", "record", False, False, False
    def write(self, *_):
        print("blocked", flush=True)
        threading.Event().wait()
run_pipeline(sys.argv[1], ["test://8x8"], [Blocked()], RunOptions(status="off"))
"""


@CASES
def test_the_second_one_ends_the_process_at_once(
    model: Path, processes: list[subprocess.Popen], number: signal.Signals
) -> None:
    process = start(processes, "-c", BLOCKED, model)
    assert process.stdout is not None
    assert process.stdout.readline() == "blocked\n"
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):  # it waits for the sink
        process.wait(0.5)
    process.send_signal(number)
    assert process.wait(20) == -number


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with catch_signals() as caught:
        assert signal.getsignal(signal.SIGINT) is not before[0]
        signal.raise_signal(signal.SIGTERM)
        assert caught.name == "SIGTERM"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_a_process_ignores_it_goes_on_to_ignore() -> None:
    """As `nohup` and shells that start something in the background want it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_signals() as caught:
            signal.raise_signal(signal.SIGINT)
            assert caught.name == ""
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_install_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run() -> None:
        with catch_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
