"""Asks a plugin of the C++ library what TensorRT would ask it: the Python side of library_probe.cpp."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_mrcnn.gpu.launches import Tensor
from edge_mrcnn.ops import OPS
from tests.plugins.library_build import Build, run

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Answer:
    """What the plugin said.

    Attributes:
        said: By the keys of library_probe.cpp.
        log: What it wrote to TensorRT's logger, and to standard error.
    """

    said: dict[str, Any]
    log: str

    def __getitem__(self, key: str) -> Any:
        return self.said[key]


def build_probe(build: Build, folder: Path) -> Path:
    """Compile the program as the library was compiled."""
    program = folder / "library_probe"
    run(*compiler_of(build), HERE / "library_probe.cpp", "-o", program, "-ldl")
    return program


def build_recording_library(build: Build, folder: Path) -> Path:
    """The library with kernels that only keep what they are given."""
    library = folder / "librecording.so"
    commands = [command for command in build.compile_commands("/plugins/") if command[-1].endswith(".cpp")]
    objects = [build.folder / command[command.index("-o") + 1] for command in commands]
    runtime = [_cached(build, "CUDA_cudart_static_LIBRARY"), "-ldl", "-lrt", "-lpthread"]
    run(*compiler_of(build), "-shared", "-fPIC", HERE / "recorded_kernels.cpp", *objects, *runtime, "-o", library)
    return library


def ask(
    program: Path,
    library: Path,
    op: str,
    fields: Sequence[str],
    inputs: Sequence[Tensor] = (),
    outputs: Sequence[Tensor] = (),
    enqueue: bool = False,
) -> Answer:
    """Make a plugin and ask it everything.

    Args:
        program: Of `build_probe`.
        library: The plugin library.
        op: Name of the op.
        fields: As `write_fields` gives them.
        inputs: What to describe to it; without any, it is not asked about tensors.
        outputs: Likewise.
        enqueue: Run it too.
    """
    lines = [f"op {op}", *(f"field {field}" for field in fields)]
    for side, tensors in (("in", inputs), ("out", outputs)):
        for tensor in tensors:
            lines.append(
                f"tensor {side} {tensor.dtype} {tensor.layout} {len(tensor.shape)} {' '.join(map(str, tensor.shape))}"
            )
    lines += ["enqueue"] * enqueue
    done = subprocess.run([program, library], input="\n".join(lines), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"the probe ended with {done.returncode}\n{done.stderr}"
    return Answer(json.loads(done.stdout), done.stderr)


def write_fields(op: str, attributes: Mapping[str, Any]) -> list[str]:
    """The fields of a node as the probe reads them."""
    return [
        write_field(one.name, one.kind, attributes[one.name]) for one in OPS[op].attributes if one.name in attributes
    ]


def write_field(name: str, kind: str, value: Any) -> str:
    """One field, of whatever kind."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return f"{name} {kind} {len(values)} {' '.join(repr(one).strip(chr(39)) for one in values)}"


def compiler_of(build: Build) -> list[str]:
    """The C++ compiler with the include folders of the build."""
    command = build.compile_commands("registry.cpp")[0]
    includes = []
    for position, word in enumerate(command):
        if word.startswith("-I"):
            includes.append(word)
        elif word == "-isystem":
            includes += command[position : position + 2]
    return [command[0], "-std=c++17", "-Wall", "-Wextra", "-Werror", *includes]


def _cached(build: Build, name: str) -> str:
    """A variable of CMake's cache."""
    lines = (build.folder / "CMakeCache.txt").read_text().splitlines()
    return next(line.split("=", 1)[1] for line in lines if line.startswith(f"{name}:"))
