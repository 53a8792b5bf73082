"""Build script: adds to the package what pyproject.toml cannot say.

- `edge_mrcnn/plugins/`: the sources of the CUDA kernels, which NVRTC compiles on the device. (Not in an editable
  install: there they are found beside the package.)
- `edge_mrcnn/lib/`: the C++ plugin library, where nvcc, CMake and TensorRT's headers are found, and `build.json`, which
  says what was built or why not. An install never fails for want of it, unless it is required.

Environment:
    EDGE_MRCNN_BUILD: `auto`, `off`, or `require`, which makes it an error that the library cannot be built.
    EDGE_MRCNN_CUDA_ARCHITECTURES: GPUs to build for, as CMake names them (`87`, `86;89`); by default this machine's, or
        all that nvcc knows where there is none.
    EDGE_MRCNN_CMAKE_ARGS: More arguments for CMake, such as -DEDGE_MRCNN_FETCH_TENSORRT_HEADERS=ON.
    TENSORRT_ROOT, TENSORRT_INCLUDE_DIR, CUDACXX: Where to look, as CMakeLists.txt says.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LIBRARY = "libedge_mrcnn_plugins.so"
PARALLEL = 4
"""Compilers at a time at most: each takes up to a gigabyte, and a small Jetson has four."""


@dataclass
class Record:
    """`build.json`, as edge_mrcnn/gpu/library.py reads it."""

    built: bool = False
    reason: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    architectures: str | None = None


class CannotBuildError(Exception):
    """Why the library is left out and what to do about it."""


class Plan:
    """What there is to build with: looked up when made, in a fraction of a second."""

    def __init__(self) -> None:
        self.mode = os.environ.get("EDGE_MRCNN_BUILD", "auto")
        if self.mode not in ("auto", "off", "require"):
            raise SystemExit(f"EDGE_MRCNN_BUILD must be auto, off or require, not {self.mode!r}")
        self.arguments = shlex.split(os.environ.get("EDGE_MRCNN_CMAKE_ARGS", ""))
        self.record = Record()
        self.possible = True
        """Whether all is there. Decides what kind of wheel it becomes, so it stays when compiling fails."""
        try:
            self._look()
        except CannotBuildError as error:
            self.possible, self.record.reason = False, str(error)

    def _look(self) -> None:
        if self.mode == "off":
            raise CannotBuildError("EDGE_MRCNN_BUILD=off")
        self.cmake = find_cmake()
        found = dict(
            line.split("=", 1)
            for line in _run(self.cmake, *self.arguments, "-P", ROOT / "cmake" / "Probe.cmake").splitlines()
            if "=" in line
        )
        nvcc = found["CMAKE_CUDA_COMPILER"]
        if not nvcc:
            raise CannotBuildError(
                "nvcc was not found; install the CUDA toolkit (on a Jetson: sudo apt install nvidia-cuda-dev), or name "
                "it with CUDACXX=/usr/local/cuda/bin/nvcc"
            )
        self.record.cuda = re.search(r"release ([\d.]+)", _run(nvcc, "--version"))[1]
        if not found["TENSORRT_VERSION"]:
            raise CannotBuildError(
                "TensorRT's headers were not found; on a Jetson: sudo apt install nvidia-tensorrt-dev; of an SDK name "
                "the folder with TENSORRT_ROOT=FOLDER; with pip's TensorRT download them with "
                "EDGE_MRCNN_CMAKE_ARGS=-DEDGE_MRCNN_FETCH_TENSORRT_HEADERS=ON"
            )
        self.record.architectures = choose_architectures(found["CMAKE_CUDA_ARCHITECTURES"])

    def build(self, folder: Path) -> None:
        """Build the library into a folder, where `build.json` says how it went."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self.possible:
            try:
                self._compile(folder)
                self.record.built = True
            except CannotBuildError as error:
                self.record.reason = str(error)
        if self.mode == "require" and not self.record.built:
            raise SystemExit(f"the plugin library cannot be built: {self.record.reason}")
        (folder / "build.json").write_text(json.dumps(asdict(self.record), indent=1) + "\n", encoding="utf-8")

    def _compile(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory() as build:
            options = [f"-DPython3_EXECUTABLE={sys.executable}", *self.arguments]
            options.append(f"-DCMAKE_CUDA_ARCHITECTURES={self.record.architectures}")
            said = _run(self.cmake, "-S", ROOT, "-B", build, *options)
            self.record.tensorrt = re.search(r"TensorRT's headers: (\S+) in", said)[1]
            jobs = str(min(PARALLEL, os.cpu_count() or 1))
            _run(self.cmake, "--build", build, "--target", "edge_mrcnn_plugins", "--parallel", jobs)
            shutil.copy2(Path(build) / LIBRARY, folder / LIBRARY)


def find_cmake() -> str:
    """A CMake that runs and is new enough: the system's, or pip's."""
    for candidate in (shutil.which("cmake"), f"{sysconfig.get_path('purelib')}/cmake/data/bin/cmake"):
        try:
            version = re.search(r"version (\d+)\.(\d+)", _run(candidate, "--version")) if candidate else None
        except CannotBuildError:
            continue
        if version and (int(version[1]), int(version[2])) >= (3, 22):
            return candidate
    raise CannotBuildError("CMake 3.22 or newer was not found; sudo apt install cmake, or pip install cmake")


def choose_architectures(known: str) -> str:
    """GPUs to build for: those asked for, this machine's, or all that nvcc and the kernels know."""
    if asked := os.environ.get("EDGE_MRCNN_CUDA_ARCHITECTURES"):
        return asked
    sys.path.insert(0, str(ROOT))
    try:
        from edge_mrcnn.device import find_gpus

        here = sorted({gpu.sm.removeprefix("sm_") for gpu in find_gpus()})
    finally:
        sys.path.remove(str(ROOT))
    return ";".join(here) if here and all(f"{one}-real" in known.split(";") for one in here) else known


def _run(*command: str | Path) -> str:
    """Standard output of a program; what it complains of first is the reason if it fails."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise CannotBuildError(str(error)) from error
    if done.returncode != 0:
        said = f"{done.stdout}{done.stderr}"
        sys.stderr.write(said)
        found = re.search(r"CMake Error.*:\n((?: .*\n)+)|(.*\berror\b.*)", said)
        reason = " ".join((found[1] or found[2]).split()) if found else said.strip()[-200:]
        raise CannotBuildError(f"{shlex.join(map(str, command[:2]))} failed: {reason}")
    return done.stdout


PLAN = Plan()


class BuildPackage(build_py):
    """Adds the kernels' sources and the library to the package."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        package = (ROOT if self.editable_mode else Path(self.build_lib)) / "edge_mrcnn"
        if not self.editable_mode:
            shutil.rmtree(package / "plugins", ignore_errors=True)
            for source in sorted((ROOT / "plugins").rglob("*.cuh")):
                target = package / "plugins" / source.relative_to(ROOT / "plugins")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        PLAN.build(package / "lib")


class Wheel(bdist_wheel):
    """A wheel with the library is for one platform, and for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Tags of the wheel's name."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


class Package(Distribution):
    """Says whether there is something compiled."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel is for one platform."""
        return PLAN.possible


setup(distclass=Package, cmdclass={"build_py": BuildPackage, "bdist_wheel": Wheel})
