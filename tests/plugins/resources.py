"""What each kernel needs of a GPU: registers, spills, shared memory, as the compilers report it.

    python tests/plugins/resources.py            # a table of all kernels on all architectures
    python tests/plugins/resources.py --update   # and plugins/resources.json anew, from the compilers that are here
    python tests/plugins/resources.py --widen    # the same, but no number gets smaller: for another version of CUDA

The file holds the limit of each kernel over all architectures and over NVRTC of CUDA 12.6, 12.9 and 13, nvcc of 13. A
number that grows there is a decision: more registers, fewer blocks on a multiprocessor.
"""
# ruff: noqa: T201

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edge_mrcnn.gpu import compile as nvrtc

PLUGINS = Path(__file__).parents[2] / "plugins"
LIMITS = PLUGINS / "resources.json"
SOURCES = tuple(
    sorted(path.relative_to(PLUGINS).as_posix() for path in PLUGINS.glob("*/*.cuh") if path.stem == path.parent.name)
)

ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120, 121)
"""Turing to Blackwell, as cmake/CudaToolkit.cmake has them; of these, each compiler knows what it knows."""

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

REGISTERS_OF_BLOCK = 65536
REGISTER_UNIT = 8
"""Registers of a thread are given in such steps, so that a limit between two of them would not limit anything."""
SHARED_BYTES_OF_BLOCK = 48 << 10

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)\w?'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Usage:
    """What one kernel needs on one architecture.

    Attributes:
        compiler: Who says so.
        architecture: Such as `sm_87`.
        kernel: Its name.
        registers: Of a thread.
        stack_bytes: Of a thread, spilled registers and local arrays alike.
        spill_bytes: Stores and loads together.
        shared_bytes: Static, of a block.
    """

    compiler: str
    architecture: str
    kernel: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int


def parse(log: str, compiler: str) -> list[Usage]:
    """The report that ptxas makes with `-v`."""
    usages = []
    starts = [match.start() for match in _ENTRY.finditer(log)]
    for start, end in zip(starts, [*starts[1:], len(log)], strict=True):
        part = log[start:end]
        entry, spills, used, shared = (pattern.search(part) for pattern in (_ENTRY, _SPILLS, _USED, _SHARED))
        assert entry is not None
        assert spills is not None, f"no report of spills:\n{part}"
        assert used is not None, f"no report of registers:\n{part}"
        stack, stores, loads = map(int, spills.groups())
        usages.append(
            Usage(compiler, entry[2], entry[1], int(used[1]), stack, stores + loads, int(shared[1]) if shared else 0)
        )
    return usages


@functools.cache
def nvrtc_usages(number: int) -> tuple[Usage, ...]:
    """Of every kernel on one architecture, by the installed NVRTC."""
    version = "NVRTC {}.{}".format(*nvrtc.nvrtc_version())
    return _gather(lambda source: parse(nvrtc.ptxas_report(source, f"sm_{number}", PLUGINS), version), SOURCES)


@functools.cache
def nvcc_usages(number: int) -> tuple[Usage, ...]:
    """Of every kernel on one architecture, by the installed nvcc."""
    version = f"nvcc {nvcc_version()}"
    return _gather(lambda source: parse(_run_nvcc(source, number), version), SOURCES)


def nvrtc_architectures() -> list[int]:
    """Those of ours that the installed NVRTC compiles for."""
    return [number for number in nvrtc.nvrtc_architectures() if number in ARCHITECTURES]


def nvcc_architectures() -> list[int]:
    """Those of ours that the installed nvcc compiles for; none without nvcc."""
    if NVCC is None:
        return []
    listed = subprocess.run([NVCC, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return sorted(number for number in map(int, re.findall(r"compute_(\d+)", listed)) if number in ARCHITECTURES)


@functools.cache
def nvcc_version() -> str:
    """Such as `13.0`."""
    assert NVCC is not None
    text = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    assert found is not None, text
    return found[1]


def max_threads(cubin: bytes) -> dict[str, int]:
    """Threads of a block that each kernel was compiled for, its `__launch_bounds__`.

    Source: in a cubin, which is an ELF file, section `.nv.info.<kernel>` is a list of attributes: one byte of format,
    one of kind, two of length where the format says so (4). Kind 5 is EIATTR_MAX_THREADS: x, y, z.
    """
    bounds = {}
    for name, content in _sections(cubin):
        if not name.startswith(".nv.info."):
            continue
        at = 0
        while at < len(content):
            form, kind, length = struct.unpack_from("<BBH", content, at)
            if kind == 5:
                x, y, z = struct.unpack_from("<3I", content, at + 4)
                bounds[name.removeprefix(".nv.info.")] = x * y * z
            at += 4 + (length if form == 4 else 0)
    return bounds


def _sections(elf: bytes) -> Iterable[tuple[str, bytes]]:
    """Name and content of each section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<3H", elf, 0x3A)
    headers = [struct.unpack_from("<2I4Q", elf, table + index * size) for index in range(count)]
    names = headers[names_index][4]
    for name, _, _, _, offset, length in headers:
        start = names + name
        yield elf[start : elf.index(b"\0", start)].decode(), elf[offset : offset + length]


def _run_nvcc(source: str, number: int) -> str:
    assert NVCC is not None
    with tempfile.TemporaryDirectory() as folder:
        command = [NVCC, "-std=c++17", f"-I{PLUGINS}", f"-arch=sm_{number}", "-Xptxas", "-v", "-x", "cu", "-cubin"]
        done = subprocess.run(
            [*command, "-o", f"{folder}/kernels.cubin", str(PLUGINS / source)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, f"nvcc does not compile {source} for sm_{number}:\n{done.stderr}"
    return done.stderr


def _gather(report: Callable[[str], list[Usage]], sources: Iterable[str]) -> tuple[Usage, ...]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return tuple(usage for usages in pool.map(report, sources) for usage in usages)


Limits = dict[str, dict[str, int]]


def limits_of(usages: Iterable[Usage], blocks: dict[str, int], known: Limits) -> Limits:
    """What `LIMITS` holds of each kernel: its block, and the most it needs anywhere, or what is known of it if more."""
    limits: Limits = {}
    none = {"registers": 0, "shared_bytes": 0}
    for usage in sorted(usages, key=lambda usage: usage.kernel):
        limit = limits.setdefault(usage.kernel, {**known.get(usage.kernel, none), "block": blocks[usage.kernel]})
        registers = -(-usage.registers // REGISTER_UNIT) * REGISTER_UNIT
        limit["registers"] = max(limit["registers"], registers)
        limit["shared_bytes"] = max(limit["shared_bytes"], usage.shared_bytes)
    return limits


def blocks_of(number: int) -> dict[str, int]:
    """`max_threads` of every kernel."""
    found: dict[str, int] = {}
    for source in SOURCES:
        found |= max_threads(nvrtc.compile_kernels(source, f"sm_{number}", PLUGINS))
    return found


def main() -> None:
    """Print the table, and write the limits where asked to."""
    usages = [usage for number in nvrtc_architectures() for usage in nvrtc_usages(number)]
    usages += [usage for number in nvcc_architectures() for usage in nvcc_usages(number)]
    for usage in sorted(usages, key=lambda usage: (usage.kernel, usage.compiler, int(usage.architecture[3:]))):
        print(
            f"{usage.kernel:40}{usage.compiler:12}{usage.architecture:8}{usage.registers:4} registers"
            f"{usage.shared_bytes:7} shared{usage.stack_bytes:5} stack{usage.spill_bytes:5} spilled"
        )
    if {"--update", "--widen"} & set(sys.argv[1:]):
        known = json.loads(LIMITS.read_text()) if "--widen" in sys.argv[1:] else {}
        limits = limits_of(usages, blocks_of(nvrtc_architectures()[0]), known)
        LIMITS.write_text(json.dumps(limits, indent=2, sort_keys=True) + "\n")
        print(f"{LIMITS}: {len(limits)} kernels")


if __name__ == "__main__":
    main()
