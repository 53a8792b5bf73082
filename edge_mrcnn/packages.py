"""Optional packages: what each is for, what brings it, and which verbs take it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """An optional package.

    Attributes:
        module: How it is imported.
        distributions: Names under which it is installed.
        extra: What brings it.
        purpose: What it is for, in a few words.
    """

    module: str
    distributions: tuple[str, ...]
    extra: str
    purpose: str


_OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
    "opencv",
)

PACKAGES = (
    Package("cv2", _OPENCV, "vision", "pictures, videos, cameras"),
    Package("av", ("av",), "video", "network cameras and writing videos"),
    Package("aiohttp", ("aiohttp",), "web", "the live page: mjpeg://"),
    Package("prometheus_client", ("prometheus-client",), "web", "the live page's /metrics"),
    Package("rosbags", ("rosbags",), "ros", "ROS 2 messages, and bags as sources"),
    Package("mcap", ("mcap",), "ros", "MCAP recordings"),
    Package("cyclonedds", ("cyclonedds",), "dds", "ros2:// over DDS, which stock ROS 2 speaks"),
    Package("zenoh", ("eclipse-zenoh",), "zenoh", "ros2:// over Zenoh"),
    Package("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), "cpu", "running model.onnx on the CPU"),
    Package("onnx", ("onnx",), "compile", "passes over the model"),
    Package("onnx_graphsurgeon", ("onnx-graphsurgeon",), "compile", "passes over the model"),
    Package("tensorrt_rtx", ("tensorrt-rtx",), "rtx", "engines for RTX desktops, built with or without a GPU"),
    Package("tensorrt", ("tensorrt",), "tensorrt", "engines for Jetsons and data-centre GPUs, built on the device"),
    Package("cuda", ("cuda-core",), "gpu-cu13", "running engines (gpu-cu12 for CUDA 12)"),
    Package("pycocotools", ("pycocotools",), "eval", "COCO average precision"),
    Package("jinja2", ("Jinja2",), "eval", "reports of comparisons"),
    Package("matplotlib", ("matplotlib",), "eval", "charts"),
    Package("torch", ("torch",), "train", "training and export"),
    Package("torchvision", ("torchvision",), "train", "training and export"),
    Package("onnxscript", ("onnxscript",), "train", "export"),
    Package("mujoco", ("mujoco",), "tabletop", "generating the sample world"),
)
"""In the order in which `edge-mrcnn doctor` tells of them."""

GPU_ONLY = ("tensorrt", "cuda")
"""Modules that are of no use without a GPU."""

NEEDS: dict[str, tuple[str, ...]] = {
    "train": ("torch", "torchvision", "pycocotools", "cv2"),
    "export": ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime"),
    "import": ("onnx", "onnx_graphsurgeon", "onnxruntime"),
    "calibrate": ("onnx", "onnx_graphsurgeon", "onnxruntime", "cv2"),
    "sensitivity": ("onnx", "onnx_graphsurgeon", "onnxruntime", "cv2", "pycocotools"),
    "build": ("onnx", "onnx_graphsurgeon", "onnxruntime", "tensorrt or tensorrt_rtx"),
    "run": ("onnxruntime", "cv2"),
    "eval": ("onnxruntime", "cv2", "pycocotools"),
    "compare": ("onnx", "onnx_graphsurgeon", "onnxruntime", "cv2", "pycocotools", "jinja2", "matplotlib"),
    "bench": ("onnxruntime", "cv2"),
    "soak": ("onnxruntime", "cv2", "av", "aiohttp", "prometheus_client", "rosbags", "mcap"),
    "inspect": ("onnx", "onnx_graphsurgeon"),
}
"""Packages each verb takes."""


def find_package(package: Package) -> str | None:
    """Version of an installed package without importing it, `unknown version` where it is not noted, else None."""
    try:
        if importlib.util.find_spec(package.module) is None:
            return None
    except (ImportError, ValueError):
        return None
    for distribution in package.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None if package.module == "cuda" else "unknown version"  # other packages lie in that namespace too
