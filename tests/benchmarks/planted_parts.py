"""Parts of a check that go wrong in every way."""

from __future__ import annotations

import os
import sys
import time

from benchmarks.gpu_check.isolation import Emit, Skipped


def fine(emit: Emit) -> None:
    emit({"ok": True, "number": 1})
    emit({"note": "no verdict"})


def one_check_fails(emit: Emit) -> None:
    emit({"ok": True})
    emit({"ok": False, "detail": "2 is not 3"})


def raises(emit: Emit) -> None:
    emit({"number": 1})
    raise ValueError("the reason")


def skips(emit: Emit) -> None:
    raise Skipped("no such tool here")


def aborts(emit: Emit) -> None:
    emit({"number": 1})
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os.abort()


def exits(emit: Emit) -> None:
    os._exit(7)


def hangs(emit: Emit) -> None:
    emit({"number": 1})
    time.sleep(600)
