"""Steps of the comparison of tools that end in every way."""

from __future__ import annotations

import os
import sys
import time

from benchmarks.int8_tools.process import Row, serve


def step(job: Row) -> Row:
    """Do what the job says."""
    if job["do"] == "raise":
        raise ValueError("the reason")
    if job["do"] == "abort":
        sys.stderr.write("first words\nlast words\n")
        sys.stderr.flush()
        os.abort()
    if job["do"] == "hang":
        time.sleep(60)
    block = bytearray(job["mib"] << 20)
    block[::4096] = b"x" * len(block[::4096])
    return {"answer": len(block), "flag": os.environ.get("PLANTED_FLAG")}


if __name__ == "__main__":
    serve(step)
