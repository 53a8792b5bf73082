"""What opening an engine takes: the GPU, its description, the inputs that ours have, the name of the backend."""

from __future__ import annotations

from pathlib import Path

from edge_mrcnn.device import Gpu
from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu import cuda, tensorrt_api
from edge_mrcnn.gpu.execution import Engine
from edge_mrcnn.gpu.runtime_cache import RuntimeCacheFile
from edge_mrcnn.runtime.trt_slot import IMAGE_HW, IMAGES, PASTED
from edge_mrcnn.sidecar import EngineSidecar, hash_file


def open_gpu(path: Path, ordinal: int) -> cuda.Context:
    """The primary context of a GPU.

    Raises:
        EngineError: There is none, or what is needed to use it is not installed.
    """
    try:
        return cuda.Context(ordinal)
    except EngineError as error:
        raise EngineError(
            f"{path} needs an NVIDIA GPU: {error}; on the CPU, run the ONNX file that it was built from: "
            "edge-mrcnn run model.onnx SOURCE"
        ) from error


def describe_gpu(device: cuda.Context) -> Gpu:
    """What a GPU is, as the sidecar's checks want to know it."""
    return Gpu(device.name, device.capability, device.memory()[1], device.integrated)


def check_inputs(path: Path, engine: Engine) -> None:
    """Check that an engine takes what a network of ours takes.

    Raises:
        EngineError: It does not.
    """
    found = {item.name: item.dtype for item in engine.inputs}
    if found != {IMAGES: "uint8", IMAGE_HW: "float32"}:
        raise EngineError(
            f"{path} is no engine of ours: its inputs are {found}, not images (uint8) and image_hw (float32); build "
            "one with: edge-mrcnn build model.onnx"
        )


def check_maps(path: Path, engine: Engine) -> None:
    """Check that an engine gives what instance maps are made of.

    Raises:
        ValueError: It does not.
    """
    missing = [name for name in PASTED if name not in {item.name for item in engine.outputs}]
    if missing:
        raise ValueError(
            f"paste asks for instance maps, but {path} has no output {', '.join(missing)}: a network without masks "
            "gives none; open it without: TrtRunner(path)"
        )


def backend_name(api: tensorrt_api.TensorRtApi, gpu: Gpu, sidecar: EngineSidecar | None) -> str:
    """TensorRT and its version, the GPU's architecture and, where it is known, the precision."""
    product = tensorrt_api.describe(api.flavour).lower()
    version = ".".join(api.version.split(".")[:3])
    return " ".join([f"{product}-{version}", gpu.sm, *([sidecar.precision] if sidecar else [])])


def cache_file(
    api: tensorrt_api.TensorRtApi, gpu: Gpu, path: Path, sidecar: EngineSidecar | None
) -> RuntimeCacheFile | None:
    """Where TensorRT-RTX keeps what it compiles of an engine for a GPU; None with TensorRT, which compiles nothing.

    Raises:
        EngineError: The engine cannot be read.
    """
    if api.flavour != "rtx":
        return None
    driver_version = cuda.check(cuda.driver().cuDriverGetVersion(), "ask for the driver's version")
    engine_sha256 = sidecar.engine_sha256 if sidecar else hash_file(path)
    return RuntimeCacheFile([engine_sha256, gpu.name, gpu.sm, str(driver_version), api.version])


def read_engine(path: Path) -> bytes:
    """The serialised engine.

    Raises:
        EngineError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"cannot read {path} ({error}); check that it exists and that you may read it") from error
