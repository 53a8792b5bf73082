"""The command line's frame: verbs, help, exit codes; what each verb does is tested with the verb."""

import subprocess
import sys

import pytest

from edge_mrcnn import cli
from edge_mrcnn.errors import EngineError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_mrcnn", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_overview_lists_every_verb() -> None:
    done = run("--help")
    assert done.returncode == 0
    for verb, summary in cli.VERBS.items():
        assert f"  {verb}" in done.stdout
        assert summary in done.stdout


def test_without_verb_is_usage() -> None:
    assert run().returncode == 2


def test_version() -> None:
    import edge_mrcnn

    assert run("--version").stdout.strip() == f"edge-mrcnn {edge_mrcnn.__version__}"


def test_unknown_verb_suggests_one() -> None:
    done = run("buidl")
    assert done.returncode == 2
    assert "did you mean 'build'?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (EngineError("no engine; build it"), 1, "no engine; build it"),
        (ValueError("size '3' is not of the form HxW"), 2, "size '3'"),
        (OSError(28, "No space left on device", "out.mp4"), 1, "No space left on device: out.mp4; check"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, r"pip install 'edge-mrcnn\[train\]'"),
        (ModuleNotFoundError("No module named 'tensorrt_rtx.x'", name="tensorrt_rtx.x"), 1, r"edge-mrcnn\[rtx\]"),
        (ImportError("libGL.so.1: cannot open shared object file"), 1, "libGL.so.1.*apt-get install libgl1"),
        (KeyError("boxes"), 1, "unexpected KeyError: 'boxes'; run again with --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_messages(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(verb: str, arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["doctor"]) == code
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    import re

    assert re.search(message, printed)


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(verb: str, arguments: list[str]) -> None:
        raise EngineError("boom")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(EngineError, match="boom"):
        cli.main(["doctor", "--debug"])


def test_every_extra_exists() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("reading pyproject.toml needs Python 3.11 or newer")
    from pathlib import Path

    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for package, extra in cli.EXTRA_OF.items():
        names = [line.partition(">")[0].partition("=")[0].partition("<")[0] for line in extras[extra]]
        distribution = {"cv2": "opencv-python", "zenoh": "eclipse-zenoh"}.get(package, package.replace("_", "-"))
        assert distribution in names, (package, extra)
