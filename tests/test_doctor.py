from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_mrcnn import cli, device, doctor
from edge_mrcnn.device import Gpu
from edge_mrcnn.doctor import Finding, examine, to_json, to_lines
from edge_mrcnn.gpu import library
from edge_mrcnn.gpu.library import BuildRecord
from edge_mrcnn.packages import NEEDS, PACKAGES, Package, find_package

GPU = Gpu("NVIDIA RTX 4090", (8, 9), 24 << 30)

ALL = {package.module: "1.0" for package in PACKAGES}


def pretend(monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu] | None = None, missing: tuple[str, ...] = ()) -> None:
    """A machine with these GPUs and every package but those."""
    monkeypatch.setattr(device, "find_gpus", lambda: gpus or [])
    monkeypatch.setattr(device, "driver_cuda_version", lambda: (12, 6) if gpus else None)
    monkeypatch.setattr(device, "jetson_model", lambda: None)
    monkeypatch.setattr(doctor, "find_package", lambda package: None if package.module in missing else "1.0")


def look_up(area: str, name: str) -> Finding:
    return next(finding for finding in examine() if (finding.area, finding.name) == (area, name))


def test_this_machine_is_examined_without_a_crash() -> None:
    findings = examine()
    assert {finding.area for finding in findings} >= {"machine", "packages", "tensorrt", "video", "rendering", "verbs"}
    assert look_up("machine", "Python").status == "ok"
    assert all(finding.remedy for finding in findings if finding.status == "missing"), "what is missing has a remedy"
    assert [item["name"] for item in json.loads(to_json(findings))] == [finding.name for finding in findings]
    lines = to_lines(findings)
    assert "verbs:" in lines
    assert all(any(finding.detail in line for line in lines) for finding in findings)


VERBS = [
    # verb, package that is missing, command that helps
    ("train", "torchvision", "pip install 'edge-mrcnn[train]'"),
    ("export", "onnxscript", "pip install 'edge-mrcnn[train]'"),
    ("import", "onnx", "pip install 'edge-mrcnn[compile]'"),
    ("build", "onnx_graphsurgeon", "pip install 'edge-mrcnn[compile]'"),
    ("build", "tensorrt_rtx", "pip install 'edge-mrcnn[rtx]'"),
    ("run", "cv2", "pip install 'edge-mrcnn[vision]'"),
    ("run", "onnxruntime", "pip install 'edge-mrcnn[cpu]'"),
    ("eval", "pycocotools", "pip install 'edge-mrcnn[eval]'"),
    ("calibrate", "onnxruntime", "pip install 'edge-mrcnn[cpu]'"),
    ("sensitivity", "pycocotools", "pip install 'edge-mrcnn[eval]'"),
    ("compare", "jinja2", "pip install 'edge-mrcnn[eval]'"),
    ("bench", "onnxruntime", "pip install 'edge-mrcnn[cpu]'"),
    ("soak", "av", "pip install 'edge-mrcnn[video]'"),
    ("inspect", "onnx", "pip install 'edge-mrcnn[compile]'"),
]


@pytest.mark.parametrize(("verb", "missing", "remedy"), VERBS)
def test_a_verb_that_cannot_run_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, verb: str, missing: str, remedy: str
) -> None:
    pretend(monkeypatch)
    assert look_up("verbs", verb).status == "ok"
    pretend(monkeypatch, missing=(missing,))
    finding = look_up("verbs", verb)
    assert (finding.status, finding.remedy) == ("missing", remedy)
    assert missing in finding.detail


def test_every_verb_of_the_cli_is_examined() -> None:
    assert set(NEEDS) | {"doctor"} == set(cli.VERBS)


def test_every_extra_named_is_one_of_the_projects() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert {package.extra for package in PACKAGES} <= set(project["optional-dependencies"])


def test_importing_checkpoints_takes_torch_and_onnx_files_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, missing=("torch",))
    assert look_up("verbs", "import").status == "ok"
    assert look_up("verbs", "import").detail == "takes ONNX files; checkpoints need the extra train"
    pretend(monkeypatch)
    assert look_up("verbs", "import").detail == "can run here"


def test_a_full_tensorrt_builds_only_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, missing=("tensorrt_rtx",))
    assert look_up("verbs", "build").status == "missing"
    pretend(monkeypatch, [GPU], missing=("tensorrt_rtx",))
    assert look_up("verbs", "build").detail == "can build with --target tensorrt"
    pretend(monkeypatch, [GPU])
    assert look_up("verbs", "build").detail == "can build with --target rtx or --target tensorrt"


def test_what_only_a_gpu_has_use_for_is_not_missing_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, missing=("tensorrt", "cuda"))
    assert look_up("packages", "tensorrt").status == "note"
    pretend(monkeypatch, [GPU], missing=("tensorrt", "cuda"))
    assert look_up("packages", "tensorrt").status == "missing"
    assert look_up("tensorrt", "TensorRT").remedy == "pip install 'edge-mrcnn[tensorrt]'"


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, [GPU])
    assert look_up("machine", "GPU 0").detail == "NVIDIA RTX 4090, sm_89, 24.0 GiB, driver for CUDA 12.6"


def test_a_jetson_is_told_of_its_own_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, [Gpu("Orin", (8, 7), 8 << 30, integrated=True)], missing=("tensorrt", "cv2"))
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic")
    monkeypatch.setattr(device, "JETSON_RELEASE", tmp_path / "release")
    monkeypatch.setattr(device, "jetson_model", lambda: "NVIDIA Jetson Orin Nano")
    assert look_up("machine", "Jetson").detail == "NVIDIA Jetson Orin Nano, L4T 36.4.3"
    assert "shared with the host" in look_up("machine", "GPU 0").detail
    assert look_up("packages", "tensorrt").remedy == doctor.ON_JETSON
    assert look_up("packages", "opencv-python").remedy == doctor.ON_JETSON


class BrokenOpenCv:
    def find_spec(self, name: str, *_: Any) -> None:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")


def test_a_broken_opencv_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(sys, "meta_path", [BrokenOpenCv(), *sys.meta_path])
    finding = look_up("video", "OpenCV")
    assert finding.status == "missing"
    assert "libGL.so.1" in finding.detail
    assert finding.remedy is not None
    assert "apt-get install -y libgl1" in finding.remedy


GSTREAMERS = [
    # build information, a Jetson, elements missing, status, what is said, remedy
    ("  GStreamer:   NO\n", False, (), "note", "as in every OpenCV of pip's", None),
    ("  GStreamer:   NO\n", True, (), "missing", "not in this OpenCV", "pip uninstall opencv-python"),
    ("  GStreamer:   YES (1.22.0)\n", False, ("nvvidconv",), "ok", "for gst://", None),
    ("  GStreamer:   YES (1.20.3)\n", True, (), "ok", "for csi://, gst:// and decode=hardware", None),
    (
        "  GStreamer:   YES (1.20.3)\n",
        True,
        ("nvarguscamerasrc", "nvvidconv"),
        "missing",
        "nvarguscamerasrc, nvvidconv not installed",
        "nvidia-l4t-gstreamer",
    ),
]


@pytest.mark.parametrize(("information", "jetson", "missing", "status", "detail", "remedy"), GSTREAMERS)
def test_gstreamer(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    information: str,
    jetson: bool,
    missing: tuple[str, ...],
    status: str,
    detail: str,
    remedy: str | None,
) -> None:
    """By a tool that knows all elements but those."""
    tool = tmp_path / "gst-inspect-1.0"
    tool.write_text(f'#!/bin/sh\ncase " {" ".join(missing)} " in *" $2 "*) exit 1;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(device, "jetson_model", lambda: "NVIDIA Jetson Orin Nano" if jetson else None)
    finding = doctor._examine_gstreamer(information)
    assert finding.status == status
    assert detail in finding.detail
    assert (remedy or "") in (finding.remedy or "")


def test_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    assert look_up("video", "PyAV").detail.startswith(av.__version__)
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    assert look_up("video", "writes video").detail.startswith("MPEG-4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert look_up("video", "PyAV").remedy == "pip install 'edge-mrcnn[video]'"


LIVE = [
    # package, distribution, extra
    ("av", "av", "video"),
    ("aiohttp", "aiohttp", "web"),
    ("prometheus_client", "prometheus-client", "web"),
    ("rosbags", "rosbags", "ros"),
    ("mcap", "mcap", "ros"),
    ("cyclonedds", "cyclonedds", "dds"),
    ("zenoh", "eclipse-zenoh", "zenoh"),
]


def test_what_live_runs_take_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of where it is missing, but `run` goes without."""
    pretend(monkeypatch, missing=tuple(module for module, _, _ in LIVE))
    findings = {finding.name: finding for finding in examine() if finding.area in ("packages", "verbs")}
    for _, distribution, extra in LIVE:
        found = findings[distribution]
        assert (found.status, found.remedy) == ("missing", f"pip install 'edge-mrcnn[{extra}]'")
    assert findings["run"].status == "ok"


GUIS = [
    # build information, DISPLAY, status
    ("  GUI:   NONE\n", ":0", "missing"),
    ("  GUI:   QT5\n", "", "note"),
    ("  GUI:   QT5\n", ":0", "ok"),
    ("", ":0", "missing"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="displays are asked for on Linux")
@pytest.mark.parametrize(("information", "display", "status"), GUIS)
def test_windows_need_a_gui_and_a_display(
    monkeypatch: pytest.MonkeyPatch, information: str, display: str, status: str
) -> None:
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert doctor._examine_window(information).status == status


def test_a_package_is_found_without_importing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "explosive_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    package = Package("explosive_package", ("explosive-package",), "x", "nothing")
    assert find_package(package) == "unknown version"
    assert find_package(Package("no_such_package", ("no-such-package",), "x", "nothing")) is None


def test_other_packages_in_the_cuda_namespace_are_not_cuda_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cuda").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_package(Package("cuda", ("no-such-cuda-core",), "gpu-cu13", "")) is None


LIBRARIES = [
    # EDGE_MRCNN_PLUGINS, library that is there, record of the build, status, what is said
    (None, None, None, "note", "not built: the package was installed without building them"),
    (
        None,
        None,
        BuildRecord(False, "nvcc was not found; install it"),
        "note",
        "not built: nvcc was not found; install it",
    ),
    (
        None,
        "lib/lib.so",
        BuildRecord(True, None, "12.6", "10.3.0", "87"),
        "ok",
        "lib/lib.so, for TensorRT 10.3.0 with CUDA 12.6",
    ),
    (None, "build/lib.so", BuildRecord(False, "nvcc was not found"), "ok", "build/lib.so"),
    ("off", None, None, "note", "left out by EDGE_MRCNN_PLUGINS=off"),
    ("/nowhere/lib.so", None, None, "missing", "EDGE_MRCNN_PLUGINS is set"),
]


@pytest.mark.parametrize(("variable", "path", "record", "status", "detail"), LIBRARIES)
def test_the_cpp_plugins(
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    path: str | None,
    record: BuildRecord | None,
    status: str,
    detail: str,
) -> None:
    monkeypatch.setattr(library, "read_record", lambda: record)
    if variable:
        monkeypatch.setenv(library.VARIABLE, variable)
    else:
        monkeypatch.delenv(library.VARIABLE, raising=False)
        monkeypatch.setattr(library, "find_library", lambda: path and Path(path))
    finding = look_up("tensorrt", "C++ plugins")
    assert finding.status == status
    assert finding.detail.startswith(detail)
    assert ("the Python plugins take their place" in finding.detail) == (status == "note")


PYTHON_PLUGINS = [
    # GPUs, packages missing, NVRTC, status, what is said, remedy
    ([GPU], (), "12.6.85", "ok", "NVRTC 12.6.85 compiles 5 kernel files", None),
    ([], (), "of the CUDA toolkit", "ok", "NVRTC of the CUDA toolkit compiles 5 kernel files", None),
    ([GPU], (), None, "missing", "need NVRTC to run them", "pip install 'edge-mrcnn[gpu-cu12]'"),
    ([GPU], ("cuda",), "12.6.85", "missing", "need cuda-core to run them", "pip install 'edge-mrcnn[gpu-cu12]'"),
    ([], ("cuda",), None, "note", "running them would take NVRTC as well as a GPU", None),
]


@pytest.mark.parametrize(("gpus", "missing", "nvrtc", "status", "detail", "remedy"), PYTHON_PLUGINS)
def test_the_python_plugins(
    monkeypatch: pytest.MonkeyPatch,
    gpus: list[Gpu],
    missing: tuple[str, ...],
    nvrtc: str | None,
    status: str,
    detail: str,
    remedy: str | None,
) -> None:
    pretend(monkeypatch, gpus, missing)
    monkeypatch.setattr(doctor, "_find_nvrtc", lambda: nvrtc)
    finding = look_up("tensorrt", "Python plugins")
    assert (finding.status, finding.remedy) == (status, remedy)
    assert detail in finding.detail


def test_python_plugins_without_their_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edge_mrcnn.gpu.compile.kernel_folder", lambda: tmp_path)
    finding = look_up("tensorrt", "Python plugins")
    assert (finding.status, finding.detail) == ("missing", f"the kernels' sources are not in {tmp_path}")


ENGINES = [
    # GPUs, packages missing, what is said of running a model
    ([], (), "runs model.onnx on the CPU; engines need an NVIDIA GPU"),
    ([GPU], (), "runs model.onnx on the CPU and engines on NVIDIA RTX 4090"),
    ([GPU], ("tensorrt",), "runs model.onnx on the CPU and engines on NVIDIA RTX 4090"),
    ([GPU], ("cuda",), "runs model.onnx on the CPU; engines need cuda-core"),
    (
        [GPU],
        ("cuda", "tensorrt", "tensorrt_rtx"),
        "runs model.onnx on the CPU; engines need cuda-core and tensorrt or tensorrt-rtx",
    ),
]


@pytest.mark.parametrize("verb", ["run", "eval", "bench"])
@pytest.mark.parametrize(("gpus", "missing", "detail"), ENGINES)
def test_what_models_run_on(
    monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], missing: tuple[str, ...], detail: str, verb: str
) -> None:
    pretend(monkeypatch, gpus, missing)
    assert look_up("verbs", verb).detail == detail
