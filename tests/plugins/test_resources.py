"""NVRTC, and nvcc where it is installed, compile every kernel for every architecture within the limits kept here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu import compile as nvrtc
from tests.plugins import resources
from tests.plugins.resources import SOURCES, Usage

LIMITS = json.loads(resources.LIMITS.read_text())
RENEW = "python tests/plugins/resources.py --update"

try:
    NVRTC_ARCHITECTURES = resources.nvrtc_architectures()
except PluginError:
    NVRTC_ARCHITECTURES = []
NVCC_ARCHITECTURES = resources.nvcc_architectures()


def faults(usages: Sequence[Usage]) -> list[str]:
    """What of each kernel is beyond its limit."""
    found = []
    for usage in usages:
        limit = LIMITS.get(usage.kernel)
        where = f"{usage.kernel} on {usage.architecture} ({usage.compiler})"
        if limit is None:
            found.append(f"{where} has no limit: {RENEW}")
            continue
        if usage.spill_bytes:
            found.append(f"{where} spills {usage.spill_bytes} bytes")
        if usage.registers > limit["registers"]:
            found.append(f"{where} needs {usage.registers} registers, more than {limit['registers']}")
        if usage.shared_bytes > limit["shared_bytes"]:
            found.append(f"{where} needs {usage.shared_bytes} bytes of shared memory, not {limit['shared_bytes']}")
    return found


@pytest.mark.slow
@pytest.mark.skipif(not NVRTC_ARCHITECTURES, reason="NVRTC is not installed")
@pytest.mark.parametrize("number", NVRTC_ARCHITECTURES)
def test_nvrtc(number: int) -> None:
    usages = resources.nvrtc_usages(number)
    assert {usage.kernel for usage in usages} == set(LIMITS), f"kernels came or went: {RENEW}"
    assert not faults(usages)


@pytest.mark.slow
@pytest.mark.skipif(not NVCC_ARCHITECTURES, reason="nvcc is not installed")
@pytest.mark.parametrize("number", NVCC_ARCHITECTURES)
def test_nvcc(number: int) -> None:
    usages = resources.nvcc_usages(number)
    assert {usage.kernel for usage in usages} == set(LIMITS), f"kernels came or went: {RENEW}"
    assert not faults(usages)


def test_the_architectures_are_those_that_the_library_is_built_for() -> None:
    text = (resources.PLUGINS.parent / "cmake" / "CudaToolkit.cmake").read_text()
    listed = re.search(r"set\(EDGE_MRCNN_KNOWN_ARCHITECTURES ([\d ]+)\)", text)
    assert listed is not None
    assert tuple(map(int, listed[1].split())) == resources.ARCHITECTURES


def test_a_block_fits_on_a_multiprocessor() -> None:
    for kernel, limit in LIMITS.items():
        assert limit["block"] * limit["registers"] <= resources.REGISTERS_OF_BLOCK, kernel
        assert limit["shared_bytes"] <= resources.SHARED_BYTES_OF_BLOCK, kernel


@pytest.mark.slow
@pytest.mark.skipif(not NVRTC_ARCHITECTURES, reason="NVRTC is not installed")
def test_the_blocks_are_those_that_the_kernels_are_compiled_for() -> None:
    assert resources.blocks_of(NVRTC_ARCHITECTURES[0]) == {name: limit["block"] for name, limit in LIMITS.items()}


def test_every_kernel_in_the_sources_has_a_limit() -> None:
    """The list above comes from the compilers: one that skipped a file would not tell."""
    assert len(SOURCES) == 5, SOURCES
    for source in SOURCES:
        op = source.partition("/")[0]
        assert any(name == op or name.startswith(f"{op}_") for name in LIMITS), source


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) greedy(float const* in, float* out) {
    float x[96];
    for (int i = 0; i < 96; ++i) x[i] = in[threadIdx.x + 1024 * i];
    for (int j = 0; j < 96; ++j)
#pragma unroll
        for (int i = 0; i < 96; ++i) x[i] = x[i] * x[(i * 7 + 5) % 96] + in[j];
    for (int i = 0; i < 96; ++i) out[threadIdx.x + 1024 * i] = x[i];
}
"""


@pytest.mark.slow
@pytest.mark.skipif(not NVRTC_ARCHITECTURES, reason="NVRTC is not installed")
def test_a_kernel_that_spills_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greedy.cuh").write_text(SPILLING)
    (usage,) = resources.parse(nvrtc.ptxas_report("greedy.cuh", "sm_87", tmp_path), "NVRTC")
    assert (usage.kernel, usage.architecture, usage.shared_bytes) == ("greedy", "sm_87", 0)
    assert usage.registers <= 64
    assert usage.spill_bytes > 0
    monkeypatch.setitem(LIMITS, "greedy", {"block": 1024, "registers": 16, "shared_bytes": 0})
    first, second = faults([usage])
    assert re.search(r"greedy on sm_87 \(NVRTC\) spills \d+ bytes", first)
    assert "registers, more than 16" in second
    assert resources.max_threads(nvrtc.compile_kernels("greedy.cuh", "sm_87", tmp_path, tmp_path)) == {"greedy": 1024}
