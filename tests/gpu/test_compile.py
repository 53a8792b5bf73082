"""Compiling kernels with NVRTC and keeping the binaries; tests/plugins/test_resources.py compiles the real ones."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu import compile as nvrtc
from edge_mrcnn.gpu.compile import compile_kernels, kernel_cache_folder, kernel_folder, ptxas_report

KERNEL = '#include "common/scale.cuh"\nextern "C" __global__ void k(float* x) { x[threadIdx.x] *= kScale; }\n'
SCALE = '#pragma once\n#include "common/number.cuh"\nconstexpr float kScale = kNumber;\n'
NUMBER = "#pragma once\nconstexpr float kNumber = 2.0f;\n"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of one kernel with an include that has an include."""
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    (tmp_path / "common").mkdir()
    (tmp_path / "op").mkdir()
    (tmp_path / "op" / "op.cuh").write_text(KERNEL)
    (tmp_path / "common" / "scale.cuh").write_text(SCALE)
    (tmp_path / "common" / "number.cuh").write_text(NUMBER)
    return tmp_path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Architecture of each compilation that really happened."""
    real, seen = nvrtc._compile, list[str]()

    def count(source: str, text: str, options: Any) -> tuple[bytes, str]:
        seen.append(options.arch)
        return real(source, text, options)

    monkeypatch.setattr(nvrtc, "_compile", count)
    return seen


@pytest.fixture
def build(sources: Path, tmp_path: Path) -> Any:
    return lambda architecture="sm_87": compile_kernels("op/op.cuh", architecture, sources, tmp_path / "cache")


def test_the_kernels_lie_in_the_repository(sources: Path) -> None:
    assert (kernel_folder() / "common" / "cuda.cuh").is_file()
    assert ptxas_report("common/cuda.cuh", "sm_87"), "the plugins' folder is found without saying so"


def test_in_an_installed_package_the_kernels_lie_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc.edge_mrcnn, "__file__", str(tmp_path / "edge_mrcnn" / "__init__.py"))
    assert kernel_folder() == tmp_path / "plugins"
    (tmp_path / "edge_mrcnn" / "plugins").mkdir(parents=True)
    assert kernel_folder() == tmp_path / "edge_mrcnn" / "plugins"


def test_binaries_go_to_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_cache_folder() == tmp_path / "xdg" / "edge_mrcnn" / "kernels"
    compile_kernels("op/op.cuh", "sm_87", sources)
    assert any(path.is_file() for path in kernel_cache_folder().rglob("*"))


def test_what_was_compiled_before_comes_from_the_cache(build: Any, compiled: list[str]) -> None:
    first = build()
    assert first[:4] == b"\x7fELF"
    assert build() == first
    assert compiled == ["sm_87"]
    assert build("sm_75") != first
    assert compiled == ["sm_87", "sm_75"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("op/op.cuh", KERNEL + "// a comment\n"),
        ("common/scale.cuh", SCALE.replace("kNumber;", "kNumber + 1;")),
        ("common/number.cuh", NUMBER.replace("2", "3")),
    ],
)
def test_a_change_anywhere_in_the_source_compiles_anew(
    build: Any, sources: Path, compiled: list[str], file: str, text: str
) -> None:
    build()
    (sources / file).write_text(text)
    build()
    assert len(compiled) == 2


def test_another_nvrtc_compiles_anew(build: Any, compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    keys = pytest.importorskip("cuda.core.utils._program_cache._keys", reason="this cuda-core has it elsewhere")
    build()
    monkeypatch.setattr(keys, "_nvrtc_version", lambda: (99, 9))
    build()
    assert len(compiled) == 2


def test_several_processes_fill_one_cache(sources: Path, tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from edge_mrcnn.gpu.compile import compile_kernels
        folder, cache = map(Path, sys.argv[1:])
        binaries = {compile_kernels("op/op.cuh", f"sm_{n}", folder, cache) for n in (75, 80, 86, 87) for _ in range(3)}
        print(len(binaries))
    """)
    command = [sys.executable, "-c", program, str(sources), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in processes] == ["4"] * 3


def test_threads_may_come_first_together(sources: Path) -> None:
    """Importing cuda.core from two at once fails without a lock."""
    program = textwrap.dedent("""
        import sys
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from threading import Barrier
        from edge_mrcnn.gpu.compile import ptxas_report
        together = Barrier(8)
        def work(_):
            together.wait()
            return ptxas_report("op/op.cuh", "sm_87", Path(sys.argv[1]))
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))
    """)
    subprocess.run([sys.executable, "-c", program, str(sources)], check=True)


@pytest.mark.parametrize("blocked", ["folder", "entries"])
def test_a_cache_that_cannot_be_used_only_costs_time(
    build: Any, compiled: list[str], tmp_path: Path, blocked: str, caplog: pytest.LogCaptureFixture
) -> None:
    if blocked == "folder":  # a file is in its place
        (tmp_path / "cache").touch()
    else:  # what is written into it cannot be moved to its place
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "entries").mkdir()
        build()
        for entry in (tmp_path / "cache" / "entries").iterdir():
            for file in entry.iterdir():
                file.unlink()
            entry.rmdir()
            entry.touch()
    with caplog.at_level(logging.WARNING):
        assert build() == build()
    assert len(compiled) == (2 if blocked == "folder" else 3)
    assert len(caplog.records) >= 2
    assert "cache" in caplog.text


def test_a_source_that_does_not_compile_shows_the_first_lines(sources: Path, build: Any) -> None:
    (sources / "common" / "number.cuh").write_text("#pragma once\nconstexpr float kNumber = undeclared;\n")
    with pytest.raises(PluginError) as caught:
        build()
    message = str(caught.value)
    assert message.startswith("op/op.cuh does not compile for sm_87 with NVRTC ")
    assert 'number.cuh(2): error: identifier "undeclared" is undefined' in message
    assert "edge-mrcnn[gpu-cu13]" in message
    assert len(message.splitlines()) <= nvrtc._LOG_LINES + 1


def test_an_include_that_is_missing_is_the_compilers_to_report(sources: Path, build: Any) -> None:
    (sources / "common" / "number.cuh").unlink()
    with pytest.raises(PluginError, match=r'cannot open source file "common/number\.cuh"'):
        build()


def test_a_source_that_is_missing(sources: Path) -> None:
    with pytest.raises(PluginError, match=r"the kernel .*nothing\.cuh cannot be read .*; install edge-mrcnn again"):
        compile_kernels("nothing.cuh", "sm_87", sources)


def test_files_beside_the_program_are_not_included(
    sources: Path, build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "common").mkdir(parents=True)
    (elsewhere / "common" / "number.cuh").write_text("#error the one in the current directory\n")
    (elsewhere / "common" / "scale.cuh").write_text("#error the one in the current directory\n")
    monkeypatch.chdir(elsewhere)
    assert build()[:4] == b"\x7fELF"


def test_standard_headers_are_not_there(sources: Path, build: Any) -> None:
    """The kernels must do without: nothing on this machine may be found instead."""
    (sources / "op" / "op.cuh").write_text("#include <stdint.h>\n" + KERNEL)
    with pytest.raises(PluginError, match=r'cannot open source file "stdint\.h"'):
        build()


def test_a_gpu_that_nvrtc_does_not_know(build: Any) -> None:
    with pytest.raises(
        PluginError, match=r"NVRTC \d+\.\d+ does not compile for sm_999, only for sm_.*sm_90.*pip install --upgrade"
    ):
        build("sm_999")


def test_without_cuda_core_the_command_that_installs_it(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc.nvrtc_architectures()
    for name in ("cuda.core", "cuda.core.utils"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        PluginError, match=r"needs cuda-core, which does not load .*pip install 'edge-mrcnn\[gpu-cu13\]'.*JetPack 6"
    ):
        compile_kernels("op/op.cuh", "sm_87", sources)


@pytest.mark.parametrize("call", [nvrtc.nvrtc_version, nvrtc.nvrtc_architectures])
def test_without_nvrtc_the_command_that_installs_it(sources: Path, monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    def missing() -> Any:
        raise RuntimeError('Failure finding "libnvrtc.so.13"\nand more')

    monkeypatch.setitem(
        sys.modules, "cuda.bindings.nvrtc", SimpleNamespace(nvrtcVersion=missing, nvrtcGetSupportedArchs=missing)
    )
    with pytest.raises(PluginError, match=r'NVRTC.* does not load \(Failure finding "libnvrtc\.so\.13"\); pip install'):
        call.__wrapped__()


def test_importing_it_needs_no_cuda() -> None:
    program = (
        "import sys, edge_mrcnn.gpu.compile, edge_mrcnn.gpu.launcher, edge_mrcnn.gpu.memory\n"
        "assert not [name for name in sys.modules if name in ('cuda.core', 'cuda.bindings')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
