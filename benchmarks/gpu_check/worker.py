"""The process of one part: `python -m benchmarks.gpu_check.worker MODULE:FUNCTION ROWS_FILE`."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from benchmarks.gpu_check.isolation import Row, Skipped

TRACE_LINES = 6


def main(target: str, path: str) -> int:
    """Run the function and write its rows, and how it ended, as JSON lines."""
    with Path(path).open("a", encoding="utf-8") as file:

        def write(event: Row) -> None:
            file.write(json.dumps(event) + "\n")
            file.flush()

        module, _, function = target.partition(":")
        try:
            getattr(importlib.import_module(module), function)(lambda row: write({"row": row}))
        except Skipped as error:
            write({"end": "skipped", "reason": str(error)})
        except Exception:
            trace = traceback.format_exc().strip().splitlines()
            write({"end": "failed", "reason": "\n".join(trace[-TRACE_LINES:])})
            traceback.print_exc()
        else:
            write({"end": "done", "reason": ""})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
