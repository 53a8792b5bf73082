"""Makes a program of an op's kernels that runs them on a CPU and checks them meanwhile; `executor.py` talks to it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

HERE = Path(__file__).parent
PLUGINS = HERE.parents[1] / "plugins"
DRIVER = HERE / "driver"
HEADER = HERE / "cuda_on_cpu.hpp"
INCLUDED = (PLUGINS, HERE)
COMPILER = "g++"
FLAGS = ("-std=c++17", "-g", "-Wall", "-Wextra", "-Werror")
KERNEL_FLAGS = (
    "-O1",
    "-fno-extern-tls-init",  # dynamic shared memory is an extern thread_local array
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
    *("-Wno-maybe-uninitialized", "-Wno-array-bounds", "-Wno-stringop-overflow"),  # false alarms under sanitizers
)
Check = Literal["memory", "races"]
CHECKS: dict[Check, tuple[list[str], list[str]]] = {
    "memory": (
        [
            "-fsanitize=address,undefined,float-cast-overflow",
            "-fsanitize=bounds-strict",
            "-fno-sanitize-recover=all",
            "-fsanitize-coverage=trace-pc",  # where threads are interrupted
        ],
        ["-fsanitize=address,undefined"],
    ),
    "races": (["-fsanitize=thread"], []),  # driver/races.cpp is what it calls
}
"""Options for compiling kernels and for linking, by what is checked."""
MAX_SHARED_BYTES = 48 << 10
KEPT_S = 30 * 24 * 3600
"""A program that was not used for so long is deleted."""


@dataclass(frozen=True)
class Kernels:
    """An op's kernels, and its launcher, as a program.

    Attributes:
        source: The kernels' file below `plugins/`.
        program: Serves an `Executor`.
        args_bytes: Size of the kernels' parameter.
    """

    source: str
    program: Path
    args_bytes: int


def compile_kernels(source: str, args: type[ctypes.Structure], check: Check = "memory") -> Kernels:
    """Compile an op's kernels, and its launcher where it has one.

    Args:
        source: The `.cuh` below `plugins/` (or below this folder).
        args: The structure that the kernels take; held to the C++ one.
        check: What is checked while they run.

    Raises:
        AssertionError: The source does not compile, or the structures differ; with the compiler's messages.
    """
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed: the kernels do not run on the CPU")
    if _find(source) is None:
        raise FileNotFoundError(f"{source} is not below {PLUGINS}")
    launcher = Path(source).with_name("launch.hpp").as_posix()
    files = _with_includes([source, launcher] if _find(launcher) else [source])
    unit = _build(".cpp", _translation_unit(source, launcher, args, files))
    checking, linking = CHECKS[check]
    compiling = [*KERNEL_FLAGS, *checking, "-include", HEADER, *(f"-I{root}" for root in INCLUDED)]
    objects = [_build(".o", [*compiling, "-c", unit], [HEADER, *files.values()])]
    for file in sorted(DRIVER.glob("*.cpp")):
        objects.append(_build(".o", ["-O2", "-c", file], [file, HEADER, *sorted(DRIVER.glob("*.hpp"))]))
    program = _build("", [*linking, *objects, "-rdynamic", "-ldl", "-lpthread"], objects)
    return Kernels(source, program, ctypes.sizeof(args))


def _build(suffix: str, make: str | Sequence[object], read: Sequence[Path] = ()) -> Path:
    """A file in the cache, named by what it is made from: a text, or what the compiler makes of options and files."""
    digest = hashlib.sha256(repr((COMPILER, FLAGS, make)).encode())
    for path in read:
        digest.update(path.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge_mrcnn" / "cuda_on_cpu"
    built = cache / (digest.hexdigest()[:32] + suffix)
    if built.exists():
        built.touch()
        return built
    cache.mkdir(parents=True, exist_ok=True)
    delete_unused(cache)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / built.name
        if isinstance(make, str):
            made.write_text(make)
        else:
            command = [COMPILER, *FLAGS, *map(str, make), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{COMPILER} does not compile this:\n{done.stderr}"
        made.replace(built)
    return built


def delete_unused(cache: Path) -> None:
    """Delete the files that were not used for `KEPT_S`."""
    for path in cache.iterdir():
        if path.is_file() and time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)


def _find(name: str) -> Path | None:
    return next((root / name for root in INCLUDED if (root / name).exists()), None)


def _with_includes(names: Sequence[str]) -> dict[str, Path]:
    """The files of those names and what they include of ours."""
    files: dict[str, Path] = {}
    remaining = list(names)
    while remaining:
        name = remaining.pop()
        path = _find(name)
        if name not in files and path is not None:
            files[name] = path
            remaining += re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE)
    return files


def _translation_unit(source: str, launcher: str, args: type[ctypes.Structure], files: dict[str, Path]) -> str:
    """C++ that includes an op's files and tells the driver what it may call."""
    op = Path(source).stem
    cpp_args = "".join(word.capitalize() for word in op.split("_")) + "Args"
    texts = {name: path.read_text() for name, path in files.items()}
    dynamic = {name for text in texts.values() for name in re.findall(r"extern __shared__ [^;]*?(\w+)\[\];", text)}
    assert len(dynamic) <= 1, f"{source} gives dynamic shared memory more than one name: {dynamic}"

    lines = [f'#include "{name}"' for name in (source, launcher) if name in files]
    lines.append("namespace edge_mrcnn {")
    lines += [f"static_assert({check});" for check in _layout_checks(cpp_args, args)]
    lines += [f"alignas(16) thread_local unsigned char {name}[{MAX_SHARED_BYTES}];" for name in dynamic]
    calls = {
        f"{op}_workspace": "[](void const* args) { return cuda_on_cpu::workspace_of(NAME, args); }",
        f"launch_{op}": "[](void const* args, int dtype) { return cuda_on_cpu::launch_with(NAME, args, dtype); }",
    }
    members = [f"sizeof({cpp_args})", f"cuda_on_cpu::call<{cpp_args}>"]
    for name, call in calls.items():
        exists = re.search(rf"\b{name}\b", texts.get(launcher, ""))
        members.append(call.replace("NAME", name) if exists else "nullptr")
    members.append(f"[] {{ return {dynamic.pop()}; }}" if dynamic else "nullptr")
    lines.append('extern "C" cuda_on_cpu::Op const cuda_on_cpu_op{')
    lines += [f"    {member}," for member in members]
    lines += ["};", "}", ""]
    return "\n".join(lines)


def _layout_checks(cpp: str, structure: type[ctypes.Structure], path: str = "", base: int = 0) -> Iterator[str]:
    """Conditions under which the C++ structure lies in memory as the ctypes one does."""
    if not path:
        size = ctypes.sizeof(structure)
        yield f'sizeof({cpp}) == {size}, "{cpp}: Python has {size} bytes"'
    for name, kind, *_ in structure._fields_:
        member, field = path + name, getattr(structure, name)
        offset, size = base + field.offset, field.size
        yield (
            f"offsetof({cpp}, {member}) == {offset} && sizeof({cpp}::{member}) == {size}, "
            f'"{cpp}::{member}: Python has {size} bytes at {offset}"'
        )
        while issubclass(kind, ctypes.Array):
            kind, member = kind._type_, f"{member}[0]"
        if issubclass(kind, ctypes.Structure):
            yield from _layout_checks(cpp, kind, f"{member}.", offset)
