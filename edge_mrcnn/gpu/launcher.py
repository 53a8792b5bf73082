"""Launching kernels by the name of their source: compiled, loaded once, given to a stream."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from edge_mrcnn.gpu import cuda
from edge_mrcnn.gpu.compile import compile_kernels
from edge_mrcnn.gpu.launches import Launch

_shared: weakref.WeakValueDictionary[int, KernelLauncher] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


class KernelLauncher:
    """The kernels of one context, which several threads may use.

    Args:
        context: Where they run; it must outlive this, or be closed after it.
        cache: Folder of compiled kernels; the user's by default.

    Example:
        >>> launcher.load([letterbox.SOURCE])  # doctest: +SKIP
        >>> launcher.run(letterbox.launches(...), stream.handle)  # doctest: +SKIP
    """

    def __init__(self, context: cuda.Context, cache: Path | None = None) -> None:
        self.context, self.cache = context, cache
        self._modules: dict[str, cuda.Module] = {}
        self._lock = threading.Lock()

    @classmethod
    def of_thread(cls) -> KernelLauncher:
        """The one for the calling thread's context; whoever has it shares it, and with the last it is unloaded.

        Raises:
            EngineError: The thread has no context.
        """
        context = cuda.Context.current()
        with _shared_lock:
            launcher = _shared.get(context.handle)
            if launcher is not None:
                context.close()
                return launcher
            launcher = _shared[context.handle] = cls(context)
            # In a context that is not the primary one nothing is unloaded: it may be gone already.
            if context.primary:
                weakref.finalize(launcher, _unload, launcher._modules, context).atexit = False
        return launcher

    def load(self, sources: Iterable[str]) -> None:
        """Compile and load the files that are not loaded yet: 1 ms each from the cache, else about a second.

        Raises:
            PluginError: One does not compile, or there is no compiler.
            EngineError: The GPU refuses it.
        """
        for source in sources:
            with self._lock:
                if source not in self._modules:
                    binary = compile_kernels(source, self.context.architecture, cache=self.cache)
                    self._modules[source] = cuda.Module(self.context, binary)

    def run(self, launches: Sequence[Launch], stream: int) -> None:
        """Give launches to a stream, in order; the context is current and the sources are loaded.

        The driver loads a kernel at its first launch, so a stream is captured only after the same launches have run.

        Args:
            launches: What a plan of `edge_mrcnn.gpu.kernels` made.
            stream: Handle of the stream.

        Raises:
            EngineError: The GPU refuses one, or earlier work on it failed.
        """
        for launch in launches:
            launch_kernel(self._modules[launch.source].kernel(launch.kernel), launch, stream)

    def close(self) -> None:
        """Unload the kernels, which nothing may be using any more."""
        _unload(self._modules)

    def __enter__(self) -> KernelLauncher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def launch_kernel(kernel: int, launch: Launch, stream: int) -> None:
    """Give one kernel launch to a stream.

    Args:
        kernel: What `cuda.Module.kernel` gave for `launch.kernel`.
        launch: Its grid, block and parameter; copied by the driver before this returns.
        stream: Handle of the stream.
    """
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(launch.args))
    result = cuda.driver().cuLaunchKernel(
        kernel, *launch.grid, launch.block, 1, 1, launch.shared_bytes, stream, ctypes.addressof(parameters), 0
    )
    cuda.check(result, f"launch {launch.kernel} with grid {launch.grid}")


def _unload(modules: dict[str, cuda.Module], context: cuda.Context | None = None) -> None:
    """Close modules, and then the context."""
    while modules:
        modules.popitem()[1].close()
    if context is not None:
        context.close()
