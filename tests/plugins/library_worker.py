"""A process of its own for a TensorRT with the plugin library: `python -m tests.plugins.library_worker job.json`.

The job says how the library comes in and which models to build; the answer is JSON on standard output.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_mrcnn.compiler import build_worker
from edge_mrcnn.gpu import library, plugins, tensorrt_api
from edge_mrcnn.ops import OPS

ROOT = Path(__file__).parents[2]


def enter_by_load_library(api: tensorrt_api.TensorRtApi, path: str) -> Any:
    """As trtexec, and a program that asks TensorRT to load a library."""
    return api.module.get_plugin_registry().load_library(path)


def enter_by_dlopen(api: tensorrt_api.TensorRtApi, path: str) -> Any:
    """As DeepStream and Triton: TensorRT is in the process, out of sight of the library."""
    return ctypes.CDLL(path)


def enter_by_call(api: tensorrt_api.TensorRtApi, path: str) -> Any:
    """As a program that gives the registry, here to a library loaded before TensorRT was."""
    tensorrt = ctypes.CDLL("libtensorrt_rtx.so.1")
    tensorrt.getPluginRegistry.restype = ctypes.c_void_p
    register = ctypes.CDLL(path).edge_mrcnn_register_plugins
    register.argtypes, register.restype = [ctypes.c_void_p], ctypes.c_bool
    return register(tensorrt.getPluginRegistry())


def enter_twice(api: tensorrt_api.TensorRtApi, path: str) -> Any:
    """Each way after the other."""
    enter_by_dlopen(api, path)
    enter_by_call(api, path)
    return enter_by_load_library(api, path)


def enter_by_package(api: tensorrt_api.TensorRtApi, path: str) -> Any:
    """As `edge-mrcnn build` does, with whatever EDGE_MRCNN_PLUGINS names."""
    return plugins.register_plugins(api)


def enter_by_nothing(api: tensorrt_api.TensorRtApi, path: str) -> None:
    """It was preloaded, and TensorRT with it."""


WAYS = {
    "load_library": enter_by_load_library,
    "dlopen": enter_by_dlopen,
    "call": enter_by_call,
    "twice": enter_twice,
    "package": enter_by_package,
    "preload": enter_by_nothing,
}


def describe_creators(registry: Any) -> dict[str, list[str]]:
    """What is registered for each op, in whatever namespace: one creator each if all is well."""
    found: dict[str, list[str]] = {op: [] for op in OPS}
    for creator in registry.all_creators:
        if creator.name in OPS:
            language = "C++" if type(creator).__module__.startswith("tensorrt") else "Python"
            found[creator.name].append(f"{language}, {creator.plugin_namespace}, {creator.plugin_version}")
    return found


def build_in_own_registry(job: dict[str, Any]) -> dict[str, Any]:
    """As trtexec's --dynamicPlugins: into the builder's own registry; as --setPluginsToSerialize: into the engine."""
    api = tensorrt_api.load("rtx")
    logger = api.make_logger(lambda severity, text: sys.stderr.write(f"{severity}: {text}\n"))
    builder = api.module.Builder(logger)
    own = builder.get_plugin_registry()
    own.load_library(job["library"])
    everywhere = api.module.get_plugin_registry()
    answer: dict[str, Any] = {"own": describe_creators(own), "everywhere": describe_creators(everywhere), "sizes": []}
    network = api.create_network(builder)
    (build,) = job["builds"].values()
    build_worker._parse(api, network, logger, build["onnx"])
    for libraries in ([], [job["library"]]):
        config = builder.create_builder_config()
        config.plugins_to_serialize = libraries
        build_worker._add_profile(builder, config, network, build_worker.Job(**build))
        answer["sizes"].append(builder.build_serialized_network(network, config).nbytes)
    return answer


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Load, look, build."""
    if job["way"] == "own_registry":
        return build_in_own_registry(job)
    api = tensorrt_api.load("rtx")
    logger = api.make_logger(lambda severity, text: sys.stderr.write(f"{severity}: {text}\n"))
    api.module.Builder(logger)
    registry = api.module.get_plugin_registry()
    kept = WAYS[job["way"]](api, job["library"])
    fields = {c.name: [[f.name, f.type.name] for f in c.field_names] for c in registry.all_creators if c.name in OPS}
    answer = {"creators": describe_creators(registry), "fields": fields, "missing": library.missing_creators(registry)}
    for name, build in job["builds"].items():
        report = build_worker.Reporter(io.StringIO())
        answer[name] = build_worker.build(build_worker.Job(**build), report)
    del kept
    return answer


def run_worker(
    folder: Path, way: str, library_path: Path | None, builds: dict[str, Any], preload: str = ""
) -> dict[str, Any]:
    """The answer of a worker in a fresh process.

    Args:
        folder: For its files.
        way: Key of `WAYS`.
        library_path: The C++ library; None for the Python plugin.
        builds: Arguments of `build_worker.Job` by name.
        preload: Libraries for LD_PRELOAD.
    """
    folder.mkdir(parents=True, exist_ok=True)
    links = folder / "lib"
    links.mkdir(exist_ok=True)
    tensorrt_api.link_libraries("rtx", links)
    job = folder / "job.json"
    job.write_text(json.dumps({"way": way, "library": str(library_path), "builds": builds}))
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(links),
        "LD_PRELOAD": preload,
        "PYTHONPATH": str(ROOT),
        library.VARIABLE: str(library_path) if library_path else "off",
    }
    command = [sys.executable, "-m", "tests.plugins.library_worker", str(job)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, f"the worker ended with {done.returncode}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
