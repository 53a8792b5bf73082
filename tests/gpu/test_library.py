"""Finding and loading the C++ library, with stand-ins for it; tests/plugins/test_library.py has the real one."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_mrcnn.errors import PluginError
from edge_mrcnn.gpu import library
from edge_mrcnn.gpu.library import LIBRARY, BuildRecord, find_library, load_plugins, missing_creators, read_record
from edge_mrcnn.gpu.tensorrt_api import TensorRtApi
from edge_mrcnn.ops import DOMAIN, OPS, VERSION


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with nothing built, as the package sees its own."""
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "_package_folder", lambda: tmp_path / "edge_mrcnn")
    monkeypatch.setattr(library, "_loaded", {})
    return tmp_path


def put(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def creator(name: str, namespace: str = DOMAIN, version: str = VERSION) -> SimpleNamespace:
    return SimpleNamespace(name=name, plugin_namespace=namespace, plugin_version=version)


class Registry:
    """A TensorRT's registry, and what loading a library puts into it."""

    def __init__(self, there: tuple[str, ...] = (), brings: tuple[str, ...] = tuple(OPS)) -> None:
        self.all_creators = [creator(name) for name in there]
        self.brings, self.loaded = brings, []

    def load_library(self, path: str) -> None:
        self.loaded.append(path)
        self.all_creators += [creator(name) for name in self.brings]


def api_with(registry: Registry) -> TensorRtApi:
    return TensorRtApi("rtx", SimpleNamespace(get_plugin_registry=lambda: registry, __version__="1.7.1"))


def test_nothing_built_is_no_library(checkout: Path) -> None:
    assert find_library() is None
    assert read_record() is None
    registry = Registry()
    assert load_plugins(api_with(registry)) is None
    assert registry.loaded == []


def test_the_installed_library_goes_before_a_cmake_build(checkout: Path) -> None:
    built = put(checkout / "build" / LIBRARY)
    assert find_library() == built
    installed = put(checkout / "edge_mrcnn" / "lib" / LIBRARY)
    assert find_library() == installed


def test_the_variable_goes_before_both(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(checkout / "build" / LIBRARY)
    other = put(checkout / "other.so")
    monkeypatch.setenv(library.VARIABLE, str(other))
    assert find_library() == other
    monkeypatch.setenv(library.VARIABLE, "off")
    assert find_library() is None
    monkeypatch.setenv(library.VARIABLE, str(checkout / "nowhere.so"))
    with pytest.raises(PluginError, match=r"EDGE_MRCNN_PLUGINS names .*nowhere\.so, which is not a file"):
        find_library()


@pytest.mark.parametrize(("named", "absolute"), [(None, None), ("off", None), ("some.so", "some.so")])
def test_a_relative_path_holds_in_another_folder(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, absolute: str | None
) -> None:
    """The process that builds an engine runs in a folder of its own."""
    monkeypatch.chdir(checkout)
    if named:
        monkeypatch.setenv(library.VARIABLE, named)
    expected = {library.VARIABLE: str(checkout / absolute)} if absolute else {}
    assert library.absolute_variable() == expected


def test_a_library_is_loaded_once(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(checkout / "build" / LIBRARY)
    monkeypatch.setattr(ctypes, "CDLL", str)
    registry = Registry()
    assert [load_plugins(api_with(registry)) for _ in range(2)] == [path, path]
    assert registry.loaded == [str(path)]


def test_plugins_of_others_are_left_alone(checkout: Path) -> None:
    put(checkout / "build" / LIBRARY)
    registry = Registry(there=tuple(OPS))
    assert load_plugins(api_with(registry)) is None
    assert registry.loaded == []


def test_a_file_that_is_no_library_is_an_error_with_a_remedy(checkout: Path) -> None:
    put(checkout / "build" / LIBRARY, "not an ELF file, and longer than one's header is: " + 80 * "x")
    with pytest.raises(PluginError, match=r"does not load \(.*\); build it again.*EDGE_MRCNN_PLUGINS=off"):
        load_plugins(api_with(Registry()))


def test_a_library_without_all_plugins_is_an_error(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(checkout / "build" / LIBRARY)
    monkeypatch.setattr(ctypes, "CDLL", str)
    with pytest.raises(PluginError, match=r"gives TensorRT 1\.7\.1 no plugin for DetectionNms; build it again"):
        load_plugins(api_with(Registry(brings=("RpnProposals", "PyramidRoiAlign"))))


@pytest.mark.parametrize(
    "other",
    [
        creator("DetectionNms", namespace=""),  # what NVIDIA's macro would have made of it
        creator("DetectionNms", version="2"),
    ],
)
def test_a_creator_counts_by_name_version_and_namespace(other: SimpleNamespace) -> None:
    registry = Registry(there=("RpnProposals", "PyramidRoiAlign"))
    registry.all_creators.append(other)
    assert missing_creators(registry) == ["DetectionNms"]


RECORDS: list[tuple[str, Any]] = [
    (json.dumps({"built": False, "reason": "no nvcc"}), BuildRecord(False, "no nvcc")),
    (
        json.dumps({"built": True, "reason": None, "cuda": "12.6", "tensorrt": "10.3.0", "architectures": "87"}),
        BuildRecord(True, None, "12.6", "10.3.0", "87"),
    ),
    ("{", None),
    (json.dumps({"unheard of": 1}), None),
]


@pytest.mark.parametrize(("text", "expected"), RECORDS)
def test_the_record_of_the_build(checkout: Path, text: str, expected: BuildRecord | None) -> None:
    put(checkout / "edge_mrcnn" / "lib" / library.RECORD, text)
    assert read_record() == expected
