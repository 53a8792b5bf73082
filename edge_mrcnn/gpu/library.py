"""The C++ plugin library: where it lies, what is known of its build, how it comes into the TensorRT at hand."""

from __future__ import annotations

import ctypes
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edge_mrcnn
from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu.target import Flavour
from edge_mrcnn.gpu.tensorrt_api import TensorRtApi
from edge_mrcnn.ops import DOMAIN, OPS, VERSION

_log = logging.getLogger(__name__)

LIBRARY = "libedge_mrcnn_plugins.so"

VARIABLE = "EDGE_MRCNN_PLUGINS"
"""Environment variable that names the library's file; `off` leaves the library out."""

RECORD = "build.json"
"""What `setup.py` wrote about the build, beside the library."""

REBUILD = (
    "build it again on this machine (pip install --force-reinstall --no-deps . in the repository), or use the Python "
    f"plugin instead: {VARIABLE}=off"
)

_loaded: dict[Flavour, Path] = {}


@dataclass(frozen=True)
class BuildRecord:
    """What installing the package made of the C++ library.

    Attributes:
        built: Whether it is there.
        reason: Why not, and what to do about it; None where it was built.
        cuda: Version of the CUDA compiler, None where there was none.
        tensorrt: Version of the TensorRT headers, None where there were none.
        architectures: GPUs it has binaries for, such as `87`.
    """

    built: bool
    reason: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    architectures: str | None = None


def find_library() -> Path | None:
    """The library's file: what `EDGE_MRCNN_PLUGINS` names, the installed one, or that of a CMake build in `build/`.

    Returns:
        Its path; None where there is none or the variable says `off`.

    Raises:
        PluginError: The variable names a file that is not there.
    """
    named = os.environ.get(VARIABLE)
    if named == "off":
        return None
    if named:
        if not Path(named).is_file():
            raise PluginError(f"{VARIABLE} names {named}, which is not a file; give the path of {LIBRARY}, or unset it")
        return Path(named).resolve()
    places = (_package_folder() / "lib" / LIBRARY, _package_folder().parent / "build" / LIBRARY)
    return next((place for place in places if place.is_file()), None)


def absolute_variable() -> dict[str, str]:
    """The environment variable, if it is set, for a process that runs in another folder."""
    named = os.environ.get(VARIABLE)
    return {VARIABLE: os.path.abspath(named)} if named and named != "off" else {}


def read_record() -> BuildRecord | None:
    """What installing the package said of the library; None where it says nothing."""
    try:
        return BuildRecord(**json.loads((_package_folder() / "lib" / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def load_plugins(api: TensorRtApi) -> Path | None:
    """Load the library into a TensorRT, unless its plugins are there already.

    Returns:
        The library that was loaded, now or before; None where there is none, or where something else registered
        plugins for all ops.

    Raises:
        PluginError: The library does not load, or TensorRT does not take its plugins.
    """
    registry = api.module.get_plugin_registry()
    missing = missing_creators(registry)
    if not missing:
        return _loaded.get(api.flavour)
    library = find_library()
    if library is None:
        return None
    try:
        ctypes.CDLL(str(library))  # TensorRT would say why it does not load in its log only
    except OSError as error:
        raise PluginError(f"{library} does not load ({error}); {REBUILD}") from error
    registry.load_library(str(library))
    if missing := missing_creators(registry):
        raise PluginError(f"{library} gives TensorRT {api.version} no plugin for {', '.join(missing)}; {REBUILD}")
    _log.info("plugins: %s", library)
    _loaded[api.flavour] = library
    return library


def missing_creators(registry: Any) -> list[str]:
    """Ops for which a TensorRT's registry has no plugin."""
    there = {  # not asked for by name: TensorRT writes an error to its log for each that it does not find
        creator.name
        for creator in registry.all_creators
        if (creator.plugin_namespace, creator.plugin_version) == (DOMAIN, VERSION)
    }
    return [name for name in OPS if name not in there]


def _package_folder() -> Path:
    return Path(edge_mrcnn.__file__).resolve().parent
