"""Every attribute of TensorRT's Python API that we touch exists in every TensorRT that we support.

The bindings of the versions at the corners (JetPack 6, JetPack 7, the newest) are wheels of a few MB; a stub library
takes the place of TensorRT's own, so that they import without a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from edge_mrcnn.gpu import plugins
from tests.gpu.api_uses import Use, find_uses

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BINDINGS = ROOT / ".venv-bindings" / f"py{sys.version_info.major}{sys.version_info.minor}"
VERSIONS = ("10.3.0", "10.13.3.9", "11.4.0.106")
RTX = "rtx"

SOURCES = [
    *sorted(
        path
        for path in (ROOT / "edge_mrcnn").rglob("*.py")
        if "tensorrt_api" in path.read_text() or path.name.startswith(("tensorrt_", "trt_"))
    ),
    ROOT / "benchmarks" / "gpu_check" / "engines.py",
]

ONLY_IN: Mapping[str, tuple[str, ...]] = {
    "ComputeCapability": (RTX,),
    "CudaGraphStrategy": (RTX,),
    "DynamicShapesKernelSpecializationStrategy": (RTX,),
    "IBuilderConfig.num_compute_capabilities": (RTX,),
    "IBuilderConfig.set_compute_capability": (RTX,),
    "ICudaEngine.create_runtime_config": ("10.13.3.9", "11.4.0.106", RTX),
    "IExecutionContext.is_stream_capturable": (RTX,),
    # Of IRuntimeConfig, 10.3 is not asked: it stops at create_runtime_config.
    "IRuntimeConfig.create_runtime_cache": ("10.3.0", RTX),
    "IRuntimeConfig.cuda_graph_strategy": ("10.3.0", RTX),
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy": ("10.3.0", RTX),
    "IRuntimeConfig.set_runtime_cache": ("10.3.0", RTX),
}
"""Attributes that are used only where the code has made sure that it has one of these."""


Place = tuple[str, Use]
"""File and line of a use, and the use."""


def uses_in(source: str, name: str) -> list[Place]:
    return [(f"{name}:{use.line}", use) for use in find_uses(source)]


def uses_of_ours() -> list[Place]:
    places = [place for path in SOURCES for place in uses_in(path.read_text(), str(path.relative_to(ROOT)))]
    types = {name for name, _ in plugins._FIELD_TYPES.values()}  # looked up by name
    return places + [("edge_mrcnn/gpu/plugins.py", Use(0, (("PluginFieldType", name),))) for name in sorted(types)]


@pytest.fixture(scope="module")
def stub_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `LD_LIBRARY_PATH` with stubs under the names that the bindings ask for."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, which compiles the stub of TensorRT's libraries")
    folder = tmp_path_factory.mktemp("stubs")
    compile_stub = ["gcc", "-shared", "-fPIC", str(HERE / "tensorrt_stub.c")]
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        for major in ("10", "11"):
            name = f"lib{library}.so.{major}"
            subprocess.run([*compile_stub, f"-Wl,-soname,{name}", "-o", str(folder / name)], check=True)
    return folder


def missing(places: Iterable[Place], version: str, stubs: Path) -> dict[str, list[str]]:
    """What a version lacks of the uses, and where each is."""
    if version == RTX:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        module, environment = "tensorrt_rtx", {**os.environ}
    else:
        module, folder = "tensorrt_bindings", BINDINGS / version
        if not folder.is_dir():
            pytest.skip(f"the bindings of TensorRT {version} are not in {BINDINGS.relative_to(ROOT)}: make bindings")
        environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": str(folder)}
    command = [sys.executable, str(HERE / "api_resolve.py"), module]
    text = json.dumps([path for _, use in places for path in use.paths])
    result = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    answers = iter(json.loads(result.stdout))
    lacking: dict[str, list[str]] = {}
    for place, use in places:
        absent = [next(answers) for _ in use.paths]
        if all(absent):
            lacking.setdefault(absent[0], []).append(place)
    return lacking


@pytest.mark.parametrize("version", [*VERSIONS, RTX])
def test_everything_we_touch_is_there(version: str, stub_libraries: Path) -> None:
    places = uses_of_ours()
    assert len({path for _, use in places for path in use.paths}) > 50, "the sources were not read"
    lacking = missing(places, version, stub_libraries)
    elsewhere = {name for name, versions in ONLY_IN.items() if version not in versions}
    assert {name: where for name, where in lacking.items() if name not in elsewhere} == {}
    assert elsewhere <= set(lacking), "an exception is not needed: it is there, or not used"


PLANTED = """
def build(api, builder, config):
    trt = api.module
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    if builder.platform_has_fast_fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    tensor = network.get_input(0)
    tensor.no_such_thing
    trt.get_plugin_registry().get_plugin_creator("name", "1")
    self._engine.device_memory_size

class Monitor(trt.IProgressMonitor):
    def phase_begins(self): ...
"""


@pytest.mark.parametrize("version", [VERSIONS[-1], RTX])
def test_what_newer_versions_removed_is_found(version: str, stub_libraries: Path) -> None:
    assert missing(uses_in(PLANTED, "planted"), version, stub_libraries) == {
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": ["planted:4"],
        "Builder.platform_has_fast_fp16": ["planted:5"],
        "BuilderFlag.FP16": ["planted:6"],
        "ITensor.no_such_thing": ["planted:8"],
        "IPluginRegistry.get_plugin_creator": ["planted:9"],
        "ICudaEngine.device_memory_size": ["planted:10"],
        "IProgressMonitor.phase_begins": ["planted:13"],
    }


def test_the_oldest_lacks_what_came_later(stub_libraries: Path) -> None:
    later = "def f(registry, builder): registry.all_creators_recursive; builder.max_threads"
    assert missing(uses_in(later, "planted"), VERSIONS[0], stub_libraries) == {
        "IPluginRegistry.all_creators_recursive": ["planted:1"]
    }


def test_what_is_declared_as_something_else_is_no_use() -> None:
    source = """
class Job:
    engine: Path
    def __init__(self, layer: LayerInfo, runtime: str, config=None):
        self._context: Context = layer.context
        self.engine.unlink(); self._context.push(); layer.requested; runtime.upper()
        engine = Path("x"); engine.stem
        [layer.whatever for layer in self.layers]
"""
    assert find_uses(source) == []


def test_objects_are_followed_through_names() -> None:
    source = """
def f(network, parser):
    first, count = network.get_layer(0), network.num_layers
    for tensor in (first.get_input(i) for i in range(count)):
        print(tensor.shape)
    return [error.desc() for error in [parser.get_error(0)]], getattr(first, "name")
"""
    paths = {".".join(use.paths[0]).replace(".()", "()") for use in find_uses(source)}
    assert "INetworkDefinition().get_layer().get_input().shape" in paths
    assert "INetworkDefinition().get_layer().name" in paths
