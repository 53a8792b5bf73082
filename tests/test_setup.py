"""What an install puts into the package: kernel sources, the C++ library where it can be built, and what was left out.

CMake and nvcc are stand-ins here; tests/plugins/test_library.py builds the real library.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

setuptools = pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 or newer is not installed")

CMAKE = """#!/bin/sh
case "$*" in
    --version) echo "cmake version 3.28.1" ;;
    *Probe.cmake)
        echo "CMAKE_CUDA_COMPILER={nvcc}"
        echo "CMAKE_CUDA_ARCHITECTURES=75-real;90-real;90-virtual"
        echo "TENSORRT_INCLUDE_DIR=/somewhere"
        echo "TENSORRT_VERSION={headers}" ;;
    --build*) {build} ;;
    *) echo "-- TensorRT's headers: {headers} in /somewhere"; echo "$*" > "{folder}/configured" ;;
esac
"""

SUCCESS = 'echo library > "$2/libedge_mrcnn_plugins.so"'
FAILURE = "echo 'plugin.cpp:7:1: error: no such thing' >&2; exit 2"


class Machine:
    """A copy of the repository and what there is to build it with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.tools = folder, folder / "source", folder / "bin"
        self.environment = {**os.environ, "PATH": f"{self.tools}:{os.environ['PATH']}"}
        for name in ("EDGE_MRCNN_BUILD", "EDGE_MRCNN_CUDA_ARCHITECTURES", "EDGE_MRCNN_CMAKE_ARGS"):
            self.environment.pop(name, None)
        self.environment["CUDA_VISIBLE_DEVICES"] = ""  # no GPU of this machine decides what for
        self.source.mkdir()
        self.tools.mkdir()
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CMakeLists.txt"):
            shutil.copy(ROOT / name, self.source)
        for name in ("cmake", "plugins", "edge_mrcnn"):
            shutil.copytree(ROOT / name, self.source / name, ignore=shutil.ignore_patterns("__pycache__", "lib"))

    def install_tools(self, headers: str = "10.3.0", build: str = SUCCESS, nvcc: bool = True) -> None:
        """Stand-ins for CMake and nvcc."""
        compiler = self.tools / "nvcc" if nvcc else ""
        script = CMAKE.format(nvcc=compiler, headers=headers, build=build, folder=self.folder)
        for name, text in (
            ("cmake", script),
            ("nvcc", "#!/bin/sh\necho Cuda compilation tools, release 12.6, V12.6.68\n"),
        ):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)

    def run(self, call: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Call the build backend as pip does."""
        code = f"from setuptools import build_meta; build_meta.{call}({str(self.folder)!r})"
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.source,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def build_wheel(self, **environment: str) -> zipfile.ZipFile:
        """The wheel that an install puts in place."""
        done = self.run("build_wheel", **environment)
        assert done.returncode == 0, done.stderr
        (wheel,) = self.folder.glob("*.whl")
        return zipfile.ZipFile(wheel)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def record_of(wheel: zipfile.ZipFile) -> dict[str, object]:
    found: dict[str, object] = json.loads(wheel.read("edge_mrcnn/lib/build.json"))
    return found


def test_a_wheel_has_the_library_and_is_for_one_platform(machine: Machine) -> None:
    machine.install_tools()
    wheel = machine.build_wheel()
    assert "edge_mrcnn/lib/libedge_mrcnn_plugins.so" in wheel.namelist()
    assert record_of(wheel) == {
        "built": True,
        "reason": None,
        "cuda": "12.6",
        "tensorrt": "10.3.0",
        "architectures": "75-real;90-real;90-virtual",
    }
    assert wheel.filename is not None
    assert "-py3-none-linux_" in wheel.filename, "for any Python, but not for any machine"


@pytest.mark.parametrize("headers", ["", "10.3.0"])
def test_a_wheel_has_the_sources_of_every_kernel_and_the_templates(machine: Machine, headers: str) -> None:
    machine.install_tools(headers)
    names = set(machine.build_wheel().namelist())
    sources = [path.relative_to(ROOT) for path in (ROOT / "plugins").rglob("*.cuh")]
    assert len(sources) > 10
    assert {f"edge_mrcnn/{path}" for path in sources} <= names
    assert not [name for name in names if name.endswith((".cpp", ".cu", ".hpp"))], "what NVRTC does not need"
    templates = {f"edge_mrcnn/evaluation/templates/{name}" for name in ("report.html.j2", "report.css")}
    assert templates <= names, "what the report is made of"


LEFT_OUT = [
    # what is missing, the reason
    ({"headers": ""}, {}, "TensorRT's headers were not found; on a Jetson: sudo apt install nvidia-tensorrt-dev"),
    ({"nvcc": False}, {}, "nvcc was not found; install the CUDA toolkit"),
    ({"build": FAILURE}, {}, "plugin.cpp:7:1: error: no such thing"),
    ({}, {"EDGE_MRCNN_BUILD": "off"}, "EDGE_MRCNN_BUILD=off"),
]


@pytest.mark.parametrize(("missing", "environment", "reason"), LEFT_OUT)
def test_an_install_goes_on_without_the_library_and_says_why(
    machine: Machine, missing: dict[str, object], environment: dict[str, str], reason: str
) -> None:
    machine.install_tools(**missing)  # type: ignore[arg-type]
    wheel = machine.build_wheel(**environment)
    assert not [name for name in wheel.namelist() if name.endswith(".so")]
    record = record_of(wheel)
    assert record["built"] is False
    assert reason in str(record["reason"])


def test_an_install_without_the_library_is_for_any_machine(machine: Machine) -> None:
    machine.install_tools(headers="")
    assert str(machine.build_wheel().filename).endswith("-py3-none-any.whl")


@pytest.mark.parametrize("call", ["build_wheel", "build_editable"])
def test_a_required_library_that_cannot_be_built_is_an_error(machine: Machine, call: str) -> None:
    machine.install_tools(build=FAILURE)
    done = machine.run(call, EDGE_MRCNN_BUILD="require")
    assert done.returncode != 0
    assert "the plugin library cannot be built: " in done.stderr
    assert "error: no such thing" in done.stderr


def test_a_misspelt_mode_is_an_error(machine: Machine) -> None:
    done = machine.run("build_wheel", EDGE_MRCNN_BUILD="yes")
    assert "EDGE_MRCNN_BUILD must be auto, off or require, not 'yes'" in done.stderr


def test_an_editable_install_builds_into_the_source(machine: Machine) -> None:
    machine.install_tools()
    assert machine.run("build_editable").returncode == 0
    folder = machine.source / "edge_mrcnn"
    assert {path.name for path in (folder / "lib").iterdir()} == {"build.json", "libedge_mrcnn_plugins.so"}
    assert not (folder / "plugins").exists(), "the kernels' sources are found beside the package"
    machine.install_tools(headers="")
    assert machine.run("build_editable").returncode == 0
    assert {path.name for path in (folder / "lib").iterdir()} == {"build.json"}, "nothing of the build before remains"


def test_cmake_gets_what_the_environment_asks_for(machine: Machine) -> None:
    machine.install_tools()
    wheel = machine.build_wheel(EDGE_MRCNN_CUDA_ARCHITECTURES="87", EDGE_MRCNN_CMAKE_ARGS="-DONE=1 '-DTWO=a b'")
    assert record_of(wheel)["architectures"] == "87"
    configured = (machine.folder / "configured").read_text()
    assert "-DCMAKE_CUDA_ARCHITECTURES=87" in configured
    assert "-DONE=1 -DTWO=a b" in configured
