"""Builds the C++ plugin library for the tests, with CMake and whichever of TensorRT's headers are at hand.

They are looked for where CMakeLists.txt looks (TENSORRT_ROOT, TENSORRT_INCLUDE_DIR, JetPack's and the SDKs' places),
and in `EDGE_MRCNN_TENSORRT_HEADERS`, a folder with a folder of each of several releases, which holds `include`.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VARIABLE = "EDGE_MRCNN_TENSORRT_HEADERS"
ARCHITECTURE = "87-real"


@dataclass(frozen=True)
class Build:
    """A build folder.

    Attributes:
        folder: CMake's.
        library: The shared library.
        headers: Version of TensorRT's headers.
    """

    folder: Path
    library: Path
    headers: str

    def compile_commands(self, part: str) -> list[list[str]]:
        """How each C++ source whose path has that part was compiled."""
        commands = json.loads((self.folder / "compile_commands.json").read_text())
        return [shlex.split(one["command"]) for one in commands if part in one["file"]]


@functools.cache
def find_cmake() -> str | None:
    """CMake of the system or of this environment."""
    beside = shutil.which("cmake", path=str(Path(sys.executable).parent))
    return beside or shutil.which("cmake")


def probe(**environment: str) -> dict[str, str]:
    """What cmake/Probe.cmake finds."""
    script = ROOT / "cmake" / "Probe.cmake"
    lines = run(find_cmake() or "cmake", "-P", script, env=os.environ | environment).splitlines()
    return dict(line.split("=", 1) for line in lines)


@functools.cache
def find_headers() -> dict[str, Path]:
    """Include folders by version, in the order of their names, the one that CMake finds by itself last."""
    folders = []
    if several := os.environ.get(VARIABLE):
        folders = sorted(path.parent for path in Path(several).glob("*/include/NvInferRuntime.h"))
    found = {probe(TENSORRT_INCLUDE_DIR=str(folder))["TENSORRT_VERSION"]: folder for folder in folders}
    own = probe()
    if own["TENSORRT_VERSION"]:
        found.pop(own["TENSORRT_VERSION"], None)
        found[own["TENSORRT_VERSION"]] = Path(own["TENSORRT_INCLUDE_DIR"])
    return found


def need_build() -> None:
    """Skip the module, in one line, where something is missing to build the library with."""
    missing = None
    if find_cmake() is None:
        missing = "CMake is not installed"
    elif not probe()["CMAKE_CUDA_COMPILER"]:
        missing = "nvcc is not installed"
    elif not find_headers():
        missing = f"TensorRT's headers are not here (name them with TENSORRT_ROOT, or several versions with {VARIABLE})"
    if missing:
        pytest.skip(missing, allow_module_level=True)


def build_library(folder: Path, *options: str) -> Build:
    """Build it with warnings as errors."""
    version, headers = list(find_headers().items())[-1]
    cmake = find_cmake() or "cmake"
    given = [f"-DTENSORRT_INCLUDE_DIR={headers}", f"-DCMAKE_CUDA_ARCHITECTURES={ARCHITECTURE}", *options]
    flags = ["-DEDGE_MRCNN_WERROR=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    run(cmake, "-S", ROOT, "-B", folder, *given, *flags)
    run(cmake, "--build", folder)
    return Build(folder, folder / "libedge_mrcnn_plugins.so", version)


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Standard output of a program that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout
