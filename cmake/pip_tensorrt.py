"""Prints the version of pip's TensorRT as NVIDIA/TensorRT tags it, such as 10.13.3; nothing where there is none.

Reads the interpreter's own packages, also where pip builds in isolation and hides them.
"""

import sys
import sysconfig
from importlib.metadata import distributions

FOR_RTX = "11.1"
"""Headers that fit TensorRT-RTX, which is not among the releases there."""

found = {
    d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions(path=[sysconfig.get_path("purelib")])
}
for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"):
    if name in found:
        sys.stdout.write(".".join(found[name].split(".")[:3]))
        break
else:
    sys.stdout.write(FOR_RTX if "tensorrt-rtx" in found else "")
