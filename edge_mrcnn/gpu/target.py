"""`Target`: what an engine is built for, as text such as `rtx:sm_86,sm_89`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Flavour = Literal["rtx", "tensorrt"]

CURRENT = "current"

CPU = "cpu"
"""A target of its own, without TensorRT: no `Target` stands for it."""

FORMS = "rtx, rtx:sm_86,sm_89, rtx:current, tensorrt, current or cpu"

_CAPABILITY = re.compile(r"sm_\d{2,3}")


@dataclass(frozen=True)
class Target:
    """A TensorRT and the GPUs to build for.

    Attributes:
        flavour: `rtx` (TensorRT-RTX) or `tensorrt`.
        capabilities: Compute capabilities such as `sm_86`; none with `rtx` means all from Ampere on.
        current: For the GPU of this machine, whichever it is.
    """

    flavour: Flavour
    capabilities: tuple[str, ...] = ()
    current: bool = False

    def __str__(self) -> str:
        """The text that `parse_target` reads."""
        if self.flavour == "tensorrt":
            return "tensorrt"
        names = CURRENT if self.current else ",".join(self.capabilities)
        return f"{self.flavour}:{names}" if names else self.flavour

    @property
    def slug(self) -> str:
        """The text as a part of a file name, such as `rtx-sm_86-sm_89`."""
        return re.sub(r"[^\w]+", "-", str(self))


def parse_target(text: str) -> Target:
    """Read a target that names its TensorRT.

    Raises:
        ValueError: The text has another form.
    """
    flavour, _, names = text.strip().lower().partition(":")
    if flavour == "tensorrt" and names in ("", CURRENT):
        return Target("tensorrt", current=True)
    if flavour == "rtx" and names == CURRENT:
        return Target("rtx", current=True)
    capabilities = tuple(dict.fromkeys(name.strip() for name in names.split(","))) if names else ()
    if flavour == "rtx" and all(_CAPABILITY.fullmatch(name) for name in capabilities):
        return Target("rtx", capabilities)
    if flavour == "tensorrt":
        raise ValueError(
            f"target {text!r}: the full TensorRT builds for the GPU at hand only; give tensorrt, or rtx:{names}"
        )
    raise ValueError(f"target {text!r} is not one of the forms {FORMS}")
