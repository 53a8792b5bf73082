"""Chooses MuJoCo's offscreen renderer: OSMesa, else EGL, before `mujoco` is imported for the first time."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from edge_mrcnn.errors import EdgeMrcnnError

# OSMesa first: it is always software, so pictures are the same on machines with and without a GPU.
_LIBRARIES = {"osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"), "egl": ("libEGL.so.1", "libEGL.so")}


def _loads(names: tuple[str, ...]) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def backend() -> str | None:
    """The renderer to use: what `MUJOCO_GL` asks for, else "osmesa" or "egl", whichever loads, else None."""
    asked = os.environ.get("MUJOCO_GL", "").lower()
    return asked or next((name for name, libraries in _LIBRARIES.items() if _loads(libraries)), None)


def load_mujoco() -> Any:
    """Imports MuJoCo with an offscreen renderer that works on this machine.

    Returns:
        The `mujoco` module.

    Raises:
        EdgeMrcnnError: neither OSMesa nor EGL can be loaded, or MuJoCo is not installed.
    """
    chosen = backend()
    if chosen is None:
        raise EdgeMrcnnError(
            "Rendering needs OSMesa or EGL, and neither library can be loaded. Install one: "
            "sudo apt-get install -y libosmesa6"
        )
    if "mujoco" in sys.modules and "MUJOCO_GL" not in os.environ:
        raise EdgeMrcnnError(
            f"MuJoCo was imported before its renderer was chosen. Set MUJOCO_GL={chosen} in the environment, or import "
            "edge_mrcnn.training.tabletop first."
        )
    os.environ["MUJOCO_GL"] = chosen
    try:
        import mujoco
    except ImportError as error:
        raise EdgeMrcnnError(f"MuJoCo cannot be imported ({error}). Install it: pip install mujoco PyOpenGL") from error
    return mujoco


# Whoever imports mujoco after this module, in whatever way, gets a renderer that works.
if "mujoco" not in sys.modules and (_found := backend()) is not None:
    os.environ["MUJOCO_GL"] = _found
