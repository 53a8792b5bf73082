"""Whether an engine may run here: TensorRT's version, the GPU and the plugins, read from its sidecar alone.

TensorRT itself says no in the middle of loading, in a log line that names serialisation versions. What is asked here
comes before that and answers with what was found, what is needed and the command that makes the right engine.
"""

from __future__ import annotations

import re
import shlex

import edge_mrcnn
from edge_mrcnn.device import Gpu
from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu.target import Flavour, parse_target
from edge_mrcnn.gpu.tensorrt_api import MODULES, describe
from edge_mrcnn.sidecar import EngineSidecar, plugins_hash

_AMPERE = (8, 0)
"""What an engine built for `rtx` alone starts at.

Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
"""

_VARIANT = re.compile(r"\b(nvidia|geforce|nvgpu|pcie?|nvl|sxm\d?|hbm\d\w?|\d+\s?gi?b)\b|[()]", re.IGNORECASE)
"""Words in a GPU's name that do not make it another GPU to an engine: vendor, memory, socket."""


def check_engine(sidecar: EngineSidecar, version: str, gpu: Gpu) -> None:
    """Check that an engine was built for the TensorRT, the GPU and the plugins that are here.

    Args:
        sidecar: Of the engine.
        version: Of the installed TensorRT of the sidecar's flavour.
        gpu: That it shall run on.

    Raises:
        EngineError: It was not; the message says what was found, what is needed and how to build it again.
    """
    _check_version(sidecar, version, gpu)
    _check_device(sidecar, gpu)
    _check_plugins(sidecar, gpu)


def engine_flavour(sidecar: EngineSidecar) -> Flavour:
    """Which TensorRT runs the engine.

    Raises:
        EngineError: The sidecar names none that is known.
    """
    for flavour in MODULES:
        if flavour == sidecar.flavour:
            return flavour
    raise EngineError(
        f"the engine is for {sidecar.flavour!r}, this version of edge_mrcnn runs engines for {', '.join(MODULES)}; "
        f"build it again: {rebuild_command(sidecar, None)}"
    )


def rebuild_command(sidecar: EngineSidecar, gpu: Gpu | None) -> str:
    """The command that builds the same engine anew.

    Args:
        sidecar: Of the engine that does not fit.
        gpu: To build for; None for those that it was built for.
    """
    target = sidecar.target if gpu is None else _target_for(sidecar, gpu)
    precision, batch = f"{sidecar.precision}{_recipe(sidecar)}", ",".join(map(str, sidecar.batch))
    return f"edge-mrcnn build model.onnx --target {target} --precision {precision} --batch {batch}"


def _recipe(sidecar: EngineSidecar) -> str:
    """The flags that decide the precision of single layers; the ranges file is the user's to name."""
    recipe = sidecar.recipe
    ranges = " --ranges ranges.json" if recipe.ranges_sha256 is not None else ""
    kept = (("--keep-fp16", recipe.keep_fp16), ("--keep-fp32", recipe.keep_fp32))
    return ranges + "".join(f" {flag} {shlex.join(patterns)}" for flag, patterns in kept if patterns)


def _check_version(sidecar: EngineSidecar, version: str, gpu: Gpu) -> None:
    """An engine is read by the very TensorRT that wrote it, build number included.

    One of the two may be without the build number (`10.3.0`), which packages of the same release leave out or not.
    """
    pairs = zip(sidecar.tensorrt.split("."), version.split("."), strict=False)
    if all(built == found for built, found in pairs):
        return
    install = f", or install that one: pip install tensorrt-rtx=={sidecar.tensorrt}" if sidecar.flavour == "rtx" else ""
    raise EngineError(
        f"the engine was built by {describe(engine_flavour(sidecar))} {sidecar.tensorrt} and runs with no other, here "
        f"is {version}; build it again with this one: {rebuild_command(sidecar, gpu)}{install}"
    )


def _check_device(sidecar: EngineSidecar, gpu: Gpu) -> None:
    here = f"{gpu.name} ({gpu.sm})"
    rebuild = f"build it for this GPU: {rebuild_command(sidecar, gpu)}"
    if sidecar.capability is not None or sidecar.flavour == "tensorrt":  # built on a GPU, for that GPU
        there = f"{sidecar.device} ({sidecar.capability})"
        if sidecar.capability != gpu.sm:
            raise EngineError(f"the engine was built on {there} and cannot run on {here}; {rebuild}")
        if sidecar.flavour == "tensorrt" and gpu_class(sidecar.device or "") != gpu_class(gpu.name):
            raise EngineError(
                f"the engine was tuned on {there}, here is {here}: of the same architecture, but with other numbers of "
                f"multiprocessors and other memory, on which it is slow or fails; {rebuild}"
            )
        return
    wanted = parse_target(sidecar.target).capabilities
    if wanted and gpu.sm not in wanted:
        raise EngineError(f"the engine is for {', '.join(wanted)}, here is {here}; {rebuild}")
    if not wanted and gpu.capability < _AMPERE:
        raise EngineError(f"the engine is for GPUs from Ampere (sm_80) on, here is {here}; {rebuild}")


def _check_plugins(sidecar: EngineSidecar, gpu: Gpu) -> None:
    if sidecar.plugins_sha256 != plugins_hash():
        raise EngineError(
            f"the engine was built with the plugins of edge_mrcnn {sidecar.edge_mrcnn}, contract "
            f"{sidecar.plugins_sha256[:12]}...; this is edge_mrcnn {edge_mrcnn.__version__}, contract "
            f"{plugins_hash()[:12]}...; export the model again and build it: edge-mrcnn export MODEL_NAME "
            f"--weights FILE -o model.onnx && {rebuild_command(sidecar, gpu)}"
        )


def gpu_class(name: str) -> str:
    """A GPU's name without vendor, memory size and socket: the same for GPUs that an engine cannot tell apart.

    Example:
        >>> gpu_class("NVIDIA A100-SXM4-40GB") == gpu_class("NVIDIA A100-PCIE-80GB")
        True
        >>> gpu_class("NVIDIA GeForce RTX 4090") == gpu_class("NVIDIA GeForce RTX 4090 Laptop GPU")
        False
    """
    return " ".join(re.split(r"[\s-]+", _VARIANT.sub(" ", name).strip(" -").lower()))


def _target_for(sidecar: EngineSidecar, gpu: Gpu) -> str:
    """The target of the sidecar, or with this GPU in it."""
    if sidecar.flavour == "tensorrt":
        return "tensorrt"
    target = parse_target(sidecar.target)
    if target.current:
        return "rtx:current"
    if target.capabilities:
        return f"rtx:{','.join(dict.fromkeys([*target.capabilities, gpu.sm]))}"
    return "rtx" if gpu.capability >= _AMPERE else f"rtx:{gpu.sm}"
