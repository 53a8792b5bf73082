from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import tensorrt_api
from edge_mrcnn.gpu.target import parse_target
from edge_mrcnn.gpu.tensorrt_api import TensorRtApi


@pytest.mark.parametrize("value", [0, 1])
def test_the_strongly_typed_flag_is_a_bit_wherever_the_enum_puts_it(value: int) -> None:
    module = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=value))
    builder = SimpleNamespace(create_network=lambda flags: flags)
    assert TensorRtApi("tensorrt", module).create_network(builder) == 1 << value


def test_what_is_not_installed_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt_api.MODULES, "tensorrt", "no_such_tensorrt")
    with pytest.raises(EngineError, match=r"TensorRT is not installed; pip install 'edge-mrcnn\[tensorrt\]'.*JetPack"):
        tensorrt_api.load("tensorrt")
    assert tensorrt_api.installed_version("tensorrt") is None


def test_an_old_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))
    with pytest.raises(EngineError, match=r"TensorRT 8\.6\.1 is too old, 10\.3 is needed"):
        tensorrt_api.load("tensorrt")


def test_a_broken_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "broken_tensorrt.py").write_text("raise ImportError('libcudart.so.12: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(tensorrt_api.MODULES, "tensorrt", "broken_tensorrt")
    with pytest.raises(EngineError, match=r"does not load \(libcudart\.so\.12"):
        tensorrt_api.load("tensorrt")


def test_the_parser_finds_its_library_by_its_short_name(tmp_path: Path, rtx: None) -> None:
    tensorrt_api.link_libraries("rtx", tmp_path)
    link = tmp_path / "libtensorrt_rtx.so"
    if not link.is_symlink():
        pytest.skip("the tensorrt-rtx wheel here has no libraries of its own")
    assert link.resolve().name.startswith("libtensorrt_rtx.so.")
    tensorrt_api.link_libraries("rtx", tmp_path)


class Config:
    def __init__(self) -> None:
        self.num_compute_capabilities: int | None = None
        self.given: list[object] = []

    def set_compute_capability(self, member: object, index: int) -> bool:
        assert index == len(self.given)
        self.given.append(member)
        return True


@pytest.mark.parametrize(
    ("text", "given"),
    [("rtx", None), ("rtx:sm_86,sm_120", ["SM86", "SM120"]), ("rtx:current", ["CURRENT"])],
)
def test_targets_become_compute_capabilities(rtx: None, text: str, given: list[str] | None) -> None:
    api, config = tensorrt_api.load("rtx"), Config()
    api.set_targets(config, parse_target(text))
    assert config.num_compute_capabilities == (len(given) if given else None)
    assert [member.name for member in config.given] == (given or [])  # type: ignore[attr-defined]


def test_a_gpu_that_rtx_cannot_build_for_is_named(rtx: None) -> None:
    api = tensorrt_api.load("rtx")
    with pytest.raises(EngineError, match=r"cannot build for sm_87, only for sm_75.*--target tensorrt"):
        api.set_targets(Config(), parse_target("rtx:sm_86,sm_87"))


def test_nothing_is_imported_until_asked_for() -> None:
    code = (
        "import sys; from edge_mrcnn.gpu import tensorrt_api, plugins, target; "
        "from edge_mrcnn.compiler import build_worker; "
        "bad = {'tensorrt', 'tensorrt_rtx', 'torch', 'onnx'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
