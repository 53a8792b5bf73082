"""What this machine can run and build, and what to install for the rest: `examine`.

Nothing is imported that is only asked about, except OpenCV and PyAV, whose abilities only they can tell; nothing here
crashes on a machine where something is missing or broken.
"""

from __future__ import annotations

import ctypes.util
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_mrcnn import device
from edge_mrcnn.errors import PluginError
from edge_mrcnn.packages import GPU_ONLY, NEEDS, PACKAGES, find_package

Status = Literal["ok", "missing", "note"]

JETSON_ELEMENTS = ("nvarguscamerasrc", "nvv4l2decoder", "nvvidconv")
"""Of GStreamer: a Jetson's CSI cameras and decoder."""

OLDEST_PYTHON = (3, 10)

ON_JETSON = "JetPack brings it: use a virtual environment made with --system-site-packages"


@dataclass(frozen=True)
class Finding:
    """One thing found out about this machine.

    Attributes:
        area: `machine`, `packages`, `tensorrt`, `video`, `rendering` or `verbs`.
        name: What it is about.
        status: `ok`, `missing` (with a remedy), or `note` where nothing need be done.
        detail: What was found.
        remedy: What to do, as a command where there is one.
    """

    area: str
    name: str
    status: Status
    detail: str
    remedy: str | None = None


def examine() -> list[Finding]:
    """Find out what this machine can run and build, most general first."""
    gpus = device.find_gpus()
    return [
        *_examine_machine(gpus),
        *_examine_packages(gpus),
        *_examine_tensorrt(gpus),
        *_examine_video(),
        *_examine_pyav(),
        *_examine_rendering(),
        *_examine_verbs(gpus),
    ]


def to_json(findings: Iterable[Finding]) -> str:
    """The findings as indented JSON."""
    return json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1) + "\n"


def to_lines(findings: Iterable[Finding]) -> list[str]:
    """The findings as lines of text, by area, remedies below what is missing."""
    lines: list[str] = []
    area = None
    for finding in findings:
        if finding.area != area:
            lines += [*([""] if lines else []), f"{finding.area}:"]
            area = finding.area
        mark = {"ok": "ok     ", "missing": "missing", "note": "       "}[finding.status]
        lines.append(f"  {mark}  {finding.name}: {finding.detail}")
        if finding.remedy:
            lines.append(f"           -> {finding.remedy}")
    return lines


def _examine_machine(gpus: list[device.Gpu]) -> Iterable[Finding]:
    version = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        yield Finding("machine", "Python", "ok", version)
    else:
        yield Finding("machine", "Python", "missing", f"{version} is too old", "install Python 3.10 or newer")
    yield Finding("machine", "platform", "note", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    if dots := device.integer_dot_products():
        yield Finding("machine", "int8 on the CPU", "ok", f"{dots}: build --precision int8 --target cpu pays")
    else:
        detail = "no dot products of bytes (VNNI) are told of: int8 on the CPU may gain little; edge-mrcnn bench tells"
        yield Finding("machine", "int8 on the CPU", "note", detail)
    if model := device.jetson_model():
        yield Finding("machine", "Jetson", "note", f"{model}{_l4t_release()}")
    cuda = device.driver_cuda_version()
    for index, gpu in enumerate(gpus):
        size = f"{gpu.memory_bytes / (1 << 30):.1f} GiB{' shared with the host' if gpu.integrated else ''}"
        driver = f", driver for CUDA {cuda[0]}.{cuda[1]}" if cuda else ""
        yield Finding("machine", f"GPU {index}", "ok", f"{gpu.name}, {gpu.sm}, {size}{driver}")
    if not gpus:
        yield Finding("machine", "GPU", "note", _explain_no_gpu())


def _explain_no_gpu() -> str:
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return "an NVIDIA driver is installed but shows no GPU to programs; check nvidia-smi, and a container's --gpus"
    return "no NVIDIA GPU; models run on the CPU, and TensorRT-RTX engines can be built"


def _l4t_release() -> str:
    try:
        text = device.JETSON_RELEASE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", text)
    return f", L4T {found[1]}.{found[2]}" if found else ""


def _examine_packages(gpus: list[device.Gpu]) -> Iterable[Finding]:
    for package in PACKAGES:
        version = find_package(package)
        name = package.distributions[0]
        if version is not None:
            yield Finding("packages", name, "ok", f"{version}, for {package.purpose}")
        elif package.module in GPU_ONLY and not gpus:
            yield Finding("packages", name, "note", f"not installed, and of no use without a GPU: {package.purpose}")
        else:
            yield Finding("packages", name, "missing", f"not installed, for {package.purpose}", _install(package.extra))


def _examine_tensorrt(gpus: list[device.Gpu]) -> Iterable[Finding]:
    installed = _installed()
    if "tensorrt_rtx" in installed:
        detail = f"{installed['tensorrt_rtx']} builds engines here, without a GPU too: --target rtx"
        yield Finding("tensorrt", "TensorRT-RTX", "ok", detail)
    else:
        yield Finding("tensorrt", "TensorRT-RTX", "missing", "not installed", _install("rtx"))
    if not gpus:
        detail = "builds on the GPU that the engine is for; there is none here"
        yield Finding("tensorrt", "TensorRT", "note", detail)
    elif "tensorrt" in installed:
        detail = f"{installed['tensorrt']} builds engines for {gpus[0].name} here: --target tensorrt"
        yield Finding("tensorrt", "TensorRT", "ok", detail)
    else:
        yield Finding("tensorrt", "TensorRT", "missing", "not installed", _install("tensorrt"))
    yield _examine_library()
    yield _examine_python_plugins(gpus)


def _examine_library() -> Finding:
    """Whether the C++ plugins are there, and why not; without them the Python plugins do the same."""
    from edge_mrcnn.gpu import library

    name, instead = "C++ plugins", "the Python plugins take their place"
    try:
        path = library.find_library()
    except PluginError as error:
        return Finding("tensorrt", name, "missing", f"{library.VARIABLE} is set", str(error))
    record = library.read_record()
    if path is not None:
        made = (
            f", for TensorRT {record.tensorrt} with CUDA {record.cuda}" if record and path.parent.name == "lib" else ""
        )
        return Finding("tensorrt", name, "ok", f"{path}{made}")
    if os.environ.get(library.VARIABLE) == "off":
        return Finding("tensorrt", name, "note", f"left out by {library.VARIABLE}=off; {instead}")
    reason = record.reason if record and record.reason else "the package was installed without building them"
    return Finding("tensorrt", name, "note", f"not built: {reason}; {instead}")


def _examine_python_plugins(gpus: list[device.Gpu]) -> Finding:
    """Whether their kernels can be compiled: by cuda.core with NVRTC, from the sources in the package."""
    from edge_mrcnn.gpu import compile as kernels

    name, folder = "Python plugins", kernels.kernel_folder()
    sources = sorted(path.name for path in folder.glob("*/*.cuh") if path.stem == path.parent.name)
    if not sources:
        remedy = "install it again: pip install --force-reinstall --no-deps edge-mrcnn"
        return Finding("tensorrt", name, "missing", f"the kernels' sources are not in {folder}", remedy)
    nvrtc = _find_nvrtc()
    if nvrtc is not None and "cuda" in _installed():
        return Finding("tensorrt", name, "ok", f"NVRTC {nvrtc} compiles {len(sources)} kernel files in {folder}")
    what = "cuda-core" if nvrtc is not None else "NVRTC"
    if not gpus:
        return Finding("tensorrt", name, "note", f"build engines; running them would take {what} as well as a GPU")
    remedy = _install(_cuda_extra())
    return Finding("tensorrt", name, "missing", f"build engines, but need {what} to run them", remedy)


def _find_nvrtc() -> str | None:
    """Version of pip's NVRTC, `of the CUDA toolkit` where the loader knows one, else None."""
    for distribution in ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of the CUDA toolkit" if ctypes.util.find_library("nvrtc") else None


def _cuda_extra() -> str:
    """The extra whose CUDA the driver runs."""
    version = device.driver_cuda_version()
    return "gpu-cu12" if version is not None and version[0] < 13 else "gpu-cu13"


def _examine_video() -> Iterable[Finding]:
    try:
        import cv2
    except Exception as error:  # a broken OpenCV raises whatever it likes
        remedy = _install("vision")
        if not isinstance(error, ModuleNotFoundError):
            remedy = "on Debian or Ubuntu: sudo apt-get install -y libgl1 libglib2.0-0"
        yield Finding("video", "OpenCV", "missing", f"cannot be imported ({error})", remedy)
        return
    information = cv2.getBuildInformation()
    for name in ("FFMPEG", "v4l/v4l2"):
        found = re.search(rf"^\s*{name}:\s*(\S+)", information, re.MULTILINE)
        yield Finding("video", f"reads through {name}", "note", found[1].lower() if found else "no")
    yield _examine_gstreamer(information)
    yield _examine_window(information)


def _examine_gstreamer(information: str) -> Finding:
    """Whether OpenCV has GStreamer, and on a Jetson whether that knows its hardware."""
    name, what = "reads through GStreamer", "csi://, gst:// and decode=hardware"
    jetson = device.jetson_model() is not None
    if not re.search(r"^\s*GStreamer:\s*YES", information, re.MULTILINE):
        if jetson:
            remedy = f"pip uninstall opencv-python opencv-python-headless; {ON_JETSON}"
            return Finding("video", name, "missing", f"not in this OpenCV, for {what}", remedy)
        return Finding("video", name, "note", f"no, as in every OpenCV of pip's; {what} take the system's OpenCV")
    if not jetson:
        return Finding("video", name, "ok", "yes, for gst://; csi:// and decode=hardware are for a Jetson")
    tool = shutil.which("gst-inspect-1.0")
    missing = [
        element
        for element in JETSON_ELEMENTS
        if tool and subprocess.run([tool, "--exists", element], check=False, capture_output=True).returncode
    ]
    if missing:
        remedy = "sudo apt-get install nvidia-l4t-gstreamer"
        return Finding("video", name, "missing", f"{', '.join(missing)} not installed, for {what}", remedy)
    return Finding("video", name, "ok", f"yes, for {what}")


def _examine_pyav() -> Iterable[Finding]:
    """What reads network cameras, and with which encoder it writes videos."""
    try:
        import av
    except Exception as error:  # a broken library raises whatever it likes
        detail = "not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        yield Finding("video", "PyAV", "missing", f"{detail}, for network cameras and videos", _install("video"))
        return
    yield Finding("video", "PyAV", "ok", f"{av.__version__}, for network cameras and videos")
    if "libx264" in av.codecs_available:
        yield Finding("video", "writes video", "ok", "H.264")
    else:
        yield Finding("video", "writes video", "note", "MPEG-4: this FFmpeg has no libx264; pip's PyAV has it")


def _examine_window(information: str) -> Finding:
    found = re.search(r"^\s*GUI:\s*(\S+)", information, re.MULTILINE)
    if not found or found[1].upper() == "NONE":
        return Finding("video", "shows windows", "missing", "this OpenCV has no GUI", "pip install opencv-python")
    if platform.system() == "Linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return Finding("video", "shows windows", "note", f"OpenCV has {found[1]}, but there is no display (DISPLAY)")
    return Finding("video", "shows windows", "ok", found[1])


def _examine_rendering() -> Iterable[Finding]:
    found = [name for name in ("OSMesa", "EGL") if ctypes.util.find_library(name)]
    if found:
        yield Finding("rendering", "offscreen", "ok", f"{' and '.join(found)}, for the sample world")
    else:
        remedy = "on Debian or Ubuntu: sudo apt-get install -y libosmesa6"
        yield Finding("rendering", "offscreen", "missing", "neither OSMesa nor EGL, for the sample world", remedy)


def _examine_verbs(gpus: list[device.Gpu]) -> Iterable[Finding]:
    installed = _installed()
    for verb, needs in NEEDS.items():
        missing = [need for need in needs if not _is_met(need, installed, gpus)]
        if not missing:
            yield Finding("verbs", verb, "ok", _describe_verb(verb, installed, gpus))
            continue
        extras = dict.fromkeys(_extra_of(need) for need in missing)
        detail = f"needs {', '.join(missing)}"
        if verb == "inspect":
            detail += " for model.onnx; engines can be inspected as it is"
        yield Finding("verbs", verb, "missing", detail, _install(",".join(extras)))


def _is_met(need: str, installed: dict[str, str], gpus: list[device.Gpu]) -> bool:
    if need == "tensorrt or tensorrt_rtx":
        return "tensorrt_rtx" in installed or ("tensorrt" in installed and bool(gpus))
    return need in installed


def _describe_verb(verb: str, installed: dict[str, str], gpus: list[device.Gpu]) -> str:
    if verb == "build":
        here = [
            f"--target {'rtx' if name == 'tensorrt_rtx' else name}"
            for name in ("tensorrt_rtx", "tensorrt")
            if name in installed and (name == "tensorrt_rtx" or gpus)
        ]
        return f"can build with {' or '.join(here)}"
    if verb in ("run", "eval", "bench"):
        return f"runs model.onnx on the CPU{_describe_engines(installed, gpus)}"
    if verb == "import" and not {"torch", "torchvision", "onnxscript"} <= set(installed):
        return "takes ONNX files; checkpoints need the extra train"
    if verb == "train" and not gpus:
        return "trains on the CPU, which is slow beside a GPU"
    return "can run here"


def _describe_engines(installed: dict[str, str], gpus: list[device.Gpu]) -> str:
    if not gpus:
        return "; engines need an NVIDIA GPU"
    missing = ["cuda-core"] * ("cuda" not in installed)
    missing += ["tensorrt or tensorrt-rtx"] * (not {"tensorrt", "tensorrt_rtx"} & set(installed))
    return f"; engines need {' and '.join(missing)}" if missing else f" and engines on {gpus[0].name}"


def _extra_of(need: str) -> str:
    if need == "tensorrt or tensorrt_rtx":
        return "rtx"
    return next(package.extra for package in PACKAGES if package.module == need)


def _installed() -> dict[str, str]:
    versions = {package.module: find_package(package) for package in PACKAGES}
    return {module: version for module, version in versions.items() if version is not None}


def _install(extra: str) -> str:
    if extra in ("tensorrt", "vision") and device.jetson_model():
        return ON_JETSON
    return f"pip install 'edge-mrcnn[{extra}]'"
