"""TensorRT-RTX's runtime cache on disk: the kernels it compiled for this GPU, so that they are compiled once.

A cache that is missing, damaged or from another machine costs time and never a run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from edge_mrcnn.files import atomic_path, cache_folder

_log = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size


class RuntimeCacheFile:
    """A file of one cache: its SHA-256, then what TensorRT-RTX serialised.

    TensorRT-RTX checks what it reads, but it is native code: what is not as it was written is not shown to it.

    Args:
        parts: Everything that the cache belongs to: engine, GPU, driver, version.
        folder: Where the file lies; by default `edge_mrcnn/runtime` in the user's cache folder.
    """

    def __init__(self, parts: Sequence[str], folder: Path | None = None) -> None:
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        self.path = (folder or cache_folder("runtime")) / f"{name}.cache"
        self._digest = b""

    def read(self) -> bytes | None:
        """What was written last, or None where there is nothing or it is damaged."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            _log.warning("the runtime cache %s is damaged and is made anew", self.path)
            return None
        self._digest = digest
        return data

    def write(self, data: bytes) -> None:
        """Write it whole or not at all, and not where it has not changed since it was read or written."""
        digest = hashlib.sha256(data).digest()
        if digest == self._digest:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.path) as partial:
                partial.write_bytes(digest + data)
            self._digest = digest
        except OSError as error:
            _log.warning("the runtime cache is not kept (%s); kernels are compiled again at the next start", error)
