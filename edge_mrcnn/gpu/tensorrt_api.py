"""The one place that knows which TensorRT is there: the full one (10.3 to 11.x) or TensorRT-RTX.

Their Python modules are nearly one API. What differs (module name, removed flags, moved enum values, targets) is kept
in here, and nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_mrcnn.errors import EngineError
from edge_mrcnn.gpu.target import Flavour, Target

MODULES: dict[Flavour, str] = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
LIBRARY_PACKAGES: dict[Flavour, str] = {"rtx": "tensorrt_rtx_libs", "tensorrt": "tensorrt_libs"}
OLDEST: dict[Flavour, tuple[int, int]] = {"rtx": (1, 7), "tensorrt": (10, 3)}
"""TensorRT-RTX takes custom ops from 1.7 on: the parser of 1.6 calls them not supported."""

INSTALL: dict[Flavour, str] = {
    "rtx": "pip install 'edge-mrcnn[rtx]'",
    "tensorrt": "pip install 'edge-mrcnn[tensorrt]' on a PC with an NVIDIA GPU; a Jetson has it from JetPack: "
    "sudo apt install python3-libnvinfer, in a virtual environment made with --system-site-packages",
}


@dataclass(frozen=True)
class TensorRtApi:
    """A TensorRT module and what has to be done differently with it.

    Attributes:
        flavour: Which of the two.
        module: The Python module, as its documentation describes it.
    """

    flavour: Flavour
    module: Any = field(repr=False)

    @property
    def version(self) -> str:
        """All of the version, such as `10.3.0` or `1.7.1.116`."""
        return str(self.module.__version__)

    def create_network(self, builder: Any) -> Any:
        """A strongly typed network: the types of the ONNX file hold, and none falls back silently."""
        flag = self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED  # 1 in TensorRT 10, 0 in 11
        return builder.create_network(1 << int(flag))

    def set_targets(self, config: Any, target: Target) -> None:
        """Set what the engine is for.

        Source: TensorRT-RTX builds for compute capability 8.0 and later when nothing is set; 7.5 must be named.
        https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html

        Raises:
            EngineError: This TensorRT cannot build for it.
        """
        if self.flavour != "rtx":
            return
        known = self.capabilities()
        if unknown := [name for name in target.capabilities if name not in known]:
            raise EngineError(
                f"TensorRT-RTX {self.version} cannot build for {', '.join(unknown)}, only for {', '.join(known)}; "
                "for a Jetson or a data-centre GPU build on the device itself with --target tensorrt"
            )
        members = [known[name] for name in target.capabilities]
        if target.current:
            members = [self.module.ComputeCapability.CURRENT]
        if members:
            config.num_compute_capabilities = len(members)
        for index, member in enumerate(members):
            if not config.set_compute_capability(member, index):
                raise EngineError(
                    f"TensorRT-RTX {self.version} refuses to build for {member}; leave it out of --target"
                )

    def capabilities(self) -> dict[str, Any]:
        """What TensorRT-RTX can build for: `sm_86` and so on with the module's own members."""
        members = self.module.ComputeCapability.__members__
        return {f"sm_{name[2:]}": member for name, member in members.items() if name[:2] == "SM" and name[2:].isdigit()}

    def configure(self, config: Any, workspace_bytes: int | None) -> None:
        """Set what every build of ours wants: full float32 where float32 is asked for, and the workspace's limit."""
        config.clear_flag(self.module.BuilderFlag.TF32)
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        if workspace_bytes is not None:
            config.set_memory_pool_limit(self.module.MemoryPoolType.WORKSPACE, workspace_bytes)

    def make_logger(self, sink: Callable[[str, str], None]) -> Any:
        """A logger that hands each message to `sink(severity, text)`, severity in lower case."""
        base = self.module.ILogger

        class Logger(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                sink(severity.name.lower(), text)

        return Logger()

    def make_progress_monitor(self, report: Callable[[str, str | None, int, int], None]) -> Any:
        """A progress monitor that calls `report(phase, parent, steps done, steps)`; `steps` done at its end."""
        base = self.module.IProgressMonitor

        class Monitor(base):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                base.__init__(self)
                self.phases: dict[str, tuple[str | None, int]] = {}

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                self.phases[phase_name] = parent_phase, num_steps
                report(phase_name, parent_phase, 0, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                parent, steps = self.phases[phase_name]
                report(phase_name, parent, step + 1, steps)
                return True

            def phase_finish(self, phase_name: str) -> None:
                parent, steps = self.phases.pop(phase_name)
                report(phase_name, parent, steps, steps)

        return Monitor()


def load(flavour: Flavour) -> TensorRtApi:
    """Import a TensorRT.

    Raises:
        EngineError: It is not installed, too old, or its libraries do not load.
    """
    try:
        module = importlib.import_module(MODULES[flavour])
    except ModuleNotFoundError as error:
        raise EngineError(f"{describe(flavour)} is not installed; {INSTALL[flavour]}") from error
    except (ImportError, OSError) as error:
        raise EngineError(
            f"{describe(flavour)} does not load ({error}); install it again: {INSTALL[flavour]}"
        ) from error
    api = TensorRtApi(flavour, module)
    if tuple(int(part) for part in api.version.split(".")[:2]) < OLDEST[flavour]:
        oldest = ".".join(map(str, OLDEST[flavour]))
        raise EngineError(f"{describe(flavour)} {api.version} is too old, {oldest} is needed; {INSTALL[flavour]}")
    return api


def describe(flavour: Flavour) -> str:
    """The product's name."""
    return "TensorRT-RTX" if flavour == "rtx" else "TensorRT"


def installed_version(flavour: Flavour) -> str | None:
    """Version of an installed TensorRT without importing it, `unknown version` where it is not noted, else None."""
    if importlib.util.find_spec(MODULES[flavour]) is None:
        return None
    try:
        return importlib.metadata.version(MODULES[flavour])
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def link_libraries(flavour: Flavour, folder: Path) -> None:
    """Fill a folder for `LD_LIBRARY_PATH` with the names under which TensorRT's parts open each other.

    The RTX parser opens `libtensorrt_rtx.so` at run time while its wheel ships `libtensorrt_rtx.so.1` only, and the
    process aborts when it is not found.
    """
    spec = importlib.util.find_spec(LIBRARY_PACKAGES[flavour])
    for place in (spec.submodule_search_locations or ()) if spec else ():
        for library in Path(place).glob("lib*.so.*"):
            link = folder / f"{library.name.partition('.so.')[0]}.so"
            if not link.exists():
                link.symlink_to(library)
