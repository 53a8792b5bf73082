"""Every way a worker can end: the parent gives a clear error, and neither a process nor a file is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_mrcnn.compiler import build_worker, worker_process
from edge_mrcnn.compiler.build_worker import Job, check_layers
from edge_mrcnn.compiler.builder import BuildOptions, build_engine
from edge_mrcnn.errors import EngineError, PluginError
from edge_mrcnn.gpu import tensorrt_api
from edge_mrcnn.sidecar import LayerInfo

ROOT = Path(__file__).parents[2]

Options = Callable[..., BuildOptions]


def worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(worker_process, "COMMAND", (sys.executable, "-c", code))


DEATHS = [
    # what the worker does, what is said
    (
        "import os, sys; print('free(): invalid pointer', file=sys.stderr, flush=True); os.abort()",
        "SIGABRT.*invalid pointer",
    ),
    ("import os; os.kill(os.getpid(), 11)", r"crashed while building \(SIGSEGV\)"),
    ("import os; os.kill(os.getpid(), 9)", "killed, most likely for lack of memory; close other programs.*--batch"),
    ("raise RuntimeError('of its own')", r"status 1 and no result.*RuntimeError: of its own"),
    ("pass", "ended with status 0 and no result"),
    (
        'print(\'{"event": "log", "severity": "error", "text": "Could not find any implementation for node"}\');'
        'print(\'{"event": "error", "kind": "EngineError", "text": "TensorRT could not build the engine"}\');'
        "raise SystemExit(1)",
        "could not build the engine; TensorRT ran out of memory: .*lower --batch",
    ),
]


@pytest.mark.parametrize(("code", "message"), DEATHS)
def test_a_worker_that_dies_becomes_an_engine_error(
    rtx: None,
    monkeypatch: pytest.MonkeyPatch,
    tiny_path: Path,
    options: Options,
    tmp_path: Path,
    code: str,
    message: str,
) -> None:
    worker(monkeypatch, code)
    with pytest.raises(EngineError, match=f"(?s){message}"):
        build_engine(tiny_path, options(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_abort_of_tensorrt_itself(
    rtx: None, monkeypatch: pytest.MonkeyPatch, tiny_path: Path, options: Options, tmp_path: Path
) -> None:
    """Without the library's short name on the path, the RTX parser takes the process down."""
    if tensorrt_api.installed_version("rtx") != "1.7.1.116":
        pytest.skip("known of TensorRT-RTX 1.7.1.116 only")
    monkeypatch.setattr(tensorrt_api, "link_libraries", lambda flavour, folder: None)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with pytest.raises(EngineError, match=r"crashed while building \(SIGABRT\)"):
        build_engine(tiny_path, options(), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def sleeper(note: Path) -> str:
    return f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(120)"


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The workers that were started."""
    processes: list[subprocess.Popen[bytes]] = []
    start = worker_process._start

    def record(*arguments: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*arguments))
        return processes[-1]

    monkeypatch.setattr(worker_process, "_start", record)
    return processes


@pytest.mark.parametrize("stubborn", [False, True], ids=["ends when asked", "has to be killed"])
def test_a_worker_that_takes_too_long_is_ended(
    rtx: None,
    monkeypatch: pytest.MonkeyPatch,
    tiny_path: Path,
    options: Options,
    tmp_path: Path,
    started: list[subprocess.Popen[bytes]],
    stubborn: bool,
) -> None:
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if stubborn else ""
    worker(monkeypatch, f"{ignore}import time; time.sleep(120)")
    monkeypatch.setattr(worker_process, "GRACE_S", 0.2 if stubborn else 60.0)
    with pytest.raises(EngineError, match=r"longer than 2 s and was ended.*--timeout-s"):
        build_engine(tiny_path, options(timeout_s=2.0), tmp_path / "out")
    (process,) = started
    assert process.poll() in (-signal.SIGTERM, -signal.SIGKILL)
    assert not list((tmp_path / "out").iterdir())


def start_build(tiny_path: Path, tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A build whose worker sleeps, in a process of its own; returns it and the worker's process id."""
    note = tmp_path / "pid"
    code = f"""
import sys
from pathlib import Path
from edge_mrcnn.compiler import worker_process
from edge_mrcnn.compiler.builder import BuildOptions, build_engine
worker_process.COMMAND = (sys.executable, "-c", {sleeper(note)!r})
try:
    build_engine(Path({str(tiny_path)!r}), BuildOptions(target="rtx", cache_dir=Path({str(tmp_path / "cache")!r})),
                 Path({str(tmp_path / "out")!r}))
except KeyboardInterrupt:
    raise SystemExit(130)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    wait_for(lambda: note.exists() and note.read_text().isdigit(), "the worker", 120.0)
    return process, int(note.read_text())


def test_ctrl_c_ends_the_worker_and_leaves_nothing(rtx: None, tiny_path: Path, tmp_path: Path) -> None:
    process, pid = start_build(tiny_path, tmp_path)
    assert list((tmp_path / "out").iterdir()), "the unfinished engine has a name of its own"
    assert list((tmp_path / "tmp").glob("edge_mrcnn_*")), "and the model bound for TensorRT a folder"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert is_gone(pid)
    assert not list((tmp_path / "out").iterdir())
    assert not list((tmp_path / "tmp").glob("edge_mrcnn_*"))


def test_a_worker_ends_with_its_parent_and_takes_the_unfinished_engine_along(tmp_path: Path) -> None:
    engine = tmp_path / "engine.partial"
    engine.touch()
    code = (
        f"import time; from pathlib import Path; from edge_mrcnn.compiler import build_worker;"
        f"build_worker._end_with_parent(Path({str(engine)!r})); time.sleep(120)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=ROOT)
    time.sleep(0.1)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)
    assert not engine.exists()


JOB = Job("", "", "rtx", "int8", (1, 1, 1), 0.5, (32, 32), {"RpnProposals": 1}, {"a": "int8", "b": "float16"})
PLUGIN = LayerInfo("p", "PLUGIN_V3", "float16")
A, B = LayerInfo("a", "CONVOLUTION", "int8"), LayerInfo("b", "CONVOLUTION", "float16")


def test_layers_as_asked_for_pass() -> None:
    check_layers([PLUGIN, A, B, LayerInfo("n", "ELEMENTWISE", "float32")], JOB)


@pytest.mark.parametrize("kind", build_worker.WEIGHTED_LAYERS)
def test_a_weighted_layer_of_another_type_is_named(kind: str) -> None:
    with pytest.raises(EngineError, match=r"int8 was asked for, but .* 1 weighted layers .*'float16': 1.*'a' \(int8\)"):
        check_layers([PLUGIN, LayerInfo("a", kind, "float16"), B], JOB)


def test_layers_under_names_of_tensorrts_own_are_counted() -> None:
    other = LayerInfo("a_other_name", "CONVOLUTION", "int8")
    check_layers([PLUGIN, other, B], JOB)
    with pytest.raises(EngineError, match=r"parser made \{'int8': 1\} too few"):
        check_layers([PLUGIN, LayerInfo("a_other_name", "CONVOLUTION", "float16"), B], JOB)
    with pytest.raises(EngineError, match=r"parser made \{'float16': 1\} too few"):
        check_layers([PLUGIN, A], JOB)


@pytest.mark.parametrize("layers", [[A, B], [PLUGIN, PLUGIN, A, B]])
def test_custom_ops_and_plugin_layers_must_match(layers: list[LayerInfo]) -> None:
    with pytest.raises(PluginError, match="the model has 1 RpnProposals, TensorRT made"):
        check_layers(layers, JOB)
