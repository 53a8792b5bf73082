"""`BuildOptions` and `BuildResult`: what a build is told and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_mrcnn.compiler.recipe import Precision, Recipe
from edge_mrcnn.gpu.target import CPU, CURRENT, parse_target
from edge_mrcnn.sidecar import EngineSidecar, PrecisionShare, sidecar_path


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine."""

    precision: Precision = "fp16"
    """What the network computes in; boxes, top-k, softmax and NMS are float32 either way. int8 takes --ranges, and what
    is not quantised is float16 (float32 with target `cpu`)."""

    target: str | None = None
    """TensorRT and GPUs to build for: `rtx` (any RTX GPU from Ampere on), `rtx:sm_86,sm_89`, `rtx:current`, `tensorrt`
    (the full one, for this machine's GPU) or `current`; or `cpu`, which with int8 gives an ONNX file for ONNX Runtime's
    integer kernels, of any batch and without a cache. By default what this machine can do: `tensorrt` where it and a
    GPU are there, else `rtx`."""

    ranges: Path | None = None
    """Ranges of the model's activations, from `edge-mrcnn calibrate`; for int8, unless the model brings Q/DQ nodes of
    its own."""

    keep_fp16: tuple[str, ...] = ()
    """Regular expressions, searched in the names of layers: these are not quantised. The names: `edge-mrcnn inspect
    --layers`."""

    keep_fp32: tuple[str, ...] = ()
    """Likewise: these layers stay in float32, with fp16 too."""

    batch: str | tuple[int, int, int] = "1,1,4"
    """Smallest, optimal and largest batch, such as `1,1,4`; `1..4` is the same, `2` is a fixed batch of 2."""

    workspace: float = 0.5
    """Memory TensorRT may use beside the weights: up to 1 a fraction of the GPU's free memory, above 1 MiB."""

    timeout_s: float = 3600.0
    """Longest time the build may take, in seconds."""

    cache_dir: Path | None = None
    """Folder that keeps engines built before; by default `edge_mrcnn/engines` in the user's cache folder."""

    cache_limit_gib: float = 4.0
    """The cache drops the engines not used for longest beyond this size; 0 keeps none."""

    force: bool = False
    """Build even where the same engine is there already."""

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            ValueError: An option has a value it cannot have, or does not go with another.
        """
        Recipe(self.precision, keep_fp16=self.keep_fp16, keep_fp32=self.keep_fp32)  # checks all three
        if self.target not in (None, CURRENT, CPU):
            parse_target(str(self.target))
        self._check_precision()
        parse_batch(self.batch)
        for name in ("workspace", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.cache_limit_gib >= 0:
            raise ValueError(f"cache_limit_gib must be 0 or more, got {self.cache_limit_gib}")

    def _check_precision(self) -> None:
        if self.target == CPU and self.precision != "int8":
            gain = "in float32 already" if self.precision == "fp32" else "and float16 gains nothing on a CPU"
            raise ValueError(
                f"target cpu with precision {self.precision}: model.onnx runs on a CPU as it is, {gain}; what can be "
                "built for it is int8: --target cpu --precision int8 --ranges ranges.json"
            )
        if self.ranges is not None and self.precision != "int8":
            raise ValueError(f"ranges are for int8, not for {self.precision}: give --precision int8, or leave them out")
        if self.keep_fp16 and self.precision != "int8":
            raise ValueError(f"keep_fp16 keeps layers out of int8, not out of {self.precision}; leave it out")
        if self.keep_fp32 and self.precision == "fp32":
            raise ValueError("keep_fp32 keeps layers out of fp16 and int8; with precision fp32 all are: leave it out")


@dataclass(frozen=True)
class BuildResult:
    """What a build gave.

    Attributes:
        engine: The engine; the ONNX file where the target is `cpu`.
        sidecar: Its sidecar.
        cached: True where the same engine had been built before and was taken over.
        seconds: From the call to the end.
        size_bytes: Of the engine.
        target: What it was built for.
        peak_memory_bytes: Of the process that built it; None where it was cached, and with target `cpu`.
        requested: Work by precision, as the network asks for it.
        realised: Work by precision, as it was found in the engine; None where nothing could look into it.
        kept: Names of the weighted layers of an int8 build that are not int8.
    """

    engine: Path
    sidecar: Path
    cached: bool
    seconds: float
    size_bytes: int
    target: str
    peak_memory_bytes: int | None = None
    requested: tuple[PrecisionShare, ...] = ()
    realised: tuple[PrecisionShare, ...] | None = None
    kept: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        engine: Path,
        sidecar: EngineSidecar,
        seconds: float,
        *,
        cached: bool = False,
        peak_memory_bytes: int | None = None,
    ) -> BuildResult:
        """The result of a build by the sidecar that lies beside it."""
        weighted = [layer for layer in sidecar.layers if layer.macs is not None]
        kept = [layer.name for layer in weighted if layer.requested != "int8"] if sidecar.precision == "int8" else []
        return cls(
            engine=engine,
            sidecar=sidecar_path(engine),
            cached=cached,
            seconds=seconds,
            size_bytes=engine.stat().st_size,
            target=sidecar.target,
            peak_memory_bytes=peak_memory_bytes,
            requested=sidecar.requested,
            realised=sidecar.realised,
            kept=tuple(kept),
        )


def parse_batch(batch: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """Smallest, optimal and largest batch from `1,1,4`, `1..4` or `2`, or from three numbers.

    Raises:
        ValueError: The text has another form, or the sizes do not rise from at least 1.
    """
    try:
        if isinstance(batch, str) and ".." in batch:
            low, high = (int(part) for part in batch.split(".."))
            sizes = [low, low, high]
        else:
            sizes = [int(part) for part in (batch.split(",") if isinstance(batch, str) else batch)]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) == 1:
        sizes *= 3
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ValueError(
            f"batch {batch!r} must be three rising numbers such as 1,1,4, or 1..4, or a fixed one such as 2"
        )
    return sizes[0], sizes[1], sizes[2]
