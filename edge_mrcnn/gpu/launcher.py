"""Launching kernels by the name of their source: compiled, loaded once, given to a stream."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from edge_mrcnn.gpu import cuda
from edge_mrcnn.gpu.compile import compile_kernels
from edge_mrcnn.gpu.launches import Launch


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

        Args:
            launches: What a plan of `edge_mrcnn.gpu.kernels` made.
            stream: Handle of the stream.

        Raises:
            EngineError: The GPU refuses one, or earlier work on it failed.
        """
        for launch in launches:
            cuda.launch_kernel(self._modules[launch.source].kernel(launch.kernel), launch, stream)

    def close(self) -> None:
        """Unload the kernels, which nothing may be using any more."""
        with self._lock:
            while self._modules:
                self._modules.popitem()[1].close()

    def __enter__(self) -> KernelLauncher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
