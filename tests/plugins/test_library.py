"""The C++ plugin library in TensorRT-RTX: every way in, every model built, on a machine that needs no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge_mrcnn.compiler.passes import run_passes
from edge_mrcnn.compiler.precision import layer_precisions
from edge_mrcnn.compiler.recipe import Precision, Recipe
from edge_mrcnn.ops import DOMAIN, OPS, VERSION
from edge_mrcnn.spec import ModelSpec
from tests.compiler.test_zoo_engines import NAMES
from tests.compiler.tiny_model import CANVAS, build_tiny_model
from tests.plugins.library_build import Build, build_library, find_cmake, find_headers, need_build, run
from tests.plugins.library_probe import compiler_of
from tests.plugins.library_worker import run_worker

need_build()

ONE_EACH = {op: [f"C++, {DOMAIN}, {VERSION}"] for op in OPS}

KINDS = {"int": "INT32", "ints": "INT32", "float": "FLOAT32", "floats": "FLOAT32", "string": "CHAR"}

EXPORTS = {"getCreators", "setLoggerFinder", "edge_mrcnn_register_plugins"}

OLD_LAYOUT = "10."
"""Headers whose registry is not that of TensorRT-RTX."""


@pytest.fixture(scope="session")
def tiny_jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny model in each precision, as `build_worker` takes it."""
    return make_jobs(build_tiny_model(), tmp_path_factory.mktemp("tiny"), CANVAS)


def make_jobs(model: onnx.ModelProto, folder: Path, canvas: tuple[int, int]) -> dict[str, Any]:
    """The passes done, and what to build of it."""
    counts = {op: sum(node.op_type == op for node in model.graph.node) for op in OPS}
    jobs = {}
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    for precision in precisions:
        path = folder / f"{precision}.onnx"
        bound = run_passes(model, Recipe(precision))
        onnx.save(bound, path)
        spec = ModelSpec.from_metadata({entry.key: entry.value for entry in model.metadata_props})
        jobs[precision] = {
            "onnx": str(path),
            "engine": str(folder / f"{precision}.engine"),
            "target": "rtx:sm_86",
            "precision": precision,
            "batch": (1, 1, 4),
            "workspace": 1024.0,
            "input_hw": canvas,
            "plugins": counts,
            "weighted": {layer.name: layer.precision for layer in layer_precisions(bound, spec)},
        }
    return jobs


def result_of(built: Mapping[str, Any]) -> dict[str, Any]:
    """What an engine shows of itself; two plugins of the same contract give the same."""
    return {key: built[key] for key in ("layers", "inputs", "outputs")}


def tensorrt_library() -> Path:
    libraries = pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX's libraries are not installed")
    return Path(libraries.__file__).with_name("libtensorrt_rtx.so.1")


# --------------------------------------------------------------------------------------------------------- the file
def test_only_the_intended_symbols_are_exported(build: Build) -> None:
    lines = run("nm", "-D", "--defined-only", build.library).splitlines()
    assert {line.split()[-1] for line in lines} == EXPORTS


def test_it_is_tied_to_no_tensorrt_and_no_cuda(build: Build) -> None:
    needed = set(re.findall(r"NEEDED.*\[(\w+)", run("readelf", "-d", build.library)))
    assert needed <= {"libstdc", "libm", "libgcc_s", "libc", "ld", "libdl", "librt", "libpthread"}, needed
    undefined = [line.split() for line in run("nm", "-D", "--undefined-only", build.library).splitlines()]
    weak = {name for kind, name in undefined if kind == "w" and name.startswith("get")}
    assert weak == {"getPluginRegistry", "getLogger", "getInferLibMajorVersion", "getInferLibMinorVersion"}
    assert not [name for kind, name in undefined if kind == "U" and "nvinfer" in name]


def test_preloading_it_changes_nothing_without_tensorrt(build: Build) -> None:
    environment = os.environ | {"LD_PRELOAD": str(build.library)}
    done = subprocess.run(["true"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_call_without_a_tensorrt_says_so(build: Build) -> None:
    code = f"import ctypes; print(ctypes.CDLL({str(build.library)!r}).edge_mrcnn_register_plugins(None) & 255)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    assert "edge_mrcnn plugins: no TensorRT is loaded in this process" in done.stderr


CONSUMER = """
cmake_minimum_required(VERSION 3.22)
project(consumer LANGUAGES C CXX)
find_package(edge_mrcnn REQUIRED)
add_executable(plugins plugins.c)
target_link_libraries(plugins PRIVATE edge_mrcnn::plugins)
add_executable(kernels kernels.cpp)
target_link_libraries(kernels PRIVATE edge_mrcnn::kernels)
"""

PLUGINS_C = """
#include "edge_mrcnn_plugins.h"
int main(void) { return edge_mrcnn_register_plugins(0) ? 1 : 0; }
"""

KERNELS_CPP = """
#include "kernels.hpp"
int main() {
    edge_mrcnn::DetectionNmsArgs args{};
    args.batch = 1, args.proposals = 1000, args.classes = 91, args.detections = 100;
    return edge_mrcnn::supports(args) && edge_mrcnn::workspace_bytes(args) > 360000 ? 0 : 1;
}
"""


def test_other_projects_find_what_is_installed(build: Build, tmp_path: Path) -> None:
    """`find_package` gives a C program the plugins, and a C++ program the kernels without TensorRT's headers."""
    cmake = find_cmake() or "cmake"
    run(cmake, "--install", build.folder, "--prefix", tmp_path / "prefix")
    for name, text in (("CMakeLists.txt", CONSUMER), ("plugins.c", PLUGINS_C), ("kernels.cpp", KERNELS_CPP)):
        (tmp_path / name).write_text(text)
    run(cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")
    run(cmake, "--build", tmp_path / "build")
    for program in ("plugins", "kernels"):
        run(tmp_path / "build" / program)


# ------------------------------------------------------------------------------------------------------ the ways in
PROGRAM = """
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>

int count_ours(nvinfer1::IPluginRegistry& registry) {
    int32_t all = 0;
    int ours = 0;
    auto* const* const creators = registry.getAllCreators(&all);
    for (int32_t i = 0; i < all; ++i) {
        if (std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") != 0) continue;
        auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        ours += std::strcmp(creator->getPluginNamespace(), "edge_mrcnn") == 0;
    }
    return ours;
}

int main(int, char** argv) {
    auto& registry = *getPluginRegistry();
    if (dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) == nullptr || count_ours(registry) != 3) return 1;
    if (registry.loadLibrary(argv[1]) == nullptr || count_ours(registry) != 3) return 2;
    return 0;
}
"""


def test_a_program_linked_against_tensorrt(rtx: None, build: Build, tmp_path: Path) -> None:
    """There the weak symbols are filled in as the library is opened."""
    if build.headers.startswith(OLD_LAYOUT):
        pytest.skip("the headers are not of TensorRT 11, whose registry TensorRT-RTX has")
    (tmp_path / "program.cpp").write_text(PROGRAM)
    linked = [tensorrt_library(), "-ldl"]
    run(
        *compiler_of(build),
        tmp_path / "program.cpp",
        *linked,
        "-o",
        tmp_path / "program",
        "-Wl,--allow-shlib-undefined",
    )
    environment = os.environ | {"LD_LIBRARY_PATH": str(tensorrt_library().parent)}
    run(tmp_path / "program", build.library, env=environment)


@pytest.mark.parametrize("way", ["load_library", "dlopen", "call", "twice", "package"])
def test_each_way_in_registers_each_op_once(rtx: None, build: Build, tmp_path: Path, way: str) -> None:
    answer = run_worker(tmp_path, way, build.library, {})
    assert answer["creators"] == ONE_EACH
    assert answer["missing"] == []
    assert answer["fields"] == {op: [[one.name, KINDS[one.kind]] for one in OPS[op].attributes] for op in OPS}


@pytest.mark.parametrize("first", ["library", "tensorrt"])
@pytest.mark.parametrize("way", ["preload", "load_library", "package"])
def test_preloaded_with_tensorrt(rtx: None, build: Build, tmp_path: Path, first: str, way: str) -> None:
    """Then the weak symbols are there; the order decides which of the two is initialised before the other."""
    pair = [str(build.library), str(tensorrt_library())]
    preload = ":".join(pair if first == "library" else pair[::-1])
    assert run_worker(tmp_path, way, build.library, {}, preload)["creators"] == ONE_EACH


@pytest.mark.parametrize("way", ["call", "package"])
def test_preloaded_before_tensorrt_comes(rtx: None, build: Build, tmp_path: Path, way: str) -> None:
    assert run_worker(tmp_path, way, build.library, {}, str(build.library))["creators"] == ONE_EACH


def test_trtexecs_way(rtx: None, build: Build, tiny_jobs: dict[str, Any], tmp_path: Path) -> None:
    """A builder has a registry of its own, and an engine can carry the library."""
    answer = run_worker(tmp_path, "own_registry", build.library, {"fp16": tiny_jobs["fp16"]})
    assert answer["own"] == ONE_EACH
    assert answer["everywhere"] == {op: [] for op in OPS}
    without, within = answer["sizes"]
    assert within - without >= build.library.stat().st_size


def test_the_package_can_be_told_to_leave_it_out(rtx: None, tmp_path: Path) -> None:
    creators = run_worker(tmp_path, "package", None, {})["creators"]
    assert creators == {op: [f"Python, {DOMAIN}, {VERSION}"] for op in OPS}


# ------------------------------------------------------------------------------------------------------ engines
@pytest.mark.parametrize("way", ["load_library", "dlopen"])
def test_engines_of_the_tiny_model(
    rtx: None, build: Build, tiny_jobs: dict[str, Any], tmp_path: Path, way: str
) -> None:
    """As the Python plugin builds them: layers, their types, and the network's inputs and outputs."""
    built = run_worker(tmp_path / "c++", way, build.library, tiny_jobs)
    python = run_worker(tmp_path / "python", "package", None, tiny_jobs)
    assert built["creators"] == ONE_EACH
    assert built["fields"] == python["fields"]
    for precision in tiny_jobs:
        assert built[precision]["size"] > 0
        assert result_of(built[precision]) == result_of(python[precision])


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_engines_of_the_zoo(rtx: None, build: Build, tmp_path: Path, name: str) -> None:
    export = pytest.importorskip("edge_mrcnn.training.export", reason="torch is not installed")
    path = tmp_path / "model.onnx"
    export.export_model(name, export.ExportOptions(size="128x160"), path)
    jobs = make_jobs(onnx.load(path), tmp_path, (128, 160))
    built = run_worker(tmp_path / "c++", "load_library", build.library, jobs)
    python = run_worker(tmp_path / "python", "package", None, jobs)
    assert built["creators"] == ONE_EACH
    for precision in jobs:
        assert sum(layer["type"] == "PLUGIN_V3" for layer in built[precision]["layers"]) == 4
        assert result_of(built[precision]) == result_of(python[precision])


# ------------------------------------------------------------------------------------------------------ versions
@pytest.mark.parametrize("version", find_headers())
def test_the_sources_compile_against_the_headers_of(build: Build, version: str) -> None:
    """Without a warning, by the command of the build with other headers."""
    headers = find_headers()
    for command in build.compile_commands("/plugins/"):
        if not command[-1].endswith(".cpp"):
            continue
        words = [str(headers[version]) if word == str(headers[build.headers]) else word for word in command]
        assert str(headers[version]) in words
        del words[words.index("-o") : words.index("-o") + 2]
        words.remove("-c")
        run(*words, "-fsyntax-only")


@pytest.mark.slow
@pytest.mark.parametrize("version", find_headers())
def test_a_library_built_with_the_headers_of(
    rtx: None, tiny_jobs: dict[str, Any], tmp_path: Path, version: str
) -> None:
    """Plugins are the same in all versions. The registry is not: before 11 its functions lie elsewhere, so a library
    built so leaves it alone, and TensorRT has to load it.
    """
    build = build_library(tmp_path / "build", f"-DTENSORRT_INCLUDE_DIR={find_headers()[version]}")
    loaded = run_worker(tmp_path / "load", "load_library", build.library, tiny_jobs)
    assert loaded["creators"] == ONE_EACH
    assert all(loaded[precision]["size"] > 0 for precision in tiny_jobs)
    assert run_worker(tmp_path / "package", "package", build.library, {})["creators"] == ONE_EACH
    alone = run_worker(tmp_path / "alone", "call", build.library, {})
    assert alone["creators"] == ({op: [] for op in OPS} if version.startswith(OLD_LAYOUT) else ONE_EACH)
