"""Kernels from source to a binary for one GPU: NVRTC through cuda.core, the binaries kept on disk.

The sources include nothing of CUDA's and nothing of the standard library's, so that NVRTC alone suffices: no toolkit,
no C++ compiler, no headers, and no GPU either.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import io
import logging
import re
import threading
from pathlib import Path
from typing import Any

import edge_mrcnn
from edge_mrcnn.errors import PluginError
from edge_mrcnn.files import cache_folder
from edge_mrcnn.gpu.cuda import INSTALL

_log = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 64 << 20
"""Several hundred binaries; those not read for longest go."""

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
_LOG_LINES = 12

_import_lock = threading.Lock()
"""cuda.core rearranges its modules while it is imported: a second thread would find it incomplete."""


def kernel_folder() -> Path:
    """Where the kernels' sources lie: in the package where they were installed with it, else in the repository."""
    package = Path(edge_mrcnn.__file__).parent
    installed = package / "plugins"
    return installed if installed.is_dir() else package.parent / "plugins"


def kernel_cache_folder() -> Path:
    """`~/.cache/edge_mrcnn/kernels`, or as `$XDG_CACHE_HOME` says."""
    return cache_folder("kernels")


def compile_kernels(source: str, architecture: str, folder: Path | None = None, cache: Path | None = None) -> bytes:
    """Compile the kernels of a file, or take them from the cache, where several processes may work at once.

    Args:
        source: File below `folder`, such as `rpn_proposals/rpn_proposals.cuh`.
        architecture: The GPU's, such as `sm_87`.
        folder: Root of the sources and of what they include; `kernel_folder()` by default.
        cache: Folder of the binaries; `kernel_cache_folder()` by default. If it cannot be used, the log says so.

    Returns:
        A cubin.

    Raises:
        PluginError: cuda.core, NVRTC or the source is missing, NVRTC does not know the GPU, or the source does not
            compile.
    """
    folder = folder or kernel_folder()
    text = _read(folder, source)
    options = nvrtc_options(source, architecture, folder)
    key = _cuda("cuda.core.utils").make_program_cache_key(
        code=text, code_type="c++", options=options, target_type="cubin", extra_digest=_digest_includes(folder, text)
    )
    store = _open_cache(cache or kernel_cache_folder())
    binary = _fetch(store, key)
    if binary is None:
        binary = _compile(source, text, options)[0]
        _keep(store, key, binary)
    return binary


def ptxas_report(source: str, architecture: str, folder: Path | None = None) -> str:
    """What ptxas says of each kernel of a file: registers, spills, shared memory. Compiles it, without the cache.

    Raises:
        PluginError: As `compile_kernels`.
    """
    folder = folder or kernel_folder()
    options = nvrtc_options(source, architecture, folder, ptxas_options="-v")
    return _compile(source, _read(folder, source), options)[1]


@functools.cache
def nvrtc_version() -> tuple[int, int]:
    """Version of the NVRTC that is installed.

    Raises:
        PluginError: None is.
    """
    _, major, minor = _ask_nvrtc("nvrtcVersion")
    return major, minor


@functools.cache
def nvrtc_architectures() -> tuple[int, ...]:
    """What the installed NVRTC compiles for, ascending: 75 for `sm_75` and so on.

    Raises:
        PluginError: No NVRTC is installed.
    """
    return tuple(_ask_nvrtc("nvrtcGetSupportedArchs")[1])


def nvrtc_options(source: str, architecture: str, folder: Path, **more: Any) -> Any:
    """How a file is compiled, as cuda.core's `ProgramOptions`.

    No fast arithmetic: results must equal the reference's. Contraction to FMA stays on, and the kernels forbid it where
    it would tell.

    Raises:
        PluginError: NVRTC is missing or does not know the GPU.
    """
    if int(architecture.removeprefix("sm_")) not in nvrtc_architectures():
        known = ", ".join(f"sm_{number}" for number in nvrtc_architectures())
        raise PluginError(
            f"NVRTC {_version_text()} does not compile for {architecture}, only for {known}; for a newer GPU install a "
            "newer one: pip install --upgrade nvidia-cuda-nvrtc (CUDA 12: nvidia-cuda-nvrtc-cu12)"
        )
    return _cuda("cuda.core").ProgramOptions(
        name=Path(source).name,
        arch=architecture,
        std="c++17",
        include_path=str(folder),
        no_source_include=True,  # lest a folder `common` where the program was started be read
        **more,
    )


def _compile(source: str, text: str, options: Any) -> tuple[bytes, str]:
    """Binary and log."""
    log = io.StringIO()
    try:
        with contextlib.closing(_cuda("cuda.core").Program(text, "c++", options)) as program:
            binary = bytes(program.compile("cubin", logs=log).code)
    except Exception as error:  # NVRTCError of a module that is not public, or what loading the library raises
        nvrtc_version()  # says that NVRTC is missing, where that is the reason
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise PluginError(
            f"{source} does not compile for {options.arch} with NVRTC {_version_text()}; if the file is as it was "
            f"shipped, try another NVRTC ({INSTALL}) and report this:\n" + "\n".join(lines[:_LOG_LINES])
        ) from error
    return binary, log.getvalue().rstrip("\0\n")


def _read(folder: Path, source: str) -> str:
    try:
        return (folder / source).read_text(encoding="utf-8")
    except OSError as error:
        raise PluginError(f"the kernel {folder / source} cannot be read ({error}); install edge-mrcnn again") from error


def _digest_includes(folder: Path, text: str) -> bytes:
    """Hash of every file that the text includes, directly or not; cuda.core's key covers the text and the options only.

    Files are found as NVRTC finds them, below `folder`, but whatever the preprocessor would leave out counts too. One
    that is missing is the compiler's to report.
    """
    digest, seen, waiting = hashlib.sha256(), set[str](), _INCLUDE.findall(text)
    while waiting:
        name = waiting.pop()
        if name in seen or not (folder / name).is_file():
            continue
        seen.add(name)
        content = _read(folder, name)
        digest.update(f"{name}\0{len(content)}\0{content}".encode())
        waiting += _INCLUDE.findall(content)
    return digest.digest()


def _cuda(name: str) -> Any:
    """A module of cuda-core or cuda-bindings."""
    try:
        with _import_lock:
            return importlib.import_module(name)
    except ImportError as error:
        raise PluginError(
            f"compiling CUDA kernels needs cuda-core, which does not load ({error}); {INSTALL}"
        ) from error


def _ask_nvrtc(call: str) -> Any:
    try:
        return getattr(_cuda("cuda.bindings.nvrtc"), call)()
    except (
        RuntimeError
    ) as error:  # of cuda-pathfinder where the library is missing, of the bindings where it is another
        first = (str(error).splitlines() or [""])[0]
        raise PluginError(f"NVRTC, the compiler of CUDA kernels, does not load ({first}); {INSTALL}") from error


def _version_text() -> str:
    return "{}.{}".format(*nvrtc_version())


def _open_cache(folder: Path) -> Any | None:
    try:
        return _cuda("cuda.core.utils").FileStreamProgramCache(folder, max_size_bytes=CACHE_LIMIT_BYTES)
    except OSError as error:
        _log.warning("kernels are compiled at every start, since their cache %s cannot be used: %s", folder, error)
        return None


def _fetch(store: Any | None, key: bytes) -> bytes | None:
    try:
        found = store.get(key) if store is not None else None
    except OSError as error:
        _log.warning("a kernel in the cache cannot be read and is compiled again: %s", error)
        return None
    return None if found is None else bytes(found)


def _keep(store: Any | None, key: bytes, binary: bytes) -> None:
    if store is None:
        return
    try:
        store[key] = binary
    except OSError as error:
        _log.warning("a compiled kernel is not kept in the cache: %s", error)
