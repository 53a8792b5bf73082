"""Memory that was freed goes back to the system."""

import ctypes
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from edge_mrcnn.evaluation.soak.vitals import read_vitals
from edge_mrcnn.runtime.flow.heap import give_memory_back

on_glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")


@on_glibc
def test_freed_memory_is_given_back() -> None:
    kept: list[np.ndarray] = []

    def fill() -> None:
        """What is kept lies above what is freed: the heap cannot shrink by itself."""
        freed = [np.ones(60_000, np.uint8) for _ in range(2000)]
        kept.append(np.ones(60_000, np.uint8))
        del freed

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    before_mb = read_vitals()[0]
    with give_memory_back(0.05):
        end = time.monotonic() + 30
        while read_vitals()[0] > before_mb - 80:
            assert time.monotonic() < end, (before_mb, read_vitals())
            time.sleep(0.02)
    assert kept[0].all()
    assert not [one for one in threading.enumerate() if one.name == "edge-mrcnn-heap"]


@on_glibc
def test_pictures_are_given_back_at_once() -> None:
    program = """
        import numpy as np
        from edge_mrcnn.evaluation.soak.vitals import read_vitals
        from edge_mrcnn.runtime.flow.heap import give_memory_back

        with give_memory_back(1e6):
            for _ in range(3):
                del [np.ones(30_000_000, np.uint8)][:]  # glibc would keep blocks of that size from now on
            pictures, small = [], []
            for _ in range(200):  # what is kept lies between what is freed
                pictures.append(np.ones(1_000_000, np.uint8))
                small.append(np.ones(20_000, np.uint8))
            full_mb = read_vitals()[0]
            del pictures
            print(full_mb - read_vitals()[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(done.stdout) > 180


def test_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with give_memory_back(0.01):
        assert not [one for one in threading.enumerate() if one.name == "edge-mrcnn-heap"]
